# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization of fully connected networks, for the core's integers.

Scheme: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-
Arithmetic-Only Inference", CVPR 2018, section 2, with one scale per output channel and weights of
zero point 0, so that a pruned weight stays exactly zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .commands import OutputMode
from .csr import as_csr
from .layer import LinearLayer
from .numerics import quantize_multiplier

__all__ = ["dequantize", "quantize_input", "quantize_network", "quantize_rows", "range_to_scale"]

#: Candidate scales of a row, as shares of the one that covers its largest weight.
_SHRINK = np.linspace(1.0, 0.4, 25)


def quantize_rows(
    weights: NDArray[np.floating[Any]], weight_bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Rounds each row to integers with a scale of its own.

    int8 rows use the scale that covers the largest weight. int4 rows clip: of 25 scales, each row
    takes the one of least squared error. Zeros stay zero.

    Parameters
    ----------
    weights : (rows, columns) float
    weight_bits : int    4 or 8.

    Returns
    -------
    (rows, columns) int8, at most 2**(weight_bits - 1) - 1 in size; (rows,) scales, positive.
    """
    if weight_bits not in (4, 8):
        raise ValueError(f"weight_bits must be 4 or 8, not {weight_bits!r}")
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2:
        raise ValueError(f"weights must have 2 dimensions, not {weights.ndim}")
    if not np.isfinite(weights).all():
        row = int(np.flatnonzero(~np.isfinite(weights).all(1))[0])
        column = int(np.flatnonzero(~np.isfinite(weights[row]))[0])
        raise ValueError(
            f"weights must be finite, not {weights[row, column]} (row {row}, column {column})"
        )
    top = (1 << weight_bits - 1) - 1
    largest = np.abs(weights).max(1, initial=0.0)
    # A row of denormals keeps a positive scale.
    full = np.maximum(np.where(largest > 0, largest, 1.0) / top, np.finfo(np.float64).tiny)
    best, least = full, np.full(len(weights), np.inf)
    for share in _SHRINK if weight_bits == 4 else (1.0,):
        scale = full * share
        rounded = np.clip(np.rint(weights / scale[:, None]), -top, top)
        error = ((rounded * scale[:, None] - weights) ** 2).sum(1)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return np.clip(np.rint(weights / best[:, None]), -top, top).astype(np.int8), best


def range_to_scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of int8 values that cover a range, and zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, int(np.clip(round(-128 - low / scale), -128, 127))


def quantize_input(x: NDArray[Any], layer: LinearLayer) -> NDArray[np.int8]:
    """Turns real inputs into the int8 values that ``layer`` expects."""
    values = np.asarray(x, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("inputs must be finite, not NaN or infinite")
    return np.clip(
        np.rint(values / layer.input_scale) + layer.input_zero_point, -128, 127
    ).astype(np.int8)


def dequantize(y: NDArray[Any], layer: LinearLayer) -> NDArray[np.float64]:
    """Turns the outputs of ``layer`` into real values."""
    return (np.asarray(y, np.float64) - layer.zero_point) * layer.output_scale


def _check_layer(
    i: int, weight: NDArray[np.float64], bias: NDArray[np.float64], inputs: int
) -> None:
    if weight.ndim != 2 or weight.shape[1] != inputs or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"layer {i} must take {inputs} inputs and have a bias per output, not "
            f"weights {weight.shape} and biases {bias.shape}"
        )
    if (bad := ~np.isfinite(bias)).any():
        raise ValueError(f"biases of layer {i} must be finite, not {bias[bad][0]}")


def quantize_network(
    weights: Sequence[NDArray[Any]],
    biases: Sequence[NDArray[Any]],
    calibration: NDArray[Any],
    *,
    weight_bits: int = 8,
) -> list[LinearLayer]:
    """Quantizes a multilayer perceptron: ReLU behind every layer but the last.

    The range of each activation is that of the float network on the calibration inputs; what
    rounding the weights does to the mean of each channel there is taken out of its bias (Nagel et
    al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
    section 4.2, with measured means).

    Parameters
    ----------
    weights : list of (outputs, inputs) float
    biases : list of (outputs,) float
    calibration : (samples, inputs) float
    weight_bits : int    4 or 8.

    Returns
    -------
    list of LinearLayer    int8 outputs throughout, double rounding.
    """
    if len(weights) != len(biases) or not weights:
        raise ValueError(f"biases must be as many as weights, {len(weights)}, not {len(biases)}")
    real = np.asarray(calibration, np.float64)
    if real.ndim != 2 or not real.size:
        raise ValueError(f"calibration must be (samples, inputs), not of shape {real.shape}")
    if not np.isfinite(real).all():
        raise ValueError("calibration must be finite, not NaN or infinite")
    scale, zero_point = range_to_scale(float(real.min()), float(real.max()))
    layers = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
        _check_layer(i, weight, bias, real.shape[1])
        integers, scales = quantize_rows(weight, weight_bits)
        rounded = integers * scales[:, None]
        corrected = bias + (weight - rounded) @ real.mean(0)
        real = real @ weight.T + bias
        relu = i < len(weights) - 1
        if relu:
            real = np.maximum(real, 0.0)
        out_scale, out_zero = range_to_scale(float(real.min()), float(real.max()))
        whole = np.rint(corrected / (scale * scales)) - zero_point * integers.sum(1, dtype=np.int64)
        if np.abs(whole).max(initial=0) >= 2**31:
            raise ValueError(f"biases of layer {i} must fit 32 bits at the scale of its sums")
        multiplier, shift = quantize_multiplier(scale * scales / out_scale)
        layers.append(LinearLayer(
            weights=as_csr(integers, weight_bits=weight_bits), weight_bits=weight_bits,
            bias=whole.astype(np.int32), mode=OutputMode.DOUBLE, multiplier=multiplier, shift=shift,
            zero_point=out_zero, low=out_zero if relu else -128, high=127, input_scale=scale,
            input_zero_point=zero_point, output_scale=out_scale, name=f"fc{i + 1}",
        ))
        scale, zero_point = out_scale, out_zero
    return layers
