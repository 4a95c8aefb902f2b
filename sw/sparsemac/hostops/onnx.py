# SPDX-License-Identifier: Apache-2.0
"""Host operations of ONNX, in NumPy: on reals, and what moves elements.

Each is defined by the operator of that name in ONNX's ``Operators.md``; where versions of an
operator differ, the importer turns the older form into attributes of the newest one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the names of the small integers
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from . import onnx_integer
from .float_ops import float_conv
from .registry import operation

__all__ = [
    "check_size",
    "onnx_argmax",
    "onnx_average_pool",
    "onnx_batch_normalization",
    "onnx_cast",
    "onnx_clip",
    "onnx_concat",
    "onnx_constant",
    "onnx_conv",
    "onnx_elementwise",
    "onnx_gather",
    "onnx_gemm",
    "onnx_identity",
    "onnx_integer",
    "onnx_leaky_relu",
    "onnx_matmul",
    "onnx_max_pool",
    "onnx_pad",
    "onnx_reduce",
    "onnx_resize",
    "onnx_slice",
    "onnx_softmax",
    "onnx_squeeze",
    "onnx_unsqueeze",
]

#: Elements of the largest array that an operation may make of a smaller one.
LARGEST = 1 << 26


def check_size(what: str, shape: Sequence[int]) -> None:
    """Refuses arrays that a damaged attribute would make endless."""
    total = 1
    for size in shape:
        total *= int(size)
    if total > LARGEST:
        raise ValueError(f"{what} must have at most {LARGEST} elements, not {total}")


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _divide(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if a.dtype.kind == "f":
        return a / b
    if not np.all(b):
        raise ValueError("divisors must not be zero in integers")
    quotient = np.abs(a) // np.abs(b)  # toward zero, as ONNX has it
    return (quotient * np.sign(a) * np.sign(b)).astype(a.dtype)


_UNARY: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "ceil": np.ceil, "exp": np.exp, "floor": np.floor, "log": np.log,
    "neg": np.negative, "relu": lambda x: np.maximum(x, x.dtype.type(0)), "sigmoid": _sigmoid,
    "sign": np.sign, "sqrt": np.sqrt, "tanh": np.tanh,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add, "div": _divide, "max": np.maximum, "min": np.minimum, "mul": np.multiply,
    "pow": lambda a, b: np.power(a, b.astype(np.result_type(a, b))).astype(a.dtype),
    "sub": np.subtract,
}


@operation
def onnx_elementwise(
    a: NDArray[Any], b: NDArray[Any] | None = None, *, function: str
) -> NDArray[Any]:
    """Applies a function of one or of two numbers; two arrays are broadcast.

    ``function`` is abs, ceil, exp, floor, log, neg, relu, sigmoid, sign, sqrt or tanh of one; add,
    div, max, min, mul, pow or sub of two. Integers divide toward zero.
    """
    table, arrays = (_UNARY, [a]) if b is None else (_BINARY, [a, b])
    if function not in table:
        raise ValueError(f"function must be one of {', '.join(sorted(table))}, not {function!r}")
    if b is not None and function != "pow" and a.dtype != b.dtype:
        raise TypeError(f"both arrays must be of one type, not {a.dtype} and {b.dtype}")
    with np.errstate(all="ignore"):  # infinity and NaN are results like others
        return np.asarray(table[function](*arrays))


@operation
def onnx_leaky_relu(x: NDArray[Any], *, alpha: float) -> NDArray[Any]:
    """Multiplies what is negative by ``alpha``."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@operation
def onnx_clip(
    x: NDArray[Any], low: NDArray[Any] | None = None, high: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Clips; a bound that is None does not bound."""
    y = x if low is None else np.maximum(x, low)
    return y if high is None else np.minimum(y, high)


@operation
def onnx_softmax(x: NDArray[Any], *, axis: int, joined: bool = False) -> NDArray[Any]:
    """Softmax along an axis, or if ``joined`` over it and all that follow, as before opset 13."""
    axis = axis + x.ndim if axis < 0 else axis
    shape = x.shape
    if joined:
        x, axis = x.reshape(int(np.prod(shape[:axis], dtype=np.int64)), -1), 1
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return (e / e.sum(axis=axis, keepdims=True)).reshape(shape)


@operation
def onnx_constant(*, value: NDArray[Any]) -> NDArray[Any]:
    """Returns an array that stands in the model."""
    return value


@operation
def onnx_identity(x: NDArray[Any]) -> NDArray[Any]:
    """Returns what it is given."""
    return x


@operation
def onnx_matmul(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Matrix product of arrays, as `numpy.matmul`."""
    return np.asarray(np.matmul(a, b))


@operation
def onnx_gemm(
    a: NDArray[Any], b: NDArray[Any], c: NDArray[Any] | None = None, *, alpha: float = 1.0,
    beta: float = 1.0, transpose_a: bool = False, transpose_b: bool = False,
) -> NDArray[Any]:
    """Returns ``alpha * a @ b + beta * c``, either matrix transposed if asked for."""
    y = a.dtype.type(alpha) * ((a.T if transpose_a else a) @ (b.T if transpose_b else b))
    return y if c is None else y + a.dtype.type(beta) * c


@operation
def onnx_conv(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None, *,
    strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], groups: int,
) -> NDArray[Any]:
    """Convolution whose weights are values of the graph; else as `float_conv`."""
    return float_conv(x, weight=weight, bias=bias, strides=strides, pads=pads,
                      dilations=dilations, groups=groups)


