# SPDX-License-Identifier: Apache-2.0
"""The whole core in Amaranth's simulator, on command lists written by hand."""

import random

import numpy as np
import pytest
from sparsemac.commands import Exec, Load, OutputMode, StreamFormat, encode_list
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode, register_map
from sparsemac_hw.core import Core
from sparsemac_hw.testing import simulate
from support.axi import AxiMemory, lite_read, lite_write
from support.bits import random_rows, write_rows

MEMORY = 1 << 16
COMMANDS, INPUT, WEIGHTS, OUTPUT = 0x0, 0x2000, 0x6000, 0xC000


class Bench:
    """A core, its memory and the host's side."""

    def __init__(self, config, seed, stall=0.2):
        print("seed", seed)
        self.config, self.rng = config, random.Random(seed)
        self.np = np.random.default_rng(seed)
        self.dut = Core(config)
        self.map = register_map(config)
        self.memory = AxiMemory(self.dut.m_axi, config.bus_width, MEMORY, self.rng, stall)

    async def write(self, ctx, name, value):
        return await lite_write(ctx, self.dut.s_axil, self.map[name].byte_offset, value)

    async def read(self, ctx, name):
        return (await lite_read(ctx, self.dut.s_axil, self.map[name].byte_offset))[0]

    async def prepare(self, ctx, commands, watchdog=4000):
        self.memory.data[COMMANDS : COMMANDS + 64 * len(commands)] = encode_list(commands)
        windows = [(0, OUTPUT - 4096, 1), (OUTPUT, MEMORY - 4096, 3)]
        for i, (first, last, perm) in enumerate(windows):
            await self.write(ctx, f"WINDOW{i}_FIRST", first)
            await self.write(ctx, f"WINDOW{i}_LAST", last)
            await self.write(ctx, f"WINDOW{i}_PERM", perm)
        await self.write(ctx, "COMMAND_ADDRESS", COMMANDS)
        await self.write(ctx, "COMMAND_COUNT", len(commands))
        await self.write(ctx, "WATCHDOG", watchdog)
        await self.write(ctx, "IRQ_ENABLE", 1)

    async def run(self, ctx):
        """Rings the doorbell, waits for the interrupt, acknowledges it; returns the fault code."""
        assert await self.write(ctx, "CTRL", 1) == 0
        irq = 0
        while not irq:
            *_, irq = await ctx.tick().sample(self.dut.irq)
        await self.write(ctx, "STATUS", 2)
        return await self.read(ctx, "ERROR")

    def put_weights(self, rows, form, has_bias=True, quantized=True):
        """Deals rows out to the engines in turn; returns the beats of the interleaved streams."""
        c = self.config
        streams = [
            write_rows(rows[e :: c.engines], delta_bits=form.delta_bits, absolute=form.absolute,
                       rice=form.rice, weight_bits=form.weight_bits, has_bias=has_bias,
                       quantized=quantized)[0].beats(c.bus_width)
            for e in range(c.engines)
        ]
        rounds = max(map(len, streams))
        data = b"".join(
            (s[k] if k < len(s) else 0).to_bytes(c.bus_bytes, "little")
            for k in range(rounds) for s in streams
        )
        self.memory.data[WEIGHTS : WEIGHTS + len(data)] = data
        return rounds * c.engines

    def put_input(self, words):
        """Random activations, (words, lanes) int8."""
        x = self.np.integers(-128, 128, (words, self.config.lanes)).astype(np.int8)
        self.memory.data[INPUT : INPUT + x.size] = x.tobytes()
        return x.astype(np.int64)


def requantized(total, row, mode):
    """Scalar transcription of the rounding rule, with Python's own integers."""
    product = total * row.multiplier
    rounds = mode == OutputMode.DOUBLE or not row.shift
    high = (product >> 31) + (product >> 30 & 1 if rounds else 0)
    if row.shift:
        high += (1 << row.shift - 1) - (mode == OutputMode.DOUBLE and high < 0)
    return max(-100, min(100, (high >> row.shift) + 3))


