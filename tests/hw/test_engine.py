# SPDX-License-Identifier: Apache-2.0
"""A whole engine against a NumPy twin: packed streams in, bytes at addresses out."""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from sparsemac.commands import COUNT_BITS, OFFSET_BITS, OutputMode, StreamFormat
from sparsemac.config import CoreConfig
from sparsemac.csr import Csr, weight_range
from sparsemac.numerics import requantize
from sparsemac.registers import FaultCode
from sparsemac.stream import entry_counts, pack
from sparsemac_hw.engine import Engine
from sparsemac_hw.lanes import MacLanes
from sparsemac_hw.testing import simulate
from support.store import ADDRESSES, WordStore

ENTRY_DEPTH = 16
PSUM_DEPTH = 64

RAW, SINGLE, DOUBLE = OutputMode
DELTA_4 = StreamFormat(delta_bits=4)


def configuration(lanes, bus_width, **changes):
    return CoreConfig(**{
        "engines": 1, "lanes": lanes, "bus_width": bus_width, "entry_depth": ENTRY_DEPTH,
        "act_depth": {1: 1024, 2: 512, 8: 128}[lanes], "psum_depth": PSUM_DEPTH,
        "fifo_depth": 64, **changes,
    })


def wrap(values, width):
    half = 1 << width - 1
    return (values + half) % (1 << width) - half


def walk(count, width, step, wrap_step, modulus):
    """a(p) of `sparsemac.commands` for all positions."""
    places = [0]
    for p in range(1, count):
        places.append((places[-1] + (wrap_step if p % width == 0 else step)) % modulus)
    return np.array(places)


@dataclass
class Job:
    """One EXEC: its command, what its stream is packed from, and the LOAD before it."""

    command: dict[str, int]
    fmt: StreamFormat
    matrix: Csr
    parameters: dict[str, Any]  # of `pack`: out_offsets, bias, multiplier, shift
    destination: int
    activations: np.ndarray  # (words, lanes) int8
    extra_beats: int = 0  # behind the last row
    cut_beats: int = 0  # lacking at the end

    def __post_init__(self):
        self.command |= {
            "delta_bits": self.fmt.delta_bits, "absolute": int(self.fmt.absolute),
            "rice": int(self.fmt.rice),
            "int4": int(self.fmt.weight_bits == 4),
            "has_bias": int(self.parameters["bias"] is not None),
        }

    @property
    def words(self):
        """Output words, of results or of partial sums."""
        return self.matrix.shape[0] * self.command["positions"]

    @property
    def issued(self):
        counts = entry_counts(self.matrix, self.fmt.weight_bits)
        return int(np.maximum(counts, 1).sum()) * self.command["positions"]

    def pack(self, bus_bytes):
        rows = np.arange(self.matrix.shape[0])
        packed = pack(self.matrix, [rows], self.fmt, engines=1, bus_bytes=bus_bytes,
                      **self.parameters)
        self.command |= {
            "count_size": COUNT_BITS.index(packed.fmt.count_bits),
            "offset_size": OFFSET_BITS.index(packed.fmt.offset_bits),
        }
        return packed


