# SPDX-License-Identifier: Apache-2.0
"""Host operations between reals and integers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .registry import operation

__all__ = ["clamp", "dequantize", "quantize", "recode"]


@operation
def quantize(
    x: NDArray[Any], *, scale: float, zero_point: int, low: int = -128, high: int = 127,
    dtype: str = "int8",
) -> NDArray[Any]:
    """Returns ``clip(round(x / scale) + zero_point)`` in float32, halves to even.

    As ONNX's QuantizeLinear; TensorFlow Lite's AFFINE_QUANTIZE rounds halves away from zero, see
    `sparsemac.hostops.tflite`.
    """
    real = np.asarray(x, np.float32)
    if not np.isfinite(real).all():
        raise ValueError("values to quantize must be finite, not NaN or infinite")
    whole = np.rint(real / np.float32(scale)) + zero_point
    return np.clip(whole, low, high).astype(dtype)


@operation
def dequantize(x: NDArray[Any], *, scale: float, zero_point: int) -> NDArray[np.float32]:
    """Returns ``scale * (x - zero_point)`` in float32."""
    return (x.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * np.float32(scale)


@operation
def recode(x: NDArray[Any], *, dtype: str) -> NDArray[Any]:
    """Turns uint8 into int8 or back: the same real numbers at a zero point 128 away."""
    if x.dtype not in (np.uint8, np.int8):
        raise TypeError(f"values to recode must be int8 or uint8, not {x.dtype}")
    return x if x.dtype == np.dtype(dtype) else (x.view(np.uint8) ^ np.uint8(128)).view(dtype)


@operation
def clamp(x: NDArray[Any], *, low: float, high: float) -> NDArray[Any]:
    """Clips to ``low`` and ``high``, in the type of the array."""
    return np.clip(x, np.asarray(low, x.dtype), np.asarray(high, x.dtype))