def expected_output(rows, x, positions, step, mode):
    lanes = x.shape[1]
    out = {}
    for row in rows:
        for p in range(positions):
            for lane in range(lanes):
                total = row.bias + sum(w * int(x[p * step + o, lane]) for o, w in row.entries)
                out[row.out_offset + p * len(rows), lane] = (
                    total if mode == OutputMode.RAW else requantized(total, row, mode))
    return out


def job(bench, mode=OutputMode.DOUBLE, rows=13, columns=24, positions=3, form=None):
    """One LOAD and one EXEC; returns the commands and the expected output."""
    form = form or StreamFormat(delta_bits=3, weight_bits=8)
    c = bench.config
    lines = -(-columns // c.line_words) * c.line_words
    x = bench.put_input(lines * positions)
    matrix = random_rows(bench.np, rows, columns, weight_bits=form.weight_bits,
                         quantized=mode != OutputMode.RAW)
    for row in matrix:
        row.bias >>= 8
        row.multiplier >>= 1 if row.multiplier else 0
        row.shift = min(row.shift, 5)
    beats = bench.put_weights(matrix, form, quantized=mode != OutputMode.RAW)
    commands = [
        Load(address=INPUT, destination=0, lines=positions, stride=lines * c.lanes,
             line_beats=lines * c.lanes // c.bus_bytes),
        Exec(wait=1, weights=WEIGHTS, beats=beats, output=OUTPUT, base=0, limit=columns,
             positions=positions, width=positions, step=lines, wrap_step=0, out_step=rows,
             out_wrap_step=0, format=form, mode=mode, zero_point=3, low=-100, high=100),
    ]
    return commands, expected_output(matrix, x, positions, lines, mode)


def stored(bench, expected, mode):
    kind = np.int32 if mode == OutputMode.RAW else np.int8
    lanes = bench.config.lanes
    flat = np.frombuffer(bytes(bench.memory.data[OUTPUT:]), kind)
    return {(word, lane): int(flat[word * lanes + lane]) for word, lane in expected}


CONFIGS = [
    CoreConfig(engines=2, lanes=4, act_depth=256, entry_depth=32, psum_depth=64),
    CoreConfig(engines=1, lanes=1, bus_width=32, act_depth=256, fifo_depth=64),
    CoreConfig(engines=3, lanes=8, bus_width=64, act_depth=256, fifo_depth=16),
    CoreConfig(engines=2, lanes=16, bus_width=64, act_depth=256),
    CoreConfig(engines=4, lanes=2, bus_width=256, act_depth=256),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.engines}x{c.lanes}-{c.bus_width}")
@pytest.mark.parametrize("mode", list(OutputMode))
def test_runs_a_layer_bit_exactly(config, mode):
    bench = Bench(config, 10 * config.engines + mode)
    commands, expected = job(bench, mode)
    result = {}

    async def host(ctx):
        await bench.prepare(ctx, commands)
        result["code"] = await bench.run(ctx)

    simulate(bench.dut, host, background=[bench.memory.run], max_cycles=60_000)
    assert result["code"] == FaultCode.NONE
    assert stored(bench, expected, mode) == expected


def test_counters_account_for_every_engine_cycle():
    config = CONFIGS[0]
    bench = Bench(config, 5)
    commands, _ = job(bench)
    count = {}

    async def host(ctx):
        await bench.prepare(ctx, commands)
        await bench.run(ctx)
        for name in ("CYCLES", "ISSUED", "STALL_COMMAND", "STALL_ACTIVATIONS", "STALL_WEIGHTS",
                     "STALL_STORE", "STALL_SHORT", "IDLE", "READ_BEATS", "WRITE_BYTES"):
            count[name] = await bench.read(ctx, f"{name}_LO")

    simulate(bench.dut, host, background=[bench.memory.run], max_cycles=60_000)
    cycles = count.pop("CYCLES")
    beats = count.pop("READ_BEATS")
    assert beats == sum(n for _, n in bench.memory.read_bursts)
    assert count.pop("WRITE_BYTES") == 13 * 3 * config.lanes
    assert sum(count.values()) == cycles * config.engines
