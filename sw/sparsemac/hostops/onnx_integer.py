# SPDX-License-Identifier: Apache-2.0
"""Host operations of ONNX and QONNX between reals and integers, and on integers.

Defined by the operators of the same names in ONNX's ``Operators.md`` (opset 25), and by QONNX's
``docs/qonnx-custom-ops/quant_op.md``. Products of integers are summed in float64, which is exact:
operands have at most 9 bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .float_ops import float_conv
from .registry import operation

__all__ = [
    "ROUNDINGS",
    "integer_limits",
    "onnx_conv_integer",
    "onnx_dequantize_linear",
    "onnx_dynamic_quantize_linear",
    "onnx_matmul_integer",
    "onnx_qlinear_conv",
    "onnx_qlinear_matmul",
    "onnx_quantize_linear",
    "onnx_requantize",
    "qonnx_dequantize",
    "qonnx_quantize",
    "scale_sums",
    "spread",
]


#: Rounding modes of QONNX's Quant.
ROUNDINGS: dict[str, Callable[..., Any]] = {
    "ROUND": np.rint, "HALF_EVEN": np.rint, "CEIL": np.ceil, "FLOOR": np.floor,
    "ROUND_TO_ZERO": np.trunc, "DOWN": np.trunc,
    "UP": lambda x: np.copysign(np.ceil(np.abs(x)), x),
    "HALF_UP": lambda x: np.copysign(np.floor(np.abs(x) + x.dtype.type(0.5)), x),
    "HALF_DOWN": lambda x: np.copysign(np.ceil(np.abs(x) - x.dtype.type(0.5)), x),
}


def integer_limits(dtype: Any) -> tuple[int, int]:
    """Lowest and highest integer of a type, small ones of ml_dtypes included."""
    dtype = np.dtype(dtype)
    info = np.iinfo(dtype) if dtype.kind in "iu" else ml_dtypes.iinfo(dtype)
    return int(info.min), int(info.max)


def spread(
    parameter: NDArray[Any], x: NDArray[Any], axis: int, block_size: int
) -> NDArray[Any]:
    """A scale or a zero point for each tensor, slice or block, in a shape that broadcasts to x."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis < x.ndim:
        raise ValueError(f"axis must be one of {x.ndim}, not {axis}")
    if block_size:
        if parameter.ndim != x.ndim:
            raise ValueError(f"scales of blocks must have {x.ndim} axes, not {parameter.ndim}")
        every = np.repeat(parameter, block_size, axis)
        return np.take(every, np.arange(x.shape[axis]), axis)
    if parameter.shape != (x.shape[axis],):
        raise ValueError(f"scales must have shape ({x.shape[axis]},), not {parameter.shape}")
    return parameter.reshape(-1, *[1] * (x.ndim - 1 - axis))


def _check_scale(scale: NDArray[Any]) -> None:
    if not (np.isfinite(scale) & (scale > 0)).all():
        bad = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
        raise ValueError(f"scales must be positive and finite, not {bad}")


@operation
def onnx_quantize_linear(
    x: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | None = None, *, axis: int = 1,
    block_size: int = 0, dtype: str = "uint8", precision: str = "",
) -> NDArray[Any]:
    """Returns ``saturate(round(x / scale) + zero_point)``, halves to even.

    Divides in the type of the scale, or in ``precision``.
    """
    _check_scale(scale)
    kind = np.dtype(precision or scale.dtype)
    quotient = x.astype(kind) / spread(scale.astype(kind), x, axis, block_size)
    if not np.isfinite(quotient).all():
        raise ValueError("values to quantize must be finite, not NaN or infinite")
    whole = np.rint(quotient).astype(np.float64)
    if zero_point is not None:
        whole = whole + spread(zero_point.astype(np.float64), x, axis, block_size)
    low, high = integer_limits(dtype)
    return np.clip(whole, low, high).astype(np.int64).astype(np.dtype(dtype))


