# SPDX-License-Identifier: Apache-2.0
"""Converters of ONNX's layers: convolutions and matrix products, of integers and of reals.

A layer of integers becomes a device layer that gives exact int32 sums, and a host operation that
scales them as the operator has it; `.fuse` joins the two where the core rounds the same. A
layer of reals becomes ``float_conv`` or ``float_linear``, which calibration quantizes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...conv import ConvLayer, Geometry
from ...csr import as_csr
from ...errors import ModelError
from ...hostops.onnx_maps import check_size
from ...layer import LinearLayer
from .build import Builder, Integers
from .maps import Window, read_window
from .model import OnnxNode
from .ops import converts

__all__ = ["SumsInput", "conv_sums", "linear_sums"]

#: Outputs of the largest layer that blocks of scales are spread over.
_LARGEST_BLOCKED = 1 << 16

#: Scales of a bias are products of two rounded ones; they are equal within this, relatively.
_SCALE_TOLERANCE = 1e-6

_NOT_CONSTANT = "its weights must be constant for the device"


class SumsInput:
    """The int8 input of a layer, its scale (1 if it does not matter) and zero point."""

    def __init__(self, name: str, scale: float, zero_point: int) -> None:
        self.name = name
        self.scale = scale
        self.zero_point = zero_point


def _linear(
    n: OnnxNode, x: SumsInput, weights: NDArray[np.int64], bias: NDArray[np.int64] | None
) -> LinearLayer:
    """Weights (outputs, inputs) as a layer of sums, with the input's zero point in its bias."""
    sums = -x.zero_point * weights.sum(1)
    if bias is not None:
        sums = sums + bias
    limits = np.iinfo(np.int32)
    if sums.size and (sums.min() < limits.min or sums.max() > limits.max):
        raise ModelError(f"biases of {n} must fit 32 bits with the input's zero point, "
                         f"not reach {np.abs(sums).max()}")
    small = not weights.size or (weights.min() >= -8 and weights.max() <= 7)
    bits = 4 if small else 8
    return LinearLayer(
        weights=as_csr(weights.astype(np.int8), weight_bits=bits).without_zeros(),
        weight_bits=bits, bias=sums.astype(np.int32), input_scale=x.scale,
        input_zero_point=x.zero_point, name=n.name)


def linear_sums(
    b: Builder, n: OnnxNode, x: SumsInput, weights: NDArray[np.int64], output: str,
    bias: NDArray[np.int64] | None = None,
) -> None:
    """Adds a layer of sums on the last axis; weights (outputs, inputs)."""
    shape = b.shape(x.name)
    if not shape or shape[-1] != weights.shape[1]:
        raise ModelError(f"last axis of the input of {n} must be {weights.shape[1]}, "
                         f"not of {list(shape)}")
    b.add_layer(n, _linear(n, x, weights, bias), x.name, output)


def conv_sums(
    b: Builder, n: OnnxNode, x: SumsInput, window: Window, weights: NDArray[np.int64], output: str,
    bias: NDArray[np.int64] | None = None,
) -> None:
    """Adds a convolution of sums; weights (outputs, channels of a group, *kernel), 1 or 2 axes."""
    rank = len(window.kernel)
    pads = list(window.pads)
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    if any(p >= r for p, r in zip(pads, reach * 2, strict=True)):
        # More padding than the core does: on the host.
        padded = b.fresh(f"{x.name}:padded")
        around = [[0, 0], [0, 0], *([pads[i], pads[rank + i]] for i in range(rank))]
        b.emit(n, "pad", [("x", x.name)], [padded], pads=around, value=x.zero_point)
        x, pads = SumsInput(padded, x.scale, x.zero_point), [0] * (2 * rank)
    shape = b.shape(x.name)
    if shape[1] != weights.shape[1] * window.groups or len(weights) % window.groups:
        raise ModelError(f"weights of {n} must be for {shape[1]} channels in {window.groups} "
                         f"groups, not {list(weights.shape)}")
    if rank == 1:
        pads = [0, pads[0], 0, pads[1]]
    kernel, stride, dilation, (height, width) = (
        (sizes[0] if rank == 2 else 1, sizes[-1])
        for sizes in (window.kernel, window.strides, window.dilations, shape[2:]))
    geometry = Geometry(channels=shape[1], height=height, width=width, kernel=kernel, stride=stride,
                        dilation=dilation, padding=(pads[0], pads[1], pads[2], pads[3]),
                        groups=window.groups)
    linear = _linear(n, x, weights.reshape(len(weights), -1), bias)
    b.add_layer(n, ConvLayer(linear=linear, geometry=geometry, channels_last=False,
                             one_dimensional=rank == 1), x.name, output)


def _row_scale(integers: Integers) -> NDArray[np.float64] | None:
    """(outputs,) one scale for each index of the first axis; None if they differ within one."""
    scale = integers.scale.astype(np.float64)
    rows = scale.reshape(len(scale), -1)
    if (rows != rows[:, :1]).any():
        return None
    return np.array(np.broadcast_to(rows[:, 0], len(integers.values)))


