# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.testing import simulate, stream_get, stream_put_all
from sparsemac_hw.weights import WeightFetch


@pytest.mark.parametrize(
    ("engines", "fifo_depth", "burst_beats"), [(1, 32, 16), (3, 16, 4), (4, 8, 16)]
)
def test_deals_beats_out_and_never_asks_for_more_than_fits(engines, fifo_depth, burst_beats):
    seed = 10 * engines + fifo_depth
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=engines, fifo_depth=fifo_depth, burst_beats=burst_beats)
    dut = WeightFetch(config)
    runs = [(4096 * k + 64 * rng.randrange(8), engines * rng.randrange(1, 40)) for k in range(5)]
    memory = []  # beats on their way, in order
    got = [[] for _ in range(engines)]
    taken = [0] * engines
    asked = [0]

    async def commands(ctx):
        await stream_put_all(
            ctx, dut.run, [{"address": a, "beats": n} for a, n in runs], rng, 0.5)

    async def bursts(ctx):
        while True:
            burst = await stream_get(ctx, dut.o_burst)
            asked[0] += burst.beats
            assert asked[0] <= engines * (fifo_depth + min(taken))
            last = burst.beats - burst.closing  # as the read side marks beats
            memory.extend((burst.address // 8 + k, k >= last) for k in range(burst.beats))

    async def answer(ctx):
        while True:
            send = memory and rng.random() > 0.2
            ctx.set(dut.i.valid, bool(send))
            if send:
                ctx.set(dut.i.p.data, memory[0][0])
                ctx.set(dut.i.p.last, memory.pop(0)[1])
            await ctx.tick()

    def consumer(e):
        async def consume(ctx):
            total = sum(n for _, n in runs) // engines
            while len(got[e]) < total:
                ready = rng.random() < (0.3 if e == 0 else 0.9)
                ctx.set(dut.o[e].ready, ready)
                *_, valid, beat = await ctx.tick().sample(dut.o[e].valid, dut.o[e].p)
                if valid and ready:
                    got[e].append((beat.data, beat.last))
                    taken[e] += 1
        return consume

    simulate(dut, *(consumer(e) for e in range(engines)), background=[commands, bursts, answer])
    for e in range(engines):
        expected = [
            (address // 8 + k, k >= beats - engines)
            for address, beats in runs for k in range(e, beats, engines)
        ]
        assert got[e] == expected
