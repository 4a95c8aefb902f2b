# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from amaranth.lib import data
from sparsemac.commands import OutputMode
from sparsemac_hw.requantizer import Requantizer
from sparsemac_hw.testing import simulate
from support.ecp5_twins import WithTwins

# The twins are transcriptions of the sources, not of the gateware's formula.


def wrap32(value):
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def single(total, multiplier, shift):
    """TOSA 1.0, apply_scale_32 without double rounding; its shift counts from 0."""
    tosa_shift = 31 + shift
    return (total * multiplier + (1 << (tosa_shift - 1))) >> tosa_shift


def double(total, multiplier, shift):
    """gemmlowp: SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT."""
    product = total * multiplier
    nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
    nudged = product + nudge
    high = abs(nudged) // (1 << 31) * (1 if nudged >= 0 else -1)  # C division: towards zero
    mask = (1 << shift) - 1
    remainder = high & mask
    threshold = (mask >> 1) + (high < 0)
    return (high >> shift) + (remainder > threshold)


def twin(mode, vector, zero_point, low, high):
    acc, addend, multiplier, shift = vector
    total = wrap32(acc + addend)
    if mode == OutputMode.RAW:
        return total
    scaled = (double if mode == OutputMode.DOUBLE else single)(total, multiplier, shift)
    return min(max(scaled + zero_point, low), high)


