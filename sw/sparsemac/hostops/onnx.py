# SPDX-License-Identifier: Apache-2.0
"""Host operations of ONNX, in NumPy: on reals, and what moves elements.

Each is defined by the operator of that name in ONNX's ``Operators.md``; where versions of an
operator differ, the importer turns the older form into attributes of the newest one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the names of the small integers
import numpy as np
from numpy.typing import NDArray

from . import onnx_elementwise, onnx_integer, onnx_maps
from .registry import operation

__all__ = [
    "onnx_argmax",
    "onnx_batch_normalization",
    "onnx_cast",
    "onnx_concat",
    "onnx_constant",
    "onnx_elementwise",
    "onnx_expand",
    "onnx_gather",
    "onnx_gemm",
    "onnx_identity",
    "onnx_integer",
    "onnx_maps",
    "onnx_matmul",
    "onnx_normalization",
    "onnx_pad",
    "onnx_reduce",
    "onnx_slice",
    "onnx_softmax",
    "onnx_squeeze",
    "onnx_tile",
    "onnx_unsqueeze",
]

@operation
def onnx_softmax(
    x: NDArray[Any], *, axis: int, joined: bool = False, log: bool = False
) -> NDArray[Any]:
    """Softmax along an axis, or its logarithm.

    If ``joined``, over that axis and all that follow, as before opset 13.
    """
    axis = axis + x.ndim if axis < 0 else axis
    shape = x.shape
    if joined:
        x, axis = x.reshape(int(np.prod(shape[:axis], dtype=np.int64)), -1), 1
    x = x - x.max(axis=axis, keepdims=True)
    e = np.exp(x)
    total = e.sum(axis=axis, keepdims=True)
    return (x - np.log(total) if log else e / total).reshape(shape)


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
def onnx_batch_normalization(
    x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], mean: NDArray[Any],
    variance: NDArray[Any], *, epsilon: float,
) -> NDArray[Any]:
    """Returns ``(x - mean) / sqrt(variance + epsilon) * scale + bias``, along axis 1."""
    shape = (-1, *[1] * (x.ndim - 2))
    deviation = np.sqrt(variance + variance.dtype.type(epsilon)).reshape(shape)
    y = (x - mean.reshape(shape)) / deviation
    return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


def _log_sum_exp(x: NDArray[Any], axis: Any, keepdims: bool) -> NDArray[Any]:
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis)


_REDUCE: dict[str, Callable[..., Any]] = {
    "l1": lambda x, **k: np.sum(np.abs(x), **k),
    "l2": lambda x, **k: np.sqrt(np.sum(np.square(x), **k)),
    "logsum": lambda x, **k: np.log(np.sum(x, **k)),
    "logsumexp": _log_sum_exp,
    "max": np.max, "mean": np.mean, "min": np.min, "prod": np.prod, "sum": np.sum,
    "sumsquare": lambda x, **k: np.sum(np.square(x), **k),
}


@operation
def onnx_reduce(
    x: NDArray[Any], *, function: str, axes: Sequence[int] | None, keepdims: bool
) -> NDArray[Any]:
    """Reduces over axes; None: over all.

    ``function`` is l1, l2, logsum, logsumexp, max, mean, min, prod, sum or sumsquare.
    """
    if function not in _REDUCE:
        raise ValueError(f"function must be one of {', '.join(_REDUCE)}, not {function!r}")
    over = None if axes is None else tuple(axes)
    return np.asarray(_REDUCE[function](x, axis=over, keepdims=keepdims)).astype(x.dtype)


@operation
def onnx_argmax(
    x: NDArray[Any], *, axis: int, keepdims: bool, last: bool = False, least: bool = False
) -> NDArray[np.int64]:
    """Index of the largest along an axis, or of the ``least``: the first of equals, or the last."""
    pick = np.argmin if least else np.argmax
    if last:
        y = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis, keepdims=keepdims)
    else:
        y = pick(x, axis=axis, keepdims=keepdims)
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
def onnx_expand(x: NDArray[Any], *, shape: Sequence[int]) -> NDArray[Any]:
    """Broadcasts to a shape, of which a size of 1 keeps the input's."""
    shape = np.broadcast_shapes(x.shape, tuple(shape))
    return np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(shape)


@operation
def onnx_tile(x: NDArray[Any], *, repeats: Sequence[int]) -> NDArray[Any]:
    """Repeats an array along each axis."""
    return np.tile(x, tuple(repeats))


@operation
def onnx_normalization(
    x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any] | None = None, *,
    axes: Sequence[int], epsilon: float, centre: bool = True,
) -> NDArray[Any]:
    """Takes mean and variance over axes to 0 and 1, then scales: layer and instance normalization.

    Without ``centre`` the mean stays, and the mean square becomes 1.
    """
    over = tuple(axes)
    kind = x.dtype if x.dtype.itemsize >= 4 else np.dtype(np.float32)
    y = x.astype(kind)
    if centre:
        y = y - y.mean(axis=over, keepdims=True)
    y = y / np.sqrt(np.square(y).mean(axis=over, keepdims=True) + kind.type(epsilon))
    y = (y.astype(x.dtype) * scale).astype(x.dtype)
    return y if bias is None else (y + bias).astype(x.dtype)


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
    return x.astype(np.dtype(dtype))
