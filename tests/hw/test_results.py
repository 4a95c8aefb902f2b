# SPDX-License-Identifier: Apache-2.0
"""The result path against a NumPy twin: sums and rows in, bytes at addresses out."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sparsemac.commands import OutputMode
from sparsemac.config import CoreConfig
from sparsemac.numerics import requantize
from sparsemac_hw.results import ResultPath
from sparsemac_hw.testing import simulate
from support.bits import Row
from support.store import ADDRESSES, WordStore

PSUM_DEPTH = 64

RAW, SINGLE, DOUBLE = OutputMode


def configuration(lanes, bus_width, acc_width=32, psum_depth=PSUM_DEPTH):
    return CoreConfig(engines=1, lanes=lanes, bus_width=bus_width, acc_width=acc_width,
                      psum_depth=psum_depth, fifo_depth=64)


def wrap(values, width):
    half = 1 << width - 1
    return (values + half) % (1 << width) - half


@dataclass
class Job:
    """One EXEC as the result path sees it."""

    command: dict[str, int]
    rows: list[Row]
    sums: np.ndarray  # (rows, positions, lanes) int64, each fits an accumulator


class Twin:
    """The definition in `sparsemac.commands`, from the sum on."""

    def __init__(self, config):
        self.config = config
        self.psums = np.zeros(config.psum_depth, np.int64)

    def run(self, job):
        """Returns what the EXEC writes: a byte for each address."""
        c = job.command
        if c["psum_in"]:
            totals = job.sums + self.psums[: job.sums.size].reshape(job.sums.shape)
        else:
            totals = job.sums + np.array([row.bias for row in job.rows])[:, None, None]
        totals = wrap(totals, 32)
        if c["psum_out"]:
            self.psums[: totals.size] = totals.ravel()
            return {}
        if c["mode"] == RAW:
            values = totals.astype("<i4")
        else:
            multiplier, shift = (
                np.array([getattr(row, name) for row in job.rows])[:, None, None]
                for name in ("multiplier", "shift")
            )
            values = requantize(totals, multiplier, shift, c["zero_point"], c["low"], c["high"],
                                OutputMode(c["mode"]))
        return self._placed(job, values)

    def _placed(self, job, values):
        c = job.command
        size = self.config.out_word_bytes(c["mode"] == RAW)
        image = {}
        for row, words in zip(job.rows, values, strict=True):
            word = row.out_offset
            for p, lanes in enumerate(words):
                for k, byte in enumerate(lanes.tobytes()):
                    image[(c["output"] + word * size + k) % ADDRESSES] = byte
                word += c["out_wrap_step"] if (p + 1) % c["width"] == 0 else c["out_step"]
                word %= 1 << 32
        return image


def out_walk(rng, rows, positions):
    """Out offsets of rows, out_step and out_wrap_step: close by, strided, or anywhere."""
    kind = rng.randrange(3)
    if kind == 0:
        return [r * positions for r in range(rows)], 1, 1
    if kind == 1:
        return list(range(rows)), rows, rows + rng.randrange(100)
    offsets = rng.sample(range(65535), rows)
    return offsets, rng.randrange(1 << 32), rng.randrange(1 << 32)


def random_row(rng, out_offset):
    ordinary = rng.random() < 0.8  # else anything that the header can hold
    return Row(
        out_offset=out_offset, entries=[],
        bias=rng.randrange(-(1 << 18), 1 << 18) if ordinary else rng.randrange(-(1 << 31), 1 << 31),
        multiplier=rng.randrange(1 << 30, 1 << 31) if ordinary else rng.randrange(1 << 35),
        shift=rng.randrange(8, 14) if ordinary else rng.randrange(32),
    )


def random_job(rng, config, mode, *, rows=None, positions=None, psum_in=False, psum_out=False):
    rows = rng.randint(1, 4) if rows is None else rows
    most = PSUM_DEPTH // (rows * config.lanes)
    positions = rng.randint(1, min(7, most)) if positions is None else positions
    offsets, out_step, out_wrap_step = out_walk(rng, rows, positions)
    low, high = sorted(rng.choices(range(-128, 128), k=2)) if rng.random() < 0.3 else (-128, 127)
    word = config.out_word_bytes(mode == RAW)
    data = np.random.default_rng(rng.getrandbits(32))
    # As often small as wide: sums of every size have to come through.
    reach = 1 << data.integers(0, config.acc_width, (rows, positions, config.lanes))
    return Job(
        command={
            "output": rng.randrange(ADDRESSES // word) * word, "positions": positions,
            "width": rng.randint(1, 4), "out_step": out_step, "out_wrap_step": out_wrap_step,
            "mode": int(mode), "psum_in": int(psum_in), "psum_out": int(psum_out),
            "zero_point": rng.randrange(-128, 128), "low": low, "high": high,
        },
        rows=[random_row(rng, offset) for offset in offsets],
        sums=data.integers(-reach, reach),
    )


class Bench:
    """A result path between lanes that pause and a store that stalls at random.

    Sums obey the credits, as the issuer makes them; what may not happen is asserted where it would
    show. ``store.written`` has what each EXEC wrote.
    """

    MAX_CYCLES = 20_000

    def __init__(self, config, jobs, seed, *, pause=0.2, stall=0.3):
        print("seed", seed)
        self.config, self.jobs, self.rng = config, jobs, random.Random(seed)
        self.pause = pause
        self.dut = ResultPath(config)
        self.credits = config.out_words
        self.passes: list[dict[str, bool]] = []
        self.rows: list[Row] = []
        self.taking = False  # the sum that is there ends its row
        self.returned: list[int] = []
        self.overruns: list[int] = []
        self.store = WordStore(config, self.rng, stall)

    def run(self):
        simulate(self.dut, self.drive, background=[self.serve, self.watch],
                 max_cycles=self.MAX_CYCLES)
        assert self.store.part == 0, "a word lacks its last beat"
        return self

    # -- lanes and rows -------------------------------------------------------------------------

    async def drive(self, ctx):
        for job in self.jobs:
            await self.execute(ctx, job)
        for _ in range(50):  # a word too many would come out now
            await self.step(ctx)

    async def execute(self, ctx, job):
        dut = self.dut
        for results in (self.returned, self.overruns):
            results.append(0)
        self.store.begin(job.command["output"])
        ctx.set(dut.command, job.command)
        count, width = job.command["positions"], job.command["width"]
        self.passes = [{"wraps": (p + 1) % width == 0, "last": p + 1 == count}
                       for _ in job.rows for p in range(count)]
        ctx.set(dut.start, 1)
        await self.step_with_pass(ctx)
        ctx.set(dut.start, 0)
        self.rows = list(job.rows)
        self.show_row(ctx)
        for words in job.sums.tolist():
            await self.wait(ctx)
            for position, sums in enumerate(words):
                while not self.credits:
                    await self.step(ctx)
                self.credits -= 1
                await self.put_word(ctx, sums, position == len(words) - 1)
        while self.credits != self.config.out_words:
            await self.step(ctx)

    async def put_word(self, ctx, sums, ends_row):
        for lane, acc in enumerate(sums):
            await self.wait(ctx)
            ctx.set(self.dut.i_soon, 1)
            # The next word is issued as late as may be: with the first sum of this one.
            step = self.step if lane else self.step_with_pass
            await step(ctx, acc=acc, takes_row=ends_row and lane == len(sums) - 1)
            ctx.set(self.dut.i_soon, 0)

    async def wait(self, ctx):
        while self.rng.random() < self.pause:
            await self.step(ctx)

    async def step_with_pass(self, ctx, **sum_):
        if self.passes:
            ctx.set(self.dut.i_pass, self.passes.pop(0))
            ctx.set(self.dut.i_pass_valid, 1)
        await self.step(ctx, **sum_)
        ctx.set(self.dut.i_pass_valid, 0)

    async def step(self, ctx, acc=None, takes_row=False):
        """A cycle; in the next one the sum is there that it announces, if it does."""
        *_, ready = await ctx.tick().sample(self.dut.i_row.ready)
        assert ready == self.taking
        if ready:
            self.rows.pop(0)
            self.show_row(ctx)
        self.taking = takes_row
        any_sum = self.rng.randrange(1 << self.config.acc_width - 1)
        ctx.set(self.dut.i_acc, any_sum if acc is None else acc)

    def show_row(self, ctx):
        """The row that is at work; none behind the last."""
        ctx.set(self.dut.i_row.valid, bool(self.rows))
        if self.rows:
            row = self.rows[0]
            ctx.set(self.dut.i_row.p, {"out_offset": row.out_offset, "bias": row.bias,
                                       "multiplier": row.multiplier, "shift": row.shift})

    # -- store ----------------------------------------------------------------------------------

    async def serve(self, ctx):
        await self.store.run(ctx, self.dut.o)

    async def watch(self, ctx):
        dut = self.dut
        async for *_, returned, overrun in ctx.tick().sample(dut.returned, dut.overrun):
            self.credits += returned
            assert self.credits <= self.config.out_words, "a credit too many"
            if self.returned:
                self.returned[-1] += returned
                self.overruns[-1] += overrun


def check(config, jobs, seed, **options):
    """Runs jobs one after the other, and compares all that the path does with the twin."""
    bench = Bench(config, jobs, seed, **options).run()
    twin = Twin(config)
    for k, job in enumerate(jobs):
        expected = twin.run(job)
        assert bench.store.written[k].image == expected, f"EXEC {k}"
        assert bench.store.written[k].count == len(expected), f"EXEC {k}"
        assert bench.returned[k] == job.sums.size // config.lanes, f"EXEC {k}"
        assert bench.overruns[k] == 0, f"EXEC {k}"


CONFIGS = [(1, 32), (1, 128), (2, 64), (8, 32), (8, 64), (8, 128)]


@pytest.mark.parametrize("mode", list(OutputMode))
@pytest.mark.parametrize(("lanes", "bus_width"), CONFIGS)
def test_writes_each_result_at_its_place(lanes, bus_width, mode):
    seed = 1000 * lanes + 10 * bus_width + mode
    rng = random.Random(seed)
    config = configuration(lanes, bus_width, acc_width=rng.choice([20, 32]))
    check(config, [random_job(rng, config, mode) for _ in range(5)], seed)


@pytest.mark.parametrize(("pause", "stall"), [(0.0, 0.0), (0.0, 0.9), (0.7, 0.0)])
def test_modes_follow_one_another_at_any_pace(pause, stall):
    seed = int(100 * pause + 10 * stall)
    rng = random.Random(seed)
    config = configuration(2, 64)
    modes = [RAW, DOUBLE, SINGLE, RAW, SINGLE]
    check(config, [random_job(rng, config, mode) for mode in modes], seed,
          pause=pause, stall=stall)


@pytest.mark.parametrize(("lanes", "bus_width"), [(1, 64), (2, 32), (8, 128)])
def test_keeps_partial_sums_between_execs(lanes, bus_width):
    seed = 7 * lanes + bus_width
    rng = random.Random(seed)
    config = configuration(lanes, bus_width)
    shape: dict[str, Any] = {"rows": 2, "positions": 3}
    check(config, [
        random_job(rng, config, RAW, psum_out=True, **shape),
        random_job(rng, config, DOUBLE, psum_in=True, psum_out=True, **shape),
        random_job(rng, config, SINGLE),  # leaves what is kept alone
        random_job(rng, config, DOUBLE, psum_in=True, **shape),
        random_job(rng, config, RAW, psum_in=True, **shape),  # reading does not use it up
        random_job(rng, config, RAW, psum_in=True, psum_out=True, rows=1, positions=2),
        random_job(rng, config, RAW, psum_in=True, rows=2, positions=2),  # half old, half new
    ], seed)


@pytest.mark.parametrize("lanes", [1, 8])
def test_keeps_as_many_partial_sums_as_there_is_room_for(lanes):
    seed = 50 + lanes
    rng = random.Random(seed)
    config = configuration(lanes, 64)
    shape: dict[str, Any] = {"rows": 2, "positions": PSUM_DEPTH // (2 * lanes)}
    check(config, [
        random_job(rng, config, RAW, psum_out=True, **shape),
        random_job(rng, config, RAW, psum_in=True, **shape),
    ], seed, pause=0.0)


@pytest.mark.parametrize("use", ["psum_in", "psum_out"])
@pytest.mark.parametrize("lanes", [1, 8])
def test_each_partial_sum_too_many_is_an_overrun(lanes, use):
    seed = 60 + lanes
    rng = random.Random(seed)
    config = configuration(lanes, 64, psum_depth=16)
    words = 16 // lanes
    bench = Bench(config, [
        random_job(rng, config, RAW, rows=1, positions=words + 2, **{use: True}),
        random_job(rng, config, RAW, rows=1, positions=words + 2),
        random_job(rng, config, RAW, rows=1, positions=words, **{use: True}),
    ], seed).run()
    assert bench.overruns == [2 * lanes, 0, 0]
    assert bench.returned == [words + 2, words + 2, words]


def test_path_without_partial_sums_keeps_none():
    rng = random.Random(70)
    config = configuration(4, 64, psum_depth=0)
    check(config, [random_job(rng, config, mode) for mode in OutputMode], 70)


def test_steps_of_the_output_wrap_at_32_bits():
    config = configuration(2, 32)
    job = random_job(random.Random(80), config, RAW, rows=1, positions=6)
    job.command |= {"output": 0x1000, "width": 2, "out_step": 5, "out_wrap_step": (1 << 32) - 4}
    job.rows[0].out_offset = 2
    bench = Bench(config, [job], 80).run()
    words = {(address - 0x1000) % ADDRESSES // 8 for address in bench.store.written[0].image}
    assert words == {2, 7, 3, 8, 4, 9}
    job.command["out_wrap_step"] = (1 << 32) - 9
    bench = Bench(config, [job], 81).run()
    words = {(address - 0x1000) % ADDRESSES // 8 for address in bench.store.written[0].image}
    assert words == {2, 7, (1 << 29) - 2, 3, (1 << 29) - 6, (1 << 29) - 1}
