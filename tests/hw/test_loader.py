# SPDX-License-Identifier: Apache-2.0
import random
from collections import deque

import pytest
from amaranth.hdl import Module
from sparsemac.commands import Shift
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.loader import Loader
from sparsemac_hw.streams import check_stream
from sparsemac_hw.testing import simulate, stream_put

SHAPES = [(32, 1), (32, 8), (32, 32), (64, 1), (64, 8), (64, 16), (128, 16), (512, 8), (512, 1)]


def make_config(bus_width, lanes, act_depth=256):
    return CoreConfig(
        bus_width=bus_width, lanes=lanes, act_depth=act_depth, burst_beats=4, psum_depth=0)


def beat_at(address, bus_width):
    return random.Random(address).getrandbits(bus_width)


def shifted(beat, config, shift, fill, mask):
    """A beat with the elements of its words a lane further, but ``fill`` where masked."""
    if not config.shifts:
        return beat
    data = beat.to_bytes(config.bus_bytes, "little")
    step = {Shift.NONE: 0, Shift.UP: -1, Shift.DOWN: 1}[shift]  # to where an element comes from
    out = bytearray()
    for k in range(config.bus_bytes):
        lane = k % config.lanes
        source = k - lane + (lane + step) % config.lanes
        out.append(fill if mask >> lane & 1 else data[source])
    return int.from_bytes(out, "little")


