# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.assembler import Assembler
from sparsemac_hw.testing import simulate, stream_get


def configuration(lanes, bus_width):
    return CoreConfig(engines=1, lanes=lanes, bus_width=bus_width, fifo_depth=64, burst_beats=8)


def beats_of(config, word):
    """The beats of one word: the bytes of all lanes, cut or repeated to the width of the bus."""
    values, raw, out_word = word
    image = np.asarray(values, "<i4" if raw else "i1").tobytes()
    image *= max(1, config.bus_bytes // len(image))
    pieces = [image[k : k + config.bus_bytes] for k in range(0, len(image), config.bus_bytes)]
    return [
        {"data": int.from_bytes(piece, "little"), "out_word": out_word, "raw": raw,
         "first": k == 0, "last": k == len(pieces) - 1}
        for k, piece in enumerate(pieces)
    ]


def random_word(rng, lanes):
    raw = rng.randrange(2)
    low, high = (-(1 << 31), 1 << 31) if raw else (-128, 128)
    return [rng.randrange(low, high) for _ in range(lanes)], raw, rng.randrange(1 << 32)


async def put_word(ctx, dut, word, rng, stall):
    values, raw, out_word = word
    for lane, value in enumerate(values):
        while rng.random() < stall:
            ctx.set(dut.i_valid, 0)
            ctx.set(dut.i.value, rng.randrange(1 << 31))
            await ctx.tick()
        ctx.set(dut.i_valid, 1)
        ctx.set(dut.i, {"value": value, "raw": raw, "out_word": out_word,
                        "last_lane": lane == len(values) - 1})
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
    words = [random_word(rng, lanes) for _ in range(60)]
    expected = [beat for word in words for beat in beats_of(config, word)]
    received = []
    credits = dut.words

    async def drive(ctx):
        nonlocal credits
        for word in words:
            while not credits:
                await ctx.tick()
            credits -= 1
            await put_word(ctx, dut, word, rng, stall)

    async def receive(ctx):
        for _ in expected:
            while rng.random() < stall:
                await ctx.tick()
            beat = await stream_get(ctx, dut.o)
            received.append({name: beat[name] for name in expected[0]})

    async def refund(ctx):
        nonlocal credits
        async for *_, popped in ctx.tick().sample(dut.popped):
            credits += popped

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
    words = [([rng.randrange(1 << 31) for _ in range(lanes)], 1, k) for k in range(5)]
    expected = [beat["data"] for word in words for beat in beats_of(config, word)]
    received = []

    async def drive(ctx):
        for word in words:
            await put_word(ctx, dut, word, rng, 0)
        for _ in range(5):
            await ctx.tick()
        for _ in expected:
            received.append((await stream_get(ctx, dut.o)).data)

    simulate(dut, drive)
    assert received == expected


def test_beat_appears_after_its_latency():
    dut = Assembler(configuration(8, 64))
    cycles = 0

    async def drive(ctx):
        nonlocal cycles
        await put_word(ctx, dut, ([1] * 8, 0, 0), random.Random(0), 0)
        while not ctx.get(dut.o.valid):
            cycles += 1
            await ctx.tick()

    simulate(dut, drive)
    assert cycles + 1 == Assembler.LATENCY_CYCLES


def test_words_wrong():
    with pytest.raises(ValueError, match=r"^words must be 1 to 256, not 0 "):
        Assembler(configuration(8, 64), words=0)
