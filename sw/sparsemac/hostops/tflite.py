# SPDX-License-Identifier: Apache-2.0
"""Host operations with the integer arithmetic of TensorFlow Lite's reference kernels.

Bit for bit what ``tensorflow/lite/kernels/internal/reference`` computes with gemmlowp's double
rounding. Where a kernel gets the same integers for uint8 as for int8 at a zero point 128 away, int8
stands for both; average pooling does not, and takes either type. A pair *multiplier, shift* is that
of QuantizeMultiplier: a factor of ``multiplier * 2**(shift - 31)``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .registry import operation

__all__ = [
    "scale_by",
    "tflite_add",
    "tflite_average_pool",
    "tflite_max_pool",
    "tflite_mean",
    "tflite_quantize",
    "tflite_requantize",
    "tflite_softmax",
]

#: Integer bits of the fixed-point numbers in softmax, as in the reference kernel.
_ACCUMULATION_INTEGER_BITS = 12
_Q0_ONE = (1 << 31) - 1

#: gemmlowp's barrel shifter: bit of a Q5.26 number, exp(-2**(bit - 26)) in Q0.31.
_EXP_FACTORS = (
    (24, 1672461947), (25, 1302514674), (26, 790015084), (27, 290630308), (28, 39332535),
    (29, 720401), (30, 242),
)


def _high_mul(a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """SaturatingRoundingDoublingHighMul, of operands that are not both -2**31."""
    return (np.asarray(a, np.int64) * np.asarray(b, np.int64) + (1 << 30)) >> 31


def _round_shift(x: NDArray[np.int64], exponent: ArrayLike) -> NDArray[np.int64]:
    """RoundingDivideByPOT: halves away from zero."""
    exponent = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def _saturating_left(x: NDArray[np.int64], exponent: int) -> NDArray[np.int64]:
    """SaturatingRoundingMultiplyByPOT of a positive exponent."""
    return np.clip(x << exponent, -(1 << 31), (1 << 31) - 1)


def scale_by(x: ArrayLike, multiplier: int, shift: int) -> NDArray[np.int64]:
    """MultiplyByQuantizedMultiplier, with double rounding.

    Parameters
    ----------
    x : integers        Of at most 32 bits after a left shift.
    multiplier : int    0 to 2**31 - 1.
    shift : int         -31 to 31; above 0: to the left.
    """
    shifted = np.asarray(x, np.int64) << max(shift, 0)
    if shifted.size and (shifted.min() < -(1 << 31) or shifted.max() >= 1 << 31):
        raise ValueError(f"a value shifted left by {shift} must fit 32 bits")
    return _round_shift(_high_mul(shifted, multiplier), max(-shift, 0))


@operation
def tflite_requantize(
    x: NDArray[Any], *, input_zero_point: int, multiplier: int, shift: int, zero_point: int,
    low: int = -128, high: int = 127,
) -> NDArray[np.int8]:
    """Moves int8 to another scale and zero point: QUANTIZE of integers, RELU, RELU6."""
    scaled = scale_by(x.astype(np.int64) - input_zero_point, multiplier, shift)
    return np.clip(scaled + zero_point, low, high).astype(np.int8)


@operation
def tflite_quantize(x: NDArray[Any], *, scale: float, zero_point: int) -> NDArray[np.int8]:
    """AffineQuantize: ``clip(round(x / scale) + zero_point)`` in float32, halves away from zero."""
    real = np.asarray(x, np.float32)
    if not np.isfinite(real).all():
        raise ValueError("values to quantize must be finite, not NaN or infinite")
    quotient = (real / np.float32(scale)).astype(np.float64)
    # In float64 the half is added exactly, so that this rounds as std::round does.
    rounded = np.copysign(np.floor(np.abs(quotient) + 0.5), quotient)
    return np.clip(rounded + zero_point, -128, 127).astype(np.int8)


@operation
def tflite_add(
    *inputs: NDArray[Any], constant: NDArray[Any] | None = None, left_shift: int = 20,
    zero_points: Sequence[int], multipliers: Sequence[int], shifts: Sequence[int],
    output_multiplier: int, output_shift: int, zero_point: int, low: int = -128, high: int = 127,
) -> NDArray[np.int8]:
    """Adds int8 arrays of different scales; the second may be a constant.

    Both are brought to twice the larger scale with ``left_shift`` more bits, added, and scaled to
    the output: ``reference_integer_ops::AddElementwise``, and its form that broadcasts.
    """
    operands = inputs if constant is None else (*inputs, constant)
    if len(operands) != 2:
        raise ValueError(f"operands must be 2, not {len(operands)}")
    scaled = [
        scale_by((x.astype(np.int64) - zero) << left_shift, multiplier, shift)
        for x, zero, multiplier, shift in zip(operands, zero_points, multipliers, shifts,
                                              strict=True)
    ]
    total = scale_by(scaled[0] + scaled[1], output_multiplier, output_shift) + zero_point
    return np.clip(total, low, high).astype(np.int8)


def _windows(size: int, kernel: int, stride: int, padding: str) -> list[slice]:
    """Where the windows of a pooling along one axis lie, cut to the map."""
    if padding == "SAME":
        count = -(-size // stride)
        before = max((count - 1) * stride + kernel - size, 0) // 2
    elif padding == "VALID":
        count, before = (size - kernel) // stride + 1, 0
        if count < 1:
            raise ValueError(f"kernel must be at most {size} long, as the map, not {kernel}")
    else:
        raise ValueError(f"padding must be SAME or VALID, not {padding!r}")
    starts = [i * stride - before for i in range(count)]
    return [slice(max(start, 0), min(start + kernel, size)) for start in starts]


@operation
def tflite_average_pool(
    x: NDArray[Any], *, kernel: Sequence[int], stride: Sequence[int], padding: str, low: int,
    high: int,
) -> NDArray[Any]:
    """Average over windows of (batch, height, width, channels), int8 or uint8.

    Only elements inside the map count; halves are rounded away from zero.
    """
    rows = _windows(x.shape[1], kernel[0], stride[0], padding)
    columns = _windows(x.shape[2], kernel[1], stride[1], padding)
    sums = np.stack([x[:, rows_].sum(1, np.int64) for rows_ in rows], 1)
    sums = np.stack([sums[:, :, columns_].sum(2) for columns_ in columns], 2)
    heights, widths = (np.array([w.stop - w.start for w in part]) for part in (rows, columns))
    count = (heights[:, None] * widths)[None, :, :, None]
    mean = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    return np.clip(mean, low, high).astype(x.dtype)


@operation
def tflite_max_pool(
    x: NDArray[Any], *, kernel: Sequence[int], stride: Sequence[int], padding: str, low: int,
    high: int,
) -> NDArray[Any]:
    """Maximum over windows of (batch, height, width, channels)."""
    rows = _windows(x.shape[1], kernel[0], stride[0], padding)
    columns = _windows(x.shape[2], kernel[1], stride[1], padding)
    highest = np.stack([x[:, rows_].max(1) for rows_ in rows], 1)
    highest = np.stack([highest[:, :, columns_].max(2) for columns_ in columns], 2)
    return np.clip(highest, low, high).astype(x.dtype)


@operation
def tflite_mean(
    x: NDArray[Any], *, axes: Sequence[int], keep_dims: bool, input_zero_point: int,
    multiplier: int, shift: int, zero_point: int,
) -> NDArray[np.int8]:
    """Mean of int8 over axes: ``reference_ops::QuantizedMeanOrSum`` of TensorFlow 2.12 and later.

    The division by the count goes into the multiplier, so there is one rounding to the output.
    """
    axes = tuple(axes)
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    more = min(count.bit_length() - 1, 32, 31 + shift)
    sums = x.sum(axes, np.int64, keepdims=keep_dims) - input_zero_point * count
    scaled = scale_by(sums, (multiplier << more) // count, shift - more)
    return np.clip(scaled + zero_point, -128, 127).astype(np.int8)


def _exp_on_negative_values(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gemmlowp's exp_on_negative_values: Q5.26, at most 0, to Q0.31."""
    quarter = 1 << 24
    part = (a & (quarter - 1)) - quarter
    # Taylor's expansion around -1/8, for -1/4 to 0 in Q0.31.
    constant, third = 1895147668, 715827883
    x = (part << 5) + (1 << 28)
    x2 = _high_mul(x, x)
    x3 = _high_mul(x2, x)
    x4_over_4 = _round_shift(_high_mul(x2, x2), 2)
    tail = _round_shift(_high_mul(x4_over_4 + x3, third) + x2, 1)
    result = constant + _high_mul(constant, x + tail)
    remainder = part - a
    for bit, factor in _EXP_FACTORS:
        result = np.where(remainder >> bit & 1, _high_mul(result, factor), result)
    return np.where(a == 0, _Q0_ONE, result)


