# SPDX-License-Identifier: Apache-2.0
"""PyTorch's arithmetic, activations and reductions, as steps of a graph."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .build import Builder, Symbol, array_of
from .table import handles, module

__all__ = ["affine", "elementwise"]


def _operand(b: Builder, side: Any, known: Symbol) -> Symbol | NDArray[Any]:
    """A symbol, or numbers in the type that they have beside ``known``."""
    if isinstance(side, Symbol):
        if side.array.dtype.kind != "f":
            raise b.refuse(f"operands of {side.array.dtype} (only reals can)")
        return side
    array = array_of(side) if hasattr(side, "detach") else np.asarray(side)
    return array if array.dtype.kind == "f" and array.ndim else array.astype(known.array.dtype)


def elementwise(b: Builder, function: str, x: Any, y: Any) -> Symbol:
    """Combines two operands, of which one at least is a symbol, in the type that torch takes."""
    known = x if isinstance(x, Symbol) else y
    left, right = _operand(b, x, known), _operand(b, y, known)
    if function in ("add", "mul", "max", "min") and not isinstance(left, Symbol):
        left, right = right, left
    dtype = np.result_type(*((side.array if isinstance(side, Symbol) else side).dtype
                             for side in (left, right)))
    if not isinstance(left, Symbol):
        left = b.emit("onnx_constant", value=left)
    left = b.cast(left, dtype)
    if isinstance(right, Symbol):
        return b.emit("onnx_elementwise", left, b.cast(right, dtype), function=function)
    return b.emit("onnx_elementwise", left, function=function, b=right.astype(dtype))


def affine(b: Builder, x: Symbol, scale: Any, offset: Any, trailing: int) -> Symbol:
    """Multiplies and adds along the axis before the last ``trailing`` ones."""
    for function, values in (("mul", scale), ("add", offset)):
        if values is not None:
            values = np.asarray(values)
            x = elementwise(b, function, x, values.reshape(*values.shape, *[1] * trailing))
    return x


@handles("add", "iadd")
def _add(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    scaled = other if alpha == 1 else _multiply(b, other, alpha)
    return elementwise(b, "add", input, scaled)


@handles("sub", "isub", "subtract")
def _subtract(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    scaled = other if alpha == 1 else _multiply(b, other, alpha)
    return elementwise(b, "sub", input, scaled)


@handles("mul", "imul", "multiply")
def _multiply(b: Builder, input: Any, other: Any) -> Any:
    if not isinstance(input, Symbol) and not isinstance(other, Symbol):
        return input * other
    return elementwise(b, "mul", input, other)


@handles("div", "truediv", "itruediv", "divide", "true_divide")
def _divide(b: Builder, input: Any, other: Any, *, rounding_mode: str | None = None) -> Symbol:
    if rounding_mode is not None:
        raise b.refuse(f"rounding_mode {rounding_mode!r} (only None can)")
    return elementwise(b, "div", input, other)


@handles("pow")
def _power(b: Builder, input: Any, exponent: Any) -> Symbol:
    return elementwise(b, "pow", input, exponent)


@handles("maximum")
def _maximum(b: Builder, input: Any, other: Any) -> Symbol:
    return elementwise(b, "max", input, other)


@handles("minimum")
def _minimum(b: Builder, input: Any, other: Any) -> Symbol:
    return elementwise(b, "min", input, other)


@handles("matmul", "mm", "bmm")
def _matmul(b: Builder, input: Any, other: Any) -> Symbol:
    if isinstance(input, Symbol) and not isinstance(other, Symbol) and other.ndim == 2:
        return b.layer("float_linear", input, other.T, None)
    reason = "weights of a device are the matrix on the right, and do not depend on inputs"
    return b.emit("onnx_matmul", *b.symbols(input, other), reason=reason)


@handles("addmm")
def _addmm(
    b: Builder, input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1
) -> Symbol:
    if isinstance(input, Symbol) or isinstance(mat2, Symbol) or (alpha, beta) != (1, 1):
        product = _matmul(b, mat1, mat2)
        return _add(b, product if alpha == 1 else _multiply(b, product, alpha), input, alpha=beta)
    if input.ndim > 1 or not isinstance(mat1, Symbol):
        return _add(b, _matmul(b, mat1, mat2), input)
    return b.layer("float_linear", mat1, mat2.T, input.expand(mat2.shape[1]))


# -- activations ----------------------------------------------------------------------------------


def _clamp(b: Builder, x: Symbol, low: float | None, high: float | None) -> Symbol:
    return b.emit("clamp", x, low=-np.inf if low is None else float(low),
                  high=np.inf if high is None else float(high))


@handles("clamp", "clip", "hardtanh")
def _clip(
    b: Builder, input: Symbol, min: Any = None, max: Any = None, inplace: bool = False,
    *, min_val: float | None = None, max_val: float | None = None,
) -> Symbol:
    low, high = (min if min_val is None else min_val), (max if max_val is None else max_val)
    for function, bound in (("max", low), ("min", high)):
        if hasattr(bound, "shape"):
            input = elementwise(b, function, input, bound)
    scalars = [None if hasattr(bound, "shape") else bound for bound in (low, high)]
    return input if scalars == [None, None] else _clamp(b, input, *scalars)


@handles("relu")
def _relu(b: Builder, input: Symbol, inplace: bool = False) -> Symbol:
    return _clamp(b, input, 0, None)


@handles("relu6")
def _relu6(b: Builder, input: Symbol, inplace: bool = False) -> Symbol:
    return _clamp(b, input, 0, 6)


@handles("leaky_relu")
def _leaky_relu(
    b: Builder, input: Symbol, negative_slope: float = 0.01, inplace: bool = False
) -> Symbol:
    return b.emit("onnx_leaky_relu", input, alpha=negative_slope)


@handles("prelu")
def _prelu(b: Builder, input: Symbol, weight: Any) -> Symbol:
    slope = b.numbers("weight", weight)
    trailing = max(input.array.ndim - 2, 0) if slope is not None and slope.size > 1 else 0
    below = affine(b, _clamp(b, input, None, 0), slope, None, trailing)
    return elementwise(b, "add", _clamp(b, input, 0, None), below)


def _unary(b: Builder, input: Symbol, *, function: str) -> Symbol:
    return b.emit("onnx_elementwise", input, function=function)


for _name in ("abs", "ceil", "exp", "floor", "log", "neg", "sigmoid", "sign", "sqrt", "tanh"):
    handles(_name)(functools.partial(_unary, function=_name))


@handles("square")
def _square(b: Builder, input: Symbol) -> Symbol:
    return elementwise(b, "mul", input, input)


@handles("rsqrt")
def _rsqrt(b: Builder, input: Symbol) -> Symbol:
    return elementwise(b, "div", 1.0, _unary(b, input, function="sqrt"))


@handles("reciprocal")
def _reciprocal(b: Builder, input: Symbol) -> Symbol:
    return elementwise(b, "div", 1.0, input)


def _smooth(b: Builder, input: Symbol, inplace: bool = False, *, function: str) -> Symbol:
    return b.emit("float_activation", input, function=function)


for _name in ("hardsigmoid", "hardswish", "logsigmoid", "mish", "selu", "silu", "softsign"):
    handles(_name)(functools.partial(_smooth, function=_name))


@handles("elu")
def _elu(b: Builder, input: Symbol, alpha: float = 1.0, inplace: bool = False) -> Symbol:
    return b.emit("float_activation", input, function="elu", alpha=float(alpha))


@handles("gelu")
def _gelu(b: Builder, input: Symbol, approximate: str = "none") -> Symbol:
    return b.emit("float_activation", input,
                  function="gelu_tanh" if approximate == "tanh" else "gelu")


@handles("softplus")
def _softplus(b: Builder, input: Symbol, beta: float = 1.0, threshold: float = 20.0) -> Symbol:
    scaled = input if beta == 1 else elementwise(b, "mul", input, beta)
    y = b.emit("float_activation", scaled, function="softplus")
    return y if beta == 1 else elementwise(b, "div", y, beta)


def _softmax_axis(b: Builder, dim: int | None, dtype: Any) -> int:
    if dim is None or dtype is not None:
        raise b.refuse("a type of its own" if dtype is not None else "no dim")
    return dim


@handles("softmax")
def _softmax(
    b: Builder, input: Symbol, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Symbol:
    return b.emit("onnx_softmax", input, axis=_softmax_axis(b, dim, dtype))


@handles("log_softmax")
def _log_softmax(
    b: Builder, input: Symbol, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Symbol:
    return b.emit("float_log_softmax", input, axis=_softmax_axis(b, dim, dtype))


@handles("dropout", "alpha_dropout", "dropout1d", "dropout2d", "feature_dropout")
def _dropout(
    b: Builder, input: Symbol, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Symbol:
    if training and p:
        raise b.refuse("training=True: its result is random (self.training, or a module, can)")
    return input


@handles("contiguous", "clone", "detach", "float", "double", "to", "cpu", "identity")
def _identity(b: Builder, input: Symbol, *rest: Any, **more: Any) -> Symbol:
    return input  # where torch has another type, the builder adds what makes it


module("ReLU", "relu")
module("ReLU6", "relu6")
module("Hardtanh", "hardtanh", "min_val", "max_val")
module("LeakyReLU", "leaky_relu", "negative_slope")
module("PReLU", "prelu", "weight")
module("ELU", "elu", "alpha")
module("GELU", "gelu", "approximate")
module("Softplus", "softplus", "beta", "threshold")
module("Softmax", "softmax", "dim")
module("LogSoftmax", "log_softmax", "dim")
module("AlphaDropout Dropout Dropout1d Dropout2d FeatureAlphaDropout Identity", "identity")
for _kind in ("Hardsigmoid", "Hardswish", "LogSigmoid", "Mish", "SELU", "Sigmoid", "SiLU",
              "Softsign", "Tanh"):
    module(_kind, _kind.lower())


# -- reductions -----------------------------------------------------------------------------------


def _reduce(
    b: Builder, input: Symbol, dim: Any = None, keepdim: bool = False, *, dtype: Any = None,
    function: str,
) -> Symbol:
    if dtype is not None:
        raise b.refuse("a type of its own")
    axes = list(dim) if isinstance(dim, (tuple, list)) else [] if dim is None else [dim]
    return b.emit(
        "onnx_reduce", input, function=function, axes=axes or None, keepdims=keepdim)


for _name, _function in (("mean", "mean"), ("sum", "sum"), ("amax", "max"), ("amin", "min")):
    handles(_name)(functools.partial(_reduce, function=_function))


def _extreme(b: Builder, input: Symbol, other: Any = None, *more: Any, function: str) -> Symbol:
    if more or isinstance(other, int) or b.node.kwargs:
        raise b.refuse(f"a dim, since it returns indices too (a{function} can)")
    if other is None:
        return _reduce(b, input, function=function)
    return elementwise(b, function, input, other)


for _name in ("max", "min"):
    handles(_name)(functools.partial(_extreme, function=_name))


@handles("argmax")
def _argmax(b: Builder, input: Symbol, dim: int | None = None, keepdim: bool = False) -> Symbol:
    if dim is not None:
        return b.emit("onnx_argmax", input, axis=dim, keepdims=keepdim)
    flat = b.emit("reshape", input, shape=[-1])
    return b.emit("onnx_argmax", flat, axis=0, keepdims=False)
