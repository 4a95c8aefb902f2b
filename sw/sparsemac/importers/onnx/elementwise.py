# SPDX-License-Identifier: Apache-2.0
"""Converters of ONNX's operators that work on each number alone."""

from dataclasses import replace

import numpy as np

from ...errors import ModelError
from .build import Builder, Ref
from .model import OnnxNode
from .ops import converts

__all__ = ["ACTIVATIONS"]

_UNARY = {
    "Abs": (6, 13), "Acos": (7, 22), "Acosh": (9, 22), "Asin": (7, 22), "Asinh": (9, 22),
    "Atan": (7, 22), "Atanh": (9, 22), "Ceil": (6, 13), "Cos": (7, 22), "Cosh": (9, 22),
    "Erf": (9, 13), "Exp": (6, 13), "Floor": (6, 13), "HardSwish": (14, 22), "IsNaN": (9, 13, 20),
    "Log": (6, 13), "Mish": (18, 22), "Neg": (6, 13), "Not": (1,), "Reciprocal": (6, 13),
    "Relu": (1, 6, 13, 14), "Round": (11, 22), "Sigmoid": (6, 13), "Sign": (9, 13),
    "Sin": (7, 22), "Sinh": (9, 22), "Softplus": (1, 22), "Softsign": (1, 22), "Sqrt": (6, 13),
    "Tan": (7, 22), "Tanh": (6, 13),
}
_BINARY = {
    "Add": (7, 13, 14), "And": (7,), "Div": (7, 13, 14), "Equal": (7, 11, 13, 19),
    "Greater": (7, 9, 13), "GreaterOrEqual": (12, 16), "Less": (7, 9, 13), "LessOrEqual": (12, 16),
    "Mul": (7, 13, 14), "Or": (7,), "PRelu": (7, 9, 16), "Pow": (7, 12, 13, 15),
    "Sub": (7, 13, 14), "Xor": (7,),
}

