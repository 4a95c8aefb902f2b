# SPDX-License-Identifier: Apache-2.0
import random
from collections import deque

import pytest
from amaranth.hdl import Module
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.reader import ReadClient, Reader
from sparsemac_hw.streams import check_stream
from sparsemac_hw.testing import simulate, stream_get, stream_put_all

CLIENTS = list(ReadClient)
OKAY, EXOKAY, SLVERR, DECERR = range(4)


def make_config(bus_width=64, burst_beats=16, engines=8):
    return CoreConfig(bus_width=bus_width, burst_beats=burst_beats, fifo_depth=512, lanes=8,
                      engines=engines)


def closing(config, address):
    """How many of the last beats of a burst of weights are marked: anything, and the same again."""
    return random.Random(address).randint(0, config.engines)


def random_bursts(rng, config, client, count):
    """Bursts inside their blocks; bit 20 and up of an address say whose it is."""
    bursts = []
    for _ in range(count):
        first = rng.randrange(config.burst_beats)
        beats = rng.randint(1, config.burst_beats - first)
        block = rng.randrange(64) * config.burst_beats
        bursts.append(((client.value + 1 << 20) + (block + first) * config.bus_bytes, beats))
    return bursts


class Bench:
    """A guard and a memory around a reader, and what they have seen."""

    def __init__(self, config, seed, stall=0.3):
        print("seed", seed)
        self.config = config
        self.rng = random.Random(seed)
        self.stall = stall
        self.dut = Reader(config)
        self.epoch = 0
        self.asked = []  # bursts in the order of the guard
        self.pins = deque()  # (epoch, address, beats) that have left on AR
        self.received = {client: [] for client in CLIENTS}
        self.lasts = []  # of the beats of weights
        self.faults = []
        self.stale = 0
        self.beats = 0
        self.spoil = {}  # address of a beat: changes to the pins
        self.stop_answers = False
        self.m = Module()
        self.m.submodules.dut = self.dut
        check_stream(self.m, "o_burst", self.dut.o_burst)

    def data(self, address):
        return random.Random(address).getrandbits(self.config.bus_width)

    async def guard(self, ctx):
        """Takes requests and lets each out two cycles later, or more."""
        waiting, cycle = deque(), 0
        dut = self.dut
        while True:
            cycle += 1
            ready = self.rng.random() >= self.stall
            issue = bool(waiting) and waiting[0][2] < cycle and self.rng.random() >= self.stall
            ctx.set(dut.o_burst.ready, ready)
            ctx.set(dut.issued, issue)
            if issue:
                address, beats, _ = waiting.popleft()
                ctx.set(dut.issued_beats, beats)
            *_, valid, burst = await ctx.tick().sample(dut.o_burst.valid, dut.o_burst.payload)
            if issue:
                self.pins.append((self.epoch, address, beats))
            if valid and ready:
                waiting.append((burst.address, burst.beats, cycle + 1))
                self.asked.append((burst.address, burst.beats))

    async def memory(self, ctx):
        """Answers bursts in order, a beat in some cycles."""
        while True:
            while self.stop_answers or not self.pins:
                await ctx.tick()
            rid, address, beats = self.pins.popleft()
            for i in range(beats):
                while self.stop_answers or self.rng.random() < self.stall:
                    await ctx.tick()
                at = address + i * self.config.bus_bytes
                pins = {"rid": rid, "rdata": self.data(at), "rresp": OKAY, "rlast": i == beats - 1}
                await self.beat(ctx, **(pins | self.spoil.get(at, {})))

    async def beat(self, ctx, **pins):
        dut = self.dut
        for name, value in pins.items():
            ctx.set(getattr(dut, name), value)
        ctx.set(dut.rvalid, 1)
        *_, ready = await ctx.tick().sample(dut.rready)
        assert ready == 1
        ctx.set(dut.rvalid, 0)

    async def watch(self, ctx):
        dut = self.dut
        outputs = {
            ReadClient.COMMANDS: dut.o_commands,
            ReadClient.LOAD: dut.o_load,
            ReadClient.WEIGHTS: dut.o_weights,
        }
        while True:
            await ctx.tick()
            for client, output in outputs.items():
                if ctx.get(output.valid):
                    beat = ctx.get(output.payload)
                    self.received[client].append(beat.data)
                    if client == ReadClient.WEIGHTS:
                        self.lasts.append(beat.last)
            if ctx.get(dut.fault_valid):
                fault = ctx.get(dut.fault)
                culprit = ctx.get(dut.culprit)
                self.faults.append((fault.code, fault.address, fault.detail, culprit))
            self.stale += ctx.get(dut.stale)
            self.beats += ctx.get(dut.beat)

    def requester(self, client, bursts):
        port = getattr(self.dut, client.name.lower())

        async def put(ctx):
            payloads = [{"address": a, "beats": b} for a, b in bursts]
            if client == ReadClient.WEIGHTS:
                payloads = [p | {"closing": closing(self.config, p["address"])} for p in payloads]
            await stream_put_all(ctx, port, payloads, self.rng, self.stall)

        return put

    async def clear(self, ctx):
        """What the core does on a soft reset: the epoch advances if beats are outstanding."""
        dut = self.dut
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        self.epoch = (self.epoch + 1) % 16
        ctx.set(dut.epoch, self.epoch)

    def run(self, *testbenches, cycles=20_000):
        simulate(self.m, *testbenches, background=[self.guard, self.memory, self.watch],
                 max_cycles=cycles)

    async def quiet(self, ctx, beats):
        """Waits until so many beats have come."""
        while self.beats < beats:
            await ctx.tick()
        await ctx.tick().repeat(5)


