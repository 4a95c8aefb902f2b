# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
from sparsemac.commands import COUNT_BITS, OFFSET_BITS
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.testing import simulate
from sparsemac_hw.unpacker import Unpacker
from support.bits import BitWriter, Row, random_rows, write_rows

LIMIT = 300


class Run:
    """One simulation of an unpacker over several EXECs with random back-pressure."""

    def __init__(self, seed, bus_width, execs, *, delta_bits=4, absolute=False, rice=False,
                 weight_bits=8, count_bits=15, offset_bits=16, has_bias=True, quantized=True,
                 positions=1, cut=0, entry_depth=512,
                 pause=0.3):
        print("seed", seed)
        self.rng, self.pause, self.entry_depth = random.Random(seed), pause, entry_depth
        self.dut = Unpacker(CoreConfig(
            engines=1, bus_width=bus_width, fifo_depth=64, entry_depth=entry_depth
        ))
        self.entries, self.counts, self.rows, self.faults, self.fillers = [], [], [], [], 0
        self.headers = []  # for each entry, the rows whose headers are known by then
        self.command = {
            "delta_bits": delta_bits, "absolute": absolute, "rice": rice,
            "int4": weight_bits == 4,
            "has_bias": has_bias, "mode": 2 if quantized else 0, "limit": LIMIT,
            "positions": positions,
            "count_size": COUNT_BITS.index(count_bits),
            "offset_size": OFFSET_BITS.index(offset_bits),
        }
        self.expected_fillers = 0
        self.streams = []
        for rows in execs:
            writer, fillers = (rows, 0) if isinstance(rows, BitWriter) else write_rows(
                rows, delta_bits=delta_bits, absolute=absolute, rice=rice, weight_bits=weight_bits,
                count_bits=count_bits, offset_bits=offset_bits, has_bias=has_bias,
                quantized=quantized,
            )
            self.expected_fillers += fillers
            beats = writer.beats(bus_width)
            padding = [self.rng.getrandbits(bus_width) for _ in range(self.rng.randrange(3))]
            self.streams.append(beats[: len(beats) - cut] if cut else beats + padding)
        self.done = 0
        simulate(self.dut, self.control, background=[self.feed, self.sink])

    async def feed(self, ctx):
        i = self.dut.i
        for beats in self.streams:
            for k, beat in enumerate(beats):
                while self.rng.random() < self.pause:
                    await ctx.tick()
                ctx.set(i.p, {"data": beat, "last": k == len(beats) - 1})
                ctx.set(i.valid, 1)
                ready = False
                while not ready:
                    *_, ready = await ctx.tick().sample(i.ready)
                ctx.set(i.valid, 0)

    async def control(self, ctx):
        ctx.set(self.dut.command, self.command)
        for _ in self.streams:
            ctx.set(self.dut.start, 1)
            await ctx.tick()
            ctx.set(self.dut.start, 0)
            for _ in range(20_000):
                *_, done = await ctx.tick().sample(self.dut.done)
                if done or self.faults:
                    break
            self.done += done
            await ctx.tick().repeat(12)

    async def sink(self, ctx):
        dut = self.dut
        outputs = (dut.o_count, dut.o_row)
        held = 0  # places taken, as the buffer behind knows it
        while True:
            frees = held > 0 and self.rng.random() < 0.7
            ctx.set(dut.freed, frees)
            ready = [self.rng.random() < 0.7 for _ in outputs]
            for stream, on in zip(outputs, ready, strict=True):
                ctx.set(stream.ready, on)
            sampled = [s for stream in outputs for s in (stream.valid, stream.p)]
            _, _, cv, c, rv, r, ev, e, fault, filler = await ctx.tick().sample(
                *sampled, dut.o_valid, dut.o, dut.fault, dut.filler)
            held += ev - frees
            assert held <= self.entry_depth
            if ev:
                self.entries.append((e.offset, e.weight))
                self.headers.append(len(self.rows) + rv)
            if cv and ready[0]:
                self.counts.append(c)
            if rv and ready[1]:
                self.rows.append(Row(r.out_offset, [], r.bias, r.multiplier, r.shift))
            if fault:
                self.faults.append(fault)
            self.fillers += filler


CASES = [
    (64, {"delta_bits": 4}),
    (32, {"delta_bits": 3, "weight_bits": 4, "quantized": False}),
    (128, {"delta_bits": 0, "has_bias": False, "quantized": False}),
    (512, {"delta_bits": 8, "weight_bits": 4}),
    (64, {"delta_bits": 0, "absolute": True, "count_bits": 10, "offset_bits": 12}),
    (64, {"delta_bits": 2, "weight_bits": 4, "has_bias": False}),
    (32, {"delta_bits": 1}),
    (256, {"delta_bits": 0, "absolute": True, "weight_bits": 4}),
    (64, {"delta_bits": 0, "rice": True, "count_bits": 10, "offset_bits": 8}),
    (32, {"delta_bits": 0, "rice": True, "weight_bits": 4, "has_bias": False, "quantized": False}),
    (64, {"delta_bits": 3, "rice": True, "quantized": False}),
    (128, {"delta_bits": 8, "rice": True, "weight_bits": 4}),
    (32, {"delta_bits": 1, "rice": True, "count_bits": 10, "offset_bits": 10}),
]


