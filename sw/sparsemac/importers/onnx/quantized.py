# SPDX-License-Identifier: Apache-2.0
"""Converters of ONNX's and QONNX's operators between reals and integers, and on integers.

QuantizeLinear, DequantizeLinear, the QLinear and Integer operators by ONNX's ``Operators.md``;
Quant by QONNX's ``docs/qonnx-custom-ops/quant_op.md``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...hostops.onnx_integer import ROUNDINGS, spread
from .build import Builder, Integers, Twin
from .layers import SumsInput, conv_sums, linear_sums
from .maps import Window, read_window
from .model import OnnxNode, element_type
from .ops import choice, converts

__all__ = ["weight_integers"]

_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))

_DYNAMIC = ("the device needs constant weights, of one matrix or kernel, and constant scales and "
            "zero points")

_PADS_ARE_MADE = "the device pads with a constant zero point"

#: Bits of the widest integers that QONNX's Quant may make.
_MOST_BITS = 32


def _check_scale(n: OnnxNode, scale: Any) -> None:
    """Refuses constant scales that mean nothing."""
    if not isinstance(scale, np.ndarray):
        return
    if scale.dtype.kind != "f":
        raise ModelError(f"scale of {n} must be real, not {scale.dtype}")
    real = scale.astype(np.float64)
    if not real.size or not (np.isfinite(real) & (real > 0)).all():
        bad = real[~(np.isfinite(real) & (real > 0))]
        raise ModelError(f"scale of {n} must be positive and finite, "
                         f"not {bad.flat[0] if bad.size else 'empty'}")


def _single(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.size == 1


def _number(array: NDArray[Any] | None) -> int:
    return 0 if array is None else int(array.astype(np.int64).reshape(-1)[0])


def _spread_scale(
    scale: NDArray[Any], x: NDArray[Any], axis: int, block_size: int
) -> NDArray[Any]:
    """A scale with as many axes as the integers have."""
    wide = spread(scale, x, axis, block_size)
    return wide.reshape([1] * (x.ndim - wide.ndim) + list(wide.shape))


def weight_integers(values: NDArray[np.int64], scale: NDArray[Any]) -> Integers:
    """Integers with their zero point taken off, and whether a layer can have them as weights."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low >= -128 and high <= 127:
        return Integers(values=values, scale=scale)
    fault = (f"must be -128 to 127 with their zero point taken off, not {low} to {high}: the "
             f"device's weights have zero point 0, so that a pruned one is zero")
    return Integers(values=values, scale=scale, fault=fault)


