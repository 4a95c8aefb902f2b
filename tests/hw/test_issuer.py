# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.issuer import RowIssuer
from sparsemac_hw.layouts import chunk_entries
from sparsemac_hw.testing import simulate, stream_put_all

OUT_WORDS = 4


def run(seed, lanes, positions, width, lengths, stall):
    """Issues 20 random rows; returns (issued entries, expected entries, cycles, distances)."""
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=1, lanes=lanes, entry_depth=16, act_depth=4096, fifo_depth=64)
    dut = RowIssuer(config, OUT_WORDS)
    rows = [
        [(rng.randrange(200), rng.randrange(-128, 128)) for _ in range(rng.randint(*lengths))]
        for _ in range(20)
    ]
    issued, last_cycles, chunks = [], [], []
    cycle, chunk = [0], [0]

    async def entries(ctx):
        places, waiting = config.entry_depth, [entry for row in rows for entry in row]
        while waiting:
            puts = places > 0 and rng.random() >= stall
            ctx.set(dut.i_valid, puts)
            if puts:
                offset, weight = waiting.pop(0)
                ctx.set(dut.i, {"offset": offset, "weight": weight})
            *_, freed = await ctx.tick().sample(dut.freed)
            places += freed - puts
        ctx.set(dut.i_valid, 0)

    async def counts(ctx):
        ctx.set(dut.command, {
            "positions": positions, "width": width, "base": 7, "step": 3, "wrap_step": 50
        })
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        await stream_put_all(ctx, dut.i_count, [len(row) for row in rows], rng, stall)
        empty = False
        while not empty:
            *_, empty = await ctx.tick().sample(dut.empty)

    async def watch(ctx):
        async for *_, valid, addr, weight, end, last in ctx.tick().sample(
                dut.o_valid, dut.o_addr, dut.o_weight, dut.o_end, dut.o_last):
            cycle[0] += 1
            if valid:
                issued.append((addr, weight, last))
                chunk[0] += 1
                if end:
                    # A chunk is as long as it must be, and no longer than a lane can sum up.
                    assert chunk[0] >= chunk_entries(config) or last
                    chunks.append(chunk[0])
                    chunk[0] = 0
                assert end or not last
                if last:
                    last_cycles.append(cycle[0])

    async def credits(ctx):
        returned = 0
        while True:
            give = returned < len(last_cycles) and rng.random() > stall
            returned += give
            ctx.set(dut.returned, give)
            await ctx.tick()

    simulate(dut, entries, counts, background=[watch, credits])
    assert max(chunks) < 2 * chunk_entries(config)
    assert sum(chunks) == len(issued)
    expected = []
    for row in rows:
        address = 7
        for p in range(positions):
            expected += [(address + o, w, j == len(row) - 1) for j, (o, w) in enumerate(row)]
            address += 50 if (p + 1) % width == 0 else 3
    distances = [b - a for a, b in zip(last_cycles, last_cycles[1:], strict=False)]
    return issued, expected, cycle[0], distances


@pytest.mark.parametrize(
    ("lanes", "positions", "width", "lengths"),
    [(1, 1, 1, (1, 12)), (4, 1, 1, (1, 40)), (4, 8, 3, (1, 16)), (1, 8, 8, (1, 16)),
     (8, 5, 2, (8, 16)), (1, 3, 1, (1, 1))],
)
def test_issues_each_row_once_for_each_position(lanes, positions, width, lengths):
    issued, expected, _, distances = run(lanes + positions, lanes, positions, width, lengths, 0.3)
    assert issued == expected
    assert min(distances) >= lanes  # all of them share a bus


def test_issues_one_entry_per_cycle_across_rows_and_positions():
    issued, expected, cycles, _ = run(5, 8, 5, 2, (8, 16), 0.0)
    assert issued == expected
    assert cycles - len(issued) < 12  # filling and draining the pipeline, once


def test_address_beyond_the_buffer_is_an_overrun_and_reaches_no_lane():
    config = CoreConfig(engines=1, act_depth=64, fifo_depth=64)
    dut = RowIssuer(config, OUT_WORDS)
    seen = []

    async def drive(ctx):
        ctx.set(dut.command, {"positions": 1, "width": 1, "base": 60})
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        await stream_put_all(ctx, dut.i_count, [1])
        ctx.set(dut.i, {"offset": 4, "weight": 1})
        ctx.set(dut.i_valid, 1)
        await ctx.tick()
        ctx.set(dut.i_valid, 0)
        for _ in range(8):
            *_, valid, overrun = await ctx.tick().sample(dut.o_valid, dut.overrun)
            seen.append((valid, overrun))

    simulate(dut, drive)
    assert sum(v for v, _ in seen) == 0
    assert sum(o for _, o in seen) == 1