def edge(rng, bits):
    """A signed number of up to ``bits`` bits of random magnitude, often next to a power of two."""
    magnitude = 1 << rng.randrange(bits)
    value = rng.choice([0, magnitude, rng.randrange(magnitude)]) + rng.randrange(-2, 3)
    value *= rng.choice([-1, 1])
    return min(max(value, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


def vectors(rng, acc_width, count):
    for _ in range(count):
        shift = rng.choice([0, 1, 7, 8, 15, 16, 30, 31, rng.randrange(32)])
        kind = rng.random()
        if kind < 0.4:  # results of the order of an int8
            multiplier = rng.randrange(1 << 30, 1 << 31)
            shift = rng.randrange(acc_width - 7)
        elif kind < 0.6:  # ties: a power of two times an odd sum
            multiplier = 1 << rng.randrange(24, 36)
        elif kind < 0.8:
            multiplier = edge(rng, 37) % (1 << 36)
        else:
            multiplier = rng.choice([0, 1, (1 << 31) - 1, 1 << 31, (1 << 35) - 16, (1 << 36) - 1])
        yield edge(rng, acc_width), edge(rng, 32), multiplier, shift


def run(dut, mode, cases, zero_point, low, high, rng, stall=0.2, design=None):
    """Returns the results, the sums, and the latencies of both [cycles].

    ``design`` is what is simulated, if that is not ``dut`` itself.
    """
    results, sums, given = [], [], []
    latencies, sum_latencies = set(), set()
    cycle = 0

    async def drive(ctx):
        nonlocal cycle
        ctx.set(dut.i_mode, mode)
        ctx.set(dut.i_zero_point, zero_point)
        ctx.set(dut.i_low, low)
        ctx.set(dut.i_high, high)
        waiting = list(enumerate(cases))[::-1]
        while len(results) < len(cases):
            valid = bool(waiting) and rng.random() >= stall
            ctx.set(dut.i_valid, valid)
            if valid:
                k, (acc, addend, multiplier, shift) = waiting.pop()
                ctx.set(dut.i_acc, acc)
                ctx.set(dut.i_addend, addend)
                ctx.set(dut.i_multiplier, multiplier)
                ctx.set(dut.i_shift, shift)
                ctx.set(dut.i_tag, {"index": k, "odd": k & 1})
                given.append(cycle)
            *_, o_valid, value, tag, sum_valid, total = await ctx.tick().sample(
                dut.o_valid, dut.o_value, dut.o_tag, dut.o_sum_valid, dut.o_sum
            )
            if sum_valid:
                sum_latencies.add(cycle - given[len(sums)])
                sums.append(total)
            if o_valid:
                assert (tag.index, tag.odd) == (len(results), len(results) & 1)
                latencies.add(cycle - given[len(results)])
                results.append(value if mode == OutputMode.RAW else (value ^ 0x80) - 0x80)
            cycle += 1

    simulate(design or dut, drive, max_cycles=10 * len(cases) + 100)
    return results, sums, latencies, sum_latencies


TAG = data.StructLayout({"index": 16, "odd": 1})


@pytest.mark.parametrize("mode", list(OutputMode))
@pytest.mark.parametrize(
    ("acc_width", "family"), [(32, "portable"), (20, "portable"), (32, "ecp5")])
def test_equals_the_sources_bit_by_bit(mode, acc_width, family):
    seed = 1000 * mode + acc_width
    print("seed", seed)
    rng = random.Random(seed)
    for zero_point, low, high in [(0, -128, 127), (-128, -128, 127), (127, 5, 5), (-7, -7, 90)]:
        cases = list(vectors(rng, acc_width, 600))
        dut = Requantizer(acc_width, TAG)
        twins = WithTwins(dut) if family == "ecp5" else None
        results, sums, latencies, sum_latencies = run(
            dut, mode, cases, zero_point, low, high, rng, design=twins)
        assert twins is None or twins.replaced == ["MULT18X18D"] * 4
        expected = [twin(mode, case, zero_point, low, high) for case in cases]
        assert results == expected
        assert sums == [wrap32(acc + addend) for acc, addend, *_ in cases]
        assert latencies == {Requantizer.LATENCY_CYCLES}
        assert sum_latencies == {Requantizer.SUM_LATENCY_CYCLES}


def test_double_and_single_rounding_differ_where_they_should():
    # -2.5 goes up to -2 with one rounding; away from zero, to -3, with two.
    case = (-5, 0, 1 << 31, 1)
    rng = random.Random(0)
    got = {
        mode: run(Requantizer(32, TAG), mode, [case], 0, -128, 127, rng)[0]
        for mode in (OutputMode.SINGLE, OutputMode.DOUBLE)
    }
    assert got == {OutputMode.SINGLE: [-2], OutputMode.DOUBLE: [-3]}


def test_rounds_every_tie_and_its_neighbours():
    # A multiplier of 2**31 leaves the sum as it is for the second rounding.
    cases = [
        (sign * (odd << shift >> 1) + bit, 0, 1 << 31, shift)
        for shift in range(1, 25)
        for odd in (1, 3, 125)
        for sign in (-1, 1)
        for bit in (0, *(1 << k for k in range(shift - 1)))
        if odd << shift < 1 << 31
    ]
    for mode in (OutputMode.SINGLE, OutputMode.DOUBLE):
        results, *_ = run(Requantizer(32, TAG), mode, cases, 3, -128, 127, random.Random(2), 0)
        assert results == [twin(mode, case, 3, -128, 127) for case in cases]


def test_saturates_at_the_largest_products():
    cases = [
        (s, 0, multiplier, shift)
        for s in (-(1 << 31), (1 << 31) - 1)
        for multiplier in ((1 << 35) - 1, (1 << 36) - 1)
        for shift in range(32)
    ]
    for mode in (OutputMode.SINGLE, OutputMode.DOUBLE):
        results, *_ = run(Requantizer(32, TAG), mode, cases, -128, -100, 100, random.Random(1), 0)
        assert results == [twin(mode, case, -128, -100, 100) for case in cases]


def test_takes_one_sum_per_cycle():
    cases = list(vectors(random.Random(3), 32, 200))
    dut = Requantizer(32, TAG)
    cycles = 0

    async def drive(ctx):
        nonlocal cycles
        ctx.set(dut.i_valid, 1)
        results = 0
        while results < len(cases):
            *_, valid = await ctx.tick().sample(dut.o_valid)
            results += valid
            cycles += 1

    simulate(dut, drive)
    assert cycles == len(cases) + Requantizer.LATENCY_CYCLES


def test_acc_width_wrong():
    with pytest.raises(ValueError, match=r"^acc_width must be 1 to 32, not 33 "):
        Requantizer(33)
