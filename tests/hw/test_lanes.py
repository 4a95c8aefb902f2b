# SPDX-License-Identifier: Apache-2.0
import random
from collections import Counter

import numpy as np
import pytest
from amaranth.hdl import Module
from sparsemac.config import CoreConfig
from sparsemac_hw.lanes import MacLanes
from sparsemac_hw.layouts import chunk_entries
from sparsemac_hw.testing import simulate
from support.ecp5_twins import WithTwins


def loaded(config, activations):
    """The writes that put (lanes, act_depth) activations into the memories, beat by beat."""
    flat = activations.T.astype(np.uint8).tobytes()  # word by word, a byte per lane
    step = config.bus_bytes
    for beat, k in enumerate(range(0, len(flat), step)):
        line, sub = divmod(beat, config.word_beats)
        yield line, sub, int.from_bytes(flat[k : k + step], "little")


@pytest.mark.parametrize(
    ("lanes", "bus_width"), [(1, 64), (4, 64), (8, 64), (32, 64), (128, 64), (4, 32), (2, 128)]
)
def test_sums_rows_lane_by_lane(lanes, bus_width):
    seed = 100 * lanes + bus_width
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=1, lanes=lanes, act_depth=64, bus_width=bus_width, fifo_depth=64)
    dut = MacLanes(config)
    activations = np.random.default_rng(seed).integers(-128, 128, (lanes, 64))
    activations[0] = -128  # with weights of -128, the greatest sums there are
    buses = config.sum_buses
    expected, sums = [[] for _ in range(buses)], [[] for _ in range(buses)]
    latencies = []
    cycle = [0]
    ended, lasts, seen_lasts = [], [], [[] for _ in range(buses)]

    async def drive(ctx):
        ctx.set(dut.w_en, 1)
        for line, sub, value in loaded(config, activations):
            ctx.set(dut.w_line, line)
            ctx.set(dut.w_sub, sub)
            ctx.set(dut.w_data, value)
            await ctx.tick()
        ctx.set(dut.w_en, 0)
        await ctx.tick()
        for _ in range(20):
            most = 2 * chunk_entries(config) - 1
            count = rng.choice([most, rng.randint(config.shortest_row_cycles, most)])
            total = np.zeros(lanes, np.int64)
            for j in range(count):
                while rng.random() < 0.3:
                    ctx.set(dut.i_valid, 0)
                    ctx.set(dut.i_weight, rng.randrange(-128, 128))
                    await ctx.tick()
                address = rng.randrange(64)
                weight = -128 if count == most else rng.choice([127, rng.randrange(-128, 128)])
                total += weight * activations[:, address]
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.i_addr, address)
                ctx.set(dut.i_weight, weight)
                ctx.set(dut.i_end, j == count - 1)
                ctx.set(dut.i_last, last := rng.random() < 0.5)
                if j == count - 1:
                    ended.append(cycle[0])
                    lasts.append(last)
                await ctx.tick()
            ctx.set(dut.i_valid, 0)
            for b, part in enumerate(np.split(total, buses)):
                expected[b].extend(part.tolist())
        for _ in range(lanes + 2 * MacLanes.LATENCY_CYCLES):
            await ctx.tick()

    async def watch(ctx):
        group = lanes // buses
        while True:
            sampled = (await ctx.tick().sample(*dut.o_valid, *dut.o_acc, *dut.o_last))[2:]
            for b in range(buses):
                if sampled[b]:
                    if b == 0 and len(sums[0]) % group == 0:
                        latencies.append(cycle[0] - ended[len(sums[0]) // group])
                    sums[b].append(sampled[buses + b])
                    seen_lasts[b].append(sampled[2 * buses + b])
            cycle[0] += 1

    simulate(dut, drive, background=[watch])
    assert sums == expected
    assert seen_lasts == [np.repeat(lasts, lanes // buses).tolist()] * buses
    assert set(latencies) == {MacLanes.LATENCY_CYCLES}


def test_accumulator_wraps_at_its_width():
    config = CoreConfig(engines=1, lanes=1, act_depth=64, acc_width=16, fifo_depth=64)
    dut = MacLanes(config)
    sums = []

    async def drive(ctx):
        ctx.set(dut.w_en, 1)
        ctx.set(dut.w_data, 0x7F)
        await ctx.tick()
        ctx.set(dut.w_en, 0)
        await ctx.tick()
        for j in range(3):
            ctx.set(dut.i_valid, 1)
            ctx.set(dut.i_weight, 127)
            ctx.set(dut.i_end, j == 2)
            await ctx.tick()
        ctx.set(dut.i_valid, 0)
        for _ in range(8):
            *_, valid, acc = await ctx.tick().sample(dut.o_valid[0], dut.o_acc[0])
            if valid:
                sums.append(acc)

    simulate(dut, drive)
    assert sums == [3 * 127 * 127 - (1 << 16)]


def test_flush_forgets_a_sum_that_is_not_complete():
    config = CoreConfig(engines=1, lanes=2, act_depth=64, bus_width=32, fifo_depth=64)
    dut = MacLanes(config)
    sums = []

    async def entry(ctx, weight, end):
        ctx.set(dut.i_valid, 1)
        ctx.set(dut.i_weight, weight)
        ctx.set(dut.i_end, end)
        await ctx.tick()
        ctx.set(dut.i_valid, 0)

    async def drive(ctx):
        ctx.set(dut.w_en, 1)
        ctx.set(dut.w_data, 0x0102)
        await ctx.tick()
        ctx.set(dut.w_en, 0)
        await entry(ctx, 100, 0)
        ctx.set(dut.i_flush, 1)
        await ctx.tick()
        ctx.set(dut.i_flush, 0)
        await entry(ctx, 3, 0)
        await entry(ctx, 4, 1)
        for _ in range(12):
            *_, valid, acc = await ctx.tick().sample(dut.o_valid[0], dut.o_acc[0])
            if valid:
                sums.append(acc)

    simulate(dut, drive)
    assert sums == [7 * 2, 7 * 1]


@pytest.mark.parametrize(("lanes", "bus_width", "act_depth", "memories"), [
    (8, 64, 256, 8), (16, 32, 4096, 32), (4, 64, 256, 0), (8, 64, 64, 8), (2, 64, 64, 0),
    (1, 64, 64, 0),
])
def test_blocks_of_an_ecp5_change_nothing(lanes, bus_width, act_depth, memories):
    seed = lanes + bus_width + act_depth
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=1, lanes=lanes, act_depth=act_depth, bus_width=bus_width,
                        fifo_depth=64)
    portable, special = MacLanes(config), MacLanes(config)
    twins = WithTwins(special)
    m = Module()
    m.submodules.portable, m.submodules.twins = portable, twins
    lines = act_depth // config.line_words
    half = lines // 2  # one half is written while the other one is read
    cycles = [0]

    async def bench(ctx):
        since_end = 0
        for k in range(800):
            since_end += 1
            writes = k // 400
            ends = since_end >= config.shortest_row_cycles and rng.random() < 0.3
            address = rng.randrange(half * config.line_words)
            values = {
                "i_valid": rng.random() < 0.8, "i_addr": address,
                "i_weight": rng.randrange(-128, 128), "i_end": ends, "i_last": rng.random() < 0.5,
                "i_flush": 0, "w_en": rng.random() < 0.7, "w_line": rng.randrange(half),
                "w_sub": rng.randrange(config.word_beats), "w_data": rng.getrandbits(bus_width),
            }
            values["i_addr"] += (1 - writes) * half * config.line_words
            values["w_line"] += writes * half
            if ends and values["i_valid"]:
                since_end = 0
            if rng.random() < 0.02:
                values |= {"i_valid": 0, "i_flush": 1}
            for name, value in values.items():
                ctx.set(getattr(portable, name), value)
                ctx.set(getattr(special, name), value)
            await ctx.tick()
            for name in ("o_valid", "o_last", "o_acc"):
                for one, other in zip(getattr(portable, name), getattr(special, name), strict=True):
                    assert ctx.get(one) == ctx.get(other), (name, k)
            cycles[0] += bool(ctx.get(portable.o_acc[0]))

    simulate(m, bench)
    assert cycles[0] > 20
    assert Counter(twins.replaced) == Counter(
        MULT18X18D=lanes, ALU54B=lanes // 2, LUT4=lanes // 2 * 2, DP16KD=memories)
