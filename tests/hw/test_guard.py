# SPDX-License-Identifier: Apache-2.0
"""The guard against a twin that compares bytes, under random requests, windows and stalls."""

import random

import pytest
from amaranth.hdl import Cat, Elaboratable, Module
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.guard import Guard, WindowLookup
from sparsemac_hw.testing import simulate, stream_put, stream_put_all

SEED = 77
SMALL = CoreConfig(lanes=4)


def judge(windows, direction, address, beats, bus_bytes):
    """Returns the fault code of a request; NONE if it passes."""
    end = address + beats * bus_bytes  # first byte behind the burst
    if not 1 <= beats <= 256 or address // 4096 != (end - 1) // 4096:
        return FaultCode.WINDOW
    covering = [
        w for w in windows if w["first"] * 4096 <= address and end <= (w["last"] + 1) * 4096
    ]
    if not covering:
        return FaultCode.WINDOW
    return FaultCode.NONE if any(w[direction] for w in covering) else FaultCode.PERM


def random_windows(rng, count):
    table = []
    for _ in range(count):
        first, last = rng.randrange(12), rng.randrange(12)
        if rng.random() < 0.8:  # the others are empty
            first, last = min(first, last), max(first, last)
        perm = {"read": rng.getrandbits(1), "write": rng.getrandbits(1)}
        table.append({"first": first, "last": last, **perm})
    return table


def random_request(rng, bus_bytes):
    page = rng.choice([rng.randrange(12), rng.randrange(12), rng.randrange(1 << 20)])
    offset = rng.choice([rng.randrange(0, 4096, bus_bytes), 4096 - bus_bytes, 0])
    room = (4096 - offset) // bus_bytes
    beats = rng.choice([1, rng.randrange(1, 17), min(256, room), room + 1, rng.randrange(512)])
    return {"address": page * 4096 + offset, "beats": min(beats, 511)}


class Guarded(Elaboratable):
    """A guard with its lookup; the other guard asks in cycles that ``other_asks`` tells."""

    def __init__(self, config, direction):
        self.guard = Guard(config, direction)
        self.lookup = WindowLookup(config)
        self.place = ("read", "write").index(direction)
        self.other_asks = self.lookup.asks[1 - self.place]
        self.other_page = self.lookup.pages[1 - self.place]
        self.windows = self.lookup.windows

    def __getattr__(self, name):
        return getattr(self.guard, name)

    def elaborate(self, platform):
        m = Module()
        m.submodules.guard, m.submodules.lookup = guard, lookup = self.guard, self.lookup
        m.d.comb += [
            guard.windows.eq(self.windows),
            lookup.asks[self.place].eq(guard.i.valid),
            lookup.pages[self.place].eq(guard.page),
            guard.turn.eq(lookup.turns[self.place]),
            guard.covering.eq(lookup.covering),
        ]
        return m


class Watch:
    """Takes down every strobe and every burst, and checks the rules of the channel."""

    def __init__(self, dut, rng=None, stall=0.0):
        self.dut, self.rng, self.stall = dut, rng, stall
        self.answers, self.bursts, self.shown = [], [], []

    async def run(self, ctx):
        dut, held = self.dut, None
        while True:
            ready = self.rng is None or self.rng.random() >= self.stall
            ctx.set(dut.ready, ready)
            *_, valid, ready, pins, granted, denied, code, address, issued, pending = (
                await ctx.tick().sample(
                    dut.valid, dut.ready, pins_of(dut), dut.granted, dut.denied, dut.denied_code,
                    dut.denied_address, dut.issued, dut.pending,
                )
            )  # fmt: skip
            assert held is None or (valid and pins == held)
            assert issued == (valid and ready) and pending == valid
            held = pins if valid and not ready else None
            self.shown.append(valid)
            assert not (granted and denied)
            if granted:
                self.answers.append((FaultCode.NONE, None))
            if denied:
                self.answers.append((FaultCode(code), address))
            if issued:
                self.bursts.append(unpack(pins))


