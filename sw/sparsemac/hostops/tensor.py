# SPDX-License-Identifier: Apache-2.0
"""Host operations that only move elements: the same for integers and reals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .registry import operation

__all__ = ["flatten", "pad", "reshape", "transpose"]


@operation
def reshape(x: NDArray[Any], *, shape: Sequence[int]) -> NDArray[Any]:
    """Reshapes; one size may be -1, a size of 0 keeps that of the input."""
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(sizes)


@operation
def flatten(x: NDArray[Any], *, axis: int = 1) -> NDArray[Any]:
    """Joins the axes before ``axis`` into one, and the others into another."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


@operation
def transpose(x: NDArray[Any], *, axes: Sequence[int]) -> NDArray[Any]:
    """Reorders axes."""
    return np.ascontiguousarray(x.transpose(tuple(axes)))


@operation
def pad(x: NDArray[Any], *, pads: Sequence[Sequence[int]], value: Any = 0) -> NDArray[Any]:
    """Puts ``value`` around: (before, after) for each axis."""
    return np.pad(x, [tuple(p) for p in pads], constant_values=value)