class Twin:
    """The definition in `sparsemac.commands`, product by product."""

    def __init__(self, config):
        self.config = config
        self.buffer = np.zeros((config.act_depth, config.lanes), np.int64)
        self.psums = np.zeros(config.psum_depth, np.int64)

    def run(self, job):
        """Returns what the EXEC writes: a byte for each address."""
        c, rows = job.command, job.matrix.shape[0]
        self.buffer[job.destination : job.destination + len(job.activations)] = job.activations
        totals = self._sums(job)
        bias = job.parameters["bias"]
        if c["psum_in"]:
            totals = totals + self.psums[: totals.size].reshape(totals.shape)
        elif bias is not None:
            totals = totals + bias[:, None, None]
        totals = wrap(totals, 32)
        if c["psum_out"]:
            self.psums[: totals.size] = totals.ravel()
            return {}
        if c["mode"] == RAW:
            values = totals.astype("<i4")
        else:
            values = requantize(
                totals, job.parameters["multiplier"][:, None, None],
                job.parameters["shift"][:, None, None], c["zero_point"], c["low"], c["high"],
                OutputMode(c["mode"]))
        size = self.config.out_word_bytes(c["mode"] == RAW)
        steps = walk(c["positions"], c["width"], c["out_step"], c["out_wrap_step"], 1 << 32)
        return {
            (c["output"] + (int(job.parameters["out_offsets"][r]) + int(step)) * size + k)
            % ADDRESSES: byte
            for r in range(rows) for p, step in enumerate(steps)
            for k, byte in enumerate(values[r, p].tobytes())
        }

    def _sums(self, job):
        c = job.command
        places = c["base"] + walk(c["positions"], c["width"], c["step"], c["wrap_step"], 1 << 16)
        places %= 1 << 16
        sums = np.zeros((job.matrix.shape[0], len(places), self.config.lanes), np.int64)
        for r, offset, weight in zip(job.matrix.rows_of_entries, job.matrix.indices,
                                     job.matrix.data.astype(np.int64), strict=True):
            sums[r] += weight * self.buffer[places + offset]
        return wrap(sums, self.config.acc_width)


# -- random jobs --------------------------------------------------------------------------------


def random_matrix(rng, rows, columns, longest, fmt):
    """Rows of up to ``longest`` entries, a fifth of them empty; duplicates where they are legal."""
    low, high = weight_range(fmt.weight_bits)
    indices = []
    for _ in range(rows):
        count = 0 if rng.random() < 0.2 else rng.randint(1, min(longest, columns))
        choose = rng.choices if fmt.absolute else rng.sample
        indices.append(sorted(choose(range(columns), k=count)))
    indptr = np.cumsum([0, *map(len, indices)])
    return Csr((rows, columns), indptr, np.array(sum(indices, []), np.int64), np.array(
        [rng.choice([low, high, rng.randint(low, high)]) for _ in range(indptr[-1])], np.int8))


def random_parameters(rng, rows, mode, out_offsets, biased):
    data = np.random.default_rng(rng.getrandbits(32))
    return {
        "out_offsets": np.array(out_offsets, np.int64),
        "bias": data.integers(-(1 << 17), 1 << 17, rows).astype(np.int32) if biased else None,
        "multiplier": (data.integers(1 << 30, 1 << 31, rows).astype(np.uint64)
                       if mode != RAW else None),
        "shift": data.integers(6, 12, rows) if mode != RAW else None,
    }