def pins_of(dut):
    return Cat(dut.id, dut.addr, dut.len, dut.size, dut.burst, dut.prot)


def unpack(pins):
    fields = []
    for width in (4, 32, 8, 3, 2, 3):
        fields.append(pins & (1 << width) - 1)
        pins >>= width
    return tuple(fields)


@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("bus_width, windows", [(32, 1), (64, 4), (512, 3)])
@pytest.mark.parametrize("stalls", [(0, 0), (0.3, 0.5), (0.6, 0.1)])
def test_passes_what_lies_in_an_open_window_and_nothing_else(
    direction, bus_width, windows, stalls
):
    print(f"seed {SEED}")
    rng = random.Random(f"{SEED} {direction} {bus_width} {stalls}")
    config = SMALL.replace(bus_width=bus_width, windows=windows, burst_beats=8)
    dut = Guarded(config, direction)
    watch = Watch(dut, random.Random(rng.random()), stalls[1])
    size = config.bus_bytes.bit_length() - 1

    async def bench(ctx):
        wanted_answers, wanted_bursts = [], []
        for epoch in range(8):
            table = random_windows(rng, windows)
            requests = [random_request(rng, config.bus_bytes) for _ in range(60)]
            ctx.set(dut.windows, table)
            ctx.set(dut.epoch, epoch)
            for request in requests:
                code = judge(table, direction, **request, bus_bytes=config.bus_bytes)
                wanted_answers.append((code, request["address"] if code else None))
                if code == FaultCode.NONE:
                    pins = (epoch, request["address"], request["beats"] - 1, size, 1, 0)
                    wanted_bursts.append(pins)
            await stream_put_all(ctx, dut.i, requests, rng, stalls[0])
            while len(watch.answers) < len(wanted_answers) or ctx.get(dut.valid):
                await ctx.tick()
            await ctx.tick()
            assert watch.answers == wanted_answers
            assert watch.bursts == wanted_bursts
        kinds = {code for code, _ in wanted_answers}
        assert kinds >= {FaultCode.NONE, FaultCode.WINDOW} and (windows == 1 or len(kinds) == 3)

    async def other(ctx):
        noise = random.Random(f"{stalls}")
        while True:
            ctx.set(dut.other_asks, noise.random() < stalls[0])
            ctx.set(dut.other_page, noise.randrange(12))
            await ctx.tick()

    simulate(dut, bench, background=[watch.run, other])


def test_B3_all_windows_are_closed_unless_opened():
    dut = Guarded(SMALL, "read")
    watch = Watch(dut)

    async def bench(ctx):
        await stream_put_all(ctx, dut.i, [{"address": a, "beats": 1} for a in (0, 4096, 1 << 31)])
        await ctx.tick().repeat(4)
        assert [code for code, _ in watch.answers] == [FaultCode.PERM] + [FaultCode.WINDOW] * 2
        assert watch.bursts == []

    simulate(dut, bench, background=[watch.run])


@pytest.mark.parametrize("first, last", [(5, 4), (0xFFFFF, 0), (1, 0)])
def test_B3_window_with_first_above_last_matches_nothing(first, last):
    dut = Guarded(SMALL.replace(windows=1), "write")
    watch = Watch(dut)

    async def bench(ctx):
        ctx.set(dut.windows, [{"first": first, "last": last, "read": 1, "write": 1}])
        pages = [0, last, first, 4, 5, 0xFFFFF]
        await stream_put_all(ctx, dut.i, [{"address": p << 12, "beats": 1} for p in pages])
        await ctx.tick().repeat(4)
        assert [code for code, _ in watch.answers] == [FaultCode.WINDOW] * len(pages)
        assert watch.bursts == []

    simulate(dut, bench, background=[watch.run])