@operation
def onnx_dequantize_linear(
    x: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | None = None, *, axis: int = 1,
    block_size: int = 0, dtype: str = "",
) -> NDArray[Any]:
    """Returns ``(x - zero_point) * scale``, in the type of the scale or in ``dtype``."""
    whole = x.astype(np.int64)
    if zero_point is not None:
        whole = whole - spread(zero_point.astype(np.int64), x, axis, block_size)
    real = whole.astype(scale.dtype) * spread(scale, x, axis, block_size)
    return np.asarray(real, np.dtype(dtype or scale.dtype))


@operation
def onnx_dynamic_quantize_linear(
    x: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Quantizes to uint8 by the range of the values themselves, which includes zero."""
    low, high = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    scale = np.asarray((high - low) / np.float32(255), np.float32)
    if not scale > 0:
        scale = np.ones((), np.float32)  # all zero: any scale will do
    zero_point = np.asarray(np.clip(np.rint(-low / scale), 0, 255), np.uint8)
    return onnx_quantize_linear(x, scale, zero_point), scale, zero_point


def _centred(x: NDArray[Any], zero_point: NDArray[Any] | None, axis: int) -> NDArray[np.float64]:
    real = x.astype(np.float64)
    if zero_point is None:
        return real
    zero = zero_point.astype(np.float64)
    if zero.size > 1 and zero.ndim == 1:
        zero = zero.reshape(-1, *[1] * (-1 - axis))
    return real - (zero if zero.size > 1 else zero.reshape(()))


@operation
def onnx_matmul_integer(
    a: NDArray[Any], b: NDArray[Any], a_zero_point: NDArray[Any] | None = None,
    b_zero_point: NDArray[Any] | None = None,
) -> NDArray[np.int32]:
    """Returns ``(a - a_zero_point) @ (b - b_zero_point)``; zero points of rows and of columns."""
    sums = _centred(a, a_zero_point, -2) @ _centred(b, b_zero_point, -1)
    return np.asarray(sums, np.int64).astype(np.int32)


@operation
def onnx_conv_integer(
    x: NDArray[Any], weight: NDArray[Any], x_zero_point: NDArray[Any] | None = None,
    weight_zero_point: NDArray[Any] | None = None, *, strides: Sequence[int],
    pads: Sequence[int], dilations: Sequence[int], groups: int,
) -> NDArray[np.int32]:
    """Convolves integers less their zero points; pads with the input's zero point."""
    sums = float_conv(
        _centred(x, x_zero_point, -1), weight=_centred(weight, weight_zero_point, -weight.ndim),
        strides=strides, pads=pads, dilations=dilations, groups=groups)
    return sums.astype(np.int64).astype(np.int32)


def _requantize(
    sums: NDArray[Any], factor: NDArray[np.float64], zero_point: NDArray[Any]
) -> NDArray[Any]:
    low, high = integer_limits(zero_point.dtype)
    whole = np.rint(sums.astype(np.float64) * factor) + zero_point.astype(np.float64).reshape(())
    return np.clip(whole, low, high).astype(zero_point.dtype)


@operation
def onnx_requantize(
    sums: NDArray[Any], *, factor: NDArray[np.float64], zero_point: int, dtype: str, axis: int = -1
) -> NDArray[Any]:
    """Returns ``saturate(round(sums * factor) + zero_point)``, halves to even.

    ONNX leaves the precision open; this is float64, nearest to the real numbers. ONNX Runtime's is
    float32, which differs where a product is next to a half. ``factor`` has one element, or one for
    each channel along ``axis``.
    """
    if factor.size > 1:
        factor = factor.reshape(-1, *[1] * (-1 - axis if axis < 0 else sums.ndim - 1 - axis))
    return _requantize(sums, factor, np.asarray(zero_point, dtype))


def _factor(*scales: NDArray[Any]) -> NDArray[np.float64]:
    """``scales[0] * scales[1] / scales[2]``."""
    first, second, out = (scale.astype(np.float64) for scale in scales)
    return np.asarray(first * second / out.reshape(()))


@operation
def onnx_qlinear_matmul(
    a: NDArray[Any], a_scale: NDArray[Any], a_zero_point: NDArray[Any], b: NDArray[Any],
    b_scale: NDArray[Any], b_zero_point: NDArray[Any], y_scale: NDArray[Any],
    y_zero_point: NDArray[Any],
) -> NDArray[Any]:
    """`onnx_matmul_integer` times ``a_scale * b_scale / y_scale``, halves to even."""
    for scale in (a_scale, b_scale, y_scale):
        _check_scale(scale)
    sums = onnx_matmul_integer(a, b, a_zero_point, b_zero_point)
    rows = a_scale.reshape(-1, 1) if a_scale.ndim == 1 and a_scale.size > 1 else a_scale
    factor = _factor(rows, b_scale, y_scale)
    return _requantize(sums, factor, y_zero_point)


@operation
def onnx_qlinear_conv(
    x: NDArray[Any], x_scale: NDArray[Any], x_zero_point: NDArray[Any], weight: NDArray[Any],
    weight_scale: NDArray[Any], weight_zero_point: NDArray[Any], y_scale: NDArray[Any],
    y_zero_point: NDArray[Any], bias: NDArray[Any] | None = None, *, strides: Sequence[int],
    pads: Sequence[int], dilations: Sequence[int], groups: int,
) -> NDArray[Any]:
    """`onnx_conv_integer` with a bias, scaled to the output's scale and rounded, halves to even."""
    for scale in (x_scale, weight_scale, y_scale):
        _check_scale(scale)
    sums = onnx_conv_integer(x, weight, x_zero_point, weight_zero_point, strides=strides,
                             pads=pads, dilations=dilations, groups=groups).astype(np.int64)
    channels = (-1, *[1] * (x.ndim - 2))
    if bias is not None:
        sums = sums + bias.astype(np.int64).reshape(channels)
    return _requantize(sums, _factor(x_scale.reshape(()), weight_scale.reshape(channels), y_scale),
                       y_zero_point)


@operation
def qonnx_quantize(
    x: NDArray[Any], *, scale: NDArray[Any], zero_point: float, low: int, high: int,
    offset: int = 0, dtype: str = "int8", rounding: str = "ROUND",
) -> NDArray[Any]:
    """Returns ``round(clip(x / scale + zero_point, low, high)) - offset``.

    ``rounding`` is one of `ROUNDINGS`; ROUND takes halves to even.
    """
    quotient = x / scale + x.dtype.type(zero_point)
    if not np.isfinite(quotient).all():
        raise ValueError("values to quantize must be finite, not NaN or infinite")
    whole = ROUNDINGS[rounding](np.clip(quotient, x.dtype.type(low), x.dtype.type(high)))
    return (whole.astype(np.int64) - offset).astype(dtype)


@operation
def qonnx_dequantize(
    x: NDArray[Any], *, scale: NDArray[Any], zero_point: float, offset: int = 0
) -> NDArray[Any]:
    """Returns ``(x + offset - zero_point) * scale``, in the type of the scale."""
    whole = (x.astype(np.int64) + offset).astype(scale.dtype)
    return np.asarray((whole - scale.dtype.type(zero_point)) * scale)


@operation
def scale_sums(
    sums: NDArray[np.int32], *, scale: NDArray[np.float64], bias: NDArray[Any] | None = None,
    axis: int = -1, dtype: str = "float32",
) -> NDArray[Any]:
    """Turns a layer's int32 sums into reals: ``sums * scale + bias``, one of each for a channel.

    ``scale`` is the exact product of two of float32; ``dtype`` is what is computed in.
    """
    shape = (-1, *[1] * (-1 - axis if axis < 0 else sums.ndim - 1 - axis))
    y = sums.astype(dtype) * scale.astype(dtype).reshape(shape)
    return y if bias is None else y + bias.astype(dtype).reshape(shape)