def random_places(rng, positions, slack):
    """A walk over up to ``slack`` words, forwards or backwards: base, width, step, wrap_step."""
    while True:
        width = rng.randint(1, 4)
        step, wrap_step = (rng.randint(-slack, slack) // positions for _ in range(2))
        places = np.cumsum([0] + [wrap_step if p % width == 0 else step
                                  for p in range(1, positions)])
        if np.ptp(places) <= slack:
            base = rng.randint(-places.min(), slack - places.max())
            return base, width, step % (1 << 16), wrap_step % (1 << 16)


def random_out_walk(rng, rows, positions):
    """Out offsets of rows, out_step and out_wrap_step: close by, strided, or anywhere."""
    kind = rng.randrange(3)
    if kind == 0:
        return [r * positions for r in range(rows)], 1, 1
    if kind == 1:
        return list(range(rows)), rows, rows + rng.randrange(100)
    return (rng.sample(range(65535), rows), rng.randrange(1 << 32), rng.randrange(1 << 32))


def random_job(rng, config, index, fmt, mode, *, rows=None, positions=None, columns=None,
               longest=None, biased=None, psum_in=False, psum_out=False):
    """A job whose activations lie in one half of the buffer: that of its ``index``."""
    half = config.act_depth // 2
    rows = rng.randint(1, 5) if rows is None else rows
    positions = rng.randint(1, 4) if positions is None else positions
    columns = rng.randint(1, half) if columns is None else columns
    if longest is None:  # only a row that is not replayed may be longer than the buffer
        longest = 3 * ENTRY_DEPTH if positions == 1 else ENTRY_DEPTH
    base, width, step, wrap_step = random_places(rng, positions, half - columns)
    offsets, out_step, out_wrap_step = random_out_walk(rng, rows, positions)
    biased = rng.random() < 0.7 if biased is None else biased
    low, high = sorted(rng.choices(range(-128, 128), k=2)) if rng.random() < 0.3 else (-128, 127)
    word = config.out_word_bytes(mode == RAW)
    destination = half * (index % 2)
    return Job(
        command={
            "output": rng.randrange(ADDRESSES // word) * word, "base": destination + base,
            "limit": columns, "positions": positions, "width": width, "step": step,
            "wrap_step": wrap_step, "out_step": out_step, "out_wrap_step": out_wrap_step,
            "mode": int(mode), "psum_in": int(psum_in), "psum_out": int(psum_out),
            "zero_point": rng.randrange(-128, 128), "low": low, "high": high,
        },
        fmt=fmt, matrix=random_matrix(rng, rows, columns, longest, fmt),
        parameters=random_parameters(rng, rows, mode, offsets, biased),
        destination=destination,
        activations=np.random.default_rng(rng.getrandbits(32)).integers(
            -128, 128, (half, config.lanes)).astype(np.int8),
        extra_beats=rng.randrange(3),
    )


def evenly(job, count):
    """A matrix of the job's shape whose rows have ``count`` entries each, from column 0 on."""
    rows, columns = job.matrix.shape
    return Csr((rows, columns), count * np.arange(rows + 1), np.tile(np.arange(count), rows),
               np.resize(np.array([1, -2, 127, -128], np.int8), rows * count))


# -- bench --------------------------------------------------------------------------------------


class Tally:
    """What one EXEC did."""

    STROBES = ("issued", "filler", "wait_short", "wait_store", "wait_weights")

    def __init__(self, written):
        self.written = written
        self.written_when_done = -1  # bytes, with repetitions
        self.cycles = 0  # from ``start`` to ``done``
        self.count = dict.fromkeys(self.STROBES, 0)


class Bench:
    """An engine between a weight fetch, a loader and a store, all of which pause at random.

    The next EXEC's beats are offered, and its activations loaded, while one is at work. The run
    ends with the last EXEC or after a fault, a while later: what comes too much is seen.
    """

    SETTLE_CYCLES = 60

    def __init__(self, config, jobs, seed, *, pause=0.3, stall=0.3, hold_cycles=0,
                 max_cycles=20_000):
        print("seed", seed)
        self.config, self.jobs, self.rng = config, jobs, random.Random(seed)
        self.pause, self.hold_cycles = pause, hold_cycles
        self.max_cycles = max_cycles
        self.dut = Engine(config)
        self.packed = [job.pack(config.bus_bytes) for job in jobs]
        self.tallies: list[Tally] = []
        self.faults: list[int] = []
        self.image_at_fault: dict[int, int] = {}
        self.loaded = 0
        self.store = WordStore(config, self.rng, stall)

    def run(self):
        simulate(self.dut, self.control, background=[self.feed, self.load, self.serve, self.watch],
                 max_cycles=self.max_cycles)
        return self

    async def idle(self, ctx, probability):
        while self.rng.random() < probability:
            await ctx.tick()

    async def control(self, ctx):
        dut = self.dut
        for job in self.jobs:
            while self.loaded <= len(self.tallies):
                await ctx.tick()
            self.tallies.append(tally := Tally(self.store.begin(job.command["output"])))
            ctx.set(dut.command, job.command)
            ctx.set(dut.start, 1)
            *_, done = await ctx.tick().sample(dut.done)
            ctx.set(dut.start, 0)
            assert not done
            while not done and not self.faults:
                *_, done = await ctx.tick().sample(dut.done)
                tally.cycles += 1
            tally.written_when_done = tally.written.count
            if self.faults:
                break
        for _ in range(self.SETTLE_CYCLES):
            *_, done = await ctx.tick().sample(dut.done)
            assert done or self.faults, "done was taken back"
        assert self.faults or self.store.part == 0, "a word lacks its last beat"

    async def feed(self, ctx):
        i = self.dut.i
        for job, packed in zip(self.jobs, self.packed, strict=True):
            size = self.config.bus_bytes
            beats = [int.from_bytes(packed.data[k : k + size], "little")
                     for k in range(0, len(packed.data), size)]
            beats = beats[: len(beats) - job.cut_beats]
            beats += [self.rng.getrandbits(8 * size) for _ in range(job.extra_beats)]
            for k, beat in enumerate(beats):
                await self.idle(ctx, self.pause)
                ctx.set(i.p, {"data": beat, "last": k == len(beats) - 1})
                ctx.set(i.valid, 1)
                ready = False
                while not ready:
                    *_, ready = await ctx.tick().sample(i.ready)
                ctx.set(i.valid, 0)

    async def load(self, ctx):
        """Loads for each EXEC while the one before it is at work, beat by beat as the loader."""
        config, dut = self.config, self.dut
        for k, job in enumerate(self.jobs):
            while len(self.tallies) < k:
                await ctx.tick()
            image = job.activations.tobytes()
            for beat, at in enumerate(range(0, len(image), config.bus_bytes)):
                await self.idle(ctx, self.pause)
                line, sub = divmod(beat, config.word_beats)
                ctx.set(dut.w_en, 1)
                ctx.set(dut.w_line, job.destination // config.line_words + line)
                ctx.set(dut.w_sub, sub)
                ctx.set(dut.w_data, int.from_bytes(image[at : at + config.bus_bytes], "little"))
                await ctx.tick()
                ctx.set(dut.w_en, 0)
            self.loaded += 1

    async def serve(self, ctx):
        await self.store.run(ctx, self.dut.o, lambda: bool(
            self.tallies) and self.tallies[-1].cycles < self.hold_cycles)

    async def watch(self, ctx):
        dut = self.dut
        strobes = [getattr(dut, name) for name in Tally.STROBES]
        async for _, _, fault, *values in ctx.tick().sample(dut.fault, *strobes):
            if fault:
                if not self.faults:
                    self.image_at_fault = dict(self.tallies[-1].written.image)
                self.faults.append(fault)
            seen = dict(zip(Tally.STROBES, values, strict=True))
            assert sum(seen.values()) - seen["filler"] <= 1, "two reasons in one cycle"
            if self.tallies:
                count = self.tallies[-1].count
                for name, value in seen.items():
                    count[name] += value
            else:
                assert not any(values)


def check(config, jobs, seed, **options):
    """Runs jobs one after the other, and compares all that the engine does with the twin."""
    bench = Bench(config, jobs, seed, **options).run()
    twin = Twin(config)
    assert bench.faults == []
    for k, (job, tally) in enumerate(zip(jobs, bench.tallies, strict=True)):
        expected = twin.run(job)
        assert tally.written.image == expected, f"EXEC {k}"
        assert tally.written.count == tally.written_when_done == len(expected), f"EXEC {k}"
        assert tally.count["issued"] == job.issued, f"EXEC {k}"
        assert tally.count["filler"] == bench.packed[k].fillers, f"EXEC {k}"
    return bench


CONFIGS = [(1, 32), (1, 128), (2, 64), (8, 32), (8, 64), (8, 128)]
FORMATS = [
    DELTA_4,
    StreamFormat(delta_bits=1),
    StreamFormat(delta_bits=0),
    StreamFormat(delta_bits=8),
    StreamFormat(delta_bits=0, absolute=True),
    StreamFormat(delta_bits=3, weight_bits=4),
    StreamFormat(delta_bits=0, weight_bits=4),
    StreamFormat(delta_bits=0, absolute=True, weight_bits=4),
    StreamFormat(delta_bits=0, rice=True),
    StreamFormat(delta_bits=2, rice=True),
    StreamFormat(delta_bits=4, rice=True, weight_bits=4),
]


def name_of(fmt):
    kind = "absolute" if fmt.absolute else f"{'rice' if fmt.rice else 'delta'}{fmt.delta_bits}"
    return f"{kind}-int{fmt.weight_bits}"


@pytest.mark.parametrize("mode", list(OutputMode))
@pytest.mark.parametrize(("lanes", "bus_width"), CONFIGS)
def test_runs_streams_of_all_formats_one_after_another(lanes, bus_width, mode):
    seed = 1000 * lanes + 10 * bus_width + mode
    rng = random.Random(seed)
    config = configuration(lanes, bus_width, acc_width=rng.choice([24, 32]))
    formats = rng.sample(FORMATS, 3)
    check(config, [random_job(rng, config, k, fmt, mode) for k, fmt in enumerate(formats)], seed)


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_reads_every_format(fmt):
    seed = 7 + FORMATS.index(fmt)
    rng = random.Random(seed)
    config = configuration(2, 64)
    jobs = [random_job(rng, config, k, fmt, mode) for k, mode in enumerate((RAW, DOUBLE))]
    check(config, jobs, seed)


def test_steps_over_fillers_of_wide_gaps():
    rng = random.Random(20)
    config = configuration(1, 64)
    jobs = [random_job(rng, config, k, StreamFormat(delta_bits=d), RAW, rows=4, columns=500,
                       longest=4, positions=2) for k, d in enumerate((0, 1, 4))]
    bench = check(config, jobs, 20)
    assert all(packed.fillers for packed in bench.packed)


def test_adds_each_of_the_entries_at_one_offset():
    rng = random.Random(21)
    config = configuration(2, 32)
    job = random_job(rng, config, 0, FORMATS[4], RAW, rows=1, positions=2, columns=8)
    # 100 + 100 is no int8 and stays two entries; 3 + 4 becomes one.
    job.matrix = Csr((1, 8), np.array([0, 5]), np.array([2, 2, 5, 5, 7]),
                     np.array([100, 100, 3, 4, -128], np.int8))
    assert job.issued == 2 * 4
    check(config, [job], 21)


@pytest.mark.parametrize("has_rows", [True, False])
def test_finishes_without_entries(has_rows):
    rng = random.Random(22)
    config = configuration(8, 64)
    jobs = [random_job(rng, config, k, DELTA_4, DOUBLE, rows=3 * has_rows, positions=3,
                       biased=True) for k in range(2)]
    for job in jobs:
        job.matrix = evenly(job, 0)
    jobs.append(random_job(rng, config, 2, DELTA_4, DOUBLE))
    bench = check(config, jobs, 22)
    assert [tally.count["issued"] for tally in bench.tallies[:2]] == [9 * has_rows] * 2


@pytest.mark.parametrize(("lanes", "bus_width"), [(1, 64), (2, 128), (8, 32)])
def test_sums_column_tiles_through_partial_sums(lanes, bus_width):
    seed = 30 + lanes
    rng = random.Random(seed)
    config = configuration(lanes, bus_width)
    shape: dict[str, Any] = {"rows": 2, "positions": 3}
    check(config, [
        random_job(rng, config, 0, DELTA_4, RAW, psum_out=True, biased=True, **shape),
        random_job(rng, config, 1, DELTA_4, RAW, psum_in=True, psum_out=True, biased=False,
                   **shape),
        random_job(rng, config, 2, FORMATS[5], SINGLE),
        random_job(rng, config, 3, DELTA_4, DOUBLE, psum_in=True, **shape),
    ], seed)


def test_uses_all_room_for_partial_sums():
    rng = random.Random(40)
    config = configuration(8, 64)
    shape: dict[str, Any] = {"rows": 2, "positions": PSUM_DEPTH // 16}
    check(config, [
        random_job(rng, config, 0, DELTA_4, RAW, psum_out=True, **shape),
        random_job(rng, config, 1, DELTA_4, RAW, psum_in=True, **shape),
    ], 40)


def test_replays_a_row_as_long_as_the_buffer_and_issues_a_longer_one_once():
    rng = random.Random(41)
    config = configuration(2, 64)
    jobs = [random_job(rng, config, k, DELTA_4, DOUBLE, rows=3, positions=positions, columns=100)
            for k, positions in enumerate((4, 1))]
    for job, longest in zip(jobs, (ENTRY_DEPTH, 70), strict=True):
        job.matrix = evenly(job, longest)
    check(config, jobs, 41)


# -- pace ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 8])
def test_issues_an_entry_per_cycle_while_nothing_holds_it_back(lanes):
    rng = random.Random(50)
    config = configuration(lanes, 128)
    job = random_job(rng, config, 0, DELTA_4, DOUBLE, rows=6, positions=4, columns=40)
    job.matrix = evenly(job, ENTRY_DEPTH)
    bench = check(config, [job], 50, pause=0.0, stall=0.0)
    # Filling and draining the pipeline: once, whatever the number of rows.
    assert bench.tallies[0].cycles < job.issued + 54 + MacLanes.LATENCY_CYCLES


def test_each_cycle_without_an_entry_has_its_reason():
    rng = random.Random(51)
    config = configuration(8, 64)
    words = config.out_words

    def counts(job, **options):
        return check(config, [job], 51, **options).tallies[0].count

    job = random_job(rng, config, 0, DELTA_4, RAW, rows=4, positions=8, columns=20)
    job.matrix = evenly(job, 1)
    short = counts(job, pause=0.0, stall=0.0)
    # All lanes share a bus: ends of rows are as far apart as results are.
    assert short["wait_short"] >= (job.words - 1) * (config.shortest_row_cycles - 1)
    held = counts(job, pause=0.0, hold_cycles=1000)
    assert held["wait_store"] > 1000 - 10 * words
    job = random_job(rng, config, 0, DELTA_4, RAW, rows=4, positions=1, columns=20)
    job.matrix = evenly(job, ENTRY_DEPTH)
    fed = counts(job, pause=0.0, stall=0.0)
    starved = counts(job, pause=0.97, stall=0.0)
    assert fed["wait_weights"] < 40 < 100 < starved["wait_weights"]


def test_stops_for_a_store_that_takes_nothing_and_goes_on_after_it():
    rng = random.Random(52)
    config = configuration(8, 32)
    job = random_job(rng, config, 0, DELTA_4, RAW, rows=5, positions=6, columns=20)
    bench = check(config, [job], 52, pause=0.0, stall=0.0, hold_cycles=1500)
    assert bench.tallies[0].cycles > 1500


# -- faults -------------------------------------------------------------------------------------


def faulty(job, **options):
    """The job's rows, each of 10 entries; the last row gets another at ``offset``."""
    job.matrix = evenly(job, 10)
    if (offset := options.get("offset")) is not None:
        csr = job.matrix
        indptr = csr.indptr + (np.arange(len(csr.indptr)) == csr.shape[0])
        job.matrix = Csr(csr.shape, indptr, np.append(csr.indices, offset),
                         np.append(csr.data, np.int8(5)))
    return job


def first(job, rows, **command):
    """The first rows of a job."""
    parameters = {name: None if values is None else values[:rows]
                  for name, values in job.parameters.items()}
    return replace(job, command=job.command | command, parameters=parameters,
                   matrix=job.matrix.take(slice(rows), slice(None)))


def check_fault(config, job, code, seed, good):
    """Runs a job that must stop with ``code``; before that it may write what ``good`` does.

    Returns the bytes written before the fault. Behind it only their number is bounded: the core
    resets the engine then.
    """
    bench = Bench(config, [job], seed, pause=0.1, max_cycles=4000).run()
    tally, size = bench.tallies[0], config.out_word_bytes(job.command["mode"] == RAW)
    assert bench.faults and FaultCode(bench.faults[0]) == code
    assert bench.image_at_fault.items() <= Twin(config).run(good).items()
    assert tally.written.count <= job.words * size
    return len(bench.image_at_fault)


@pytest.mark.parametrize("fmt", [DELTA_4, StreamFormat(delta_bits=1), *FORMATS[4:6]], ids=name_of)
@pytest.mark.parametrize("lanes", [1, 8])
def test_offset_at_the_limit_is_a_fault(lanes, fmt):
    seed = 60 + lanes
    rng = random.Random(seed)
    config = configuration(lanes, 64)
    job = random_job(rng, config, 0, fmt, RAW, rows=8, positions=2, columns=31)
    if fmt.weight_bits == 4:
        job.matrix = faulty(job, offset=30).matrix
        job.matrix = replace(job.matrix, data=np.maximum(job.matrix.data >> 4, -8) | 1)
    else:
        faulty(job, offset=30)
    check(config, [job], seed)  # one below the limit
    job.command["limit"] = 30
    assert check_fault(config, job, FaultCode.COLUMN, seed, first(job, 7))


def test_address_beyond_the_activation_buffer_is_a_fault():
    rng = random.Random(70)
    config = configuration(8, 64)
    job = faulty(random_job(rng, config, 1, DELTA_4, RAW, rows=6, positions=1, columns=30),
                 offset=29)
    job.command["base"] = config.act_depth - 30
    check(config, [job], 70)  # the last word of the buffer
    job.command["base"] += 1
    assert check_fault(config, job, FaultCode.COLUMN, 70, first(job, 5))


@pytest.mark.parametrize(("base", "step"), [(64, 55), (5, (1 << 16) - 6)])
def test_walk_that_leaves_the_activation_buffer_is_a_fault(base, step):
    rng = random.Random(71)
    config = configuration(8, 64)
    job = faulty(random_job(rng, config, 0, DELTA_4, RAW, rows=3, positions=2, columns=30))
    job.command |= {"base": base, "width": 2, "step": step - (step == 55)}
    if step == 55:
        check(config, [job], 71)  # the last word of the buffer
    job.command["step"] = step
    # The walk's own steps are modulo 2**16, but not the sum with an offset: it is no way back.
    check_fault(config, job, FaultCode.COLUMN, 71, first(job, 3, positions=1))


def test_row_too_long_to_be_replayed_is_a_fault():
    rng = random.Random(72)
    config = configuration(2, 64)
    job = random_job(rng, config, 0, DELTA_4, DOUBLE, rows=5, positions=2, columns=30)
    job.matrix = evenly(job, ENTRY_DEPTH + 1)
    short = job.matrix.take(slice(4), slice(ENTRY_DEPTH))
    job.matrix = Csr(job.matrix.shape, np.append(short.indptr, short.nnz + ENTRY_DEPTH + 1),
                     np.append(short.indices, np.arange(ENTRY_DEPTH + 1)),
                     np.append(short.data, np.ones(ENTRY_DEPTH + 1, np.int8)))
    assert check_fault(config, job, FaultCode.ROW, 72, first(job, 4))


@pytest.mark.parametrize("fmt", [DELTA_4, FORMATS[5]], ids=name_of)
def test_stream_that_ends_early_is_a_fault_wherever_it_does(fmt):
    rng = random.Random(73)
    config = configuration(1, 32, act_depth=64)
    job = random_job(rng, config, 0, fmt, DOUBLE, rows=2, positions=2, columns=10, biased=True)
    job.matrix = replace(evenly(job, 10), data=np.ones(20, np.int8))
    job.extra_beats = 0
    for cut in range(1, job.pack(config.bus_bytes).beats):
        check_fault(config, replace(job, cut_beats=cut), FaultCode.STREAM, 100 * cut, job)


@pytest.mark.parametrize("use", ["psum_in", "psum_out"])
@pytest.mark.parametrize(("lanes", "depth"), [(1, 16), (8, 64)])
def test_more_partial_sums_than_are_kept_is_a_fault(lanes, depth, use):
    rng = random.Random(74)
    config = configuration(lanes, 64, psum_depth=depth)
    positions = depth // (2 * lanes)
    job = faulty(random_job(rng, config, 0, DELTA_4, RAW, rows=3, positions=positions,
                            columns=30, **{use: True}))
    check(config, [first(job, 2)], 74)
    check_fault(config, job, FaultCode.PSUM, 74, first(job, 2))