@pytest.mark.parametrize(("bus_width", "form"), CASES)
def test_reads_rows_and_entries(bus_width, form):
    seed = bus_width + form["delta_bits"] + 100 * form.get("rice", False)
    rng = np.random.default_rng(seed)
    quantized, weight_bits = form.get("quantized", True), form.get("weight_bits", 8)
    execs = [
        random_rows(
            rng, count, LIMIT, density=density, weight_bits=weight_bits, quantized=quantized
        )
        for count, density in ((10, 0.1), (0, 0), (4, 0.8))
    ]
    run = Run(seed, bus_width, execs, **form)
    rows = sum(execs, [])
    assert run.faults == [] and run.done == len(execs)
    assert run.entries == [e for row in rows for e in row.entries or [(0, 0)]]
    assert run.counts == [max(1, len(row.entries)) for row in rows]
    assert [row.out_offset for row in run.rows] == [row.out_offset for row in rows]
    if form.get("has_bias", True):
        assert [row.bias for row in run.rows] == [row.bias for row in rows]
    if quantized:
        got = [(row.multiplier, row.shift) for row in run.rows]
        assert got == [(row.multiplier, row.shift) for row in rows]
    assert run.fillers == run.expected_fillers


@pytest.mark.parametrize("density", [0, 0.01])
def test_entries_come_behind_their_headers_however_slow_the_stream(density):
    """A sum needs the bias and the scale of its row: an empty row's is there at once."""
    rows = random_rows(np.random.default_rng(5), 20, LIMIT, density=density)
    run = Run(5, 32, [rows], pause=0.8)
    row_of = np.repeat(np.arange(len(rows)), [max(1, len(row.entries)) for row in rows])
    assert run.faults == [] and len(run.headers) == len(row_of)
    assert (np.array(run.headers) > row_of).all()


def test_streams_of_short_rows_have_the_smallest_headers():
    rows = [Row(o, [(k, 7) for k in range(o % 31)]) for o in range(40)]
    for rice in (False, True):
        run = Run(6, 64, [rows, [], rows[30:]], rice=rice, count_bits=5, offset_bits=8,
                  has_bias=False, quantized=False)
        assert run.faults == [] and run.done == 3
        expected = rows + rows[30:]
        assert run.counts == [max(1, len(row.entries)) for row in expected]
        assert [row.out_offset for row in run.rows] == [row.out_offset for row in expected]


def test_a3_offset_beyond_the_limit_is_a_fault_and_is_not_passed_on():
    run = Run(1, 64, [[Row(0, [(3, 5), (LIMIT, 7)])]])
    assert run.faults[0] == FaultCode.COLUMN
    assert run.entries == [(3, 5)]


@pytest.mark.parametrize("zeros", [2, 255, 512, 768])
def test_a3_a_gap_of_any_length_is_no_legal_offset_again(zeros):
    """Columns are summed up in 17 bits: 512 zeros of 256 columns would be none at all."""
    out = BitWriter()
    out.put(1 | 1 << 1, 1 + 15)
    out.put(0, 16)
    for _ in range(zeros // 16):
        out.put(0, 16)
    out.put(1 << zeros % 16, 16)
    out.put(5, 8)
    out.put(3, 8)
    run = Run(4, 64, [out], delta_bits=8, rice=True, has_bias=False, quantized=False)
    assert run.faults[0] == FaultCode.COLUMN and run.entries == []


def test_entries_of_a_mask_go_on_in_the_next_row():
    rows = [Row(o, [(o, 1 + o), (40 + 3 * o, -1)]) for o in range(7)]
    run = Run(7, 32, [rows], delta_bits=3, rice=True, has_bias=False, quantized=False)
    assert run.faults == [] and run.entries == [e for row in rows for e in row.entries]


def test_a2_stream_that_ends_early_is_a_fault():
    rows = random_rows(np.random.default_rng(2), 10, LIMIT, density=0.5)
    run = Run(2, 64, [rows], cut=2)
    assert run.faults[0] == FaultCode.STREAM


def test_row_too_long_to_be_replayed_is_a_fault():
    rows = [Row(0, [(k, 1) for k in range(17)])]
    assert Run(3, 64, [rows], positions=2, entry_depth=16).faults[0] == FaultCode.ROW
    assert Run(3, 64, [rows], positions=1, entry_depth=16).faults == []
