# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite models: int8 layers for the device, the reference kernels' integers for the rest.

Convolutions, depthwise convolutions and fully connected operators become layers; the others become
host operations with the same integers as TensorFlow Lite's reference kernels. A uint8 tensor is
int8 inside of the graph, with a zero point 128 lower.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..commands import OutputMode
from ..conv import ConvLayer, Geometry
from ..csr import as_csr
from ..errors import ModelError
from ..graph import Graph
from ..layer import LinearLayer
from ..numerics import quantize_multiplier
from ._tflite_builder import Builder
from ._tflite_file import FileOperator, FileTensor, read_file
from ._tflite_scales import (
    activation_range,
    add_attributes,
    check_bias_scale,
    check_same_scale,
    check_scales,
    fixed_point,
    layer_factors,
    quantization,
    softmax_attributes,
    why_not,
)

__all__ = ["load_tflite"]

_PADDINGS = ("SAME", "VALID")
_RELUS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}


def load_tflite(path: str | Path) -> Graph:
    """Reads a quantized TensorFlow Lite model.

    The graph is batchable if every operator keeps the samples along axis 0 apart.

    Raises
    ------
    ModelError           If the file is damaged, or holds what cannot be run (a float model, 16-bit
                         activations, weights with a zero point, an unknown operator); names the
                         operator and the tensor.
    MissingDependency    If the package ``tflite`` is not installed.
    OSError              If the file cannot be read.
    """
    path = Path(path)
    model = read_file(path)
    builder = Builder(model)
    try:
        builder.begin()
        for i, operator in enumerate(model.operators):
            builder.where = f"operator {i} ({operator.code})"
            if operator.code not in _HANDLERS:
                raise ValueError(f"operator must be one of {', '.join(sorted(_HANDLERS))}, "
                                 f"not {operator.code}")
            _HANDLERS[operator.code](builder, operator)
        return builder.end()
    except ValueError as error:
        raise ModelError(f"{path.name}, {builder.where}: {error}") from error


def _option(operator: FileOperator, name: str) -> Any:
    if operator.options is None:
        raise ValueError("options must be given")
    return operator.options[name]


def _padding(operator: FileOperator) -> str:
    number = _option(operator, "Padding")
    if number not in range(len(_PADDINGS)):
        raise ValueError(f"padding must be 0 (SAME) or 1 (VALID), not {number}")
    return _PADDINGS[number]


def _range(operator: FileOperator, out: FileTensor) -> tuple[int, int]:
    """What the fused activation leaves of int8."""
    return activation_range(_option(operator, "FusedActivationFunction"), *quantization(out))


# Layers ------------------------------------------------------------------------------------------


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
    low, high = _range(operator, out)
    bits = 4 if weights.dtype == "int4" else 8
    return LinearLayer(
        weights=as_csr(matrix, weight_bits=bits), weight_bits=bits, bias=sums.astype(np.int32),
        mode=OutputMode.DOUBLE, multiplier=multiplier, shift=shift, zero_point=output_zero, low=low,
        high=high, input_scale=input_scale, input_zero_point=input_zero, output_scale=output_scale,
        name=out.name,
    )


def _convolution(b: Builder, operator: FileOperator) -> None:
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
    stride = (_option(operator, "StrideH"), _option(operator, "StrideW"))
    dilation = (_option(operator, "DilationHFactor"), _option(operator, "DilationWFactor"))
    if min(stride + dilation) < 1:
        raise ValueError(f"stride and dilation must be at least 1, not {stride} and {dilation}")
    padding = (0, 0, 0, 0)
    if _padding(operator) == "SAME":
        padding = Geometry.same(
            height=height, width=width, kernel=kernel, stride=stride, dilation=dilation)
    return Geometry(channels=channels, height=height, width=width, kernel=kernel, stride=stride,
                    dilation=dilation, padding=padding, groups=groups)


def _fully_connected(b: Builder, operator: FileOperator) -> None:
    if (form := _option(operator, "WeightsFormat")) != 0:
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
    if _option(operator, "KeepNumDims"):
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


# Host operations ---------------------------------------------------------------------------------


