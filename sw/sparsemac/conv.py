# SPDX-License-Identifier: Apache-2.0
"""Convolutions: a linear layer that is applied to every patch of a feature map.

    y[o, v, u] = output( bias[o] + sum over c, i, j of w[o, c, i, j] * x[c, row, column] )
    row, column = v*stride + i*dilation - pad, u*stride + j*dilation - pad

where ``x`` outside the map is the input's zero point. With groups, output ``o`` sees the channels
of its group only. A convolution in one dimension is one of height 1.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int_in
from .csr import Csr
from .layer import LinearLayer

__all__ = ["ConvLayer", "Geometry"]

LARGEST = 1 << 20


def _pair(name: str, value: object, low: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, (int, np.integer)) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name} must be one integer or two, not {value!r}")
    return (as_int_in(f"{name}[0]", pair[0], low, LARGEST),
            as_int_in(f"{name}[1]", pair[1], low, LARGEST))


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Shape of a convolution; pairs are (vertical, horizontal).

    Parameters
    ----------
    channels : int                     Of the input.
    height, width : int                Of the input map.
    kernel, stride, dilation : pair
    padding : (top, left, bottom, right)    Rows and columns of the zero point around the map; each
                                       smaller than the dilated kernel.
    groups : int                       Divides the channels, of the input and of the output.
    """

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width", "groups"):
            object.__setattr__(self, name, as_int_in(name, getattr(self, name), 1, LARGEST))
        for name in ("kernel", "stride", "dilation"):
            object.__setattr__(self, name, _pair(name, getattr(self, name), 1))
        if not isinstance(self.padding, (tuple, list)) or len(self.padding) != 4:
            raise ValueError(f"padding must be (top, left, bottom, right), not {self.padding!r}")
        names = ("top", "left", "bottom", "right")
        padding = tuple(as_int_in(f"padding {n}", p, 0, LARGEST)
                        for n, p in zip(names, self.padding, strict=True))
        object.__setattr__(self, "padding", padding)
        if self.channels % self.groups:
            nearest = max(g for g in range(1, self.groups) if self.channels % g == 0)
            raise ValueError(
                f"groups must divide the {self.channels} channels, not be {self.groups} "
                f"(nearest legal value: {nearest})"
            )
        for n, p, reach in zip(names, padding, self.reach * 2, strict=True):
            if p >= reach:
                raise ValueError(
                    f"padding {n} must be smaller than the kernel, which reaches over {reach}, "
                    f"not {p} (nearest legal value: {reach - 1})"
                )
        for axis, name in enumerate(("height", "width")):
            padded = getattr(self, name) + padding[axis] + padding[axis + 2]
            if padded < self.reach[axis]:
                least = self.reach[axis] - padding[axis] - padding[axis + 2]
                raise ValueError(
                    f"{name} must be at least {least} for a kernel that reaches over "
                    f"{self.reach[axis]}, not {getattr(self, name)}"
                )

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that the dilated kernel spans."""
        return tuple((k - 1) * d + 1  # type: ignore[return-value]
                     for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the map with its padding."""
        top, left, bottom, right = self.padding
        return self.height + top + bottom, self.width + left + right

    @property
    def out_height(self) -> int:
        """Height of the output map."""
        return (self.padded[0] - self.reach[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Width of the output map."""
        return (self.padded[1] - self.reach[1]) // self.stride[1] + 1

    @property
    def patch(self) -> int:
        """Inputs of one output: channels of a group times kernel rows times kernel columns."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    def strip(self, rows: int) -> "Geometry | None":
        """Returns the convolution of a strip of so many rows; None if it needs more than its halos.

        ``rows`` is a multiple of the stride: windows that begin in a strip make one of the output.
        What they reach beyond it is its padding, no more than a strip above and one below.
        """
        top, left, _, right = self.padding
        below = max(0, self.reach[0] - self.stride[0] - top)
        if max(top, below) > rows:
            return None
        return replace(self, height=rows, padding=(top, left, below, right))

    @classmethod
    def same(cls, *, height: int, width: int, kernel: tuple[int, int],
             stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1),
             lower: bool = False) -> tuple[int, int, int, int]:
        """Returns the padding that makes the output ``ceil(input / stride)`` large.

        An odd total puts the larger share below and right, as TensorFlow's SAME and ONNX's
        SAME_UPPER do, or above and left if ``lower``.
        """
        shares = []
        for size, k, s, d in zip((height, width), kernel, stride, dilation, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small = total // 2
            shares.append((total - small, small) if lower else (small, total - small))
        return shares[0][0], shares[1][0], shares[0][1], shares[1][1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvLayer:
    """A convolution in integers.

    Parameters
    ----------
    linear : LinearLayer      From a patch to the output channels: weights (outputs, patch), a patch
                              ordered as (channel of the group, kernel row, kernel column). Its bias
                              has the input's zero point folded in, as with any `LinearLayer`.
    geometry : Geometry
    channels_last : bool      Arrays are (batch, height, width, channels); else (batch, channels,
                              height, width). In one dimension height is left out.
    one_dimensional : bool    Arrays have no height; the geometry's is 1.
    """

    linear: LinearLayer
    geometry: Geometry
    channels_last: bool = True
    one_dimensional: bool = False

    def __post_init__(self) -> None:
        g = self.geometry
        if self.linear.inputs != g.patch:
            raise ValueError(
                f"weights of {self.name} must have {g.patch} columns, a patch, "
                f"not {self.linear.inputs}"
            )
        if self.linear.outputs % g.groups:
            raise ValueError(
                f"groups of {self.name} must divide the {self.linear.outputs} outputs, "
                f"not be {g.groups}"
            )
        if self.one_dimensional and (g.height, g.kernel[0], g.out_height) != (1, 1, 1):
            raise ValueError(f"{self.name} must have height 1 in one dimension, not {g.height}")

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.linear.name

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.linear.outputs

    @property
    def expanded(self) -> Csr:
        """Weights (outputs, channels * kernel rows * kernel columns): over all groups' channels."""
        csr, g = self.linear.weights, self.geometry
        group = csr.rows_of_entries // (self.outputs // g.groups)
        columns = g.channels * g.kernel[0] * g.kernel[1]
        return Csr((self.outputs, columns), csr.indptr, csr.indices + group * g.patch, csr.data)

    @property
    def flat(self) -> LinearLayer:
        """Of a map of one row and one column without padding: the layer that reads the vector."""
        return replace(self.linear, weights=self.expanded)

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates of one sample: nonzeros times positions, padding included."""
        positions = self.geometry.out_height * self.geometry.out_width
        return self.linear.weights.without_zeros().nnz * positions

    def to_planes(self, x: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turns an array as ``channels_last`` says into (batch, channels, height, width)."""
        if self.one_dimensional:
            x = x[:, None] if self.channels_last else x[:, :, None]
        return x.transpose(0, 3, 1, 2) if self.channels_last else x

    def from_planes(self, y: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turns (batch, channels, height, width) into an array as ``channels_last`` says."""
        y = y.transpose(0, 2, 3, 1) if self.channels_last else y
        if self.one_dimensional:
            y = y[:, 0] if self.channels_last else y[:, :, 0]
        return np.ascontiguousarray(y)

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input array."""
        g = self.geometry
        return self._shape(batch, g.channels, g.height, g.width)

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the output array."""
        return self._shape(batch, self.outputs, self.geometry.out_height, self.geometry.out_width)

    def _shape(self, batch: int, channels: int, height: int, width: int) -> tuple[int, ...]:
        place = (width,) if self.one_dimensional else (height, width)
        return (batch, *place, channels) if self.channels_last else (batch, channels, *place)
