# SPDX-License-Identifier: Apache-2.0
"""PyTorch's layers, normalizations and pooling, as steps of a graph."""

import functools
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .build import Builder, Symbol
from .math import affine
from .moves import pad_axes
from .table import MODULES, handles, module

__all__ = []

_IN_REALS = "averages are taken in reals, so that nothing is rounded twice"


@handles("linear")
def _linear(b: Builder, input: Symbol, weight: Any, bias: Any = None) -> Symbol:
    return b.layer("float_linear", input, weight, bias)


def _pair(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def _batched(b: Builder, x: Symbol, rank: int, run: Callable[[Symbol], Symbol]) -> Symbol:
    """Runs on maps; one without an axis of samples is one sample."""
    if x.array.ndim != rank + 1:
        return run(x)
    return b.emit("onnx_squeeze", run(b.emit("onnx_unsqueeze", x, axes=[0])), axes=[0])


def _conv(
    b: Builder, input: Symbol, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, padding_mode: str = "zeros", *, rank: int,
) -> Symbol:
    kernel = tuple(weight.shape[2:])
    strides, dilations = _pair(stride, rank), _pair(dilation, rank)
    if padding == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = 2 * _pair(0 if padding == "valid" else padding, rank)

    def run(x: Symbol) -> Symbol:
        around = pads
        if padding_mode != "zeros":
            x = pad_axes(b, x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)],
                          padding_mode)
            around = [0] * 2 * rank
        return b.layer("float_conv", x, weight, bias, strides=strides, pads=around,
                       dilations=dilations, groups=groups)

    return _batched(b, input, rank, run)


for _rank in (1, 2):
    handles(f"conv{_rank}d")(functools.partial(_conv, rank=_rank))


@handles("batch_norm")
def _batch_norm(
    b: Builder, input: Symbol, running_mean: Any, running_var: Any, weight: Any = None,
    bias: Any = None, training: bool = False, momentum: Any = 0.1, eps: float = 1e-5,
) -> Symbol:
    if training or running_mean is None or running_var is None:
        raise b.refuse("the batch's own mean and variance (only running ones can)")
    mean = b.numbers("running_mean", running_mean).astype(np.float64)  # type: ignore[union-attr]
    variance = b.numbers("running_var", running_var)
    gain, shift = b.numbers("weight", weight), b.numbers("bias", bias)
    scale = (1.0 if gain is None else gain) / np.sqrt(
        variance.astype(np.float64) + eps)  # type: ignore[union-attr]
    offset = (0.0 if shift is None else shift) - mean * scale
    if (folded := b.fold(input, scale, offset)) is not None:
        return folded
    dtype = input.array.dtype
    return affine(b, input, scale.astype(dtype), offset.astype(dtype), input.array.ndim - 2)


