# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS
from sparsemac_hw.counters import CounterBank
from sparsemac_hw.testing import simulate

NAMES = [name.lower() for name, _ in COUNTERS]


class Bench:
    """Drives a counter bank at random, beside a twin that counts in Python."""

    def __init__(self, seed, config, most=False):
        print("seed", seed)
        self.rng = random.Random(seed)
        self.dut = CounterBank(config)
        self.most = most
        self.bus_bytes = config.bus_bytes
        self.counts = dict.fromkeys(NAMES, 0)
        self.held = 0  # cycles for which r_idx must stay

    async def cycle(self, ctx, *, busy=1, clear=0, read=None):
        """One cycle; returns what the counter ``read`` must hold then."""
        dut = self.dut
        ctx.set(dut.busy, busy)
        ctx.set(dut.clear, clear)
        ctx.set(dut.r_stb, read is not None)
        if read is not None:
            ctx.set(dut.r_idx, NAMES.index(read))
            self.held = 6
        elif self.held:
            self.held -= 1
        else:
            ctx.set(dut.r_idx, self.rng.randrange(16))
        before = self.counts.get(read)
        for name in NAMES:
            port = getattr(dut, f"{name}_now")
            top = self.bus_bytes if name == "write_bytes" else (1 << len(port)) - 1
            value = top if self.most else self.rng.randint(0, top)
            ctx.set(port, value)
            if busy:
                self.counts[name] += value if name == "write_bytes" else value.bit_count()
        if clear:
            self.counts = dict.fromkeys(NAMES, 0)
        await ctx.tick()
        return before

    async def read(self, ctx, name):
        """Returns what a counter holds after the last cycle; nothing happens meanwhile."""
        await self.cycle(ctx, busy=0)
        await self.cycle(ctx, busy=0, read=name)
        for _ in range(CounterBank.READ_CYCLES - 1):
            await self.cycle(ctx, busy=0)
        return ctx.get(self.dut.r_data)


@pytest.mark.parametrize(
    "config",
    [CoreConfig(), CoreConfig(engines=1, fifo_depth=64), CoreConfig(engines=64, bus_width=512)],
)
def test_counts_every_event_once_whenever_it_is_read(config):
    bench = Bench(config.engines, config)

    async def drive(ctx):
        for _ in range(3):
            for _ in range(bench.rng.randrange(80)):
                await bench.cycle(ctx, busy=bench.rng.random() < 0.8)
            for name in bench.rng.sample(NAMES, len(NAMES)):
                assert await bench.read(ctx, name) == bench.counts[name], name

    simulate(bench.dut, drive)


@pytest.mark.parametrize("engines", [1, 8])
def test_loses_nothing_while_reads_take_every_eighth_turn(engines):
    config = CoreConfig(engines=engines, fifo_depth=32)
    bench = Bench(1, config, most=True)

    async def drive(ctx):
        for n in range(200):
            await bench.cycle(ctx, read=NAMES[n // 8 % len(NAMES)] if n % 8 == 0 else None)
        for name in NAMES:
            assert await bench.read(ctx, name) == bench.counts[name], name

    simulate(bench.dut, drive)


def test_read_is_complete_up_to_two_cycles_behind_the_strobe():
    bench = Bench(2, CoreConfig())

    async def drive(ctx):
        history = [0]
        for n in range(200):
            await bench.cycle(ctx, read="issued" if n % 8 == 0 else None)
            history.append(bench.counts["issued"])
            strobed = n - CounterBank.READ_CYCLES + 1
            if strobed >= 0 and strobed % 8 == 0:
                assert ctx.get(bench.dut.r_data) == history[strobed + 3]

    simulate(bench.dut, drive)


@pytest.mark.parametrize("wait", range(18))
def test_clear_leaves_nothing_behind_at_any_turn(wait):
    bench = Bench(3 + wait, CoreConfig(engines=2, fifo_depth=16))

    async def drive(ctx):
        for _ in range(20 + wait):
            await bench.cycle(ctx)
        await bench.cycle(ctx, clear=1)
        for _ in range(wait % 5):
            await bench.cycle(ctx)
        for name in NAMES:
            assert await bench.read(ctx, name) == bench.counts[name], name

    simulate(bench.dut, drive)
