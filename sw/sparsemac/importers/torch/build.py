# SPDX-License-Identifier: Apache-2.0
"""Makes a graph of the trace of a PyTorch module, step by step.

Each node of the graph is computed on the example as soon as it is made: shapes and types are those
of the results, and what does not fit is found at the step that made it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...graph import Graph, Node, Value
from ...hostops import run_operation

__all__ = ["Builder", "Symbol", "array_of", "tensors_in"]


def array_of(tensor: Any) -> NDArray[Any]:
    """The numbers of a tensor, in memory of their own."""
    return np.array(tensor.detach().cpu().numpy())


def tensors_in(tree: Any, kind: type) -> list[Any]:
    """What is of a kind in nested tuples, lists and dictionaries, in order."""
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in tensors_in(part, kind)]
    return [tree] if isinstance(tree, kind) else []


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """A value of the graph, with what it is on the example."""

    name: str
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on the example."""
        return self.array.shape


@dataclass(frozen=True, slots=True)
class _Weights:
    """A layer that a batch normalization behind it can be folded into."""

    index: int  # of its node
    input: Symbol
    weight: NDArray[Any]
    bias: NDArray[Any] | None


class Builder:
    """Turns a trace into a graph.

    Parameters
    ----------
    module : torch.nn.Module
    traced : torch.fx.Graph                Of `trace.trace`.
    handler : function of (builder, node)  Returns what runs the node: a function of its arguments,
                                           with symbols and tensors in place of nodes.
    node_type : type                       torch.fx.Node

    Attributes
    ----------
    node : torch.fx.Node      The one at work.
    outputs : list of array   What the graph's outputs are on the example, once it is made.
    """

    def __init__(
        self, module: Any, traced: Any, handler: Callable[["Builder", Any], Callable[..., Any]],
        node_type: type,
    ) -> None:
        self.module = module
        self.node: Any = None
        self.outputs: list[NDArray[Any]] = []
        self._traced = traced
        self._handler = handler
        self._node_type = node_type
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}
        self._env: dict[Any, Any] = {}
        self._folding: dict[str, _Weights] = {}  # by output

    def graph(self, name: str, inputs: tuple[NDArray[Any], ...]) -> Graph:
        """Reads the whole trace; the graph has the shapes of the example."""
        given, names, outputs = list(inputs), [], ()
        for node in self._traced.nodes:
            self.node = node
            if node.op == "placeholder":
                symbol = self._symbol(str(node.target), given.pop(0))
                self._env[node] = symbol
                names.append(symbol.name)
            elif node.op == "output":
                outputs = self._outputs(node.args[0])
            elif node.op == "get_attr":
                self._env[node] = node.meta["value"]
            else:
                self._env[node] = self._result(node)
        if given:
            raise ModelError(
                f"example must be {len(names)} tensors, the inputs of {name}, not {len(inputs)}")
        nodes = self._needed(outputs)
        kept = {*names, *(output for node in nodes for output in node.outputs)}
        values = {name: value for name, value in self._values.items() if name in kept}
        return Graph(name=name, values=values, inputs=tuple(names), outputs=outputs, nodes=nodes)

    def _needed(self, outputs: tuple[str, ...]) -> tuple[Node, ...]:
        """Nodes that the outputs depend on."""
        needed, nodes = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                nodes.append(node)
        return tuple(reversed(nodes))

    def _outputs(self, given: Any) -> tuple[str, ...]:
        names: list[str] = []
        for node in tensors_in(given, self._node_type):
            symbol = self._env[node]
            if not isinstance(symbol, Symbol):
                raise ModelError(
                    f"outputs of {type(self.module).__name__} must depend on the inputs, not be "
                    f"constant as {node} is")
            if symbol.name in names or not any(symbol.name in n.outputs for n in self._nodes):
                symbol = self.emit("onnx_identity", symbol)
            names.append(symbol.name)
            self.outputs.append(symbol.array)
        if not names:
            raise ModelError(f"outputs of {type(self.module).__name__} must be tensors that depend "
                             f"on the inputs, alone or in tuples, lists and dictionaries")
        return tuple(names)

    def _result(self, node: Any) -> Any:
        run = self._handler(self, node)
        try:
            result = run(*self._replaced(node.args), **self._replaced(node.kwargs))
        except ModelError:
            raise
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ModelError(f"{self.where()} cannot be run as it is called: {error}") from error
        if isinstance(result, Symbol):
            return self._as_torch_has_it(result, node.meta["value"])
        return result

    def _replaced(self, tree: Any) -> Any:
        if isinstance(tree, self._node_type):
            return self._env[tree]
        if isinstance(tree, slice):
            return slice(*map(self._replaced, (tree.start, tree.stop, tree.step)))
        if isinstance(tree, Mapping):
            return {key: self._replaced(value) for key, value in tree.items()}
        if isinstance(tree, (tuple, list)):
            return type(tree)(map(self._replaced, tree))
        return tree

    def _as_torch_has_it(self, symbol: Symbol, value: Any) -> Symbol:
        """Checks a result's shape, and gives it the type that it has in torch."""
        if symbol.shape != tuple(value.shape):
            raise ModelError(f"{self.where()} cannot be run as it is called: its result must be of "
                             f"shape {tuple(value.shape)}, not {symbol.shape}")
        dtype = str(value.dtype).removeprefix("torch.")
        both_reals = symbol.array.dtype.kind == "f" and dtype in ("float32", "float64")
        if symbol.array.dtype.name != dtype and not both_reals:
            raise self.refuse(f"results of type {dtype}")
        return self.cast(symbol, dtype)

    # -- what handlers use ------------------------------------------------------------------------

    def where(self) -> str:
        """Names the step at work: its module or function, and where it is called."""
        node = self.node
        if node.op == "output":
            return "output"
        if node.op == "call_module":
            kind = type(self.module.get_submodule(node.target)).__name__
            return f"module {node.target!r} ({kind})"
        name = getattr(node.target, "__name__", node.target)
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        kind = "method" if node.op == "call_method" else "function"
        return f"{kind} {name!r}" + (f" in module {path!r}" if path else "")

    def refuse(self, what: str = "") -> ModelError:
        """The error of a step that cannot be run, or not with something."""
        rule = f" with {what}" if what else ": it is not one of those that can be imported"
        return ModelError(f"{self.where()} cannot be run{rule}")

    def _symbol(self, name: str, array: NDArray[Any]) -> Symbol:
        stem, count = name, 1
        while name in self._values:
            name, count = f"{stem}_{count}", count + 1
        self._values[name] = Value(name=name, shape=array.shape, dtype=array.dtype.name)
        return Symbol(name, array)

    def emit(self, operation: str, *inputs: Symbol, reason: str = "", **attributes: Any) -> Symbol:
        """Adds a host operation and computes it."""
        (array,) = run_operation(
            operation, attributes, [symbol.array for symbol in inputs], self.where())
        named = self.node.target if self.node.op == "call_module" else self.node.name
        output = self._symbol(named, np.asarray(array))
        names = tuple(symbol.name for symbol in inputs)
        self._nodes.append(Node(
            name=output.name, inputs=names, outputs=(output.name,), operation=operation,
            attributes=attributes, source=self.where(), reason=reason))
        return output

    def symbols(self, *operands: Any) -> list[Symbol]:
        """Makes values of tensors among the operands; one operand at least is a symbol."""
        return [side if isinstance(side, Symbol)
                else self.emit("onnx_constant", value=array_of(side)) for side in operands]

    def cast(self, symbol: Symbol, dtype: Any) -> Symbol:
        """The same numbers in another type of reals."""
        name = np.dtype(dtype).name
        return symbol if symbol.array.dtype == name else self.emit("onnx_cast", symbol, dtype=name)

    def numbers(self, name: str, value: Any) -> NDArray[Any] | None:
        """Checks a parameter of a layer: numbers that do not depend on the inputs, all finite."""
        if value is None:
            return None
        if isinstance(value, Symbol):
            raise self.refuse(f"a {name} that depends on the inputs")
        array = array_of(value)
        if array.dtype not in (np.float32, np.float64):
            raise self.refuse(f"a {name} of {array.dtype} (only float32 and float64 can)")
        if not np.isfinite(array).all():
            at = tuple(int(i[0]) for i in np.nonzero(~np.isfinite(array)))
            raise ModelError(f"{name} of {self.where()} must be finite, not {array[at]} at "
                             f"{list(at)}")
        return array

    def layer(
        self, operation: str, x: Symbol, weight: Any, bias: Any, **attributes: Any
    ) -> Symbol:
        """Adds a float layer: ``float_linear`` or ``float_conv``."""
        weight, bias = self.numbers("weight", weight), self.numbers("bias", bias)
        output = self.emit(operation, x, weight=weight, bias=bias, **attributes)
        self._folding[output.name] = _Weights(len(self._nodes) - 1, x, weight, bias)
        return output

    def fold(self, x: Symbol, scale: NDArray[Any], offset: NDArray[Any]) -> Symbol | None:
        """Multiplies the channels of a layer and adds to them in its weights; None if it cannot.

        The layer's result must have no other use, and its channels must be axis 1.
        """
        known = self._folding.get(x.name)
        holders = [node for node, value in self._env.items() if value is x]
        if known is None or any(len(node.users) > 1 for node in holders):
            return None
        node = self._nodes[known.index]
        if node.operation == "float_linear" and x.array.ndim != 2:
            return None
        dtype = known.weight.dtype
        weight = known.weight * scale.reshape(-1, *[1] * (known.weight.ndim - 1))
        bias = offset if known.bias is None else known.bias * scale + offset
        weight, bias = weight.astype(dtype), bias.astype(dtype)
        attributes = {**node.attributes, "weight": weight, "bias": bias}
        (array,) = run_operation(node.operation, attributes, [known.input.array], self.where())
        source = f"{node.source}, {self.where()}"
        self._nodes[known.index] = replace(node, attributes=attributes, source=source)
        self._folding[x.name] = replace(known, weight=weight, bias=bias)
        return Symbol(x.name, array)
