# SPDX-License-Identifier: Apache-2.0
"""Integer arithmetic of the core, as its definition: rounding, int4, accumulators."""

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .commands import OutputMode
from .csr import Csr
from .errors import UnsupportedLayer

__all__ = [
    "MAX_MULTIPLIER_BITS",
    "accumulator_bounds",
    "check_no_overflow",
    "pack_int4",
    "quantize_multiplier",
    "requantize",
    "unpack_int4",
]

MAX_MULTIPLIER_BITS = 35
MAX_SHIFT = 31
MAX_LEFT_SHIFT = MAX_MULTIPLIER_BITS - 31

#: The multiplier is split here, so that both partial products fit 64 bits.
_SPLIT = 16


def requantize(
    acc: ArrayLike,
    multiplier: ArrayLike,
    shift: ArrayLike,
    zero_point: int,
    low: int,
    high: int,
    mode: OutputMode,
) -> NDArray[np.int8]:
    """Scales sums by ``multiplier / 2**(31 + shift)``, rounds, adds the zero point and clamps.

    With P = acc * multiplier, exactly::

        h = (P >> 31) + (bit 30 of P, if mode is DOUBLE or shift is 0)
        y = (h + nudge) >> shift        nudge = 0 if shift is 0, else
                                        2**(shift - 1) - (1 if mode is DOUBLE and h < 0)
        clamp(y + zero_point, low, high)

    DOUBLE is gemmlowp's SaturatingRoundingDoublingHighMul followed by RoundingDivideByPOT
    (``fixedpoint/fixedpoint.h``), as in TensorFlow Lite's reference kernels. SINGLE is one rounding
    to nearest, halves up: TOSA 1.0, RESCALE; TensorFlow Lite with TFLITE_SINGLE_ROUNDING. A
    multiplier of 2**31 or more carries a left shift of up to 4.

    Parameters
    ----------
    acc : int32             Sums.
    multiplier : integers   0 to 2**35 - 1; broadcast against ``acc``.
    shift : integers        Right shift, 0 to 31; broadcast against ``acc``.
    zero_point, low, high : int     int8.
    mode : OutputMode       SINGLE or DOUBLE.
    """
    if mode == OutputMode.RAW:
        raise ValueError("mode must be SINGLE or DOUBLE, not RAW")
    acc = np.asarray(acc, np.int64)
    multiplier = np.asarray(multiplier).astype(np.int64)
    shift = np.asarray(shift, np.int64)
    double = mode == OutputMode.DOUBLE
    # P = upper * 2**16 + lower, with 0 <= lower < 2**16: no step exceeds 64 bits.
    part = acc * (multiplier & ((1 << _SPLIT) - 1))
    upper = acc * (multiplier >> _SPLIT) + (part >> _SPLIT)
    h = upper >> (31 - _SPLIT)
    bit_30 = upper >> (30 - _SPLIT) & 1
    h = h + np.where(double | (shift == 0), bit_30, 0)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    nudge = half - np.where(double & (h < 0) & (shift > 0), 1, 0)
    y = (h + nudge) >> shift
    return np.clip(y + zero_point, low, high).astype(np.int8)


def quantize_multiplier(real: ArrayLike) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Turns positive factors into multipliers and right shifts.

    As TensorFlow Lite's QuantizeMultiplier (``quantization_util.cc``): a 31-bit significand,
    rounded to nearest, and a power of two. A factor of 1 or more moves its left shift into the
    multiplier; one below 2**-32 becomes zero, as there.

    Returns
    -------
    multiplier : uint64, below 2**35; shift : int64, 0 to 31

    Raises
    ------
    ValueError    If a factor is not positive and finite, or is 16 or more.
    """
    factors = np.asarray(real, np.float64)
    if (bad := ~(np.isfinite(factors) & (factors > 0))).any():
        raise ValueError(
            f"a scale factor must be positive and finite, not {float(factors[bad].flat[0])!r}"
        )
    significand, exponent = np.frexp(factors)
    fixed = np.floor(significand * (1 << 31) + 0.5).astype(np.int64)
    carry = fixed == 1 << 31
    fixed = np.where(carry, fixed >> 1, fixed)
    exponent = exponent.astype(np.int64) + carry
    if (exponent > MAX_LEFT_SHIFT).any():  # also of a factor that rounds up to 16
        raise ValueError(
            f"a scale factor must be below 16, not {float(factors.max())!r} "
            f"(nearest legal value: 15.99)"
        )
    tiny = exponent < -MAX_SHIFT
    multiplier = np.where(tiny, 0, fixed << np.maximum(exponent, 0))
    shift = np.where(tiny, 0, np.maximum(-exponent, 0))
    return multiplier.astype(np.uint64), shift


def pack_int4(values: ArrayLike) -> NDArray[np.uint8]:
    """Packs int4 values two to a byte, the first in the low nibble; an odd one gets a zero."""
    array = np.asarray(values)
    if array.dtype != ml_dtypes.int4:
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"int4 values must be integers, not {array.dtype}")
        wide = array.astype(np.int64)
        if wide.size and (wide.min() < -8 or wide.max() > 7):
            bad = wide[(wide < -8) | (wide > 7)].flat[0]
            raise ValueError(f"int4 values must be -8 to 7, not {bad}")
        array = wide.astype(ml_dtypes.int4)
    nibbles = array.astype(np.int8).ravel().view(np.uint8) & 15
    nibbles = np.concatenate([nibbles, np.zeros(nibbles.size % 2, np.uint8)])
    return (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8)


def unpack_int4(packed: ArrayLike, count: int) -> NDArray[np.int8]:
    """Unpacks ``count`` int4 values; what stands in a last, odd nibble is ignored."""
    data = np.asarray(packed, np.uint8)
    if len(data) != (count + 1) // 2:
        raise ValueError(f"{count} int4 values must be {(count + 1) // 2} bytes, not {len(data)}")
    nibbles = np.stack([data & 15, data >> 4], 1).ravel()[:count]
    return ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)


def accumulator_bounds(
    csr: Csr, bias: NDArray[np.int32] | None = None, low: int = -128, high: int = 127
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (rows,) lowest and highest sum, with the bias, for inputs of ``low`` to ``high``."""
    weights = csr.data.astype(np.int64)
    bounds = []
    for take in (np.minimum, np.maximum):
        totals = np.concatenate([[0], np.cumsum(take(weights * low, weights * high))])
        sums = totals[csr.indptr[1:]] - totals[csr.indptr[:-1]]
        bounds.append(sums if bias is None else sums + bias.astype(np.int64))
    return bounds[0], bounds[1]


def check_no_overflow(csr: Csr, bias: NDArray[np.int32] | None, acc_width: int) -> None:
    """Proves from the weights that no accumulator and no sum with its bias can overflow.

    Products are accumulated in ``acc_width`` bits; the bias is added in 32. A partial sum of a row
    lies between sums of its negative and of its positive products, so the extremes bound it too.

    Raises
    ------
    UnsupportedLayer    Naming the row, its bound and the limit.
    """
    bare = accumulator_bounds(csr)
    added = np.int64(0) if bias is None else bias.astype(np.int64)
    for extra, width in ((np.int64(0), acc_width), (added, 32)):
        lowest, highest = (bound + extra for bound in bare)
        limit = 1 << width - 1
        worst = np.maximum(-lowest, highest + 1)
        if worst.size and worst.max() > limit:
            row = int(worst.argmax())
            raise UnsupportedLayer(
                f"sums must fit {width} bits, but row {row} can reach {lowest[row]} to "
                f"{highest[row]}"
            )