def _one_over_one_plus_x(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gemmlowp's one_over_one_plus_x_for_x_in_0_1: Newton's division, Q0.31 to Q0.31."""
    half_denominator = (a + _Q0_ONE + 1) // 2
    x = 1515870810 + _high_mul(half_denominator, -1010580540)
    for _ in range(3):
        rest = (1 << 29) - _high_mul(half_denominator, x)
        x = x + _saturating_left(_high_mul(x, rest), 2)
    return _saturating_left(x, 1)


@operation
def tflite_softmax(
    x: NDArray[Any], *, multiplier: int, shift: int, diff_min: int
) -> NDArray[np.int8]:
    """Softmax of int8 over the last axis, in gemmlowp's fixed point; the output's scale is 1/256.

    Parameters
    ----------
    multiplier, shift : int    Of the input's scale times beta, to Q5.26.
    diff_min : int             Lowest difference to the maximum that is not zero in the output.
    """
    if multiplier < 0 or not 0 <= shift <= 31 or diff_min > 0:
        raise ValueError(f"shift must be 0 to 31 and diff_min at most 0, not {shift}, {diff_min}")
    diff = x.astype(np.int64) - x.max(-1, keepdims=True)
    counts = diff >= diff_min
    exps = _exp_on_negative_values(scale_by(np.where(counts, diff, 0), multiplier, shift))
    total = np.where(counts, _round_shift(exps, _ACCUMULATION_INTEGER_BITS), 0).sum(
        -1, keepdims=True)
    if total.size and total.max() >= 1 << 28:
        raise ValueError("exponentials must sum to less than 512 times the largest of them")
    # frexp of integers below 2**53 is exact: the position of the highest bit.
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    scale = _one_over_one_plus_x((total << headroom) - (1 << 31))
    bits_over_unit = _ACCUMULATION_INTEGER_BITS - headroom
    y = _round_shift(_high_mul(scale, exps), bits_over_unit + 31 - 8) - 128
    return np.where(counts, np.clip(y, -128, 127), -128).astype(np.int8)
