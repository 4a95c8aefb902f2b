# SPDX-License-Identifier: Apache-2.0
"""The register bank against a twin that reads the register map, under random stalls."""

import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS, register_map
from sparsemac_hw.bank import OKAY, SLVERR, RegisterBank
from sparsemac_hw.counters import CounterBank
from sparsemac_hw.testing import simulate

SEED = 4711
CONFIG = CoreConfig(windows=3)
MAP = register_map(CONFIG)


class Twin:
    """What the bank should hold and answer."""

    def __init__(self, config):
        self.map = register_map(config)
        self.by_offset = {r.byte_offset: r for r in self.map}
        self.values = {r.name: sum(f.reset << f.lsb for f in r.fields) for r in self.map}
        self.strobes = []
        self.locked = self.start_refused = 0

    def reject(self):
        self.values["REJECTED"] = self.values["REJECTED"] + 1 & 0xFFFF
        return SLVERR

    def write(self, address, word, strobe):
        register = self.by_offset.get(address & ~3)
        if register is None or not register.writable or (register.locked and self.locked):
            return self.reject()
        lanes = sum(0xFF << 8 * n for n in range(4) if strobe >> n & 1)
        hits = [f.name for f in register.fields if word & lanes & f.mask and f.access == "W1S"]
        if "start" in hits:
            if len(hits) > 1:
                hits.remove("start")
            elif self.start_refused:
                return self.reject()
        self.strobes += hits
        for field in register.fields:
            mask = field.mask & lanes
            value = self.values[register.name]
            if field.access == "RW":
                self.values[register.name] = value & ~mask | word & mask
            elif field.access == "RW1C":
                self.values[register.name] = value & ~(word & mask)
        return OKAY

    def read(self, address):
        register = self.by_offset.get(address & ~3)
        if register is None:
            return self.reject(), 0
        readable = sum(f.mask for f in register.fields if f.access != "W1S")
        return OKAY, self.values[register.name] & readable


class Host:
    """An AXI4-Lite master that stalls at random."""

    def __init__(self, dut, rng, stall=0.0):
        self.bus, self.rng, self.stall = dut.bus, rng, stall

    async def pause(self, ctx):
        while self.rng.random() < self.stall:
            await ctx.tick()

    async def send(self, ctx, channel, **signals):
        await self.pause(ctx)
        for name, value in signals.items():
            ctx.set(getattr(self.bus, name), value)
        ctx.set(getattr(self.bus, f"{channel}valid"), 1)
        ready = False
        while not ready:
            *_, ready = await ctx.tick().sample(getattr(self.bus, f"{channel}ready"))
        ctx.set(getattr(self.bus, f"{channel}valid"), 0)

    async def receive(self, ctx, channel, *names):
        await self.pause(ctx)
        ctx.set(getattr(self.bus, f"{channel}ready"), 1)
        valid, values = False, ()
        signals = [getattr(self.bus, name) for name in names]
        while not valid:
            *_, valid = sampled = await ctx.tick().sample(
                *signals, getattr(self.bus, f"{channel}valid")
            )
            values = sampled[2:-1]
        ctx.set(getattr(self.bus, f"{channel}ready"), 0)
        return values

    async def write(self, ctx, address, word, strobe=15):
        parts = [
            ("aw", {"awaddr": address}),
            ("w", {"wdata": word, "wstrb": strobe}),
        ]
        self.rng.shuffle(parts)  # the address before the data, or after it
        if self.rng.random() < 0.3:  # both at once
            ctx.set(self.bus.awaddr, address)
            ctx.set(self.bus.awvalid, 1)
            await self.send(ctx, "w", wdata=word, wstrb=strobe)
            ctx.set(self.bus.awvalid, 0)
        else:
            for channel, signals in parts:
                await self.send(ctx, channel, **signals)
        (response,) = await self.receive(ctx, "b", "bresp")
        return response

    async def read(self, ctx, address):
        await self.send(ctx, "ar", araddr=address)
        return await self.receive(ctx, "r", "rresp", "rdata")


def offset(name):
    return MAP[name].byte_offset


def drive_inputs(ctx, dut, twin, rng):
    """Gives every input that a register shows a random value."""
    for register in twin.map:
        value = 0
        for field in register.fields:
            name = register.name.lower()
            name = name if field.name == "value" else f"{name}_{field.name}"
            if field.access == "R" and hasattr(dut, name):
                part = rng.getrandbits(len(getattr(dut, name)))
                ctx.set(getattr(dut, name), part)
                value |= part << field.lsb
            elif name.endswith(("_lo", "_hi")):  # a counter
                continue
            else:
                value |= twin.values[register.name] & field.mask
        twin.values[register.name] = value


