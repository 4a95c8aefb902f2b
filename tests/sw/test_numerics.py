# SPDX-License-Identifier: Apache-2.0
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsemac.commands import OutputMode
from sparsemac.csr import Csr, as_csr
from sparsemac.errors import UnsupportedLayer
from sparsemac.numerics import (
    accumulator_bounds,
    check_no_overflow,
    pack_int4,
    quantize_multiplier,
    requantize,
    unpack_int4,
)

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIER = st.integers(0, 2**31 - 1)
SHIFT = st.integers(0, 31)


def truncate(numerator: int, denominator: int) -> int:
    """Division as in C: towards zero."""
    quotient = abs(numerator) // denominator
    return -quotient if numerator < 0 else quotient


def gemmlowp(acc: int, multiplier: int, shift: int) -> int:
    """SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT (gemmlowp fixedpoint.h)."""
    product = acc * multiplier
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    high = truncate(product + nudge, 1 << 31)
    mask = (1 << shift) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> shift) + (1 if high & mask > threshold else 0)


def tosa(acc: int, multiplier: int, shift: int) -> int:
    """apply_scale_32 without double rounding (TOSA 1.0, RESCALE), whose shift is 31 more."""
    return (acc * multiplier + (1 << 30 + shift)) >> 31 + shift


def scaled(acc, multiplier, shift, mode, zero_point=0, low=-128, high=127):
    return int(requantize(acc, multiplier, shift, zero_point, low, high, mode))


def clamp(value: int) -> int:
    return min(max(value, -128), 127)


@given(INT32, MULTIPLIER, SHIFT)
def test_double_rounding_is_gemmlowps(acc, multiplier, shift):
    want = clamp(gemmlowp(acc, multiplier, shift))
    assert scaled(acc, multiplier, shift, OutputMode.DOUBLE) == want


@given(INT32, MULTIPLIER, SHIFT)
def test_single_rounding_is_tosas(acc, multiplier, shift):
    assert scaled(acc, multiplier, shift, OutputMode.SINGLE) == clamp(tosa(acc, multiplier, shift))


def test_arrays_equal_the_scalar_definitions_near_every_half():
    shift = np.arange(1, 32)[:, None]
    multiplier = np.array([2**30, 2**30 + 1, 3 << 29, 2**31 - 1])[:, None, None]
    # Sums whose scaled value lies next to a half: k + 1/2, for small k of both signs.
    halves = (2 * np.arange(-5, 5) + 1) * 2.0 ** (30 + shift) / multiplier
    acc = np.clip(np.rint(halves)[..., None] + np.arange(-1, 2), -(2**31), 2**31 - 1)
    acc = acc.astype(np.int64)
    multiplier, shift = np.broadcast_arrays(multiplier[..., None], shift[..., None], acc)[:2]
    for mode, scalar in ((OutputMode.DOUBLE, gemmlowp), (OutputMode.SINGLE, tosa)):
        got = requantize(acc, multiplier, shift, 0, -128, 127, mode)
        cases = zip(acc.flat, multiplier.flat, shift.flat, strict=True)
        want = [clamp(scalar(int(a), int(m), int(s))) for a, m, s in cases]
        np.testing.assert_array_equal(got.ravel(), want)


@pytest.mark.parametrize(("acc", "double", "single"), [
    (1, 1, 1), (-1, -1, 0), (3, 2, 2), (-3, -2, -1), (-5, -3, -2),
])
def test_negative_halves_round_away_from_zero_twice_and_up_once(acc, double, single):
    # 2**30 / 2**(31 + 1) would be a quarter: with acc doubled, acc / 2.
    assert scaled(2 * acc, 2**30, 1, OutputMode.DOUBLE) == double
    assert scaled(2 * acc, 2**30, 1, OutputMode.SINGLE) == single


def test_two_roundings_differ_from_one():
    # 0.498 rounds to a half of the last place first, and to one then.
    acc, multiplier, shift = 1, int(0.996 * 2**31), 1
    assert scaled(acc, multiplier, shift, OutputMode.DOUBLE) == 1
    assert scaled(acc, multiplier, shift, OutputMode.SINGLE) == 0


@given(INT32, st.integers(2**31, 2**35 - 1), SHIFT)
def test_wide_multipliers_are_exact(acc, multiplier, shift):
    # A left shift inside the multiplier: the definition itself, in Python's integers.
    product = acc * multiplier
    h = (product >> 31) + (product >> 30 & 1)
    nudge = (1 << shift - 1) - (h < 0) if shift else 0
    assert scaled(acc, multiplier, shift, OutputMode.DOUBLE) == clamp(h + nudge >> shift)
    assert scaled(acc, multiplier, shift, OutputMode.SINGLE) == clamp(tosa(acc, multiplier, shift))


def test_zero_point_comes_before_the_clamp():
    acc = np.arange(-300, 300, 50)
    got = requantize(acc, 2**31 - 1, 0, 10, 10, 100, OutputMode.DOUBLE)
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, np.clip(acc + 10, 10, 100))


def test_raw_mode_has_no_requantization():
    with pytest.raises(ValueError, match="mode must be SINGLE or DOUBLE, not RAW"):
        requantize(1, 1, 0, 0, -128, 127, OutputMode.RAW)