@pytest.mark.parametrize("address, beats", [(0xFFFFFFF8, 2), (0xFFFFF000, 0), (0xFFFFF000, 511)])
def test_B2_burst_beyond_the_end_of_memory_is_denied(address, beats):
    dut = Guarded(SMALL.replace(windows=1), "write")
    watch = Watch(dut)

    async def bench(ctx):
        ctx.set(dut.windows, [{"first": 0, "last": 0xFFFFF, "read": 1, "write": 1}])
        await stream_put(ctx, dut.i, {"address": address, "beats": beats})
        await ctx.tick().repeat(3)
        assert watch.answers == [(FaultCode.WINDOW, address)]
        assert watch.bursts == []

    simulate(dut, bench, background=[watch.run])


def open_all(ctx, dut):
    ctx.set(dut.windows[0], {"first": 0, "last": 0xFFFFF, "read": 1, "write": 1})


def test_has_stated_latency_and_one_burst_per_cycle():
    dut = Guarded(SMALL, "read")
    watch = Watch(dut)

    async def bench(ctx):
        open_all(ctx, dut)
        await stream_put_all(ctx, dut.i, [{"address": 64 * n, "beats": 8} for n in range(20)])
        await ctx.tick().repeat(5)
        wait = Guard.LATENCY_CYCLES
        assert watch.shown[: wait + 21] == [False] * wait + [True] * 20 + [False]

    simulate(dut, bench, background=[watch.run])


def test_two_guards_have_the_lookup_in_turns():
    lookup = WindowLookup(SMALL)

    async def bench(ctx):
        ctx.set(lookup.windows[2], {"first": 5, "last": 6, "read": 0, "write": 0})
        for k, page in enumerate((5, 7)):
            ctx.set(lookup.pages[k], page)
        for asks in ([1, 0], [0, 1], [1, 1]):
            for k in range(2):
                ctx.set(lookup.asks[k], asks[k])
            await ctx.tick()  # whose turn it is follows a cycle later
            turns = []
            for _ in range(4):
                turns.append(ctx.get(lookup.turns[1]))
                assert ctx.get(lookup.turns[0]) == 1 - turns[-1]
                assert ctx.get(lookup.covering) == (0 if turns[-1] else 4)
                await ctx.tick()
            assert sum(turns) == {(1, 0): 0, (0, 1): 4, (1, 1): 2}[tuple(asks)]
            assert sum(asks) < 2 or turns in ([0, 1, 0, 1], [1, 0, 1, 0])

    simulate(lookup, bench)


def test_valid_outlives_stop_and_the_epoch():
    dut = Guarded(SMALL, "read")

    async def bench(ctx):
        open_all(ctx, dut)
        ctx.set(dut.epoch, 3)
        await stream_put(ctx, dut.i, {"address": 0x1000, "beats": 4})
        await ctx.tick()
        ctx.set(dut.stop, 1)
        ctx.set(dut.epoch, 4)
        for _ in range(5):
            assert ctx.get(dut.valid) and ctx.get(dut.pending) and not ctx.get(dut.i.ready)
            assert (ctx.get(dut.id), ctx.get(dut.addr), ctx.get(dut.len)) == (3, 0x1000, 3)
            await ctx.tick()
        ctx.set(dut.ready, 1)
        await ctx.tick()
        assert not ctx.get(dut.valid)

    simulate(dut, bench)


def test_stop_drops_a_request_that_is_not_granted():
    dut = Guarded(SMALL, "read")

    async def bench(ctx):
        open_all(ctx, dut)
        for address in (0x1000, 0x2000):  # the second waits behind the first
            await stream_put(ctx, dut.i, {"address": address, "beats": 1})
        ctx.set(dut.stop, 1)
        assert not ctx.get(dut.granted) and not ctx.get(dut.denied)
        await ctx.tick()
        ctx.set(dut.stop, 0)
        ctx.set(dut.ready, 1)
        await ctx.tick()
        for _ in range(4):
            assert not ctx.get(dut.valid) and not ctx.get(dut.granted)
            await ctx.tick()

    simulate(dut, bench)


def test_direction_wrong():
    with pytest.raises(ValueError, match=r"^direction must be 'read' or 'write', not 'both'$"):
        Guard(SMALL, "both")  # pyright: ignore[reportArgumentType]
