# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.layouts import chunk_entries, partial_width
from sparsemac_hw.sums import RowSum, SumQueue
from sparsemac_hw.testing import simulate

WORDS = 4


@pytest.mark.parametrize("lanes", [8, 32, 64])
def test_puts_sums_in_lane_order_whatever_the_distance_of_rows(lanes):
    seed = lanes
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=1, lanes=lanes, fifo_depth=64)
    dut = SumQueue(config, WORDS)
    group, buses = config.shortest_row_cycles, config.sum_buses
    # Sum k of a row leaves its bus k cycles behind the row's end: lane v is v cycles late.
    events, order, cycle, left = {}, [], 0, [0] * WORDS
    for _ in range(40):
        # Never more rows under way than there is room for: one result leaves per cycle.
        cycle = max(cycle + rng.randrange(group, 2 * lanes + 1), left[-WORDS])
        left.append(max(left[-1], cycle + 2) + lanes)
        for v in range(lanes):
            value = rng.randrange(-(1 << 31), 1 << 31)
            events.setdefault(cycle + v, []).append((v // group, value))
            order.append(value)
    got = []

    async def drive(ctx):
        valid = False
        for now in range(cycle + 4 * lanes + 8):
            for b in range(buses):
                ctx.set(dut.i_valid[b], 0)
            for b, value in events.get(now, []):
                ctx.set(dut.i_valid[b], 1)
                ctx.set(dut.i_acc[b], value)
            *_, soon, acc = await ctx.tick().sample(dut.o_soon, dut.o_acc)
            if valid:
                got.append(acc)
            valid = soon

    simulate(dut, drive)
    assert got == order


@pytest.mark.parametrize(("lanes", "acc_width"), [(1, 32), (2, 24), (16, 32)])
def test_adds_up_the_chunks_of_a_row_lane_by_lane(lanes, acc_width):
    seed = lanes
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=1, lanes=lanes, acc_width=acc_width, fifo_depth=64)
    dut = RowSum(config)
    bits, group = partial_width(config), config.shortest_row_cycles
    expected, got, latencies = [], [], set()
    sent, cycle = [], [0]

    async def drive(ctx):
        for _ in range(30):
            chunks = rng.choice([1, 1, 2, 5, 300 if lanes == 1 else 9])
            totals = [0] * group
            for k in range(chunks):
                last = k == chunks - 1
                for lane in range(group):
                    value = rng.choice([-1, rng.randrange(-1 << bits - 1, 1 << bits - 1)])
                    totals[lane] += value
                    ctx.set(dut.i_valid, 1)
                    ctx.set(dut.i_last, last)
                    ctx.set(dut.i_acc, value)
                    await ctx.tick()
                ctx.set(dut.i_valid, 0)
                # The issuer's distance of ends: a chunk of at least so many entries, or a short row
                # behind a last one.
                shortest = config.shortest_row_cycles if last else chunk_entries(config)
                for _ in range(max(0, shortest - group) + rng.choice([0, 0, 3])):
                    await ctx.tick()
            expected.extend(totals)
        for _ in range(4):
            await ctx.tick()

    async def watch(ctx):
        async for *_, taken, valid, acc in ctx.tick().sample(
                dut.i_valid & dut.i_last, dut.o_valid, dut.o_acc):
            if taken:
                sent.append(cycle[0])
            if valid:
                latencies.add(cycle[0] - sent[len(got)])
                got.append(acc)
            cycle[0] += 1

    simulate(dut, drive, background=[watch])
    half = 1 << acc_width - 1
    assert got == [(total + half) % (2 * half) - half for total in expected]
    assert latencies == {RowSum.LATENCY_CYCLES}
