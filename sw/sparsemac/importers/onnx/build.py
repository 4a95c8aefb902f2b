# SPDX-License-Identifier: Apache-2.0
"""What converters of ONNX's operators build on: values, constants, and integers behind reals.

A value can have a *twin*: an int8 value of the graph that means the same. Where a real came out of
integers (DequantizeLinear, Quant), or a uint8 out of int8, an operator that only moves elements is
run on the twin, and layers take their input from it; what nobody reads is dropped at the end.
Likewise a constant made of integers remembers them.

An open batch is taken as 1. A constant made of its size (by Shape) is noted, because what uses it
other than to reshape is right for this batch only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...conv import ConvLayer
from ...errors import ModelError
from ...graph import Layer, Node, Value
from ...hostops import run_operation
from ...hostops.onnx_maps import check_size
from .model import OnnxNode

__all__ = ["Builder", "Integers", "Ref", "Twin"]

#: An input of a host operation: a value's name, a constant, or nothing.
Ref = str | NDArray[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """An int8 value behind another one.

    Attributes
    ----------
    name : str
    scale : float, zero_point : int    real = scale * (integer - zero_point); a scale of 0: the
                                       value is uint8, and this one stands 128 lower.
    """

    name: str
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Integers:
    """The integers behind a constant: ``constant = integers * scale``.

    Attributes
    ----------
    values : int64      With their zero point taken off.
    scale : float32     Broadcasts to the integers, with as many axes.
    fault : str         Why they cannot be a layer's weights, if they cannot.
    """

    values: NDArray[np.int64]
    scale: NDArray[Any]
    fault: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class Builder:
    """Collects a graph's nodes; names of ONNX keep their meaning.

    Attributes
    ----------
    of_batch : set      Constants that the size of the batch went into.
    one_batch : bool    Such a constant was used for more than shapes.
    """

    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    twins: dict[str, Twin] = field(default_factory=dict)
    integers: dict[str, Integers] = field(default_factory=dict)
    of_batch: set[str] = field(default_factory=set)
    one_batch: bool = False

    def ref(self, name: str) -> Ref:
        """What an input of an operator refers to."""
        if not name:
            return None
        if name in self.constants:
            return self.constants[name]
        if name not in self.values:
            raise ModelError(f"value {name!r} must be an input, an initializer or made before")
        return name

    def constant(self, name: str, what: str) -> NDArray[Any] | None:
        """A constant input; None if it is absent.

        Raises
        ------
        ModelError    If it is not constant.
        """
        ref = self.ref(name)
        if isinstance(ref, str):
            raise ModelError(f"{what} must be constant, not made by a node or an input: {name!r}")
        return ref

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value or constant."""
        ref = self.ref(name)
        if isinstance(ref, np.ndarray):
            return ref.shape
        shape = self.values[name].shape if ref is not None else None
        if shape is None:
            raise ModelError(f"shape of {name!r} must be known")
        return shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a value or constant."""
        ref = self.ref(name)
        if isinstance(ref, np.ndarray):
            return ref.dtype
        return np.dtype(self.values[name].dtype)

    def fresh(self, name: str) -> str:
        """A name that no value has yet."""
        candidate, i = name, 1
        while candidate in self.values or candidate in self.constants:
            i += 1
            candidate = f"{name}:{i}"
        return candidate

    def emit(
        self, node: OnnxNode, operation: str, inputs: Sequence[tuple[str, Ref]],
        outputs: Sequence[str], reason: str = "", result_shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> None:
        """Adds a host operation, or computes it at once if all that it needs is constant.

        ``inputs`` pairs the operation's parameters with what they get; constants become attributes
        where they stand behind the values, else values of their own. A parameter without a name
        takes no attribute. ``result_shape`` is given for what would take long to try; the result
        is then of the first input's type.
        """
        given = list(inputs)
        while given and given[-1][1] is None:
            given.pop()
        if not any(isinstance(ref, str) for _, ref in given):
            self._fold(node, operation, [ref for _, ref in given], outputs, attributes)
            return
        count = 1 + max(
            i for i, (name, ref) in enumerate(given) if isinstance(ref, str) or not name)
        names = []
        for name, ref in given[:count]:
            if ref is None:
                raise ModelError(f"{node} must have its input {name!r} as it has later ones")
            names.append(ref if isinstance(ref, str) else self._materialize(node, ref))
        extra = {name: ref for name, ref in given[count:] if ref is not None}
        self.add(Node(name=self._node_name(node), inputs=tuple(names), outputs=tuple(outputs),
                      operation=operation, attributes={**attributes, **extra},
                      source=node.kind, reason=reason), result_shape)

    def add(self, node: Node, shape: Sequence[int] | None = None) -> None:
        """Adds a host operation, whose results get the types and shapes that it has of ones."""
        if shape is not None:
            check_size(f"result of {node.name}", shape)
            self._describe(Value(name=node.outputs[0], shape=tuple(shape),
                                 dtype=self.dtype(node.inputs[0]).name))
        else:
            ones = [np.ones(self.shape(name), np.dtype(self.values[name].dtype))
                    for name in node.inputs]
            results = run_operation(node.operation, node.attributes, ones, node.name)
            for name, array in zip(node.outputs, results, strict=False):
                check_size(f"result of {node.name}", array.shape)
                self._describe(Value(name=name, shape=array.shape, dtype=array.dtype.name))
        self.nodes.append(node)

    def add_layer(self, node: OnnxNode, layer: Layer, x: str, output: str) -> None:
        """Adds a layer that turns a value of int8 into sums."""
        shape = self.shape(x)
        if isinstance(layer, ConvLayer):
            result = layer.output_shape(shape[0])
        else:
            result = (*shape[:-1], layer.outputs)
        check_size(f"result of {node}", result)
        self._describe(Value(name=output, shape=result, dtype="int32"))
        self.nodes.append(Node(name=self._node_name(node), inputs=(x,), outputs=(output,),
                               layer=layer, source=node.kind))

    def mean(self, name: str, scale: float, zero_point: int) -> None:
        """Notes what the integers of a value mean."""
        value = self.values[name]
        self.values[name] = Value(name=name, shape=value.shape, dtype=value.dtype, scale=scale,
                                  zero_point=zero_point)

    def as_int8(self, node: OnnxNode, name: str) -> str:
        """The int8 value that a uint8 or int8 value stands for."""
        if self.dtype(name) == np.int8:
            return name
        twin = self.twins.get(name)
        if twin is None or twin.scale:
            twin = Twin(name=self.fresh(f"{name}:int8"))
            self.emit(node, "recode", [("x", name)], [twin.name], dtype="int8")
            self.twins[name] = twin
        return twin.name

    def expand_twin(self, node: OnnxNode, twin: Twin, output: str) -> None:
        """Makes the value that a twin stands for."""
        if twin.scale:
            self.emit(node, "dequantize", [("x", twin.name)], [output], scale=twin.scale,
                      zero_point=twin.zero_point)
            self.mean(twin.name, twin.scale, twin.zero_point)
        else:
            self.emit(node, "recode", [("x", twin.name)], [output], dtype="uint8")
        self.twins[output] = twin

    def move(self, node: OnnxNode, operation: str, **attributes: Any) -> None:
        """Adds an operation that only picks or moves elements of its first input."""
        name, output = node.input(0), node.outputs[0]
        twin = self.twins.get(name)
        if twin is None or name in self.constants:
            self.emit(node, operation, [("x", self.ref(name))], [output], **attributes)
            if name in self.integers:
                self._move_integers(self.integers[name], operation, attributes, output)
            return
        moved = self.fresh(f"{output}:int8")
        self.emit(node, operation, [("x", twin.name)], [moved], **attributes)
        self.expand_twin(node, Twin(name=moved, scale=twin.scale, zero_point=twin.zero_point),
                         output)

    def _move_integers(
        self, integers: Integers, operation: str, attributes: Mapping[str, Any], output: str
    ) -> None:
        values = run_operation(operation, attributes, [integers.values], output)[0]
        scale = integers.scale
        if scale.size == 1:
            scale = scale.reshape([1] * values.ndim)
        elif operation == "transpose":
            scale = scale.transpose(attributes["axes"])
        else:
            return
        self.integers[output] = Integers(values=values, scale=scale, fault=integers.fault)

    def _fold(
        self, node: OnnxNode, operation: str, arrays: Sequence[Any], outputs: Sequence[str],
        attributes: Mapping[str, Any],
    ) -> None:
        with np.errstate(all="ignore"):
            results = run_operation(operation, attributes, arrays, str(node))
        for name, array in zip(outputs, results, strict=False):
            check_size(f"result of {node}", array.shape)
            self.set_constant(name, array)

    def set_constant(self, name: str, array: NDArray[Any]) -> None:
        """Gives a name to a constant."""
        if not name:
            return
        if name in self.values or name in self.constants:
            raise ModelError(f"value {name!r} must be made once")
        self.constants[name] = array

    def materialize(self, node: OnnxNode, name: str) -> None:
        """Turns a constant into a value of the graph under its own name."""
        array = self.constants.pop(name)
        self._add_constant(node, array, name)

    def _materialize(self, node: OnnxNode, array: NDArray[Any]) -> str:
        name = self.fresh(f"{node.name}:constant")
        self._add_constant(node, array, name)
        return name

    def _add_constant(self, node: OnnxNode, array: NDArray[Any], name: str) -> None:
        self.add(Node(name=self._node_name(node), inputs=(), outputs=(name,),
                      operation="onnx_constant", attributes={"value": array}, source=node.kind))

    def _describe(self, value: Value) -> None:
        if not value.name:
            raise ModelError("values that are made must have a name")
        if value.name in self.values or value.name in self.constants:
            raise ModelError(f"value {value.name!r} must be made once")
        self.values[value.name] = value

    def _node_name(self, node: OnnxNode) -> str:
        return f"{node.name}:{len(self.nodes)}"