def random_address(rng):
    if rng.random() < 0.2:
        return rng.randrange(1 << 12)
    return rng.choice(MAP.registers).byte_offset + rng.choice([0, 0, 0, 3])


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_answers_and_holds_what_the_map_says(stall):
    print(f"seed {SEED}")
    rng = random.Random(SEED + int(10 * stall))
    dut = RegisterBank(CONFIG)
    twin = Twin(CONFIG)
    host = Host(dut, rng, stall)
    strobes = []

    async def watch(ctx):
        names = ["start", "soft_reset", "abort"]
        signals = [getattr(dut, f"ctrl_{name}") for name in names]
        while True:
            values = await ctx.tick().sample(*signals)
            strobes.extend(n for n, value in zip(names, values[2:], strict=True) if value)

    async def bench(ctx):
        drive_inputs(ctx, dut, twin, rng)
        skipped = {f"{name}_{half}" for name, _ in COUNTERS for half in ("LO", "HI")}
        for _ in range(600):
            twin.locked, twin.start_refused = rng.random() < 0.3, rng.random() < 0.5
            ctx.set(dut.locked, twin.locked)
            ctx.set(dut.start_refused, twin.start_refused)
            address = random_address(rng)
            register = twin.by_offset.get(address & ~3)
            if rng.random() < 0.5:
                word, strobe = rng.getrandbits(32), rng.choice([15, 15, rng.randrange(16)])
                if rng.random() < 0.2:
                    address, word = offset("CTRL"), rng.randrange(8)
                want = twin.write(address, word, strobe)
                assert await host.write(ctx, address, word, strobe) == want
            elif register is None or register.name not in skipped:
                assert await host.read(ctx, address) == twin.read(address)
            if rng.random() < 0.1:
                ctx.set(dut.done_set, 1)
                await ctx.tick()
                ctx.set(dut.done_set, 0)
                twin.values["STATUS"] |= MAP["STATUS"]["done"].mask
            done = bool(twin.values["STATUS"] & MAP["STATUS"]["done"].mask)
            assert ctx.get(dut.irq) == (done and twin.values["IRQ_ENABLE"] & 1)
        for register in twin.map:  # and once through all of it
            if register.name not in skipped:
                assert await host.read(ctx, register.byte_offset) == twin.read(register.byte_offset)
        await ctx.tick()
        assert strobes == twin.strobes and len(set(strobes)) == 3
        for index, window in enumerate(dut.windows):
            assert ctx.get(window.first) == twin.values[f"WINDOW{index}_FIRST"] >> 12
            assert ctx.get(window.last) == twin.values[f"WINDOW{index}_LAST"] >> 12
            perm = ctx.get(window.read) | ctx.get(window.write) << 1
            assert perm == twin.values[f"WINDOW{index}_PERM"]

    simulate(dut, bench, background=[watch])


@pytest.mark.parametrize("config", [CoreConfig(windows=16), CoreConfig(windows=1, counters=False)])
def test_B6_every_offset_without_register_is_refused(config):
    dut = RegisterBank(config)
    twin = Twin(config)
    host = Host(dut, random.Random(SEED))

    async def bench(ctx):
        for address in range(0, 1 << 12, 4):
            if address not in twin.by_offset:
                assert await host.read(ctx, address) == twin.read(address)
                assert await host.write(ctx, address, 0xFFFF_FFFF) == twin.write(address, -1, 15)
        for register in twin.map:
            if not register.name.endswith(("_LO", "_HI")):
                assert await host.read(ctx, register.byte_offset) == twin.read(register.byte_offset)

    simulate(dut, bench)


def test_B3_reset_values_are_those_of_the_map_and_windows_are_closed():
    dut = RegisterBank(CONFIG)

    async def bench(ctx):
        assert ctx.get(dut.watchdog) == MAP["WATCHDOG"]["value"].reset
        assert ctx.get(dut.command_address) == 0 and ctx.get(dut.irq_enable_done) == 0
        for window in dut.windows:
            assert ctx.get(window.read) == 0 and ctx.get(window.write) == 0

    simulate(dut, bench)