@converts("QuantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
def _quantize_linear(b: Builder, n: OnnxNode) -> None:
    x, scale, zero = (b.ref(n.input(i)) for i in range(3))
    _check_scale(n, scale)
    chosen = n.get("output_dtype", 0)
    if zero is not None:
        dtype = b.dtype(n.input(2)).name
    else:
        dtype = element_type(chosen, f"result of {n}") if chosen else "uint8"
    attributes: dict[str, Any] = {
        "axis": n.get("axis", 1), "block_size": n.get("block_size", 0), "dtype": dtype}
    if n.get("precision", 0):
        attributes["precision"] = element_type(n.get("precision"), f"precision of {n}")
    twin = b.twins.get(n.input(0))
    plain = isinstance(scale, np.ndarray) and scale.size == 1 and np.dtype(dtype) in _BYTES and (
        zero is None or _single(zero))
    if isinstance(x, str) and plain and isinstance(scale, np.ndarray):
        real = float(scale.astype(np.float32).reshape(-1)[0])
        point = _number(zero if isinstance(zero, np.ndarray) else None)
        point -= 128 if dtype == "uint8" else 0
        if twin is not None and twin.scale == real and twin.zero_point == point:
            # What is quantized was made of the same integers.
            if dtype == "uint8":
                b.expand_twin(n, Twin(name=twin.name), n.outputs[0])
            else:
                b.emit(n, "onnx_identity", [("x", twin.name)], n.outputs)
            return
    b.emit(n, "onnx_quantize_linear", [("x", x), ("scale", scale), ("zero_point", zero)],
           n.outputs, **attributes)
    if isinstance(x, str) and plain and isinstance(scale, np.ndarray):
        b.mean(n.outputs[0], float(scale.reshape(-1)[0]),
               _number(zero if isinstance(zero, np.ndarray) else None))


@converts("DequantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
def _dequantize_linear(b: Builder, n: OnnxNode) -> None:
    x, scale, zero = (b.ref(n.input(i)) for i in range(3))
    _check_scale(n, scale)
    axis, block_size = n.get("axis", 1), n.get("block_size", 0)
    dtype = element_type(n.get("output_dtype"), f"result of {n}") if n.get("output_dtype") else ""
    kind = b.dtype(n.input(0))
    if not (kind.kind in "iu" or kind.name.startswith(("int", "uint"))):
        raise ModelError(f"input of {n} must be integers, not {kind}")
    if zero is not None and b.dtype(n.input(2)) != kind:
        raise ModelError(f"zero point of {n} must be {kind}, not {b.dtype(n.input(2))}")
    if (isinstance(x, str) and kind.name in ("int8", "uint8", "int4", "uint4", "int2", "uint2")
            and isinstance(scale, np.ndarray) and scale.size == 1 and scale.dtype == np.float32
            and (zero is None or _single(zero)) and dtype in ("", "float32")):
        point = _number(zero if isinstance(zero, np.ndarray) else None)
        if kind in _BYTES:
            name = b.as_int8(n, x)
            point -= 128 if kind == np.uint8 else 0
        else:
            name = b.fresh(f"{x}:int8")
            b.emit(n, "onnx_cast", [("x", x)], [name], dtype="int8")
        twin = Twin(name=name, scale=float(scale.reshape(-1)[0]), zero_point=point)
        b.expand_twin(n, twin, n.outputs[0])
        return
    b.emit(n, "onnx_dequantize_linear", [("x", x), ("scale", scale), ("zero_point", zero)],
           n.outputs, axis=axis, block_size=block_size, dtype=dtype)
    if isinstance(x, np.ndarray) and isinstance(scale, np.ndarray) and not isinstance(zero, str):
        values = x.astype(np.int64)
        if zero is not None:
            values = values - spread(zero.astype(np.int64), values, axis, block_size)
        b.integers[n.outputs[0]] = weight_integers(
            values, _spread_scale(scale, values, axis, block_size))


@converts("DynamicQuantizeLinear", 11)
def _dynamic_quantize_linear(b: Builder, n: OnnxNode) -> None:
    outputs = [name or b.fresh(f"{n.name}:unused{i}") for i, name in enumerate(n.outputs)]
    b.emit(n, "onnx_dynamic_quantize_linear", [("x", b.ref(n.input(0)))], outputs)


@converts("Quant", 1)
def _quant(b: Builder, n: OnnxNode) -> None:
    if not 3 < len(n.inputs) < 5 or len(n.outputs) != 1:
        raise ModelError(f"{n} must have 4 inputs and 1 output, not {len(n.inputs)} and "
                         f"{len(n.outputs)}")
    x = b.ref(n.input(0))
    scale, zero, width = (b.constant(n.input(i), f"{what} of {n}") for i, what in
                          enumerate(("scale", "zero point", "bit width"), 1))
    if scale is None or zero is None or width is None or x is None:
        raise ModelError(f"inputs of {n} must all be given")
    if b.dtype(n.input(0)) != np.float32:
        raise ModelError(f"input of {n} must be float32, not {b.dtype(n.input(0))}")
    scale = scale.astype(np.float32)
    _check_scale(n, scale)
    bits = {float(v) for v in width.reshape(-1)}
    if len(bits) != 1 or not 2 <= (count := bits.pop()) <= _MOST_BITS or count != int(count):
        raise ModelError(f"bit width of {n} must be one integer from 2 to {_MOST_BITS}, "
                         f"not {width.reshape(-1)[:4].tolist()}")
    points = {float(v) for v in zero.reshape(-1)}
    if len(points) != 1 or not np.isfinite(point := points.pop()) or point != int(point):
        raise ModelError(f"zero point of {n} must be one integer, "
                         f"not {zero.reshape(-1)[:4].tolist()}")
    low, high = _quant_limits(int(count), bool(n.get("signed")), bool(n.get("narrow")))
    rounding = choice(n, "rounding_mode", "ROUND", tuple(ROUNDINGS)).upper()
    offset = 128 if high > 127 and count <= 8 else 0
    narrow = count <= 8 and -128 <= point - offset <= 127
    made = {"scale": scale, "zero_point": point, "low": low, "high": high, "rounding": rounding,
            "offset": offset if narrow else 0, "dtype": "int8" if narrow else "int64"}
    integers = b.fresh(f"{n.outputs[0]}:int8")
    shape = np.broadcast_shapes(b.shape(n.input(0)), scale.shape)
    if shape != b.shape(n.input(0)):
        raise ModelError(f"scale of {n} must spread over {list(b.shape(n.input(0)))}, "
                         f"not be of {list(scale.shape)}")
    b.emit(n, "qonnx_quantize", [("x", x)], [integers], **made)
    if narrow and scale.size == 1 and isinstance(x, str):
        twin = Twin(name=integers, scale=float(scale.reshape(-1)[0]),
                    zero_point=int(point) - offset)
        b.expand_twin(n, twin, n.outputs[0])
        return
    b.emit(n, "qonnx_dequantize", [("x", b.ref(integers))], n.outputs, scale=scale,
           zero_point=point, offset=made["offset"])
    if isinstance(x, np.ndarray):
        values = b.constants[integers].astype(np.int64) + made["offset"] - int(point)
        wide = scale.reshape([1] * (values.ndim - scale.ndim) + list(scale.shape))
        b.integers[n.outputs[0]] = weight_integers(values, wide)


def _quant_limits(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Lowest and highest integer, as ``min_int`` and ``max_int`` of QONNX have them."""
    if signed:
        return -(1 << bits - 1) + narrow, (1 << bits - 1) - 1
    return 0, (1 << bits) - 1 - narrow


def _byte_input(b: Builder, n: OnnxNode, name: str, zero: Any, scale: float) -> SumsInput:
    """An int8 or uint8 value as a layer takes it."""
    kind = b.dtype(name)
    point = _number(zero) - (128 if kind == np.uint8 else 0)
    return SumsInput(b.as_int8(n, name), scale, point)


def _weights(
    n: OnnxNode, weight: NDArray[Any], zero: NDArray[Any] | None, axis: int
) -> NDArray[np.int64]:
    """Weights less their zero points, of the whole or along an axis.

    Raises
    ------
    ModelError    If the device cannot have them.
    """
    values = weight.astype(np.int64)
    if zero is not None:
        values = values - spread(zero.astype(np.int64), values, axis, 0)
    integers = weight_integers(values, np.ones(1, np.float32))
    if integers.fault:
        raise ModelError(f"weights of {n} {integers.fault}")
    return values


def _on_device(b: Builder, n: OnnxNode, x: int, constants: tuple[int, ...]) -> bool:
    """Whether an operator's input is a value and the others, if given, are constant."""
    return isinstance(b.ref(n.input(x)), str) and b.dtype(n.input(x)) in _BYTES and all(
        not isinstance(b.ref(n.input(i)), str) for i in constants)


def _check_zero(b: Builder, n: OnnxNode, index: int, like: int) -> None:
    if n.input(index) and b.dtype(n.input(index)) != b.dtype(n.input(like)):
        raise ModelError(f"zero point of {n} must be {b.dtype(n.input(like))}, "
                         f"not {b.dtype(n.input(index))}")


def _requantize(
    b: Builder, n: OnnxNode, sums: str, scales: tuple[Any, Any, Any], zero: Any, axis: int
) -> None:
    """Scales sums by ``x_scale * weight_scale / y_scale``, one of them or one for each channel."""
    first, second, out = (np.asarray(s, np.float64).reshape(-1) for s in scales)
    if len(out) != 1 or zero.size != 1:
        raise ModelError(f"scale and zero point of the output of {n} must be one number")
    b.emit(n, "onnx_requantize", [("sums", sums)], n.outputs,
           factor=first * second / out, zero_point=_number(zero), axis=axis,
           dtype=zero.dtype.name)
    b.mean(n.outputs[0], float(out[0]), _number(zero))


@converts("QLinearConv", 10)
def _qlinear_conv(b: Builder, n: OnnxNode) -> None:
    refs = [b.ref(n.input(i)) for i in range(9)]
    for index in (1, 4, 6):
        _check_scale(n, refs[index])
    for index, like in ((2, 0), (5, 3)):
        _check_zero(b, n, index, like)
    window = _window(b, n, 3)
    if (_on_device(b, n, 0, tuple(range(1, 9))) and len(window.kernel) <= 2
            and _single(refs[1]) and _single(refs[2])):
        w, scale, zero, out_zero = refs[3], refs[4], refs[5], refs[7]
        assert isinstance(w, np.ndarray) and isinstance(scale, np.ndarray)
        assert isinstance(refs[1], np.ndarray) and isinstance(zero, np.ndarray)
        if scale.size not in (1, len(w)) or zero.size not in (1, len(w)):
            raise ModelError(f"scales and zero points of the weights of {n} must be 1 or {len(w)}")
        bias = refs[8]
        if isinstance(bias, np.ndarray) and (bias.shape != (len(w),) or bias.dtype != np.int32):
            raise ModelError(f"bias of {n} must be int32 of shape ({len(w)},), not {bias.dtype} "
                             f"of {bias.shape}")
        x = _byte_input(b, n, n.input(0), refs[2], float(refs[1].reshape(-1)[0]))
        sums = b.fresh(f"{n.outputs[0]}:sums")
        conv_sums(b, n, x, window, _weights(n, w, zero.reshape(-1), 0), sums,
                  bias.astype(np.int64) if isinstance(bias, np.ndarray) else None)
        _requantize(b, n, sums, (refs[1], scale, refs[6]), out_zero, 1)
        return
    names = ("x", "x_scale", "x_zero_point", "weight", "weight_scale", "weight_zero_point",
             "y_scale", "y_zero_point", "bias")
    b.emit(n, "onnx_qlinear_conv", list(zip(names, refs, strict=True)), n.outputs,
           reason=_DYNAMIC if len(window.kernel) <= 2 else "the device convolves 1 or 2 axes",
           **window.attributes)


def _window(b: Builder, n: OnnxNode, weight: int) -> Window:
    shape = b.shape(n.input(weight))
    if len(shape) < 3:
        raise ModelError(f"weights of {n} must have at least 3 axes, not {len(shape)}")
    return read_window(b, n, shape[2:])


@converts("QLinearMatMul", 10, 21)
def _qlinear_matmul(b: Builder, n: OnnxNode) -> None:
    refs = [b.ref(n.input(i)) for i in range(8)]
    for index in (1, 4, 6):
        _check_scale(n, refs[index])
    for index, like in ((2, 0), (5, 3)):
        _check_zero(b, n, index, like)
    w = refs[3]
    if (_on_device(b, n, 0, tuple(range(1, 8))) and isinstance(w, np.ndarray) and w.ndim == 2
            and w.size and _single(refs[1]) and _single(refs[2])):
        scale, zero = refs[4], refs[5]
        assert isinstance(refs[1], np.ndarray) and isinstance(zero, np.ndarray)
        assert isinstance(scale, np.ndarray)
        columns = w.shape[1]
        if scale.size not in (1, columns) or zero.size not in (1, columns):
            raise ModelError(f"scales and zero points of the weights of {n} must be 1 or {columns}")
        x = _byte_input(b, n, n.input(0), refs[2], float(refs[1].reshape(-1)[0]))
        sums = b.fresh(f"{n.outputs[0]}:sums")
        linear_sums(b, n, x, _weights(n, w, zero.reshape(-1), 1).T, sums)
        _requantize(b, n, sums, (refs[1], scale, refs[6]), refs[7], -1)
        return
    names = ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale",
             "y_zero_point")
    b.emit(n, "onnx_qlinear_matmul", list(zip(names, refs, strict=True)), n.outputs,
           reason=_DYNAMIC)


@converts("MatMulInteger", 10)
def _matmul_integer(b: Builder, n: OnnxNode) -> None:
    a, w, a_zero, w_zero = (b.ref(n.input(i)) for i in range(4))
    _check_zero(b, n, 2, 0)
    _check_zero(b, n, 3, 1)
    single = a_zero is None or int(np.prod(b.shape(n.input(2)), dtype=np.int64)) == 1
    if (_on_device(b, n, 0, (1, 3)) and isinstance(w, np.ndarray) and w.ndim == 2 and w.size
            and not isinstance(w_zero, str) and single):
        weights = _weights(n, w, w_zero.reshape(-1) if w_zero is not None else None, 1).T
        sums = _integer_output(b, n, a_zero)
        x = _byte_input(b, n, n.input(0), None if isinstance(a_zero, str) else a_zero, 1.0)
        if not isinstance(a_zero, str):
            linear_sums(b, n, x, weights, n.outputs[0])
            return
        linear_sums(b, n, x, weights, sums)
        _take_zero_off(b, n, sums, weights.sum(1))
        return
    b.emit(n, "onnx_matmul_integer",
           [("a", a), ("b", w), ("a_zero_point", a_zero), ("b_zero_point", w_zero)], n.outputs,
           reason=_DYNAMIC)


def _integer_output(b: Builder, n: OnnxNode, zero: Any) -> str:
    return b.fresh(f"{n.outputs[0]}:sums") if isinstance(zero, str) else n.outputs[0]


def _take_zero_off(
    b: Builder, n: OnnxNode, sums: str, totals: NDArray[np.int64], channels: int = 0
) -> None:
    """Corrects sums for a zero point that is a value: ``sums - zero_point * totals``.

    ``channels`` axes of the map follow the channels.
    """
    wide, part = b.fresh(f"{sums}:zero"), b.fresh(f"{sums}:part")
    b.emit(n, "onnx_cast", [("x", b.ref(n.input(2)))], [wide], dtype="int32")
    b.emit(n, "onnx_elementwise",
           [("a", wide), ("b", totals.astype(np.int32).reshape(-1, *[1] * channels))], [part],
           function="mul")
    b.emit(n, "onnx_elementwise", [("a", sums), ("b", part)], n.outputs, function="sub")


@converts("ConvInteger", 10)
def _conv_integer(b: Builder, n: OnnxNode) -> None:
    x, w, x_zero, w_zero = (b.ref(n.input(i)) for i in range(4))
    _check_zero(b, n, 2, 0)
    _check_zero(b, n, 3, 1)
    window = _window(b, n, 1)
    dynamic = isinstance(x_zero, str)
    single = x_zero is None or int(np.prod(b.shape(n.input(2)), dtype=np.int64)) == 1
    if (_on_device(b, n, 0, (1, 3)) and isinstance(w, np.ndarray) and len(window.kernel) <= 2
            and single and not isinstance(w_zero, str) and not (dynamic and any(window.pads))):
        weights = _weights(n, w, w_zero.reshape(-1) if w_zero is not None else None, 0)
        source = _byte_input(b, n, n.input(0), None if dynamic else x_zero, 1.0)
        sums = _integer_output(b, n, x_zero)
        conv_sums(b, n, source, window, weights, sums)
        if dynamic:
            _take_zero_off(b, n, sums, weights.reshape(len(weights), -1).sum(1),
                           len(window.kernel))
        return
    b.emit(n, "onnx_conv_integer",
           [("x", x), ("weight", w), ("x_zero_point", x_zero), ("weight_zero_point", w_zero)],
           n.outputs, reason=_PADS_ARE_MADE if dynamic and any(window.pads) else _DYNAMIC,
           **window.attributes)