def _windows(
    x: NDArray[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> NDArray[Any]:
    """(batch, channels, *places, *kernel) of a padded map."""
    rank = len(kernel)
    if x.ndim != rank + 2:
        raise ValueError(f"values must have {rank + 2} axes, not {x.ndim}")
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = sliding_window_view(x, reach, axis=tuple(range(2, rank + 2)))
    steps = [slice(None, None, s) for s in (*strides, *dilations)]
    return windows[(slice(None), slice(None), *steps)]


def _around(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int], ceil: bool,
) -> tuple[list[tuple[int, int]], list[int]]:
    """Explicit padding of each axis, and what rounding up adds behind it."""
    rank, around, extra = len(kernel), [], []
    for i in range(rank):
        before, after = pads[i], pads[rank + i]
        span = size[i] + before + after - (kernel[i] - 1) * dilations[i] - 1
        more = -span % strides[i] if ceil and span >= 0 else 0
        # A window that would start behind the map and its first padding does not count.
        if more and span + more >= size[i] + before:
            more = 0
        around.append((before, after))
        extra.append(more)
    check_size("a padded map", [s + a + b + e for s, (a, b), e in zip(size, around, extra,
                                                                      strict=True)])
    return around, extra


@operation
def onnx_max_pool(
    x: NDArray[Any], *, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil: bool = False,
) -> NDArray[Any]:
    """Largest of each window of (batch, channels, *map); padding never wins."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    around, extra = _around(x.shape[2:], kernel, strides, dilations, pads, ceil)
    both = [(a, b + e) for (a, b), e in zip(around, extra, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *both], constant_values=lowest)
    windows = _windows(padded, kernel, strides, dilations)
    return windows.max(axis=tuple(range(-len(kernel), 0)))


@operation
def onnx_average_pool(
    x: NDArray[Any], *, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil: bool = False, count_padding: bool = False,
) -> NDArray[Any]:
    """Mean of each window of (batch, channels, *map), with its padding only if asked for."""
    around, extra = _around(x.shape[2:], kernel, strides, dilations, pads, ceil)
    behind = [(0, 0), (0, 0), *((0, e) for e in extra)]
    padding = [(0, 0), (0, 0), *around]
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    counted = np.pad(ones, padding, constant_values=1 if count_padding else 0)
    axes = tuple(range(-len(kernel), 0))
    sums = _windows(np.pad(np.pad(x, padding), behind), kernel, strides, dilations).sum(axis=axes)
    counts = _windows(np.pad(counted, behind), kernel, strides, dilations).sum(axis=axes)
    return (sums / np.maximum(counts, 1)).astype(x.dtype)


@operation
def onnx_batch_normalization(
    x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], mean: NDArray[Any],
    variance: NDArray[Any], *, epsilon: float,
) -> NDArray[Any]:
    """Returns ``(x - mean) / sqrt(variance + epsilon) * scale + bias``, along axis 1."""
    shape = (-1, *[1] * (x.ndim - 2))
    deviation = np.sqrt(variance + variance.dtype.type(epsilon)).reshape(shape)
    y = (x - mean.reshape(shape)) / deviation
    return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


_REDUCE: dict[str, Callable[..., Any]] = {
    "max": np.max, "mean": np.mean, "min": np.min, "sum": np.sum,
}


@operation
def onnx_reduce(
    x: NDArray[Any], *, function: str, axes: Sequence[int] | None, keepdims: bool
) -> NDArray[Any]:
    """Maximum, mean, minimum or sum over axes; None: over all."""
    if function not in _REDUCE:
        raise ValueError(f"function must be one of {', '.join(_REDUCE)}, not {function!r}")
    over = None if axes is None else tuple(axes)
    return np.asarray(_REDUCE[function](x, axis=over, keepdims=keepdims)).astype(x.dtype)


@operation
def onnx_argmax(
    x: NDArray[Any], *, axis: int, keepdims: bool, last: bool = False
) -> NDArray[np.int64]:
    """Index of the largest along an axis: the first of equals, or the last."""
    if last:
        y = x.shape[axis] - 1 - np.flip(x, axis).argmax(axis=axis, keepdims=keepdims)
    else:
        y = x.argmax(axis=axis, keepdims=keepdims)
    return np.asarray(y, np.int64)


@operation
def onnx_squeeze(x: NDArray[Any], *, axes: Sequence[int] | None) -> NDArray[Any]:
    """Drops axes of size 1; None: all of them."""
    return np.squeeze(x, None if axes is None else tuple(axes))


@operation
def onnx_unsqueeze(x: NDArray[Any], *, axes: Sequence[int]) -> NDArray[Any]:
    """Puts in axes of size 1, where they stand in the result."""
    return np.expand_dims(x, tuple(axes))


@operation
def onnx_concat(*arrays: NDArray[Any], axis: int) -> NDArray[Any]:
    """Joins arrays along an axis."""
    return np.concatenate(arrays, axis)


@operation
def onnx_slice(
    x: NDArray[Any], *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int],
    steps: Sequence[int],
) -> NDArray[Any]:
    """Cuts a piece out of each of some axes; negative steps go backward."""
    cuts: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            cuts[axis] = slice(start, end, step)
            continue
        first = min(start + size if start < 0 else start, size - 1)
        last = end + size if end < 0 else end
        cuts[axis] = slice(max(first, 0), None if last < 0 else last, step)
    return np.ascontiguousarray(x[tuple(cuts)]).reshape(x[tuple(cuts)].shape)


@operation
def onnx_gather(x: NDArray[Any], indices: NDArray[Any], *, axis: int) -> NDArray[Any]:
    """Picks entries along an axis; negative ones count from the end."""
    return np.asarray(np.take(x, indices, axis))


@operation
def onnx_pad(x: NDArray[Any], *, pads: Sequence[Sequence[int]], mode: str) -> NDArray[Any]:
    """Continues an array by its ``edge``, by ``reflect`` or by ``wrap``."""
    around = [(int(a), int(b)) for a, b in pads]
    if mode == "edge":
        return np.pad(x, around, mode="edge")
    return np.pad(x, around, mode="reflect" if mode == "reflect" else "wrap")


@operation
def onnx_cast(x: NDArray[Any], *, dtype: str) -> NDArray[Any]:
    """Turns numbers into another type; reals are cut off toward zero."""
    with np.errstate(all="ignore"):
        return x.astype(np.dtype(dtype))


def _coordinates(mode: str, size: int, out: int, scale: float) -> NDArray[np.float64]:
    at = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * (size - 1) / (out - 1) if out > 1 else at * 0
    if mode == "pytorch_half_pixel" and out == 1:
        return at * 0
    half = (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return half + size / 2 * (1 - out / (scale * size))
    return half


_NEAREST: dict[str, Callable[..., Any]] = {
    "ceil": np.ceil, "floor": np.floor,
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
}


@operation
def onnx_resize(
    x: NDArray[Any], *, sizes: Sequence[int], scales: Sequence[float], mode: str,
    coordinates: str, nearest: str,
) -> NDArray[Any]:
    """Resizes axis by axis, to the nearest element or linearly between two.

    Parameters
    ----------
    sizes, scales : one for each axis    Both are 1, and the size -1, where an axis stays.
    mode : str                           nearest or linear.
    coordinates : str                    ONNX's coordinate_transformation_mode.
    nearest : str                        ONNX's nearest_mode.
    """
    for axis, (out, scale) in enumerate(zip(sizes, scales, strict=True)):
        if out == -1:
            continue
        check_size("a resized map", [x.size // max(x.shape[axis], 1), out])
        at = _coordinates(coordinates, x.shape[axis], out, scale)
        last = x.shape[axis] - 1
        if mode == "nearest":
            x = np.take(x, np.clip(_NEAREST[nearest](at), 0, last).astype(np.int64), axis)
            continue
        at = np.clip(at, 0, last)
        low = np.floor(at).astype(np.int64)
        share = (at - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))
        above = np.take(x, np.minimum(low + 1, last), axis)
        x = np.take(x, low, axis) * (1 - share) + above * share
    return x