def quantize_multiplier_of_tflite(real: float) -> tuple[int, int]:
    """Transcribed from quantization_util.cc; returns (multiplier, left shift)."""
    significand, shift = math.frexp(real)
    fixed = math.floor(significand * 2**31 + 0.5)
    if fixed == 2**31:
        fixed //= 2
        shift += 1
    if shift < -31:
        shift, fixed = 0, 0
    return fixed, shift


@given(st.floats(2.0**-40, 15.999, allow_subnormal=False))
def test_multiplier_is_that_of_tflite(real):
    multiplier, shift = (int(v) for v in quantize_multiplier(real))
    fixed, left = quantize_multiplier_of_tflite(real)
    assert multiplier < 2**35 and 0 <= shift <= 31
    assert (multiplier, shift) == (fixed << max(left, 0), max(-left, 0))


def test_multiplier_that_rounds_up_carries():
    multiplier, shift = quantize_multiplier(np.nextafter(0.5, 0))
    assert (int(multiplier), int(shift)) == (2**30, 0)


def test_smallest_factors_become_zero():
    multiplier, shift = quantize_multiplier([2.0**-32, 0.99 * 2.0**-32])
    assert multiplier.tolist() == [2**30, 0] and shift.tolist() == [31, 0]


@pytest.mark.parametrize("real", [16.0, 1e9, np.nextafter(16, 0), 15.9999999999])
def test_factor_of_sixteen_is_refused_also_when_rounded_up_to(real):
    with pytest.raises(ValueError, match=r"a scale factor must be below 16, not .*15\.99"):
        quantize_multiplier([0.5, real])


@pytest.mark.parametrize("real", [0.0, -1.0, np.nan, np.inf])
def test_a9_scale_that_is_no_positive_number_is_refused(real):
    with pytest.raises(ValueError, match="a scale factor must be positive and finite, not"):
        quantize_multiplier([0.5, real])


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_int4_comes_back(values):
    packed = pack_int4(values)
    assert packed.dtype == np.uint8 and len(packed) == (len(values) + 1) // 2
    assert unpack_int4(packed, len(values)).tolist() == values


def test_a6_first_value_is_the_low_nibble_and_the_pad_is_ignored():
    assert pack_int4([-8, 7, 1]).tolist() == [0x78, 0x01]
    assert unpack_int4([0x78, 0xF1], 3).tolist() == [-8, 7, 1]


def test_int4_of_ml_dtypes_packs_as_it_is():
    assert pack_int4(np.array([-8, 7], ml_dtypes.int4)).tolist() == [0x78]


def test_int4_out_of_range_is_refused():
    with pytest.raises(ValueError, match="int4 values must be -8 to 7, not 8"):
        pack_int4([0, 8])
    with pytest.raises(TypeError, match="int4 values must be integers, not float64"):
        pack_int4([0.5])


@pytest.mark.parametrize("length", [1, 3])
def test_a9_int4_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match=f"3 int4 values must be 2 bytes, not {length}"):
        unpack_int4(np.zeros(length, np.uint8), 3)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_bounds_are_reached_and_not_exceeded(seed):
    rng = np.random.default_rng(seed)
    dense = rng.integers(-128, 128, (4, 9)) * (rng.random((4, 9)) < 0.5)
    bias = rng.integers(-1000, 1000, 4).astype(np.int32)
    lowest, highest = accumulator_bounds(as_csr(dense), bias, -100, 90)
    # The input that makes a row largest is high where its weight is positive, low where negative.
    largest = (dense * np.where(dense > 0, 90, -100)).sum(1) + bias
    smallest = (dense * np.where(dense > 0, -100, 90)).sum(1) + bias
    np.testing.assert_array_equal(highest, largest)
    np.testing.assert_array_equal(lowest, smallest)


def test_a7_row_that_could_overflow_is_refused_by_name():
    dense = np.zeros((3, 6), np.int8)
    dense[1] = -128  # 6 * 128 * 128 is beyond 16 bits, and 2 * 128 * 128 just so
    with pytest.raises(UnsupportedLayer, match=r"sums must fit 16 bits, but row 1 can reach"):
        check_no_overflow(as_csr(dense), None, 16)
    check_no_overflow(as_csr(dense), None, 18)


def test_a7_bound_is_exact_at_both_ends():
    # 127 * -128 twice, and 2 * -128: exactly -2**15; its highest is 127 * 127 * 2 + 254.
    check_no_overflow(as_csr([[127, 127, 2]]), None, 16)
    with pytest.raises(UnsupportedLayer):
        check_no_overflow(as_csr([[127, 127, 3]]), None, 16)
    with pytest.raises(UnsupportedLayer):  # -128 * -128 twice is +2**15
        check_no_overflow(as_csr([[-128, -128]]), None, 16)


def test_a7_bias_counts_in_32_bits():
    csr = as_csr([[1]])
    check_no_overflow(csr, np.array([2**31 - 1 - 127], np.int32), 16)
    with pytest.raises(UnsupportedLayer, match="sums must fit 32 bits, but row 0"):
        check_no_overflow(csr, np.array([2**31 - 127], np.int32), 16)


def test_a5_matrix_without_rows_or_entries_cannot_overflow():
    check_no_overflow(as_csr(np.zeros((0, 4), np.int8)), None, 16)
    check_no_overflow(Csr((2, 0), np.zeros(3, np.int64), np.zeros(0, np.int64),
                          np.zeros(0, np.int8)), None, 16)
