# SPDX-License-Identifier: Apache-2.0
"""Host operations of ONNX on maps: convolution, pooling, resizing; see `sparsemac.hostops.onnx`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .float_ops import float_conv
from .registry import operation

__all__ = [
    "LARGEST",
    "check_size",
    "onnx_average_pool",
    "onnx_conv",
    "onnx_depth_space",
    "onnx_max_pool",
    "onnx_resize",
]

#: Elements of windows that are reduced one after another.
_MOST_TAPS = 1 << 10

#: Elements of the largest array that an operation may make of a smaller one.
LARGEST = 1 << 25


def check_size(what: str, shape: Sequence[int]) -> None:
    """Refuses arrays that a damaged attribute would make endless."""
    total = 1
    for size in shape:
        total *= int(size)
    if total > LARGEST:
        raise ValueError(f"{what} must have at most {LARGEST} elements, not {total}")


@operation
def onnx_conv(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None, *,
    strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], groups: int,
) -> NDArray[Any]:
    """Convolution whose weights are values of the graph; else as `float_conv`."""
    return float_conv(x, weight=weight, bias=bias, strides=strides, pads=pads,
                      dilations=dilations, groups=groups)


def _reduce_windows(
    x: NDArray[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    function: np.ufunc,
) -> NDArray[Any]:
    """(batch, channels, *places): the sum or maximum of each window of a padded map."""
    rank = len(kernel)
    if x.ndim != rank + 2:
        raise ValueError(f"values must have {rank + 2} axes, not {x.ndim}")
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if any(r > size for r, size in zip(reach, x.shape[2:], strict=True)):
        raise ValueError(f"windows of {reach} must fit a padded map of {x.shape[2:]}")
    if math.prod(kernel) > _MOST_TAPS:
        windows = sliding_window_view(x, reach, axis=tuple(range(2, rank + 2)))
        steps = [slice(None, None, s) for s in (*strides, *dilations)]
        windows = windows[(slice(None), slice(None), *steps)]
        return function.reduce(windows, axis=tuple(range(-rank, 0)))
    result = None
    for tap in np.ndindex(*kernel):  # array by array, several times as fast as window by window
        cuts = [slice(t * d, size - r + t * d + 1, s) for t, d, size, r, s in
                zip(tap, dilations, x.shape[2:], reach, strides, strict=True)]
        part = x[(slice(None), slice(None), *cuts)]
        result = part.copy() if result is None else function(result, part, out=result)
    assert result is not None
    return result


def _around(
    shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], pads: Sequence[int], ceil: bool,
) -> tuple[list[tuple[int, int]], list[int]]:
    """Explicit padding of each axis of a map, and what rounding up adds behind it."""
    rank, size, around, extra = len(kernel), shape[2:], [], []
    for i in range(rank):
        before, after = pads[i], pads[rank + i]
        span = size[i] + before + after - (kernel[i] - 1) * dilations[i] - 1
        more = -span % strides[i] if ceil and span >= 0 else 0
        # A window that would start behind the map and its first padding does not count.
        if more and span + more >= size[i] + before:
            more = 0
        around.append((before, after))
        extra.append(more)
    check_size("a padded map", [*shape[:2], *(
        s + a + b + e for s, (a, b), e in zip(size, around, extra, strict=True))])
    return around, extra


@operation
def onnx_max_pool(
    x: NDArray[Any], *, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil: bool = False,
) -> NDArray[Any]:
    """Largest of each window of (batch, channels, *map); padding never wins."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    around, extra = _around(x.shape, kernel, strides, dilations, pads, ceil)
    both = [(a, b + e) for (a, b), e in zip(around, extra, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *both], constant_values=lowest)
    return _reduce_windows(padded, kernel, strides, dilations, np.maximum)


@operation
def onnx_average_pool(
    x: NDArray[Any], *, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil: bool = False, count_padding: bool = False,
) -> NDArray[Any]:
    """Mean of each window of (batch, channels, *map), with its padding only if asked for."""
    around, extra = _around(x.shape, kernel, strides, dilations, pads, ceil)
    behind = [(0, 0), (0, 0), *((0, e) for e in extra)]
    padding = [(0, 0), (0, 0), *around]
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    counted = np.pad(ones, padding, constant_values=1 if count_padding else 0)
    sums, counts = (
        _reduce_windows(np.pad(a, behind), kernel, strides, dilations, np.add)
        for a in (np.pad(x, padding), counted))
    return (sums / np.maximum(counts, 1)).astype(x.dtype)


@operation
def onnx_depth_space(
    x: NDArray[Any], *, block: int, mode: str, back: bool = False
) -> NDArray[Any]:
    """Moves channels of (batch, channels, rows, columns) to blocks of places, or ``back``.

    ``mode`` is DCR, the places of a block in the upper part of the channel, or CRD, in the lower.
    """
    n, c, h, w = x.shape
    if back:
        x = x.reshape(n, c, h // block, block, w // block, block)
        y = x.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
        return np.ascontiguousarray(y).reshape(n, c * block * block, h // block, w // block)
    if mode == "DCR":
        y = x.reshape(n, block, block, -1, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, -1, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(y).reshape(n, -1, h * block, w * block)


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