def _bias(
    b: Builder, name: str, array: NDArray[Any] | None, scale: NDArray[np.float64]
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """A bias as integers of the sums, if that is what it is, else as reals."""
    if array is None:
        return None, None
    array = np.broadcast_to(array.reshape(-1), len(scale))
    known = b.integers.get(name)
    if known is not None:
        steps = np.broadcast_to(known.scale.reshape(-1), len(scale)).astype(np.float64)
        if np.allclose(steps, scale, rtol=_SCALE_TOLERANCE, atol=0):
            return np.broadcast_to(known.values.reshape(-1), len(scale)), None
    return None, array.astype(np.float32)


def _source(b: Builder, name: str, integers: Integers | None, n: OnnxNode) -> SumsInput | None:
    """The integers that a layer can compute on; None: it is one of reals."""
    twin = b.twins.get(name)
    if twin is None or not twin.scale or integers is None:
        return None
    if integers.fault:
        raise ModelError(f"weights of {n} {integers.fault}")
    return SumsInput(twin.name, twin.scale, twin.zero_point)


def _check_finite(n: OnnxNode, *arrays: NDArray[Any] | None) -> None:
    for array in arrays:
        if array is not None and not np.isfinite(array).all():
            raise ModelError(f"weights and biases of {n} must be finite, not NaN or infinite")


def _product(
    b: Builder, n: OnnxNode, x: str, weight: NDArray[Any], integers: Integers | None, bias: str,
    bias_array: NDArray[Any] | None,
) -> None:
    """A matrix product with constant weights (outputs, inputs), integers in the same order."""
    output = n.outputs[0]
    source = _source(b, x, integers, n)
    _check_finite(n, weight, bias_array)
    if source is None or integers is None:
        shape = b.shape(x)
        if not shape or shape[-1] != weight.shape[1]:
            raise ModelError(f"last axis of the input of {n} must be {weight.shape[1]}, "
                             f"not of {list(shape)}")
        b.emit(n, "float_linear", [("x", x)], [output], result_shape=(*shape[:-1], len(weight)),
               weight=weight, bias=bias_array)
        return
    scale = _row_scale(integers)
    sums = b.fresh(f"{output}:sums")
    if scale is None:
        _blocked(b, n, source, integers, sums, bias_array)
        return
    scale = np.float64(source.scale) * scale
    whole, real = _bias(b, bias, bias_array, scale)
    linear_sums(b, n, source, integers.values, sums, whole)
    b.emit(n, "scale_sums", [("sums", sums)], [output], scale=scale, bias=real)


def _blocked(
    b: Builder, n: OnnxNode, x: SumsInput, integers: Integers, sums: str,
    bias: NDArray[Any] | None,
) -> None:
    """A layer of sums over each block of columns that has one scale, added up on the host.

    The blocks are rows of one sparse matrix, block diagonal but for the order of its rows.
    """
    outputs, inputs = integers.values.shape
    scale = np.broadcast_to(integers.scale, integers.values.shape).astype(np.float64)
    starts = [0, *(np.flatnonzero((scale[:, 1:] != scale[:, :-1]).any(0)) + 1).tolist()]
    if len(starts) * outputs > _LARGEST_BLOCKED:
        raise ModelError(f"blocks of scales of {n} must make at most {_LARGEST_BLOCKED} rows, "
                         f"not {len(starts) * outputs}")
    rows = np.zeros((len(starts), outputs, inputs), np.int64)
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], inputs], strict=True)):
        rows[i, :, start:end] = integers.values[:, start:end]
    linear_sums(b, n, x, rows.reshape(-1, inputs), sums)
    factors = np.float64(x.scale) * scale[:, starts].T.reshape(-1)
    parts, blocks, output = b.fresh(f"{sums}:parts"), b.fresh(f"{sums}:blocks"), n.outputs[0]
    total = output if bias is None else b.fresh(f"{sums}:total")
    b.emit(n, "scale_sums", [("sums", sums)], [parts], scale=factors)
    shape = b.shape(parts)
    front = [-1, *shape[1:-1]] if len(shape) > 1 else []
    b.emit(n, "reshape", [("x", parts)], [blocks], shape=[*front, len(starts), outputs])
    b.emit(n, "onnx_reduce", [("x", blocks)], [total], function="sum", axes=[len(shape) - 1],
           keepdims=False)
    if bias is not None:
        b.emit(n, "onnx_elementwise", [("a", total), ("b", bias.reshape(-1))], [output],
               function="add")


@converts("MatMul", 1, 9, 13)
def _matmul(b: Builder, n: OnnxNode) -> None:
    left, right = b.ref(n.input(0)), b.ref(n.input(1))
    if isinstance(left, str) and isinstance(right, np.ndarray) and right.ndim == 2 and right.size:
        integers = b.integers.get(n.input(1))
        if integers is not None:
            integers = replace(integers, values=integers.values.T, scale=integers.scale.T)
        _product(b, n, left, np.ascontiguousarray(right.T), integers, "", None)
        return
    reason = "" if isinstance(left, np.ndarray) and isinstance(right, np.ndarray) else (
        "one operand must be a constant matrix, on the right, for the device")
    b.emit(n, "onnx_matmul", [("a", left), ("b", right)], n.outputs, reason=reason)


