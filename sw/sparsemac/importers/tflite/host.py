# SPDX-License-Identifier: Apache-2.0
"""Operators of TensorFlow Lite that run on the host, with the integers of its reference kernels."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .builder import Builder
from .file import FileOperator
from .scales import (
    activation_range,
    add_attributes,
    check_same_scale,
    fixed_point,
    fused_range,
    quantization,
    softmax_attributes,
)

__all__ = [
    "add", "dequantize", "mean", "pad", "pool", "quantize", "relu", "reshape", "softmax",
]

_RELUS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}


def add(b: Builder, operator: FileOperator) -> None:
    """ADD, of one map and another or a constant."""
    first, second = b.operands(operator, 2, 2)
    if b.is_constant(first) and not b.is_constant(second):
        first, second = second, first
    x, y, out = b.quantized(first), b.quantized(second), b.quantized(operator.outputs[0])
    if not x.dtype == y.dtype == out.dtype:
        raise ValueError(
            f"operands and output must have one type, not {x.dtype}, {y.dtype}, {out.dtype}")
    shape = np.broadcast_shapes(x.shape, y.shape)
    low, high = fused_range(operator, out)
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


def pool(b: Builder, operator: FileOperator) -> None:
    """AVERAGE_POOL_2D and MAX_POOL_2D; input and output have one scale."""
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    check_same_scale(x, out)
    if len(x.shape) != 4:
        raise ValueError(f"input {x.name!r} must have 4 axes, not {x.shape}")
    kernel = (operator.option("FilterHeight"), operator.option("FilterWidth"))
    stride = (operator.option("StrideH"), operator.option("StrideW"))
    padding = operator.padding
    if min(kernel + stride) < 1:
        raise ValueError(f"kernel and stride must be at least 1, not {kernel} and {stride}")
    if padding == "SAME":
        places = [-(-n // s) for n, s in zip(x.shape[1:3], stride, strict=True)]
    else:
        places = [(n - k) // s + 1
                  for n, k, s in zip(x.shape[1:3], kernel, stride, strict=True)]
    if min(places) < 1:
        raise ValueError(f"kernel must be at most {x.shape[1:3]}, the map, not {kernel}")
    low, high = fused_range(operator, out)
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


def mean(b: Builder, operator: FileOperator) -> None:
    """MEAN over any axes."""
    x_index, axes_index = b.operands(operator, 2, 2)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    if x.dtype != out.dtype:
        raise ValueError(f"input and output must have one type, not {x.dtype}, {out.dtype}")
    rank, keep = len(x.shape), bool(operator.option("KeepDims"))
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


def pad(b: Builder, operator: FileOperator) -> None:
    """PAD with the input's zero point."""
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


def reshape(b: Builder, operator: FileOperator) -> None:
    """RESHAPE to the shape that the output has; the batch stays in front."""
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


def softmax(b: Builder, operator: FileOperator) -> None:
    """SOFTMAX over the last axis, of integers."""
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    if x.dtype != out.dtype:
        raise ValueError(f"input and output must have one type, not {x.dtype}, {out.dtype}")
    attributes = softmax_attributes(x, out, operator.option("Beta"))
    b.keep_batch(len(x.shape) > 1)
    b.result(operator, (b.input(x_index),), x.shape, "tflite_softmax", attributes)


def relu(b: Builder, operator: FileOperator) -> None:
    """RELU, RELU6 and RELU_N1_TO_1, with a new scale where the output has one."""
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.quantized(operator.outputs[0])
    low, high = activation_range(_RELUS[operator.code], *quantization(out))
    with np.errstate(over="ignore", under="ignore"):  # ReluPrepare divides in float.
        factor = float(x.scale[0] / out.scale[0])
    _requantize(b, operator, x_index, factor, low, high)


def quantize(b: Builder, operator: FileOperator) -> None:
    """QUANTIZE of float values, and of integers to another scale."""
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


def dequantize(b: Builder, operator: FileOperator) -> None:
    """DEQUANTIZE to float32."""
    (x_index,) = b.operands(operator, 1, 1)
    x, out = b.quantized(x_index), b.tensor(operator.outputs[0])
    if out.dtype != "float32":
        raise ValueError(f"{out.name!r} must be float32, not {out.dtype}")
    scale, zero_point = quantization(x)
    b.result(operator, (b.input(x_index),), x.shape, "dequantize",
             {"scale": scale, "zero_point": zero_point}, dtype="float32")
