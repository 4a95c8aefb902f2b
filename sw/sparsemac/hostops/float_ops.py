# SPDX-License-Identifier: Apache-2.0
"""Layers of a network that is not quantized yet, and what stands between them, in floating point.

`sparsemac.calibrate.quantize_graph` turns the layers into layers for the device. They work in the
widest type of their arrays; the other functions in the type of theirs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .registry import operation

__all__ = [
    "float_activation", "float_conv", "float_linear", "float_log_softmax", "float_normalize",
]


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


def _logistic(x: NDArray[Any]) -> NDArray[Any]:
    return np.exp(-np.logaddexp(0, -x))  # never overflows


def _elu(x: NDArray[Any], alpha: float) -> NDArray[Any]:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


_erf = np.vectorize(math.erf, otypes=[np.float64])

_ACTIVATIONS: dict[str, Callable[[NDArray[Any], float], Any]] = {
    "elu": _elu,
    "gelu": lambda x, _: x * (0.5 + 0.5 * _erf(x / math.sqrt(2)).astype(x.dtype)),
    "gelu_tanh": lambda x, _: 0.5 * x * (
        1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hardsigmoid": lambda x, _: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x, _: x * np.clip(x / 6 + 0.5, 0, 1),
    "logsigmoid": lambda x, _: -np.logaddexp(0, -x),
    "mish": lambda x, _: x * np.tanh(np.logaddexp(0, x)),
    # Klambauer et al., "Self-Normalizing Neural Networks", NIPS 2017, section 2.
    "selu": lambda x, _: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "silu": lambda x, _: x * _logistic(x),
    "softplus": lambda x, _: np.logaddexp(0, x),
    "softsign": lambda x, _: x / (1 + np.abs(x)),
}


@operation
def float_activation(x: NDArray[Any], *, function: str, alpha: float = 1.0) -> NDArray[Any]:
    """Applies an activation function; ``alpha`` is what elu tends to, below zero.

    ``function`` is elu, gelu, gelu_tanh (its approximation), hardsigmoid, hardswish, logsigmoid,
    mish, selu, silu, softplus or softsign, as defined in PyTorch's documentation.
    """
    if function not in _ACTIVATIONS:
        raise ValueError(
            f"function must be one of {', '.join(_ACTIVATIONS)}, not {function!r}")
    return np.asarray(_ACTIVATIONS[function](x, alpha)).astype(x.dtype)


@operation
def float_log_softmax(x: NDArray[Any], *, axis: int) -> NDArray[Any]:
    """Logarithm of the softmax along an axis."""
    below = x - x.max(axis=axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


@operation
def float_normalize(x: NDArray[Any], *, axes: Sequence[int], epsilon: float) -> NDArray[Any]:
    """Returns ``(x - mean) / sqrt(variance + epsilon)``, both over ``axes``."""
    over = tuple(axes)
    centred = x - x.mean(axis=over, keepdims=True)
    variance = (centred**2).mean(axis=over, keepdims=True)
    return (centred / np.sqrt(variance + epsilon)).astype(x.dtype)