@converts("Gemm", 6, 7, 9, 11, 13)
def _gemm(b: Builder, n: OnnxNode) -> None:
    a, w, c = (b.ref(n.input(i)) for i in range(3))
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    transposed = bool(n.get("transB", 0))
    if (not isinstance(a, str) or not isinstance(w, np.ndarray) or isinstance(c, str) or w.ndim != 2
            or not w.size or (c is not None and c.size not in (1, w.shape[0 if transposed else 1]))
            or (c is not None and c.ndim > 1 and c.shape[-1] != c.size) or w.dtype.kind != "f"):
        b.emit(n, "onnx_gemm", [("a", a), ("b", w), ("c", c)], n.outputs, reason=_NOT_CONSTANT,
               alpha=alpha, beta=beta, transpose_a=bool(n.get("transA", 0)),
               transpose_b=transposed)
        return
    x = n.input(0)
    if n.get("transA", 0):
        if len(b.shape(x)) != 2:
            raise ModelError(f"input of {n} must have 2 axes, not {len(b.shape(x))}")
        turned = b.fresh(f"{x}:transposed")
        b.move(replace(n, inputs=(x,), outputs=(turned,)), "transpose", axes=[1, 0])
        x = turned
    kind = w.dtype.type
    weight = kind(alpha) * (w if transposed else w.T)
    integers = b.integers.get(n.input(1))
    if integers is not None and alpha > 0:
        values, scale = integers.values, integers.scale
        if not transposed:
            values, scale = values.T, scale.T
        integers = replace(integers, values=values, scale=scale * np.float32(alpha))
    else:
        integers = None
    if c is not None:
        c = np.broadcast_to(kind(beta) * c.reshape(-1), len(weight))
    _product(b, n, x, np.ascontiguousarray(weight), integers,
             n.input(2) if beta == 1 else "", c)


@converts("Conv", 1, 11, 22)
def _conv(b: Builder, n: OnnxNode) -> None:
    x, w, bias = (b.ref(n.input(i)) for i in range(3))
    shape = b.shape(n.input(1))
    window = read_window(b, n, shape[2:])
    _check_channels(b, n, window, shape)
    result = _map_shape(b, n, window, shape)
    if not isinstance(x, str) or not isinstance(w, np.ndarray) or isinstance(bias, str):
        b.emit(n, "onnx_conv", [("x", x), ("weight", w), ("bias", bias)], n.outputs,
               reason=_NOT_CONSTANT, result_shape=result if isinstance(x, str) else None,
               **window.attributes)
        return
    if bias is not None and bias.shape != (len(w),):
        raise ModelError(f"bias of {n} must have shape ({len(w)},), not {bias.shape}")
    _check_finite(n, w, bias)
    integers = b.integers.get(n.input(1))
    source = _source(b, n.input(0), integers, n)
    scale = _row_scale(integers) if source and integers else None
    rank = len(window.kernel)
    if source is None or integers is None or scale is None or rank > 2:
        reason = ""
        if rank > 2:
            reason = f"the device convolves maps of 1 or 2 axes, not {rank}"
        elif source is not None:
            reason = "the device needs one scale of the weights for each output channel"
        b.emit(n, "float_conv", [("x", x)], n.outputs, reason=reason, result_shape=result,
               weight=w, bias=bias, **window.attributes)
        return
    scale = np.float64(source.scale) * scale
    whole, real = _bias(b, n.input(2), bias, scale)
    sums = b.fresh(f"{n.outputs[0]}:sums")
    conv_sums(b, n, source, window, integers.values, sums, whole)
    b.emit(n, "scale_sums", [("sums", sums)], n.outputs, scale=scale, bias=real, axis=1)


def _check_channels(b: Builder, n: OnnxNode, window: Window, weight: Sequence[int]) -> None:
    channels = b.shape(n.input(0))[1]
    if weight[1] * window.groups != channels or weight[0] % window.groups or not weight[0]:
        raise ModelError(f"weights of {n} must be for {channels} channels in {window.groups} "
                         f"groups, not {list(weight)}")


def _map_shape(b: Builder, n: OnnxNode, window: Window, weight: Sequence[int]) -> list[int]:
    shape = b.shape(n.input(0))
    rank = len(window.kernel)
    places = [
        (shape[2 + i] + window.pads[i] + window.pads[rank + i]
         - (window.kernel[i] - 1) * window.dilations[i] - 1) // window.strides[i] + 1
        for i in range(rank)]
    padded = [s + window.pads[i] + window.pads[rank + i] for i, s in enumerate(shape[2:])]
    check_size(f"padded map of {n}", [*shape[:2], *padded])
    return [shape[0], weight[0], *places]