@handles("layer_norm")
def _layer_norm(
    b: Builder, input: Symbol, normalized_shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Symbol:
    axes = [-1 - i for i in range(len(_pair(normalized_shape, 1)))]
    x = b.emit("float_normalize", input, axes=axes, epsilon=eps)
    return affine(b, x, b.numbers("weight", weight), b.numbers("bias", bias), 0)


@handles("group_norm")
def _group_norm(
    b: Builder, input: Symbol, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Symbol:
    x = b.emit("reshape", input, shape=[0, num_groups, prod(input.shape[1:]) // num_groups])
    x = b.emit("float_normalize", x, axes=[2], epsilon=eps)
    x = b.emit("reshape", x, shape=[0, *input.shape[1:]])
    return affine(b, x, b.numbers("weight", weight), b.numbers("bias", bias),
                   input.array.ndim - 2)


module("Linear", "linear", "weight", "bias")
module("Conv1d", "conv1d", "weight", "bias", "stride", "padding",
        "dilation", "groups", "padding_mode")
module("Conv2d", "conv2d", *MODULES["Conv1d"][1])
module("BatchNorm1d BatchNorm2d", "batch_norm", "running_mean",
        "running_var", "weight", "bias", "eps")
module("LayerNorm", "layer_norm", "normalized_shape", "weight",
        "bias", "eps")
@handles("instance_norm")
def _instance_norm(
    b: Builder, input: Symbol, running_mean: Any = None, running_var: Any = None,
    weight: Any = None, bias: Any = None, use_input_stats: bool = True, momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Symbol:
    if not use_input_stats or running_mean is not None:
        raise b.refuse("running mean and variance (only the sample's own can)")
    axes = list(range(2, input.array.ndim))
    x = b.emit("float_normalize", input, axes=axes, epsilon=eps)
    return affine(b, x, b.numbers("weight", weight), b.numbers("bias", bias), len(axes))


module("InstanceNorm1d InstanceNorm2d", "instance_norm", "running_mean", "running_var", "weight",
       "bias", "eps")
module("GroupNorm", "group_norm", "num_groups", "weight", "bias", "eps")


# -- pooling --------------------------------------------------------------------------------------


def _max_pool(
    b: Builder, input: Symbol, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False, *, rank: int,
) -> Symbol:
    if return_indices:
        raise b.refuse("return_indices=True")
    kernel = _pair(kernel_size, rank)
    return _batched(b, input, rank, lambda x: b.emit(
        "onnx_max_pool", x, kernel=kernel, strides=_pair(stride, rank) if stride else kernel,
        pads=2 * _pair(padding, rank), dilations=_pair(dilation, rank), ceil=ceil_mode))


def _average_pool(
    b: Builder, input: Symbol, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    *, rank: int,
) -> Symbol:
    if divisor_override is not None:
        raise b.refuse(f"divisor_override {divisor_override} (only None can)")
    kernel = _pair(kernel_size, rank)
    return _batched(b, input, rank, lambda x: b.emit(
        "onnx_average_pool", x, kernel=kernel, strides=_pair(stride, rank) if stride else kernel,
        pads=2 * _pair(padding, rank), dilations=[1] * rank, ceil=ceil_mode,
        count_padding=count_include_pad, reason=_IN_REALS))


def _adaptive(b: Builder, x: Symbol, output_size: Any, rank: int, function: str) -> Symbol:
    """Pools to a given size; window i of n begins at ``floor(i * size / n)`` and may overlap."""
    sizes = x.shape[-rank:]
    wanted = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * rank
    wanted = [size if out is None else out for out, size in zip(wanted, sizes, strict=True)]
    reason = _IN_REALS if function == "mean" else ""
    if wanted == [1] * rank:
        return b.emit("onnx_reduce", x, function=function, axes=list(range(-rank, 0)),
                      keepdims=True, reason=reason)
    if all(size % out == 0 for size, out in zip(sizes, wanted, strict=True)):
        kernel = [size // out for size, out in zip(sizes, wanted, strict=True)]
        pool = _average_pool if function == "mean" else _max_pool
        return pool(b, x, kernel, rank=rank)
    if function != "mean":
        raise b.refuse(f"output_size {tuple(wanted)} that does not divide {sizes}")
    for i, (size, out) in enumerate(zip(sizes, wanted, strict=True)):
        means = np.zeros((size, out), x.array.dtype)
        for j in range(out):
            first, end = j * size // out, -(-(j + 1) * size // out)
            means[first:end, j] = 1 / (end - first)
        last = i == rank - 1
        matrix = b.emit("onnx_constant", value=means if last else means.T)
        x = b.emit("onnx_matmul", *((x, matrix) if last else (matrix, x)), reason=reason)
    return x


def _adaptive_average_pool(b: Builder, input: Symbol, output_size: Any, *, rank: int) -> Symbol:
    return _adaptive(b, input, output_size, rank, "mean")


def _adaptive_max_pool(
    b: Builder, input: Symbol, output_size: Any, return_indices: bool = False, *, rank: int
) -> Symbol:
    if return_indices:
        raise b.refuse("return_indices=True")
    return _adaptive(b, input, output_size, rank, "max")


for _rank in (1, 2):
    for _kind, _name, _pool, _attributes in (
        ("MaxPool", "max_pool", _max_pool,
         "kernel_size stride padding dilation ceil_mode return_indices"),
        ("AvgPool", "avg_pool", _average_pool,
         "kernel_size stride padding ceil_mode count_include_pad"),
        ("AdaptiveAvgPool", "adaptive_avg_pool", _adaptive_average_pool, "output_size"),
        ("AdaptiveMaxPool", "adaptive_max_pool", _adaptive_max_pool, "output_size return_indices"),
    ):
        handles(f"{_name}{_rank}d")(functools.partial(_pool, rank=_rank))
        module(f"{_kind}{_rank}d", f"{_name}{_rank}d", *_attributes.split())