@pytest.mark.parametrize("stalls", [(0, 0, 0), (0.6, 0, 0), (0, 0.6, 0), (0.2, 0.2, 0.8)])
def test_B7_no_response_is_lost_or_doubled(stalls):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    dut = RegisterBank(CONFIG)
    twin = Twin(CONFIG)
    count = 60
    writes = [(random_address(rng), rng.getrandbits(32), rng.randrange(16)) for _ in range(count)]
    writes = [(a, w, s) for a, w, s in writes if a & ~3 != offset("CTRL")]
    reads = [random_address(rng) for _ in range(count)]
    hosts = [Host(dut, random.Random(SEED + n), stalls[n % 3]) for n in range(5)]

    async def addresses(ctx):
        for address, _, _ in writes:
            await hosts[0].send(ctx, "aw", awaddr=address)

    async def words(ctx):
        for _, word, strobe in writes:
            await hosts[1].send(ctx, "w", wdata=word, wstrb=strobe)

    async def responses(ctx):
        for write in writes:
            assert await hosts[2].receive(ctx, "b", "bresp") == (twin.write(*write),)
        for _ in range(10):
            await ctx.tick()
            assert not ctx.get(dut.bus.bvalid)

    async def read_addresses(ctx):
        for address in reads:
            await hosts[3].send(ctx, "ar", araddr=address)

    async def read_data(ctx):
        for address in reads:
            (response,) = await hosts[4].receive(ctx, "r", "rresp")
            assert response == (OKAY if address & ~3 in twin.by_offset else SLVERR)
        for _ in range(10):
            await ctx.tick()
            assert not ctx.get(dut.bus.rvalid)

    simulate(dut, addresses, words, responses, read_addresses, read_data)


@pytest.mark.parametrize("delay", range(8))
def test_B9_done_that_is_set_while_it_is_cleared_survives(delay):
    dut = RegisterBank(CONFIG)
    host = Host(dut, random.Random(SEED))

    async def bench(ctx):
        await host.write(ctx, offset("IRQ_ENABLE"), 1)
        ctx.set(dut.done_set, 1)
        await ctx.tick()
        ctx.set(dut.done_set, 0)
        assert ctx.get(dut.irq)
        bus = dut.bus
        ctx.set(bus.awaddr, offset("STATUS"))
        ctx.set(bus.wdata, MAP["STATUS"]["done"].mask)
        ctx.set(bus.wstrb, 1)
        ctx.set(bus.bready, 1)
        history = []
        for cycle in range(9):
            ctx.set(bus.awvalid, cycle == 0)
            ctx.set(bus.wvalid, cycle == 0)
            ctx.set(dut.done_set, cycle == delay)
            await ctx.tick()
            history.append(ctx.get(dut.irq))
        cleared = RegisterBank.WRITE_CYCLES
        assert history == [cycle < cleared or cycle >= delay >= cleared for cycle in range(9)]

    simulate(dut, bench)


def test_B10_counters_are_read_as_atomic_pairs():
    rng = random.Random(SEED)
    dut = RegisterBank(CONFIG)
    host = Host(dut, rng, 0.3)
    start = 0x1_FFFF_FFF0

    now = [start]

    async def count(ctx):
        coming = [0] * (CounterBank.READ_CYCLES - 1)
        while True:
            *_, strobe, idx = await ctx.tick().sample(dut.counter_stb, dut.counter_idx)
            now[0] += 1
            ctx.set(dut.counter, coming.pop(0))
            values = {"CYCLES": now[0], "WRITE_BYTES": now[0] ^ 0xFFFF_FFFF_FFFF}
            coming.append(values[COUNTERS[idx][0]] if strobe else rng.getrandbits(64))

    async def bench(ctx):
        last = 0
        for _ in range(30):
            _, low = await host.read(ctx, offset("CYCLES_LO"))
            _, high = await host.read(ctx, offset("CYCLES_HI"))
            value = high << 32 | low
            assert start <= value <= now[0] and last < value
            assert value > now[0] - 60
            last = value
        _, low = await host.read(ctx, offset("WRITE_BYTES_LO"))
        _, other = await host.read(ctx, offset("WRITE_BEATS_HI"))  # latched by the low half above
        assert (other << 32 | low) ^ 0xFFFF_FFFF_FFFF > last

    simulate(dut, bench, background=[count])


def test_has_stated_latencies():
    dut = RegisterBank(CONFIG)

    async def bench(ctx):
        bus = dut.bus
        for channel in ("aw", "w", "ar"):
            ctx.set(getattr(bus, f"{channel}valid"), 1)
        ctx.set(bus.awaddr, offset("IRQ_ENABLE"))
        ctx.set(bus.wdata, 1)
        ctx.set(bus.wstrb, 1)
        await ctx.tick()
        for channel in ("aw", "w", "ar"):
            ctx.set(getattr(bus, f"{channel}valid"), 0)
        effect, answers = [], []
        for _ in range(8):
            effect.append(ctx.get(dut.irq_enable_done))
            answers.append((ctx.get(bus.bvalid), ctx.get(bus.rvalid)))
            await ctx.tick()
        write, read = RegisterBank.WRITE_CYCLES, RegisterBank.READ_CYCLES
        assert effect == [n >= write for n in range(8)]
        assert answers == [(n >= write, n >= read - 1) for n in range(8)]

    simulate(dut, bench)
