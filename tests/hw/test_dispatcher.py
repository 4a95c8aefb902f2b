# SPDX-License-Identifier: Apache-2.0
import random
import struct
from collections import deque
from functools import reduce
from operator import xor

import pytest
from amaranth.hdl import Module
from sparsemac.commands import (
    CHECKSUM,
    CommandError,
    Exec,
    Load,
    OutputMode,
    Shift,
    StreamFormat,
    decode,
)
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.dispatcher import Dispatcher
from sparsemac_hw.streams import check_stream
from sparsemac_hw.testing import simulate, stream_get

LIST = 0x4_0FC0
SHAPES = [(32, 1, 16), (32, 8, 1), (64, 8, 16), (64, 32, 2), (128, 16, 8), (512, 32, 4)]
BASE = CoreConfig(
    lanes=8, bus_width=64, act_depth=256, depth=100, psum_depth=64, fifo_depth=32)


def seal(words):
    words = list(words)
    words[15] = reduce(xor, words[:15], CHECKSUM)
    return struct.pack("<16I", *words)


def with_words(command, **changes):
    """The bytes of a command after some of its words, ``w<number>``, have been changed."""
    words = list(struct.unpack("<16I", command.encode()))
    for name, value in changes.items():
        words[int(name[1:])] = value
    return seal(words)


def expected_fault(config, raw, loads, execs):
    """The first rule that a command breaks, by the definitions in `sparsemac.commands`."""
    try:
        command = decode(raw)
    except CommandError:
        return FaultCode.DESC
    if command.wait > (execs if isinstance(command, Load) else loads):
        return FaultCode.DESC
    beat = config.bus_bytes
    if isinstance(command, Load):
        if (command.shift or command.mask) and not config.shifts:
            return FaultCode.DESC
        align = (
            command.address % beat or command.stride % beat or command.gap % config.line_words
            or command.destination % config.line_words or command.line_beats % config.word_beats
        )
        zero = not (command.line_beats and command.lines)
        size = (
            command.destination >= config.act_depth or command.gap >= config.act_depth
            or command.line_beats > 65535 or command.lines > 65535
        )
    else:
        word_bytes = config.out_word_bytes(command.mode == OutputMode.RAW)
        align = (
            command.weights % beat or command.beats % config.engines or command.output % word_bytes
        )
        zero = not (command.beats and command.limit and command.positions and command.width)
        size = (
            command.base >= config.act_depth or command.limit > 65536
            or command.positions > config.depth
            or (not config.psum_depth and (command.psum_in or command.psum_out))
        )
    broken = {FaultCode.ALIGN: align, FaultCode.ZERO: zero, FaultCode.SIZE: size}
    return next((code for code, is_broken in broken.items() if is_broken), None)