@pytest.mark.parametrize(
    ("bus_width", "burst_beats", "engines"), [(32, 16, 1), (64, 1, 3), (128, 64, 8), (512, 64, 8)]
)
def test_brings_every_beat_to_its_client_in_order(bus_width, burst_beats, engines):
    config = make_config(bus_width, burst_beats, engines)
    bench = Bench(config, seed=bus_width + burst_beats)
    bursts = {client: random_bursts(bench.rng, config, client, 12) for client in CLIENTS}
    total = sum(beats for client in CLIENTS for _, beats in bursts[client])

    async def end(ctx):
        await bench.quiet(ctx, total)
        assert ctx.get(bench.dut.outstanding) == 0

    bench.run(*(bench.requester(c, bursts[c]) for c in CLIENTS), end)
    for client in CLIENTS:
        mine = [b for b in bench.asked if b[0] >> 20 == client.value + 1]
        assert mine == bursts[client]
        assert bench.received[client] == [
            bench.data(address + i * config.bus_bytes)
            for address, beats in bursts[client] for i in range(beats)
        ]
    assert bench.lasts == [
        beats - i <= closing(config, address)
        for address, beats in bursts[ReadClient.WEIGHTS] for i in range(beats)
    ]
    assert (bench.faults, bench.stale, bench.beats) == ([], 0, total)


def test_commands_go_first_and_the_others_take_turns():
    config = make_config()
    bench = Bench(config, seed=1, stall=0.0)
    bursts = {client: random_bursts(bench.rng, config, client, 4) for client in CLIENTS}
    total = sum(beats for client in CLIENTS for _, beats in bursts[client])

    async def end(ctx):
        await bench.quiet(ctx, total)

    bench.run(*(bench.requester(c, bursts[c]) for c in CLIENTS), end)
    order = [address >> 20 for address, _ in bench.asked]
    assert order == [1, 1, 1, 1, 2, 3, 2, 3, 2, 3, 2, 3]


def test_asks_for_no_more_bursts_than_it_tracks_and_counts_what_is_outstanding():
    config = make_config()
    bench = Bench(config, seed=2, stall=0.0)
    bench.stop_answers = True
    bursts = random_bursts(bench.rng, config, ReadClient.LOAD, 20)

    async def count(ctx):
        await ctx.tick().repeat(100)
        assert bench.asked == bursts[: Reader.BURSTS_UNDER_WAY]
        left = sum(beats for _, beats in bench.asked)
        assert ctx.get(bench.dut.outstanding) == left
        bench.stop_answers = False
        await bench.quiet(ctx, sum(beats for _, beats in bursts))
        assert ctx.get(bench.dut.outstanding) == 0

    bench.run(bench.requester(ReadClient.LOAD, bursts), count)


@pytest.mark.parametrize("resp", [EXOKAY, SLVERR, DECERR])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_c1_bus_error_names_the_beat_and_reaches_nobody(resp, place):
    config = make_config()
    bench = Bench(config, seed=resp)
    bursts = [(0x100000 + 0x80 * k, 16) for k in range(4)]
    bad = bursts[1][0] + 8 * {"first": 0, "middle": 7, "last": 15}[place]
    bench.spoil[bad] = {"rresp": resp}

    async def end(ctx):
        await bench.quiet(ctx, 64)
        assert ctx.get(bench.dut.outstanding) == 0

    bench.run(bench.requester(ReadClient.WEIGHTS, bursts), end)
    assert bench.faults == [(FaultCode.BUS, bad, resp, ReadClient.WEIGHTS)]
    good = range(bursts[0][0], bad, 8)
    assert bench.received[ReadClient.WEIGHTS] == [bench.data(at) for at in good]


