# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.merger import WordMerger
from sparsemac_hw.testing import simulate, stream_put


def word(engine, index, beats):
    return [
        {"data": k, "out_word": engine << 16 | index, "raw": k & 1, "first": k == 0,
         "last": k == beats - 1}
        for k in range(beats)
    ]


def merge(engines, words, rng, stall=0.0, room=1.0):
    """Returns the beats in their order, each with its cycle; ``words`` has a list per engine."""
    dut = WordMerger(CoreConfig(engines=engines, bus_width=32, fifo_depth=32))
    received = []
    count = sum(len(beats) for queue in words for beats in queue)
    cycle = 0

    async def collect(ctx):
        nonlocal cycle
        while len(received) < count:
            ctx.set(dut.room, rng.random() < room)
            *_, valid, beat = await ctx.tick().sample(dut.o_valid, dut.o)
            if valid:
                received.append((cycle, {name: beat[name] for name in word(0, 0, 1)[0]}))
            cycle += 1

    def feeder(engine):
        async def feed(ctx):
            for beat in (beat for beats in words[engine] for beat in beats):
                while rng.random() < stall:
                    await ctx.tick()
                await stream_put(ctx, dut.i[engine], beat)
        return feed

    simulate(dut, collect, *(feeder(e) for e in range(engines)))
    return received


@pytest.mark.parametrize("engines", [1, 2, 3, 8])
def test_keeps_words_whole_and_each_engine_in_order(engines):
    print("seed", engines)
    rng = random.Random(engines)
    words = [
        [word(e, k, rng.choice([1, 1, 2, 5])) for k in range(rng.randrange(30))]
        for e in range(engines)
    ]
    received = [beat for _, beat in merge(engines, words, rng, stall=0.5, room=0.7)]
    while received:
        engine = received[0]["out_word"] >> 16
        expected = words[engine].pop(0)
        assert [received.pop(0) for _ in expected] == expected
    assert not any(words)


@pytest.mark.parametrize("engines", [1, 2, 5])
def test_merges_a_beat_per_cycle_in_turn(engines):
    words = [[word(e, k, 1) for k in range(20)] for e in range(engines)]
    received = merge(engines, words, random.Random(0))
    cycles = [cycle for cycle, _ in received]
    assert cycles == list(range(cycles[0], cycles[0] + len(cycles)))
    turns = [beat["out_word"] >> 16 for _, beat in received]
    assert turns == [k % engines for k in range(20 * engines)]