def _add(b: Builder, operator: FileOperator) -> None:
    first, second = b.operands(operator, 2, 2)
    if b.is_constant(first) and not b.is_constant(second):
        first, second = second, first
    x, y, out = b.quantized(first), b.quantized(second), b.quantized(operator.outputs[0])
    if not x.dtype == y.dtype == out.dtype:
        raise ValueError(
            f"operands and output must have one type, not {x.dtype}, {y.dtype}, {out.dtype}")
    shape = np.broadcast_shapes(x.shape, y.shape)
    low, high = _range(operator, out)
    attributes = {**add_attributes(x, y, out), "low": low, "high": high}
    inputs = [b.input(first), b.input(second)]
    apart = x.shape[:1] == shape[:1] and len(x.shape) == len(shape)
    if b.is_constant(second) and not b.is_constant(first):
        attributes["constant"] = b.constant(second)
        inputs.pop()
        apart &= len(y.shape) < len(shape) or y.shape[0] == 1
    else:
        apart &= y.shape[:1] == shape[:1] and len(y.shape) == len(shape)
    b.keep_batch(apart)
    b.result(operator, inputs, shape, "tflite_add", attributes)


def _pool(b: Builder, operator: FileOperator) -> None:
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    check_same_scale(x, out)
    if len(x.shape) != 4:
        raise ValueError(f"input {x.name!r} must have 4 axes, not {x.shape}")
    kernel = (_option(operator, "FilterHeight"), _option(operator, "FilterWidth"))
    stride = (_option(operator, "StrideH"), _option(operator, "StrideW"))
    padding = _padding(operator)
    if min(kernel + stride) < 1:
        raise ValueError(f"kernel and stride must be at least 1, not {kernel} and {stride}")
    if padding == "SAME":
        places = [-(-n // s) for n, s in zip(x.shape[1:3], stride, strict=True)]
    else:
        places = [(n - k) // s + 1
                  for n, k, s in zip(x.shape[1:3], kernel, stride, strict=True)]
    if min(places) < 1:
        raise ValueError(f"kernel must be at most {x.shape[1:3]}, the map, not {kernel}")
    low, high = _range(operator, out)
    attributes: dict[str, Any] = {
        "kernel": list(kernel), "stride": list(stride), "padding": padding}
    name, shape = b.input(x_index), (x.shape[0], *places, x.shape[3])
    if operator.code == "MAX_POOL_2D":
        attributes |= {"low": low, "high": high}
        b.result(operator, (name,), shape, "tflite_max_pool", attributes)
    elif x.dtype == "int8":
        attributes |= {"low": low, "high": high}
        b.result(operator, (name,), shape, "tflite_average_pool", attributes)
    else:
        # Halves go away from the zero of the type, so that the original type is needed.
        attributes |= {"low": low + 128, "high": high + 128}
        name = b.step("recode", (name,), x, "uint8", {"dtype": "uint8"})
        name = b.step("tflite_average_pool", (name,), out, "uint8", attributes)
        b.result(operator, (name,), shape, "recode", {"dtype": "int8"})


def _mean(b: Builder, operator: FileOperator) -> None:
    x_index, axes_index = b.operands(operator, 2, 2)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    if x.dtype != out.dtype:
        raise ValueError(f"input and output must have one type, not {x.dtype}, {out.dtype}")
    rank, keep = len(x.shape), bool(_option(operator, "KeepDims"))
    axes = _integers(b, axes_index)
    if not all(-rank <= axis < rank for axis in axes.ravel()):
        raise ValueError(f"axes must be {-rank} to {rank - 1}, not {axes.ravel().tolist()}")
    chosen = sorted({int(axis) % rank for axis in axes.ravel()})
    shape = [1 if i in chosen else n for i, n in enumerate(x.shape) if keep or i not in chosen]
    input_scale, input_zero = quantization(x)
    output_scale, zero_point = quantization(out)
    multiplier, shift = fixed_point(input_scale / output_scale)
    b.keep_batch(0 not in chosen)
    b.result(operator, (b.input(x_index),), shape, "tflite_mean", {
        "axes": chosen, "keep_dims": keep, "input_zero_point": input_zero,
        "multiplier": multiplier, "shift": shift, "zero_point": zero_point})


def _integers(b: Builder, i: int) -> NDArray[Any]:
    if (tensor := b.tensor(i)).dtype not in ("int32", "int64"):
        raise ValueError(f"{tensor.name!r} must be int32 or int64, not {tensor.dtype}")
    return b.constant(i)


def _pad(b: Builder, operator: FileOperator) -> None:
    x_index, pads_index = b.operands(operator, 2, 2)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    check_same_scale(x, out)
    pads = _integers(b, pads_index)
    if pads.shape != (len(x.shape), 2) or pads.min() < 0:
        raise ValueError(f"paddings must be two of at least 0 for each of the {len(x.shape)} axes, "
                         f"not {pads.tolist()}")
    shape = [n + int(p[0]) + int(p[1]) for n, p in zip(x.shape, pads, strict=True)]
    b.keep_batch(not pads[0].any())
    b.result(operator, (b.input(x_index),), shape, "pad", {
        "pads": pads.tolist(), "value": quantization(out)[1]})


def _reshape(b: Builder, operator: FileOperator) -> None:
    x_index, shape_index = b.operands(operator, 1, 2)
    x, out = b.tensor(x_index), b.tensor(operator.outputs[0])
    if x.dtype != "float32":
        check_same_scale(b.quantized(x_index), b.quantized(operator.outputs[0]))
    elif out.dtype != "float32":
        raise ValueError(f"{out.name!r} must be float32 as {x.name!r}, not {out.dtype}")
    if math.prod(x.shape) != math.prod(out.shape):
        raise ValueError(f"{out.name!r} must have the elements of {x.shape}, not {out.shape}")
    if shape_index >= 0:
        asked = _integers(b, shape_index).ravel()
        if len(asked) != len(out.shape) or not all(
                n in (-1, size) for n, size in zip(asked, out.shape, strict=True)):
            raise ValueError(f"{out.name!r} must have the shape asked for, {asked.tolist()}, "
                             f"not {out.shape}")
    dtype = "float32" if x.dtype == "float32" else "int8"
    b.result(operator, (b.input(x_index),), out.shape, "reshape",
             {"shape": b.open_batch(out.shape)}, dtype=dtype)


def _softmax(b: Builder, operator: FileOperator) -> None:
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    if x.dtype != out.dtype:
        raise ValueError(f"input and output must have one type, not {x.dtype}, {out.dtype}")
    attributes = softmax_attributes(x, out, _option(operator, "Beta"))
    b.keep_batch(len(x.shape) > 1)
    b.result(operator, (b.input(x_index),), x.shape, "tflite_softmax", attributes)


def _relu(b: Builder, operator: FileOperator) -> None:
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    low, high = activation_range(_RELUS[operator.code], *quantization(out))
    with np.errstate(over="ignore", under="ignore"):  # ReluPrepare divides in float.
        factor = float(x.scale[0] / out.scale[0])
    _requantize(b, operator, x_index, factor, low, high)


def _quantize(b: Builder, operator: FileOperator) -> None:
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.tensor(x_index), b.quantized(operator.outputs[0])
    if x.dtype == "float32":
        scale, zero_point = quantization(out)
        b.result(operator, (b.input(x_index),), x.shape, "tflite_quantize",
                 {"scale": scale, "zero_point": zero_point})
        return
    input_scale, _ = quantization(b.quantized(x_index))
    _requantize(b, operator, x_index, input_scale / quantization(out)[0], -128, 127)


def _requantize(
    b: Builder, operator: FileOperator, x_index: int, factor: float, low: int, high: int
) -> None:
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    multiplier, shift = fixed_point(factor)
    b.result(operator, (b.input(x_index),), x.shape, "tflite_requantize", {
        "input_zero_point": quantization(x)[1], "multiplier": multiplier, "shift": shift,
        "zero_point": quantization(out)[1], "low": low, "high": high})


def _dequantize(b: Builder, operator: FileOperator) -> None:
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.tensor(operator.outputs[0])
    if out.dtype != "float32":
        raise ValueError(f"{out.name!r} must be float32, not {out.dtype}")
    scale, zero_point = quantization(x)
    b.result(operator, (b.input(x_index),), x.shape, "dequantize",
             {"scale": scale, "zero_point": zero_point}, dtype="float32")


_HANDLERS: dict[str, Callable[[Builder, FileOperator], None]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _pool,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool,
    "MEAN": _mean,
    "PAD": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU6": _relu,
    "RELU_N1_TO_1": _relu,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
}