class Twin:
    """The buffer, line by line and beat by beat, as the definition of LOAD fills it."""

    def __init__(self, config):
        self.config = config
        self.writes = []
        self.reads = []

    def load(self, address, destination, line_beats, lines, stride, gap=0, shift=Shift.NONE,
             fill=0, mask=0):
        """Returns the address of the line that does not fit, or None."""
        config = self.config
        word = destination
        for line in range(lines):
            at = address + line * stride
            if word + line_beats * config.line_words // config.word_beats > config.act_depth:
                return at
            for beat in range(line_beats):
                sub = beat % config.word_beats
                data = shifted(beat_at(at, config.bus_width), config, shift, fill, mask)
                self.writes.append((word // config.line_words, sub, data))
                self.reads.append(at)
                at += config.bus_bytes
                if sub == config.word_beats - 1:
                    word += config.line_words
            word += gap
        return None


class Bench:
    """A memory behind a loader, and what was written."""

    def __init__(self, config, seed, stall=0.3):
        print("seed", seed)
        self.config, self.stall = config, stall
        self.rng = random.Random(seed)
        self.dut = Loader(config)
        self.writes = []
        self.reads = []
        self.faults = []
        self.done_at = []  # writes there were when a LOAD was done
        self.m = Module()
        self.m.submodules.dut = self.dut
        check_stream(self.m, "o_burst", self.dut.o_burst)

    async def memory(self, ctx):
        dut = self.dut
        owed = deque()
        while True:
            ready = self.rng.random() >= self.stall
            answer = bool(owed) and self.rng.random() >= self.stall
            ctx.set(dut.o_burst.ready, ready)
            ctx.set(dut.i_beats.valid, answer)
            if answer:
                ctx.set(dut.i_beats.payload.data, beat_at(owed.popleft(), self.config.bus_width))
            *_, valid, burst = await ctx.tick().sample(dut.o_burst.valid, dut.o_burst.payload)
            if valid and ready:
                block = self.config.burst_beats * self.config.bus_bytes
                assert 1 <= burst.beats <= self.config.burst_beats
                last = burst.address + burst.beats * self.config.bus_bytes - 1
                assert burst.address // block == last // block
                beats = [burst.address + i * self.config.bus_bytes for i in range(burst.beats)]
                owed += beats
                self.reads += beats

    async def watch(self, ctx):
        dut = self.dut
        while True:
            await ctx.tick()
            if ctx.get(dut.w_en):
                self.writes.append((ctx.get(dut.w_line), ctx.get(dut.w_sub), ctx.get(dut.w_data)))
            if ctx.get(dut.done):
                self.done_at.append(len(self.writes))
            if ctx.get(dut.fault_valid):
                fault = ctx.get(dut.fault)
                self.faults.append((fault.code, fault.address, fault.command, fault.detail))

    def run(self, *testbenches):
        simulate(self.m, *testbenches, background=[self.memory, self.watch])


def random_load(rng, config):
    """A LOAD that fits, with lines that need not be in order or apart."""
    words = rng.randint(1, config.act_depth // config.line_words)
    lines = rng.randint(1, min(words, 5))
    line_words = rng.randint(1, min(words // lines, 12))
    room = config.act_depth // config.line_words - lines * line_words
    gap = rng.choice([0, rng.randint(0, room // lines)])
    room -= gap * (lines - 1)
    shift = rng.choice(list(Shift)) if config.shifts else Shift.NONE
    return {
        "address": rng.randrange(512) * config.bus_bytes,
        "destination": rng.randint(0, room) * config.line_words,
        "line_beats": line_words * config.word_beats,
        "lines": lines,
        "stride": rng.choice([0, 1, 3, 100]) * config.bus_bytes,
        "gap": gap * config.line_words,
        "shift": shift,
        "fill": rng.randrange(256),
        "mask": rng.choice([0, rng.getrandbits(64)]),
    }


@pytest.mark.parametrize(("bus_width", "lanes"), SHAPES)
def test_writes_the_beats_of_every_line_where_they_belong(bus_width, lanes):
    config = make_config(bus_width, lanes)
    bench = Bench(config, seed=bus_width + lanes)
    dut = bench.dut
    loads = [random_load(bench.rng, config) for _ in range(6)]
    twin, ends = Twin(config), []
    for load in loads:
        assert twin.load(**load) is None
        ends.append(len(twin.writes))

    async def put(ctx):
        for k, load in enumerate(loads):
            await stream_put(ctx, dut.i, {"command": load | {"index": k}, "spare": 0})
            assert ctx.get(dut.busy) == 1
            assert ctx.get(dut.index) == k
        while ctx.get(dut.busy):
            await ctx.tick()
        assert len(bench.done_at) == len(loads)

    bench.run(put)
    assert bench.writes == twin.writes
    assert bench.reads == twin.reads
    assert bench.done_at == ends
    assert bench.faults == []


@pytest.mark.parametrize("under_way", [0, 1, 2])
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_waits_for_the_execs_before(under_way, spare):
    config = make_config(64, 8)
    bench = Bench(config, seed=1, stall=0.0)
    dut = bench.dut
    load = {"address": 64, "destination": 0, "line_beats": 3, "lines": 1, "stride": 0, "index": 4}

    async def put(ctx):
        ctx.set(dut.execs_under_way, under_way)
        await stream_put(ctx, dut.i, {"command": load, "spare": spare})
        for _ in range(under_way - spare):
            ctx.set(dut.execs_under_way, 2)  # others come behind it
            await ctx.tick().repeat(20)
            assert (bench.reads, ctx.get(dut.busy), ctx.get(dut.under_way)) == ([], 1, 1)
            ctx.set(dut.exec_done, 1)
            await ctx.tick()
            ctx.set(dut.exec_done, 0)
        for _ in range(20):
            await ctx.tick()
        assert not ctx.get(dut.busy) and not ctx.get(dut.under_way)

    bench.run(put)
    assert bench.reads == [64, 72, 80]


@pytest.mark.parametrize(("bus_width", "lanes"), SHAPES)
def test_line_beyond_the_buffer_is_a_size_fault_before_any_of_its_beats(bus_width, lanes):
    config = make_config(bus_width, lanes)
    places = config.act_depth // config.line_words
    line_words = min(3, places)
    first = places - line_words
    bench = Bench(config, seed=2)
    dut = bench.dut
    load = {
        "address": 4096,
        "destination": first * config.line_words,
        "line_beats": line_words * config.word_beats,
        "lines": 3,
        "stride": 64,
        "gap": (places - 1) * config.line_words,
    }
    twin = Twin(config)
    at = twin.load(**load)

    async def put(ctx):
        await stream_put(ctx, dut.i, {"command": load | {"index": 9}, "spare": 0})
        await ctx.tick().repeat(200)
        assert bench.done_at == []

    bench.run(put)
    assert bench.faults == [(FaultCode.SIZE, at, 9, 0)]
    assert bench.reads == twin.reads
    assert bench.writes == twin.writes


@pytest.mark.parametrize("line_beats", [2**16 - 1, 33, 64])
def test_line_longer_than_the_whole_buffer_is_a_size_fault(line_beats):
    config = make_config(512, 16, act_depth=128)
    bench = Bench(config, seed=3)
    dut = bench.dut
    load = {"address": 512, "destination": 0, "line_beats": line_beats, "lines": 1, "stride": 0}

    async def put(ctx):
        await stream_put(ctx, dut.i, {"command": load | {"index": 0}, "spare": 0})
        await ctx.tick().repeat(50)

    bench.run(put)
    assert bench.faults == [(FaultCode.SIZE, 512, 0, 0)]
    assert bench.reads == []


def test_fills_the_whole_buffer():
    config = make_config(32, 16, act_depth=64)
    bench = Bench(config, seed=4, stall=0.0)
    dut = bench.dut
    load = {"address": 0, "destination": 0, "line_beats": 256, "lines": 1, "stride": 0}
    twin = Twin(config)
    assert twin.load(**load) is None

    async def put(ctx):
        await stream_put(ctx, dut.i, {"command": load | {"index": 0}, "spare": 0})
        while ctx.get(dut.busy):
            await ctx.tick()

    bench.run(put)
    assert bench.writes == twin.writes
    assert bench.faults == []
