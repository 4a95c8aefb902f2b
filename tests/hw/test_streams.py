# SPDX-License-Identifier: Apache-2.0
"""Streams: connection, the stall rule, and queues against a list."""

import random
import re

import pytest
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac_hw.streams import Queue, StreamChecker, check_stream, connect_stream
from sparsemac_hw.testing import (
    simulate,
    stream_get,
    stream_get_n,
    stream_put,
    stream_put_all,
)
from support.ecp5_twins import WithTwins

PAIR = data.StructLayout({"a": 3, "b": 5})
SEED = 20240611


class CheckedQueue(Queue):
    """A queue whose output is watched."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        check_stream(m, "o", self.o)
        return m


DEPTHS = [*((depth, False) for depth in (1, 2, 3, 8, 16, 31, 33, 64, 100)),
          *((depth, True) for depth in (1, 2, 3, 16, 33))]


def made_for(family, dut):
    return WithTwins(dut) if family == "ecp5" else dut


@pytest.mark.parametrize("family", ["portable", "ecp5"])
@pytest.mark.parametrize(("depth", "block"), DEPTHS)
@pytest.mark.parametrize("stalls", [(0, 0), (0.5, 0.1), (0.1, 0.6), (0.4, 0.4)])
def test_queue_keeps_every_word_in_order(depth, block, stalls, family):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    words = [rng.randrange(256) for _ in range(3 * depth + 40)]
    dut = CheckedQueue(PAIR, depth, block)

    async def source(ctx):
        bits = [data.Const(PAIR, word) for word in words]
        await stream_put_all(ctx, dut.i, bits, random.Random(SEED + 1), stalls[0])

    async def sink(ctx):
        got = await stream_get_n(ctx, dut.o, len(words), random.Random(SEED + 2), stalls[1])
        assert [word.as_bits() for word in got] == words
        await ctx.tick()
        assert ctx.get(dut.level) == 0 and ctx.get(dut.o.valid) == 0

    simulate(made_for(family, dut), source, sink)


@pytest.mark.parametrize("family", ["portable", "ecp5"])
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("depth", [1, 5, 16, 40])
def test_queue_holds_depth_words_and_counts_them(depth, block, family):
    dut = Queue(16, depth, block)

    async def bench(ctx):
        for n in range(depth):
            assert ctx.get(dut.level) == n
            assert ctx.get(dut.i.ready) == 1
            await stream_put(ctx, dut.i, n)
        assert ctx.get(dut.level) == depth
        assert ctx.get(dut.i.ready) == 0
        for n in range(depth):
            assert await stream_get(ctx, dut.o) == n
            assert ctx.get(dut.level) == depth - 1 - n

    simulate(made_for(family, dut), bench)


@pytest.mark.parametrize("family", ["portable", "ecp5"])
@pytest.mark.parametrize(("depth", "block"), [
    (2, False), (32, False), (64, False), (4, True), (16, True), (32, True),
])
def test_queue_has_stated_latency_and_full_rate(depth, block, family):
    dut = Queue(16, depth, block)

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        ctx.set(dut.i.valid, 1)
        seen = []
        for n in range(20):
            ctx.set(dut.i.payload, n)
            *_, ready, valid, payload = await ctx.tick().sample(
                dut.i.ready, dut.o.valid, dut.o.payload
            )
            assert ready
            seen.append(payload if valid else None)
        wait = dut.latency_cycles
        assert seen == [None] * wait + list(range(20 - wait))

    simulate(made_for(family, dut), bench)


def test_queue_depth_wrong():
    with pytest.raises(ValueError, match=r"^depth must be 1 to 65536, not 0 \(nearest"):
        Queue(8, 0)
    with pytest.raises(TypeError, match=r"^depth must be an integer, not 4\.0$"):
        Queue(8, 4.0)  # pyright: ignore[reportArgumentType]


def test_streams_of_equal_width_but_other_shape_do_not_connect():
    swapped = data.StructLayout({"b": 3, "a": 5})
    src = Queue(PAIR, 2)
    dst = Queue(swapped, 2)
    with pytest.raises(wiring.ConnectionError, match=re.escape(repr(swapped))):
        connect_stream(Module(), src.o, dst.i)


def test_connected_queues_pass_words_on():
    class Two(wiring.Component):
        i: stream.Interface
        o: stream.Interface

        def __init__(self):
            super().__init__({"i": In(stream.Signature(PAIR)), "o": Out(stream.Signature(PAIR))})

        def elaborate(self, platform):
            m = Module()
            m.submodules.first = first = Queue(PAIR, 2)
            m.submodules.second = second = Queue(PAIR, 2)
            connect_stream(m, wiring.flipped(self.i), first.i)
            connect_stream(m, first.o, second.i)
            connect_stream(m, second.o, wiring.flipped(self.o))
            return m

    dut = Two()

    async def bench(ctx):
        await stream_put(ctx, dut.i, {"a": 5, "b": 9})
        got = await stream_get(ctx, dut.o)
        assert (got.a, got.b) == (5, 9)

    simulate(dut, bench)


@pytest.mark.parametrize("fault", ["valid", "payload"])
def test_checker_finds_a_broken_promise(fault):
    dut = StreamChecker(8, "weights")

    async def bench(ctx):
        ctx.set(dut.payload, 7)
        ctx.set(dut.valid, 1)
        await ctx.tick()
        if fault == "valid":
            ctx.set(dut.valid, 0)
        else:
            ctx.set(dut.payload, 8)
        await ctx.tick()

    with pytest.raises(AssertionError, match="weights: valid dropped or payload changed"):
        simulate(dut, bench)


def test_checker_accepts_what_is_allowed():
    dut = StreamChecker(8)

    async def bench(ctx):
        steps = [(0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 3), (1, 1, 4), (0, 0, 5)]
        for valid, ready, payload in steps:
            ctx.set(dut.valid, valid)
            ctx.set(dut.ready, ready)
            ctx.set(dut.payload, payload)
            await ctx.tick()

    simulate(dut, bench)


def test_simulation_that_never_ends_times_out():
    dut = Queue(8, 2)

    async def bench(ctx):
        await stream_get(ctx, dut.o)

    with pytest.raises(TimeoutError, match="not returned after 50 cycles"):
        simulate(dut, bench, max_cycles=50)
