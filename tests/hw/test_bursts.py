# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from amaranth.hdl import Module
from sparsemac.config import CoreConfig
from sparsemac_hw.bursts import BurstSplitter
from sparsemac_hw.streams import check_stream
from sparsemac_hw.testing import simulate, stream_get, stream_get_n, stream_put, stream_put_all

SHAPES = [(32, 1), (32, 16), (64, 16), (128, 256), (512, 64), (512, 1)]


def make_config(bus_width, burst_beats):
    return CoreConfig(bus_width=bus_width, burst_beats=burst_beats, fifo_depth=512, lanes=8)


def split(address, beats, config):
    """Bursts of a run, beat by beat: a new one where the next block begins."""
    block_bytes = config.burst_beats * config.bus_bytes
    bursts = []
    for i in range(beats):
        at = (address + i * config.bus_bytes) % 2**32
        if i == 0 or at % block_bytes == 0:
            bursts.append([at, 0])
        bursts[-1][1] += 1
    return [tuple(burst) for burst in bursts]


def run(config, runs, *, rng, stall, run_bits=32):
    splitter = BurstSplitter(config, run_bits)
    m = Module()
    m.submodules.dut = splitter
    check_stream(m, "o", splitter.o)
    expected = [burst for address, beats in runs for burst in split(address, beats, config)]
    found = []

    async def put(ctx):
        payloads = [{"address": a, "beats": b} for a, b in runs]
        await stream_put_all(ctx, splitter.i, payloads, rng, stall)

    async def get(ctx):
        for burst in await stream_get_n(ctx, splitter.o, len(expected), rng, stall):
            found.append((burst.address, burst.beats))

    simulate(m, put, get, max_cycles=50_000)
    assert found == expected
    return found


@pytest.mark.parametrize(("bus_width", "burst_beats"), SHAPES)
def test_covers_random_runs_in_order_without_crossing_a_block(bus_width, burst_beats):
    seed = 11 * bus_width + burst_beats
    print("seed", seed)
    rng = random.Random(seed)
    config = make_config(bus_width, burst_beats)
    runs = []
    for _ in range(25):
        any_beats = rng.randint(1, 4 * burst_beats + 3)
        beats = rng.choice([1, 2, burst_beats, burst_beats + 1, any_beats])
        runs.append((rng.randrange(2**20) * config.bus_bytes, beats))
    for address, beats in run(config, runs, rng=rng, stall=0.3):
        last = address + beats * config.bus_bytes - 1
        assert 1 <= beats <= burst_beats
        assert address // 4096 == last // 4096


@pytest.mark.parametrize("run_bits", [1, 3, 16])
def test_needs_only_the_bits_that_a_run_can_have(run_bits):
    print("seed", run_bits)
    rng = random.Random(run_bits)
    config = make_config(64, 16)
    most = min(2**run_bits - 1, 100)
    runs = [(8 * rng.randrange(64), rng.randint(1, most)) for _ in range(30)]
    run(config, [*runs, (8, most), (0, most)], rng=rng, stall=0.0, run_bits=run_bits)


@pytest.mark.parametrize(("engines", "burst_beats"), [(1, 4), (3, 2), (8, 4), (5, 16)])
def test_tells_which_beats_are_the_last_of_an_engine(engines, burst_beats):
    rng = random.Random(engines)
    config = CoreConfig(engines=engines, burst_beats=burst_beats, fifo_depth=64)
    splitter = BurstSplitter(config, closing=True)
    runs = [(8 * rng.randrange(64), engines * rng.randint(1, 9)) for _ in range(20)]
    marked = []

    async def put(ctx):
        await stream_put_all(ctx, splitter.i, [{"address": a, "beats": b} for a, b in runs])

    async def get(ctx):
        while len(marked) < sum(beats for _, beats in runs):
            burst = await stream_get(ctx, splitter.o)
            marked.extend(burst.beats - k <= burst.closing for k in range(burst.beats))

    simulate(splitter, put, get)
    assert marked == [left <= engines for _, beats in runs for left in range(beats, 0, -1)]


def test_wraps_at_the_end_of_the_address_space():
    config = make_config(64, 16)
    found = run(config, [(2**32 - 128 - 8, 20)], rng=random.Random(0), stall=0.0)
    assert found == [(2**32 - 136, 1), (2**32 - 128, 16), (0, 3)]


def test_counts_the_longest_runs():
    config = make_config(32, 16)
    splitter = BurstSplitter(config)
    left = 2**32 - 1

    async def check(ctx):
        nonlocal left
        await stream_put(ctx, splitter.i, {"address": 4, "beats": left})
        for k in range(50):
            burst = await stream_get(ctx, splitter.o)
            assert burst.beats == (15 if k == 0 else 16)
            left -= burst.beats
            assert ctx.get(splitter.i.ready) == 0

    simulate(splitter, check)


def test_makes_a_burst_every_other_cycle_after_its_latency():
    config = make_config(64, 16)
    splitter = BurstSplitter(config)
    cycles = []

    async def put(ctx):
        await stream_put(ctx, splitter.i, {"address": 0, "beats": 80})

    async def watch(ctx):
        ctx.set(splitter.o.ready, 1)
        for cycle in range(20):
            *_, valid = await ctx.tick().sample(splitter.o.valid)
            if valid:
                cycles.append(cycle)

    simulate(splitter, put, watch)
    assert cycles == [splitter.LATENCY_CYCLES + 2 * k for k in range(5)]


def test_refuses_run_bits_beyond_the_payload():
    with pytest.raises(ValueError, match=r"^run_bits must be 1 to 32, not 33 "):
        BurstSplitter(CoreConfig(), 33)