@pytest.mark.parametrize(("at", "last"), [(0, 1), (7, 1), (15, 0)])
def test_c2_early_or_missing_last_is_a_protocol_fault(at, last):
    config = make_config()
    bench = Bench(config, seed=at)
    bursts = [(0x100000, 3), (0x100080, 16)]
    bad = bursts[1][0] + 8 * at
    bench.spoil[bad] = {"rlast": last}

    async def end(ctx):
        await bench.quiet(ctx, 19)

    bench.run(bench.requester(ReadClient.LOAD, bursts), end)
    assert bench.faults == [(FaultCode.PROTO, bad, 0, ReadClient.LOAD)]
    assert len(bench.received[ReadClient.LOAD]) == 3 + at


def test_c2_beat_with_nothing_outstanding_is_swallowed_and_a_protocol_fault():
    bench = Bench(make_config(), seed=3)
    dut = bench.dut

    async def stray(ctx):
        await bench.beat(ctx, rid=0, rdata=1, rresp=SLVERR, rlast=1)
        await ctx.tick().repeat(4)
        assert ctx.get(dut.outstanding) == 0

    bench.run(stray)
    assert [fault[:3] for fault in bench.faults] == [(FaultCode.PROTO, 0, 0)]
    assert not any(bench.received.values())


def test_c2_foreign_id_is_dropped_and_counted():
    bench = Bench(make_config(), seed=4)
    dut = bench.dut

    async def foreign(ctx):
        await bench.beat(ctx, rid=5, rdata=1, rresp=OKAY, rlast=1)
        await ctx.tick().repeat(4)
        assert (ctx.get(dut.outstanding), ctx.get(dut.stale_outstanding)) == (0, 0)

    bench.run(foreign)
    assert (bench.faults, bench.stale) == ([], 1)
    assert not any(bench.received.values())


@pytest.mark.parametrize("seed", range(6))
def test_d2_late_beats_of_a_cleared_epoch_are_dropped_and_the_next_job_is_exact(seed):
    config = make_config()
    bench = Bench(config, seed=seed)
    dut = bench.dut
    old = random_bursts(bench.rng, config, ReadClient.WEIGHTS, 10)
    new = random_bursts(bench.rng, config, ReadClient.LOAD, 6)
    counts = {}

    async def life(ctx):
        await bench.requester(ReadClient.WEIGHTS, old)(ctx)
        bench.stop_answers = bool(seed % 2)
        await ctx.tick().repeat(bench.rng.randint(1, 40))
        # All requests have left: what waits between guard and pins has no place in this test.
        issued = 0
        while issued < sum(beats for _, beats in bench.asked) or len(bench.asked) < len(old):
            await ctx.tick()
            issued = bench.beats + ctx.get(dut.outstanding)
        await bench.clear(ctx)
        bench.received[ReadClient.WEIGHTS].clear()
        counts["stale"] = bench.stale
        counts["owed"] = ctx.get(dut.outstanding) + ctx.get(dut.stale_outstanding)
        await ctx.tick()
        assert ctx.get(dut.outstanding) == 0
        bench.stop_answers = False
        before = bench.beats
        await bench.requester(ReadClient.LOAD, new)(ctx)
        await bench.quiet(ctx, before + sum(beats for _, beats in new))
        assert ctx.get(dut.stale_outstanding) == 0

    bench.run(life)
    assert bench.faults == []
    assert counts["owed"] > 0 or seed % 2 == 0
    assert bench.stale - counts["stale"] == counts["owed"]
    assert bench.received[ReadClient.WEIGHTS] == []
    assert bench.received[ReadClient.LOAD] == [
        bench.data(address + 8 * i) for address, beats in new for i in range(beats)
    ]


def test_is_usable_again_after_a_fault_and_a_clear():
    config = make_config()
    bench = Bench(config, seed=5)
    bursts = [(0x100000, 4), (0x100080, 4)]
    bench.spoil[0x100008] = {"rresp": SLVERR}

    async def life(ctx):
        await bench.requester(ReadClient.COMMANDS, bursts)(ctx)
        await bench.quiet(ctx, 8)
        assert len(bench.received[ReadClient.COMMANDS]) == 1
        await bench.clear(ctx)
        await bench.requester(ReadClient.COMMANDS, [(0x100080, 4)])(ctx)
        await bench.quiet(ctx, 12)

    bench.run(life)
    assert bench.faults == [(FaultCode.BUS, 0x100008, SLVERR, ReadClient.COMMANDS)]
    assert bench.received[ReadClient.COMMANDS][1:] == [
        bench.data(0x100080 + 8 * i) for i in range(4)
    ]


def test_culprit_is_whose_request_the_guard_took_last():
    bench = Bench(make_config(), seed=6)
    dut = bench.dut

    async def life(ctx):
        for client in (ReadClient.WEIGHTS, ReadClient.COMMANDS, ReadClient.LOAD):
            port = getattr(dut, client.name.lower())
            await stream_put_all(ctx, port, [{"address": 0, "beats": 1}])
            await stream_get(ctx, dut.o_burst)
            assert ctx.get(dut.culprit) == client

    simulate(bench.m, life)
