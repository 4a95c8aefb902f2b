# SPDX-License-Identifier: Apache-2.0
"""Operators of TensorFlow Lite that become layers of the device."""

import math

import numpy as np
from numpy.typing import NDArray

from ...commands import OutputMode
from ...conv import ConvLayer, Geometry
from ...csr import as_csr
from ...layer import LinearLayer
from ...numerics import quantize_multiplier
from .builder import Builder
from .file import FileOperator, FileTensor
from .scales import (
    check_bias_scale,
    check_scales,
    fused_range,
    layer_factors,
    quantization,
    why_not,
)

__all__ = ["convolution", "fully_connected"]


def _weights(
    b: Builder, i: int, rank: int, axis: int
) -> tuple[FileTensor, NDArray[np.int8]]:
    """Weights with one scale, or with one for each output channel along ``axis``."""
    tensor = b.tensor(i)
    if tensor.dtype not in ("int8", "uint8", "int4"):
        raise ValueError(why_not(tensor))
    if len(tensor.shape) != rank:
        raise ValueError(f"weights {tensor.name!r} must have {rank} axes, not {tensor.shape}")
    outputs = tensor.shape[axis]
    if len(tensor.scale) not in (1, outputs):
        raise ValueError(
            f"scales of {tensor.name!r} must be 1 or {outputs}, not {len(tensor.scale)}")
    if len(tensor.scale) > 1 and tensor.axis != axis:
        raise ValueError(f"scales of {tensor.name!r} must be along axis {axis}, not {tensor.axis}")
    check_scales(tensor)
    zero = 128 if tensor.dtype == "uint8" else 0
    if (bad := tensor.zero_point[tensor.zero_point != zero]).size:
        raise ValueError(f"zero point of weights {tensor.name!r} must be {zero}, not {bad[0]}: "
                         f"a pruned weight would not be zero")
    return tensor, b.constant(i)


def _linear(
    b: Builder, operator: FileOperator, matrix: NDArray[np.int8], weights: FileTensor, bias: int,
    factors: NDArray[np.float64],
) -> LinearLayer:
    """The layer of a matrix (outputs, inputs)."""
    out = b.quantized(operator.outputs[0])
    input_scale, input_zero = quantization(b.quantized(operator.inputs[0]))
    output_scale, output_zero = quantization(out)
    sums = -input_zero * matrix.sum(1, np.int64)
    if bias >= 0:
        tensor = b.tensor(bias)
        if tensor.dtype != "int32" or tensor.shape != (len(matrix),):
            raise ValueError(f"bias {tensor.name!r} must be int32 of shape ({len(matrix)},), "
                             f"not {tensor.dtype} of {tensor.shape}")
        if tensor.zero_point.any():
            raise ValueError(f"zero point of bias {tensor.name!r} must be 0")
        sums += b.constant(bias)
    limits = np.iinfo(np.int32)
    if sums.min() < limits.min or sums.max() > limits.max:
        raise ValueError("a bias with the input's zero point must fit 32 bits")
    multiplier, shift = quantize_multiplier(np.broadcast_to(factors, len(matrix)))
    low, high = fused_range(operator, out)
    bits = 4 if weights.dtype == "int4" else 8
    return LinearLayer(
        weights=as_csr(matrix, weight_bits=bits), weight_bits=bits, bias=sums.astype(np.int32),
        mode=OutputMode.DOUBLE, multiplier=multiplier, shift=shift, zero_point=output_zero, low=low,
        high=high, input_scale=input_scale, input_zero_point=input_zero, output_scale=output_scale,
        name=out.name,
    )


def convolution(b: Builder, operator: FileOperator) -> None:
    """CONV_2D and DEPTHWISE_CONV_2D, layers of the device."""
    depthwise = operator.code == "DEPTHWISE_CONV_2D"
    x_index, w_index, bias = b.operands(operator, 2, 3)
    x, y = b.quantized(x_index), b.quantized(operator.outputs[0])
    if len(x.shape) != 4:
        raise ValueError(f"input {x.name!r} must have 4 axes, not {x.shape}")
    tensor, w = _weights(b, w_index, 4, 3 if depthwise else 0)
    if depthwise and len(w) != 1:
        raise ValueError(
            f"weights {tensor.name!r} must be (1, rows, columns, channels), not {w.shape}")
    w = w.transpose(3, 1, 2, 0) if depthwise else w
    channels = x.shape[3]
    if channels % w.shape[3]:
        raise ValueError(f"weights {tensor.name!r} must be for groups of the {channels} channels "
                         f"of {x.name!r}, not for {w.shape[3]}")
    geometry = _geometry(operator, x.shape, w.shape, channels // w.shape[3])
    factors = layer_factors(x, tensor, y, float_product=x.dtype == "uint8")
    matrix = w.transpose(0, 3, 1, 2).reshape(len(w), -1)
    layer = ConvLayer(linear=_linear(b, operator, matrix, tensor, bias, factors), geometry=geometry)
    b.result(operator, (b.input(x_index),), layer.output_shape(x.shape[0]), layer=layer)


def _geometry(
    operator: FileOperator, x: tuple[int, ...], w: tuple[int, ...], groups: int
) -> Geometry:
    _, height, width, channels = x
    kernel = (w[1], w[2])
    stride = (operator.option("StrideH"), operator.option("StrideW"))
    dilation = (operator.option("DilationHFactor"), operator.option("DilationWFactor"))
    if min(stride + dilation) < 1:
        raise ValueError(f"stride and dilation must be at least 1, not {stride} and {dilation}")
    padding = (0, 0, 0, 0)
    if operator.padding == "SAME":
        padding = Geometry.same(
            height=height, width=width, kernel=kernel, stride=stride, dilation=dilation)
    return Geometry(channels=channels, height=height, width=width, kernel=kernel, stride=stride,
                    dilation=dilation, padding=padding, groups=groups)


def fully_connected(b: Builder, operator: FileOperator) -> None:
    """FULLY_CONNECTED, a layer of the device for each vector of the last axis."""
    if (form := operator.option("WeightsFormat")) != 0:
        raise ValueError(f"format of the weights must be 0, plain, not {form}")
    x_index, w_index, bias = b.operands(operator, 2, 3)
    x, y = b.quantized(x_index), b.quantized(operator.outputs[0])
    tensor, w = _weights(b, w_index, 2, 0)
    whole = len(tensor.scale) == 1
    factors = layer_factors(x, tensor, y, float_product=whole)
    if bias >= 0 and whole:
        check_bias_scale(b.tensor(bias), factors, y)
    layer = _linear(b, operator, w, tensor, bias, factors)
    name = b.input(x_index)
    if operator.option("KeepNumDims"):
        if x.shape[-1:] != (layer.inputs,):
            raise ValueError(f"last axis of {x.name!r} must be {layer.inputs}, not {x.shape[-1:]}")
        b.keep_batch(len(x.shape) > 1)
        b.result(operator, (name,), (*x.shape[:-1], layer.outputs), layer=layer)
        return
    elements = math.prod(x.shape)
    if elements % layer.inputs:
        raise ValueError(
            f"elements of {x.name!r} must be a multiple of {layer.inputs}, not {elements}")
    rows = (elements // layer.inputs, layer.inputs)
    if x.shape != rows:
        name = b.step("reshape", (name,), x, "int8", {"shape": b.open_batch(rows)}, rows)
    b.result(operator, (name,), (rows[0], layer.outputs), layer=layer)