def random_load(rng, config, execs):
    return Load(
        address=rng.randrange(2**20) * config.bus_bytes,
        destination=rng.randrange(config.act_depth // config.line_words) * config.line_words,
        line_beats=rng.randint(1, 65535 // config.word_beats) * config.word_beats,
        lines=rng.randint(1, 65535),
        stride=rng.randrange(2**20) * config.bus_bytes,
        gap=rng.randrange(config.act_depth // config.line_words) * config.line_words,
        shift=rng.choice(list(Shift)) if config.shifts else Shift.NONE,
        fill=rng.randint(-128, 127),
        mask=rng.getrandbits(64) if config.shifts else 0,
        wait=rng.randint(0, execs),
    )


def random_exec(rng, config, loads):
    absolute = rng.random() < 0.3
    return Exec(
        weights=rng.randrange(2**20) * config.bus_bytes,
        beats=rng.randint(1, 2**20) * config.engines,
        output=rng.randrange(2**20) * config.out_word_bytes(raw=True),
        base=rng.randrange(config.act_depth),
        limit=rng.choice([1, 65536, rng.randint(1, 65536)]),
        positions=rng.randint(1, config.depth),
        width=rng.randint(1, 65535),
        step=rng.randrange(2**16),
        wrap_step=rng.randrange(2**16),
        out_step=rng.randrange(2**32),
        out_wrap_step=rng.randrange(2**32),
        format=StreamFormat(
            delta_bits=0 if absolute else rng.randint(0, 8),
            rice=not absolute and rng.random() < 0.5,
            absolute=absolute,
            weight_bits=rng.choice([4, 8]),
        ),
        has_bias=rng.random() < 0.5,
        mode=rng.choice(list(OutputMode)),
        psum_in=bool(config.psum_depth) and rng.random() < 0.5,
        psum_out=bool(config.psum_depth) and rng.random() < 0.5,
        zero_point=rng.randint(-128, 127),
        low=rng.randint(-128, 127),
        high=rng.randint(-128, 127),
        wait=rng.randint(0, loads),
    )


def random_list(rng, config, count):
    commands, loads, execs = [], 0, 0
    for _ in range(count):
        if rng.random() < 0.5:
            commands.append(random_load(rng, config, execs))
            loads += 1
        else:
            commands.append(random_exec(rng, config, loads))
            execs += 1
    return commands


def payload_fields(command, payload, others):
    """(field, handed on, in the command) of all fields, behind ``others`` of the other unit."""
    handed, pairs = payload.command, [("spare", payload.spare, min(others - command.wait, 3))]
    if isinstance(command, Load):
        names = ["address", "destination", "line_beats", "lines", "stride", "gap", "shift", "mask"]
        pairs.append(("fill", handed.fill, command.fill & 0xFF))
    else:
        names = [
            "weights", "beats", "output", "base", "limit", "positions", "width", "step",
            "wrap_step", "out_step", "out_wrap_step", "has_bias", "psum_in", "psum_out",
            "zero_point", "low", "high", "mode",
        ]
        pairs += [
            ("delta_bits", handed.delta_bits, command.format.delta_bits),
            ("rice", handed.rice, command.format.rice),
            ("absolute", handed.absolute, command.format.absolute),
            ("int4", handed.int4, command.format.weight_bits == 4),
        ]
    return pairs + [(name, getattr(handed, name), getattr(command, name)) for name in names]


class Bench:
    """A memory with a command list, and the two units that take commands."""

    def __init__(self, config, raw, seed=0, stall=0.0, address=LIST, count=None):
        print("seed", seed)
        self.config, self.raw, self.stall, self.address = config, raw, stall, address
        self.count = len(raw) // 64 if count is None else count
        self.rng = random.Random(seed)
        self.dut = Dispatcher(config)
        self.taken = []  # (kind, payload)
        self.faults = []
        self.bursts = []
        self.m = Module()
        self.m.submodules.dut = self.dut
        for name in ("o_burst", "loads", "execs"):
            check_stream(self.m, name, getattr(self.dut, name))

    async def memory(self, ctx):
        dut, config = self.dut, self.config
        owed = deque()
        while True:
            ready = self.rng.random() >= self.stall
            answer = bool(owed) and self.rng.random() >= self.stall
            ctx.set(dut.o_burst.ready, ready)
            ctx.set(dut.i.valid, answer)
            if answer:
                at = owed.popleft() - self.address
                beat = self.raw[at : at + config.bus_bytes]
                ctx.set(dut.i.payload.data, int.from_bytes(beat, "little"))
            *_, valid, burst = await ctx.tick().sample(dut.o_burst.valid, dut.o_burst.payload)
            if valid and ready:
                self.bursts.append((burst.address, burst.beats))
                owed += [burst.address + i * config.bus_bytes for i in range(burst.beats)]
                # What is asked for must have room, whatever has been taken.
                assert len(owed) <= 64 // config.bus_bytes

    def taker(self, kind):
        async def take(ctx):
            while True:
                while self.rng.random() < self.stall:
                    await ctx.tick()
                self.taken.append((kind, await stream_get(ctx, getattr(self.dut, kind))))

        return take

    async def watch(self, ctx):
        while True:
            await ctx.tick()
            if ctx.get(self.dut.fault_valid):
                fault = ctx.get(self.dut.fault)
                assert (fault.address, fault.detail) == (0, 0)
                self.faults.append((fault.code, fault.command))

    async def begin(self, ctx):
        dut = self.dut
        ctx.set(dut.command_address, self.address)
        ctx.set(dut.command_count, self.count)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        assert ctx.get(dut.finished) == 0

    async def to_end(self, ctx):
        """Runs the job until all is handed on, or for a while after a fault."""
        await self.begin(ctx)
        while not ctx.get(self.dut.finished) and not self.faults:
            await ctx.tick()
        await ctx.tick().repeat(60)
        assert ctx.get(self.dut.finished) == (not self.faults)

    def run(self, *testbenches):
        units = [self.taker("loads"), self.taker("execs")]
        simulate(self.m, *(testbenches or [self.to_end]),
                 background=[self.memory, self.watch, *units], max_cycles=40_000)


@pytest.mark.parametrize("engines", [8, 3])
@pytest.mark.parametrize(("bus_width", "lanes", "burst_beats"), SHAPES)
def test_hands_on_every_field_of_every_command_in_order(bus_width, lanes, burst_beats, engines):
    config = BASE.replace(
        bus_width=bus_width, lanes=lanes, burst_beats=burst_beats, engines=engines)
    seed = bus_width + lanes
    commands = random_list(random.Random(seed), config, 12)
    bench = Bench(config, b"".join(c.encode() for c in commands), seed, stall=0.3)
    bench.run()
    assert bench.faults == []
    assert len(bench.taken) == len(commands)
    for kind in ("loads", "execs"):
        indices = [payload.command.index for k, payload in bench.taken if k == kind]
        assert indices == sorted(indices)
    for kind, payload in bench.taken:
        command = commands[payload.command.index]
        assert kind == ("loads" if isinstance(command, Load) else "execs")
        before = commands[: payload.command.index]
        others = sum(isinstance(c, Load) != isinstance(command, Load) for c in before)
        for name, handed, stated in payload_fields(command, payload, others):
            assert handed == stated, name
    block = burst_beats * config.bus_bytes
    for address, beats in bench.bursts:
        assert address // block == (address + beats * config.bus_bytes - 1) // block
    assert sum(beats for _, beats in bench.bursts) * config.bus_bytes == 64 * len(commands)


GOOD_LOAD = Load(address=0x1000, destination=8, line_beats=4, lines=2, stride=64)
GOOD_EXEC = Exec(
    weights=0x2000, beats=16, output=0x3000, base=3, limit=100, positions=5, width=5, step=1,
    wrap_step=2, out_step=3, out_wrap_step=4, format=StreamFormat(), mode=OutputMode.SINGLE,
    wait=1)
LOAD_FORM, EXEC_FORM = (struct.unpack("<16I", c.encode()) for c in (GOOD_LOAD, GOOD_EXEC))

DEFECTS = [
    ("load", {"w0": 0x5301 | 1 << 16}, FaultCode.DESC),
    ("load", {"w0": 0x5201}, FaultCode.DESC),
    ("load", {"w0": 0x5303}, FaultCode.DESC),
    ("load", {"w0": 0x5300}, FaultCode.DESC),
    ("load", {"w1": 2}, FaultCode.DESC),
    ("load", {"w1": 1 << 16}, FaultCode.DESC),
    ("load", {"w2": 0x1004}, FaultCode.ALIGN),
    ("load", {"w6": 1}, FaultCode.ALIGN),
    ("load", {"w4": 0}, FaultCode.ZERO),
    ("load", {"w5": 0}, FaultCode.ZERO),
    ("load", {"w3": 256}, FaultCode.SIZE),
    ("load", {"w3": 1 << 31}, FaultCode.SIZE),
    ("load", {"w4": 65536}, FaultCode.SIZE),
    ("load", {"w5": 1 << 20}, FaultCode.SIZE),
    ("load", {"w3": 255}, None),
    ("load", {"w4": 65535}, None),
    ("load", {"w1": 1}, None),
    ("load", {"w7": 256}, FaultCode.SIZE),
    ("load", {"w7": 255}, None),
    ("load", {"w8": 3}, FaultCode.DESC),
    ("load", {"w8": 2}, None),
    ("load", {"w8": 7 << 4, "w9": 0x1FF, "w10": 1}, None),
    ("exec", {"w1": 2}, FaultCode.DESC),
    ("exec", {"w11": EXEC_FORM[11] | 3 << 8}, FaultCode.DESC),
    ("exec", {"w11": 9}, FaultCode.DESC),
    ("exec", {"w11": 0x11}, FaultCode.DESC),
    ("exec", {"w2": 0x2002}, FaultCode.ALIGN),
    ("exec", {"w3": 17}, FaultCode.ALIGN),
    ("exec", {"w4": 0x3004}, FaultCode.ALIGN),
    ("exec", {"w4": 0x3008}, None),
    ("exec", {"w4": 0x3008, "w11": 0}, FaultCode.ALIGN),
    ("exec", {"w3": 0}, FaultCode.ZERO),
    ("exec", {"w6": 0}, FaultCode.ZERO),
    ("exec", {"w7": 5 << 16}, FaultCode.ZERO),
    ("exec", {"w7": 5}, FaultCode.ZERO),
    ("exec", {"w5": 256}, FaultCode.SIZE),
    ("exec", {"w6": 65537}, FaultCode.SIZE),
    ("exec", {"w7": 1 << 16 | 101}, FaultCode.SIZE),
    ("exec", {"w6": 65536}, None),
    ("exec", {"w7": 1 << 16 | 100}, None),
    ("exec", {"w2": 0x2002, "w3": 0, "w5": 256}, FaultCode.ALIGN),
    ("exec", {"w3": 0, "w5": 256}, FaultCode.ZERO),
    ("exec", {"w1": 2, "w3": 0, "w5": 256}, FaultCode.DESC),
]


def run_third(config, raw):
    """A LOAD and an EXEC that are good, then ``raw``; returns the faults and commands taken."""
    first = Load(address=0, destination=0, line_beats=config.word_beats)
    second = Exec(
        weights=0, beats=config.engines, output=0, base=0, limit=1, positions=1, width=1, step=0,
        wrap_step=0, out_step=0, out_wrap_step=0, format=StreamFormat())
    bench = Bench(config, first.encode() + second.encode() + raw)
    bench.run()
    return bench.faults, len(bench.taken)


@pytest.mark.parametrize(("kind", "changes", "code"), DEFECTS)
def test_b1_b8_names_the_rule_that_a_command_breaks(kind, changes, code):
    raw = with_words(GOOD_LOAD if kind == "load" else GOOD_EXEC, **changes)
    assert expected_fault(BASE, raw, 1, 1) == code
    assert run_third(BASE, raw) == ([] if code is None else [(code, 2)], 3 if code is None else 2)


@pytest.mark.parametrize(("config", "kind", "changes", "code"), [
    (BASE.replace(lanes=1), "load", {"w3": 12}, FaultCode.ALIGN),
    (BASE.replace(lanes=1), "load", {"w7": 12}, FaultCode.ALIGN),
    (BASE.replace(lanes=1), "load", {"w8": 1}, FaultCode.DESC),
    (BASE.replace(lanes=32), "load", {"w8": 1}, FaultCode.DESC),
    (BASE.replace(lanes=32), "load", {"w9": 1}, FaultCode.DESC),
    (BASE.replace(lanes=32), "load", {"w10": 1}, FaultCode.DESC),
    (BASE.replace(lanes=4), "load", {"w8": 2, "w7": 2, "w9": 1}, None),
    (BASE.replace(lanes=32), "load", {"w4": 6}, FaultCode.ALIGN),
    (BASE.replace(lanes=32), "exec", {"w4": 0x3010}, FaultCode.ALIGN),
    (BASE.replace(psum_depth=0), "exec", {"w11": EXEC_FORM[11] | 1 << 10}, FaultCode.SIZE),
    (BASE.replace(psum_depth=0), "exec", {"w11": EXEC_FORM[11] | 1 << 11}, FaultCode.SIZE),
    (BASE.replace(engines=6), "exec", {"w3": 2**32 - 4}, None),
    (BASE.replace(engines=6), "exec", {"w3": 2**32 - 2}, FaultCode.ALIGN),
    (BASE.replace(engines=7), "exec", {"w3": 8}, FaultCode.ALIGN),
    (BASE.replace(engines=1), "exec", {"w3": 3}, None),
])
def test_b1_rules_follow_the_configuration(config, kind, changes, code):
    raw = with_words(GOOD_LOAD if kind == "load" else GOOD_EXEC, **changes)
    assert expected_fault(config, raw, 1, 1) == code
    assert run_third(config, raw) == ([] if code is None else [(code, 2)], 3 if code is None else 2)


@pytest.mark.parametrize("seed", range(2))
def test_b8_random_words_meet_the_same_fault_as_in_the_definition(seed):
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(25):
        command = random_exec(rng, BASE, 1) if rng.random() < 0.6 else random_load(rng, BASE, 1)
        words = list(struct.unpack("<16I", command.encode()))
        for _ in range(rng.choice([0, 1, 1, 2])):
            words[rng.randrange(13)] ^= 1 << rng.randrange(32)
        raw = seal(words)
        code = expected_fault(BASE, raw, 1, 1)
        expected = ([], 3) if code is None else ([(code, 2)], 2)
        assert run_third(BASE, raw) == expected, words


@pytest.mark.parametrize("bit", [0, 77, 300, 511])
def test_b8_any_flipped_bit_breaks_the_checksum(bit):
    raw = bytearray(GOOD_EXEC.encode())
    raw[bit // 8] ^= 1 << bit % 8
    assert run_third(BASE, bytes(raw)) == ([(FaultCode.DESC, 2)], 2)


@pytest.mark.parametrize(("address", "count", "code"), [
    (LIST + 32, 1, FaultCode.ALIGN),
    (LIST + 1, 0, FaultCode.ALIGN),
    (LIST, 0, FaultCode.ZERO),
])
def test_b1_list_that_cannot_be_read_is_refused_without_bus_access(address, count, code):
    bench = Bench(BASE, b"", address=address, count=count)
    bench.run()
    assert bench.faults == [(code, 0)]
    assert bench.bursts == []


def test_fetches_one_command_ahead_and_no_more():
    commands = random_list(random.Random(7), BASE, 6)
    bench = Bench(BASE, b"".join(c.encode() for c in commands), seed=7)

    async def life(ctx):
        await bench.begin(ctx)
        await ctx.tick().repeat(100)
        assert ctx.get(bench.dut.loads.valid) + ctx.get(bench.dut.execs.valid) == 1
        assert ctx.get(bench.dut.index) == 1
        assert len(bench.bursts) == 2

    simulate(bench.m, life, background=[bench.memory])


def test_offers_a_command_after_its_latency_and_counts_what_was_taken():
    bench = Bench(BASE, GOOD_LOAD.encode() + GOOD_EXEC.encode())
    beats, valid = [], []

    async def life(ctx):
        await bench.begin(ctx)
        for cycle in range(60):
            *_, beat, load = await ctx.tick().sample(bench.dut.i.valid, bench.dut.loads.valid)
            beats.extend([cycle] if beat else [])
            valid.extend([cycle] if load else [])
        assert ctx.get(bench.dut.loads_issued) == 1
        assert ctx.get(bench.dut.execs_issued) == 1

    bench.run(life)
    assert valid[0] == beats[7] + bench.dut.CHECK_CYCLES
