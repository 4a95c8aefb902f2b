# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.assembler import Assembler
from sparsemac_hw.testing import simulate, stream_get


def configuration(lanes, bus_width):
    return CoreConfig(engines=1, lanes=lanes, bus_width=bus_width, fifo_depth=64, burst_beats=8)


def share(config, raw):
    """Words that one beat holds."""
    return max(1, config.bus_bytes // config.out_word_bytes(raw))


def beats_of(config, run):
    """The beats of words that follow one another in a beat, or of one longer word."""
    words, raw, place, out_word = run
    image = np.asarray(words, "<i4" if raw else "i1").tobytes()
    if share(config, raw) == 1 and config.lanes >= config.bus_bytes:
        filled = 1
    else:
        each = config.lanes  # bytes of a word of int8
        filled = (1 << len(image) // each) - 1 << place * config.out_word_bytes(raw) // each
        filled &= (1 << config.bus_bytes // each) - 1
    image = bytes(place * config.out_word_bytes(raw)) + image
    image += bytes(-len(image) % config.bus_bytes)
    pieces = [image[k : k + config.bus_bytes] for k in range(0, len(image), config.bus_bytes)]
    return [
        {"data": int.from_bytes(piece, "little"), "filled": filled, "raw": raw,
         "out_word": out_word + len(words) - 1, "first": k == 0, "last": k == len(pieces) - 1}
        for k, piece in enumerate(pieces)
    ]


def seen(config, beat):
    """A beat as it came, its bytes that hold no word replaced by zeros."""
    beat = {name: beat[name] for name in ("data", "filled", "raw", "out_word", "first", "last")}
    size = min(config.bus_bytes, config.lanes)
    mask = sum(((1 << 8 * size) - 1) << 8 * size * k for k in range(config.bus_bytes // size)
               if beat["filled"] >> k & 1)
    return {**beat, "data": beat["data"] & mask}


def random_run(rng, config):
    raw = rng.randrange(2)
    low, high = (-(1 << 31), 1 << 31) if raw else (-128, 128)
    place = rng.randrange(share(config, raw))
    count = rng.randint(1, share(config, raw) - place)
    words = [[rng.randrange(low, high) for _ in range(config.lanes)] for _ in range(count)]
    return words, raw, place, rng.randrange(1 << 31)


async def put_run(ctx, dut, run, rng, stall, credit=None):
    words, raw, place, out_word = run
    for k, values in enumerate(words):
        if credit is not None:
            await credit(ctx)
        for lane, value in enumerate(values):
            while rng.random() < stall:
                ctx.set(dut.i_valid, 0)
                ctx.set(dut.i.value, rng.randrange(1 << 31))
                await ctx.tick()
            ctx.set(dut.i_valid, 1)
            at = (place + k) * (4 if raw and share(dut.config, raw) > 1 else 1)
            ctx.set(dut.i, {"value": value, "raw": raw, "out_word": out_word + k,
                            "last_lane": lane == len(values) - 1, "place": at,
                            "closes": k == len(words) - 1})
            await ctx.tick()
        ctx.set(dut.i_valid, 0)


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("bus_width", [32, 64, 128])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_makes_words_under_credits(lanes, bus_width, stall):
    seed = 1000 * lanes + bus_width + int(10 * stall)
    print("seed", seed)
    rng = random.Random(seed)
    config = configuration(lanes, bus_width)
    dut = Assembler(config, words=4)
    runs = [random_run(rng, config) for _ in range(60)]
    expected = [beat for run in runs for beat in beats_of(config, run)]
    received = []
    credits = dut.words

    async def credit(ctx):
        nonlocal credits
        while not credits:
            await ctx.tick()
        credits -= 1

    async def drive(ctx):
        for run in runs:
            await put_run(ctx, dut, run, rng, stall, credit)

    async def receive(ctx):
        for _ in expected:
            while rng.random() < stall:
                await ctx.tick()
            received.append(seen(config, await stream_get(ctx, dut.o)))

    async def refund(ctx):
        nonlocal credits
        async for *_, popped, merged in ctx.tick().sample(dut.popped, dut.merged):
            credits += popped + merged

    simulate(dut, drive, receive, background=[refund])
    assert received == expected
    assert credits == dut.words


@pytest.mark.parametrize(("lanes", "bus_width"), [(8, 32), (8, 64), (1, 32), (16, 128)])
def test_holds_all_its_words_while_stalled(lanes, bus_width):
    seed = lanes * bus_width
    print("seed", seed)
    rng = random.Random(seed)
    config = configuration(lanes, bus_width)
    dut = Assembler(config, words=5)
    words = [([[rng.randrange(1 << 31) for _ in range(lanes)]], 1, 0, k) for k in range(5)]
    expected = [beat["data"] for word in words for beat in beats_of(config, word)]
    received = []

    async def drive(ctx):
        for word in words:
            await put_run(ctx, dut, word, rng, 0)
        for _ in range(5):
            await ctx.tick()
        for _ in expected:
            received.append(seen(config, await stream_get(ctx, dut.o))["data"])

    simulate(dut, drive)
    assert received == expected


def test_beat_appears_after_its_latency():
    dut = Assembler(configuration(8, 64))
    cycles = 0

    async def drive(ctx):
        nonlocal cycles
        await put_run(ctx, dut, ([[1] * 8], 0, 0, 0), random.Random(0), 0)
        while not ctx.get(dut.o.valid):
            cycles += 1
            await ctx.tick()

    simulate(dut, drive)
    assert cycles + 1 == Assembler.LATENCY_CYCLES


def test_words_wrong():
    with pytest.raises(ValueError, match=r"^words must be 1 to 256, not 0 "):
        Assembler(configuration(8, 64), words=0)
