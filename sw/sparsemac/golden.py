# SPDX-License-Identifier: Apache-2.0
"""Layer-wise golden model: the mathematics of a network, in exact integers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .commands import OutputMode
from .conv import ConvLayer
from .csr import Csr
from .layer import LinearLayer
from .numerics import requantize

__all__ = ["matmul", "run_conv", "run_layer", "run_network"]

#: Elements of the largest temporary [count].
_CHUNK = 1 << 24


def matmul(csr: Csr, x: NDArray[np.int8]) -> NDArray[np.int64]:
    """Returns ``csr @ x``, (rows, columns) int64.

    Dense blocks in float64 where that is affordable (exact: sums stay below 2**53), entry by entry
    where the matrix is too large to be made dense.
    """
    rows, inputs = csr.shape
    result = np.zeros((rows, x.shape[1]), np.int64)
    step = max(1, _CHUNK // max(inputs, 1))
    x_float = x.astype(np.float64)
    for first in range(0, rows, step):
        block = csr.take(slice(first, first + step), slice(None))
        if block.nnz * 50 < block.shape[0] * inputs:
            result[first : first + step] = _by_entry(block, x)
        else:
            dense = block.to_dense().astype(np.float64)
            result[first : first + step] = (dense @ x_float).astype(np.int64)
    return result


def _by_entry(csr: Csr, x: NDArray[np.int8]) -> NDArray[np.int64]:
    result = np.zeros((csr.shape[0], x.shape[1]), np.int64)
    filled = np.flatnonzero(csr.row_lengths)
    if not len(filled):
        return result
    step = max(1, _CHUNK // csr.nnz)
    for first in range(0, x.shape[1], step):
        part = x[:, first : first + step].astype(np.int64)
        products = csr.data.astype(np.int64)[:, None] * part[csr.indices]
        result[filled, first : first + step] = np.add.reduceat(products, csr.indptr[filled])
    return result


def run_layer(layer: LinearLayer, x: NDArray[np.int8]) -> NDArray[np.int8] | NDArray[np.int32]:
    """Runs one layer.

    Parameters
    ----------
    layer : LinearLayer
    x : (inputs, columns) int8

    Returns
    -------
    (outputs, columns) int8, or int32 in mode RAW.
    """
    if x.dtype != np.int8:
        raise TypeError(f"inputs of {layer.name} must be int8, not {x.dtype}")
    if x.ndim != 2 or len(x) != layer.inputs:
        raise ValueError(f"inputs of {layer.name} must be ({layer.inputs}, columns), not {x.shape}")
    sums = matmul(layer.weights, x)
    if layer.bias is not None:
        sums += layer.bias.astype(np.int64)[:, None]
    if layer.mode == OutputMode.RAW or layer.multiplier is None or layer.shift is None:
        return sums.astype(np.int32)
    return requantize(sums, layer.multiplier[:, None], layer.shift[:, None], layer.zero_point,
                      layer.low, layer.high, layer.mode)


def run_conv(layer: ConvLayer, x: NDArray[np.int8]) -> NDArray[np.generic]:
    """Runs a convolution on arrays of the shapes of ``layer.input_shape`` and ``output_shape``.

    Returns int8, or int32 in mode RAW.
    """
    linear, g = layer.linear, layer.geometry
    if x.ndim != len(layer.input_shape(1)) or x.shape[1:] != layer.input_shape(1)[1:]:
        raise ValueError(
            f"inputs of {layer.name} must be (n, {', '.join(map(str, layer.input_shape(1)[1:]))}), "
            f"not {x.shape}"
        )
    if x.dtype != np.int8:
        raise TypeError(f"inputs of {layer.name} must be int8, not {x.dtype}")
    top, left, bottom, right = g.padding
    planes = np.pad(layer.to_planes(x), ((0, 0), (0, 0), (top, bottom), (left, right)),
                    constant_values=linear.input_zero_point)
    whole = replace(linear, weights=layer.expanded)
    outputs = []
    for sample in planes:
        columns = _patches(sample, layer).reshape(-1, g.out_height * g.out_width)
        outputs.append(run_layer(whole, columns).reshape(-1, g.out_height, g.out_width))
    return layer.from_planes(np.stack(outputs))


def _patches(planes: NDArray[np.int8], layer: ConvLayer) -> NDArray[np.int8]:
    """(channels, kernel rows, kernel columns, out height, out width) of one padded sample."""
    g = layer.geometry
    patches = np.empty((len(planes), *g.kernel, g.out_height, g.out_width), np.int8)
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            y, x = i * g.dilation[0], j * g.dilation[1]
            patches[:, i, j] = planes[:, y : y + g.out_height * g.stride[0] : g.stride[0],
                                      x : x + g.out_width * g.stride[1] : g.stride[1]]
    return patches


def run_network(
    layers: Sequence[LinearLayer], x: NDArray[np.int8]
) -> NDArray[np.int8] | NDArray[np.int32]:
    """Runs layers one after another; all but the last must have int8 outputs. See `run_layer`."""
    values: NDArray[Any] = x
    for layer in layers:
        values = run_layer(layer, values)
    return values
