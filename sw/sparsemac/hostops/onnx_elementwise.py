# SPDX-License-Identifier: Apache-2.0
"""Host operations of ONNX that work on each number alone; see `sparsemac.hostops.onnx`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .registry import operation

__all__ = ["onnx_activation", "onnx_clip", "onnx_elementwise", "onnx_leaky_relu", "onnx_where"]

_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _softplus(x: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _error_function(x: NDArray[Any]) -> NDArray[Any]:
    """The error function, rounded from float64."""
    return np.asarray(_erf(x.astype(np.float64)), np.float64).astype(x.dtype)


def _divide(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if a.dtype.kind == "f":
        return a / b
    if not np.all(b):
        raise ValueError("divisors must not be zero in integers")
    quotient = np.abs(a) // np.abs(b)  # toward zero, as ONNX has it
    return (quotient * np.sign(a) * np.sign(b)).astype(a.dtype)


def _remainder(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if a.dtype.kind != "f" and not np.all(b):
        raise ValueError("divisors must not be zero in integers")
    return np.mod(a, b)


_UNARY: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh,
    "atan": np.arctan, "atanh": np.arctanh, "ceil": np.ceil, "cos": np.cos, "cosh": np.cosh,
    "erf": _error_function, "exp": np.exp, "floor": np.floor,
    "hardswish": lambda x: x * np.clip(x / x.dtype.type(6) + x.dtype.type(0.5), 0, 1),
    "isnan": np.isnan, "log": np.log, "mish": lambda x: x * np.tanh(_softplus(x)),
    "neg": np.negative, "not": np.logical_not, "reciprocal": lambda x: x.dtype.type(1) / x,
    "relu": lambda x: np.maximum(x, x.dtype.type(0)), "round": np.rint, "sigmoid": _sigmoid,
    "sign": np.sign, "sin": np.sin, "sinh": np.sinh, "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)), "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add, "and": np.logical_and, "div": _divide, "equal": np.equal, "fmod": np.fmod,
    "greater": np.greater, "greaterorequal": np.greater_equal, "less": np.less,
    "lessorequal": np.less_equal, "max": np.maximum, "min": np.minimum, "mod": _remainder,
    "mul": np.multiply, "or": np.logical_or,
    "pow": lambda a, b: np.power(a, b.astype(np.result_type(a, b))).astype(a.dtype),
    "prelu": lambda a, b: np.where(a < 0, a * b, a), "sub": np.subtract, "xor": np.logical_xor,
}


@operation
def onnx_elementwise(
    a: NDArray[Any], b: NDArray[Any] | None = None, *, function: str
) -> NDArray[Any]:
    """Applies a function of one or of two numbers; two arrays are broadcast.

    ``function`` is the name of ONNX's operator in lower case. Integers divide toward zero.
    """
    table, arrays = (_UNARY, [a]) if b is None else (_BINARY, [a, b])
    if function not in table:
        raise ValueError(f"function must be one of {', '.join(sorted(table))}, not {function!r}")
    if b is not None and function != "pow" and a.dtype != b.dtype:
        raise TypeError(f"both arrays must be of one type, not {a.dtype} and {b.dtype}")
    y = np.asarray(table[function](*arrays))
    return y if y.dtype.kind == "b" else y.astype(a.dtype, copy=False)


def _gelu(x: NDArray[Any], tanh: bool) -> NDArray[Any]:
    kind = x.dtype.type
    if tanh:
        inner = kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x * x * x)
        return kind(0.5) * x * (1 + np.tanh(inner))
    return kind(0.5) * x * (1 + _error_function(x * kind(math.sqrt(0.5))))


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "celu": lambda x, alpha: np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0),
    "elu": lambda x, alpha: np.where(x < 0, alpha * np.expm1(x), x),
    "gelu": lambda x, tanh: _gelu(x, bool(tanh)),
    "hardsigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "selu": lambda x, alpha, gamma: gamma * np.where(x > 0, x, alpha * np.expm1(x)),
    "shrink": lambda x, bias, lambd: np.where(
        x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)),
    "swish": lambda x, alpha: x * _sigmoid(alpha * x),
    "thresholdedrelu": lambda x, alpha: np.where(x > alpha, x, 0),
}


@operation
def onnx_activation(x: NDArray[Any], *, function: str, **parameters: float) -> NDArray[Any]:
    """Applies an activation that has parameters.

    ``function`` is celu, elu, gelu, hardsigmoid, selu, shrink, swish or thresholdedrelu; its
    parameters are ONNX's attributes.
    """
    if function not in _ACTIVATIONS:
        raise ValueError(
            f"function must be one of {', '.join(_ACTIVATIONS)}, not {function!r}")
    given = {name: x.dtype.type(value) for name, value in parameters.items()}
    return np.asarray(_ACTIVATIONS[function](x, **given)).astype(x.dtype, copy=False)


@operation
def onnx_where(condition: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Picks from ``a`` where the condition holds, else from ``b``; all are broadcast."""
    if a.dtype != b.dtype or condition.dtype != np.bool_:
        raise TypeError(f"condition must be bool and both arrays of one type, not "
                        f"{condition.dtype}, {a.dtype} and {b.dtype}")
    return np.where(condition, a, b)


@operation
def onnx_leaky_relu(x: NDArray[Any], *, alpha: float) -> NDArray[Any]:
    """Multiplies what is negative by ``alpha``."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@operation
def onnx_clip(
    x: NDArray[Any], low: NDArray[Any] | None = None, high: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Clips; a bound that is None does not bound."""
    y = x if low is None else np.maximum(x, low)
    return y if high is None else np.minimum(y, high)