#: Operators with parameters: versions, and their attributes with defaults.
ACTIVATIONS: dict[str, tuple[tuple[int, ...], dict[str, float]]] = {
    "Celu": ((12, 28), {"alpha": 1.0}),
    "Elu": ((6, 22), {"alpha": 1.0}),
    "HardSigmoid": ((6, 22), {"alpha": 0.2, "beta": 0.5}),
    "Selu": ((6, 22), {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "Shrink": ((9,), {"bias": 0.0, "lambd": 0.5}),
    "Swish": ((24,), {"alpha": 1.0}),
    "ThresholdedRelu": ((10, 22), {"alpha": 1.0}),
}


def _unary(b: Builder, n: OnnxNode) -> None:
    if n.kind == "Relu" and b.dtype(n.input(0)).kind == "f":
        b.emit(n, "clamp", [("x", b.ref(n.input(0)))], n.outputs, low=0.0, high=float("inf"))
        return
    b.emit(n, "onnx_elementwise", [("a", b.ref(n.input(0)))], n.outputs[:1],
           function=n.kind.lower())


def _binary(b: Builder, n: OnnxNode) -> None:
    left, right = b.ref(n.input(0)), b.ref(n.input(1))
    if n.kind in ("Add", "Mul") and isinstance(right, str) and not isinstance(left, str):
        left, right = right, left  # a constant behind becomes an attribute
    b.emit(n, "onnx_elementwise", [("a", left), ("b", right)], n.outputs[:1],
           function=n.kind.lower())


def _binary_6(b: Builder, n: OnnxNode) -> None:
    """Before opset 7 shapes were equal, or the second operand's met the first's at an axis."""
    left, right = b.shape(n.input(0)), b.shape(n.input(1))
    if not n.get("broadcast", 0):
        if left != right:
            raise ModelError(f"operands of {n} must have one shape, not {list(left)} and "
                             f"{list(right)}")
        _binary(b, n)
        return
    at = n.get("axis", len(left) - len(right))
    at = at + len(left) if at < 0 else at
    if not 0 <= at <= len(left) - len(right):
        raise ModelError(f"axis of {n} must be 0 to {len(left) - len(right)}, not {at}")
    name = b.fresh(f"{n.input(1)}:spread")
    b.emit(n, "reshape", [("x", b.ref(n.input(1)))], [name],
           shape=[*right, *[1] * (len(left) - len(right) - at)])
    _binary(b, replace(n, inputs=(n.input(0), name)))


def _activation(b: Builder, n: OnnxNode) -> None:
    parameters = {name: n.get(name, default) for name, default in ACTIVATIONS[n.kind][1].items()}
    b.emit(n, "onnx_activation", [("x", b.ref(n.input(0)))], n.outputs, function=n.kind.lower(),
           **parameters)


for _kind, _versions in _UNARY.items():
    converts(_kind, *_versions)(_unary)
for _kind, _versions in _BINARY.items():
    converts(_kind, *_versions)(_binary)
for _kind in ("Add", "Div", "Mul", "Sub"):
    converts(_kind, 6)(_binary_6)
converts("Pow", 1)(_binary_6)
for _kind, (_versions, _) in ACTIVATIONS.items():
    converts(_kind, *_versions)(_activation)


@converts("PRelu", 6)
def _prelu_6(b: Builder, n: OnnxNode) -> None:
    slope = b.constant(n.input(1), f"slope of {n}")
    rank = len(b.shape(n.input(0)))
    if slope is None or slope.ndim > 1 or rank < 2:
        raise ModelError(f"slope of {n} must be one, or one for each channel")
    b.emit(n, "onnx_elementwise",
           [("a", b.ref(n.input(0))), ("b", slope.reshape(-1, *[1] * (rank - 2)))], n.outputs,
           function="prelu")


@converts("Gelu", 20)
def _gelu(b: Builder, n: OnnxNode) -> None:
    approximate = n.get("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise ModelError(f"approximate of {n} must be none or tanh, not {approximate!r}")
    b.emit(n, "onnx_activation", [("x", b.ref(n.input(0)))], n.outputs, function="gelu",
           tanh=float(approximate == "tanh"))


@converts("Mod", 10, 13, 28)
def _mod(b: Builder, n: OnnxNode) -> None:
    if not n.get("fmod", 0) and b.dtype(n.input(0)).kind == "f":
        raise ModelError(f"fmod of {n} must be 1 for reals, not 0")
    b.emit(n, "onnx_elementwise", [("a", b.ref(n.input(0))), ("b", b.ref(n.input(1)))], n.outputs,
           function="fmod" if n.get("fmod", 0) else "mod")


@converts("Where", 9, 16)
def _where(b: Builder, n: OnnxNode) -> None:
    names = ("condition", "a", "b")
    b.emit(n, "onnx_where", [(name, b.ref(n.input(i))) for i, name in enumerate(names)], n.outputs)


@converts("Max", 6, 8, 12, 13)
@converts("Mean", 6, 8, 13)
@converts("Min", 6, 8, 12, 13)
@converts("Sum", 6, 8, 13)
def _several(b: Builder, n: OnnxNode) -> None:
    function = {"Mean": "add", "Sum": "add"}.get(n.kind, n.kind.lower())
    so_far = b.ref(n.input(0))
    if len(n.inputs) == 1:
        b.emit(n, "onnx_identity", [("x", so_far)], n.outputs)
        return
    for i, name in enumerate(n.inputs[1:], 1):
        last = i == len(n.inputs) - 1 and n.kind != "Mean"
        output = n.outputs[0] if last else b.fresh(f"{n.outputs[0]}:{i}")
        b.emit(n, "onnx_elementwise", [("a", so_far), ("b", b.ref(name))], [output],
               function=function)
        so_far = b.ref(output)
    if n.kind == "Mean":
        count = np.asarray(len(n.inputs), b.dtype(n.input(0)))
        b.emit(n, "onnx_elementwise", [("a", so_far), ("b", count)], n.outputs, function="div")


@converts("LeakyRelu", 6, 16)
def _leaky_relu(b: Builder, n: OnnxNode) -> None:
    b.emit(n, "onnx_leaky_relu", [("x", b.ref(n.input(0)))], n.outputs,
           alpha=n.get("alpha", 0.01))


@converts("Clip", 6)
def _clip_6(b: Builder, n: OnnxNode) -> None:
    dtype = b.dtype(n.input(0))
    low, high = (np.asarray(n.attributes[k], dtype) if k in n.attributes else None
                 for k in ("min", "max"))
    _clip_to(b, n, low, high)


@converts("Clip", 11, 12, 13)
def _clip(b: Builder, n: OnnxNode) -> None:
    _clip_to(b, n, b.ref(n.input(1)), b.ref(n.input(2)))


def _clip_to(b: Builder, n: OnnxNode, low: Ref, high: Ref) -> None:
    dtype = b.dtype(n.input(0))
    for bound in (low, high):
        if isinstance(bound, np.ndarray) and (bound.size != 1 or bound.dtype != dtype):
            raise ModelError(f"bounds of {n} must be one {dtype}, not {bound.dtype} of "
                             f"{list(bound.shape)}")
    if not isinstance(low, str) and not isinstance(high, str) and dtype.kind == "f":
        least = float("-inf") if low is None else float(low.reshape(()))
        most = float("inf") if high is None else float(high.reshape(()))
        if least <= most:
            b.emit(n, "clamp", [("x", b.ref(n.input(0)))], n.outputs, low=least, high=most)
            return
    if low is None and isinstance(high, str):
        low = np.asarray(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min, dtype)
    b.emit(n, "onnx_clip", [("x", b.ref(n.input(0))), ("low", low), ("high", high)], n.outputs)
