# SPDX-License-Identifier: Apache-2.0
"""What masks say of quotients, whenever entries are asked for and masks come."""

import random

import pytest
from sparsemac.stream import MASK_BITS
from sparsemac_hw.masks import MaskReader
from sparsemac_hw.testing import simulate


def masks_of(quotients):
    """The quotients in unary, from the lowest bit up, cut into masks."""
    bits = "".join("0" * quotient + "1" for quotient in quotients)
    bits += "0" * (-len(bits) % MASK_BITS)
    return [int(bits[k : k + MASK_BITS][::-1], 2) for k in range(0, len(bits), MASK_BITS)]


def bounded(quotient, delta_bits):
    """Columns of a quotient; beyond 16 bits only that they are too many is kept."""
    columns = 0
    for _ in range(quotient):
        columns += 0 if columns >> 16 else 1 << delta_bits
    return columns


@pytest.mark.parametrize("delta_bits", range(9))
@pytest.mark.parametrize(("asks", "rests"), [(1.0, 0.0), (0.5, 0.3)])
def test_quotients_are_those_of_the_masks(delta_bits, asks, rests):
    seed = 100 * delta_bits + int(10 * asks)
    print("seed", seed)
    rng = random.Random(seed)
    dut = MaskReader()
    runs = [
        [rng.choice([0, 0, 0, 1, 1, 2, 3, rng.randrange(40)]) for _ in range(120)],
        [0] * 40,  # nothing but ones: an entry a cycle
        [700 if delta_bits == 8 else 90, 0, 1],
    ]

    async def bench(ctx):
        ctx.set(dut.delta_bits, delta_bits)
        for quotients in runs:
            masks = masks_of(quotients)
            asked, seen = [], []  # the cycles in which entries were asked for; quotients by cycle
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            wait = 0  # cycles until the next mask is there
            while len(asked) < len(quotients):
                wanted = wait == 0 and rng.random() >= rests
                may_ask = rng.random() < asks
                ctx.set(dut.wanted, wanted)
                ctx.set(dut.may_ask, may_ask)
                ctx.set(dut.load, wait == 1)
                if wait == 1:
                    ctx.set(dut.mask, masks.pop(0))
                wait = max(wait - 1, 0)
                seen.append(ctx.get(dut.quotient))
                if wanted and ctx.get(dut.spent):
                    wait = rng.randrange(1, 4)
                elif wanted and may_ask and ctx.get(dut.found):
                    asked.append(len(seen) - 1)
                await ctx.tick()
            ctx.set(dut.wanted, 0)
            ctx.set(dut.load, 0)
            for _ in range(2):
                seen.append(ctx.get(dut.quotient))
                await ctx.tick()
            assert not masks or not any(masks)
            assert [seen[cycle + 2] for cycle in asked] == [
                bounded(quotient, delta_bits) for quotient in quotients]

    simulate(dut, bench)


def test_ones_are_passed_one_a_cycle_and_zeros_two():
    dut = MaskReader()
    cycles = []

    async def bench(ctx):
        for mask in (0xFFFF, 0x8000):
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.load, 1)
            ctx.set(dut.mask, mask)
            await ctx.tick()
            ctx.set(dut.load, 0)
            ctx.set(dut.wanted, 1)
            ctx.set(dut.may_ask, 1)
            count = 0
            while not ctx.get(dut.spent):
                count += 1
                await ctx.tick()
            ctx.set(dut.wanted, 0)
            cycles.append(count)

    simulate(dut, bench)
    assert cycles == [16, 8]  # 14 zeros, and the last one with the one behind it
