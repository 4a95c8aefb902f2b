# SPDX-License-Identifier: Apache-2.0
"""Layers of a network that is not quantized yet, in floating point.

`sparsemac.calibrate.quantize_graph` turns them into layers for the device. They work in the widest
type of their arrays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .registry import operation

__all__ = ["float_conv", "float_linear"]


@operation
def float_linear(
    x: NDArray[Any], *, weight: NDArray[Any], bias: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Returns ``x @ weight.T + bias`` along the last axis; weight (outputs, inputs)."""
    y = x @ weight.T
    return y if bias is None else y + bias


@operation
def float_conv(
    x: NDArray[Any], *, weight: NDArray[Any], bias: NDArray[Any] | None = None,
    strides: Sequence[int] | None = None, pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None, groups: int = 1,
) -> NDArray[Any]:
    """Convolves (batch, channels, *map) with any number of dimensions of the map; pads with zeros.

    Parameters
    ----------
    weight : (outputs, channels / groups, *kernel)
    bias : (outputs,)
    strides, dilations : one for each dimension    None: 1.
    pads : (begin of each dimension..., end of each dimension...)    None: 0.
    """
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    pads = pads or [0] * (2 * rank)
    if x.ndim != rank + 2 or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"values must be (batch, {weight.shape[1] * groups}) and {rank} dimensions of a map, "
            f"not {x.shape}"
        )
    if not len(strides) == len(dilations) == len(pads) // 2 == rank:
        raise ValueError(f"strides, dilations and pads must be for {rank} dimensions")
    around = list(zip(pads[:rank], pads[rank:], strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *around])
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = sliding_window_view(x, reach, axis=tuple(range(2, rank + 2)))
    steps = [slice(None, None, s) for s in strides]
    taps = [slice(None, None, d) for d in dilations]
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    batch, places = len(x), windows.shape[2 : rank + 2]
    # (batch, groups, positions, channels of a group and taps)
    windows = windows.reshape(batch, groups, -1, *windows.shape[2:])
    windows = np.moveaxis(windows, 2, rank + 2)
    columns = windows.reshape(batch, groups, int(np.prod(places)), -1)
    rows = weight.reshape(groups, -1, columns.shape[-1])
    y = (rows @ columns.swapaxes(2, 3)).reshape(batch, len(weight), *places)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)
