# SPDX-License-Identifier: Apache-2.0
"""A network as a graph: layers for the device, host operations around them.

Importers make one, the compiler cuts it into runs of device layers, `run_golden` computes it. A
value is an array with a name. A node makes values of values: either with a *layer*, which a device
can run, or with a *host operation*, a NumPy function of `sparsemac.hostops`, whose parameters are
the node's attributes. All functions take their sizes from the arrays, so that a graph whose
``batchable`` is set runs any multiple of the batch that it was made for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import golden
from .conv import ConvLayer
from .hostops import OPERATIONS, run_operation
from .layer import LinearLayer

__all__ = ["Graph", "Layer", "Node", "Value", "run_golden", "run_node"]

Layer = LinearLayer | ConvLayer

#: Called with a node and its outputs.
Watch = Callable[["Node", tuple[NDArray[Any], ...]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One array of a graph.

    Attributes
    ----------
    name : str
    shape : tuple of int or None    None: not known before a run.  Axis 0 is the batch if the graph
                                    is batchable.
    dtype : str                     Of NumPy.
    scale : float, zero_point : int   What integers mean: real = scale * (integer - zero_point);
                                    scale 0 if they mean themselves.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One step.

    Attributes
    ----------
    name : str
    inputs, outputs : tuple of str    Names of values.
    layer : LinearLayer or ConvLayer  One int8 input, one output. A LinearLayer works on the last
                                      axis. None: a host operation.
    operation : str                   Name of a host operation; empty with a layer.
    attributes : dict                 Its parameters: what JSON can hold, and NumPy arrays.
    source : str                      What the node was in the file that it came from.
    reason : str                      Of a host operation that looks like work for the device: why
                                      it runs on the host.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: Layer | None = None
    operation: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.layer is not None and (len(self.inputs), len(self.outputs)) != (1, 1):
            raise ValueError(f"layer {self.name} must have one input and one output")
        if self.layer is None and self.operation not in OPERATIONS:
            raise ValueError(f"host operation of {self.name} must be known, not {self.operation!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A network; nodes stand in an order in which they can run.

    Attributes
    ----------
    name : str
    values : dict of Value            All of them by name.
    inputs, outputs : tuple of str
    nodes : tuple of Node
    batchable : bool                  Samples along axis 0 do not see one another.
    """

    name: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    batchable: bool = False

    def __post_init__(self) -> None:
        known = set(self.inputs)
        for node in self.nodes:
            for name in node.inputs:
                if name not in known:
                    raise ValueError(f"input {name!r} of {node.name} must be made by a node before")
            for name in node.outputs:
                if name in known:
                    raise ValueError(f"value {name!r} must be made once, not by {node.name} again")
                known.add(name)
        for name in (*self.outputs, *known):
            if name not in known or name not in self.values:
                raise ValueError(f"value {name!r} must be made by a node and described")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in order."""
        return tuple(node.layer for node in self.nodes if node.layer is not None)

    def input_arrays(self, given: Any) -> dict[str, NDArray[Any]]:
        """Checks what a caller gives: one array, or one for each input by name.

        Raises
        ------
        ValueError, TypeError    Naming the input, what it must be and what it is.
        """
        if not isinstance(given, Mapping):
            if len(self.inputs) != 1:
                raise ValueError(
                    f"inputs must be given by name: {', '.join(self.inputs)} of {self.name}")
            given = {self.inputs[0]: given}
        for name in given:
            if name not in self.inputs:
                raise ValueError(f"input must be one of {', '.join(self.inputs)}, not {name!r}")
        arrays = {}
        for name in self.inputs:
            if name not in given:
                raise ValueError(f"input {name!r} of {self.name} must be given")
            arrays[name] = self._input(self.values[name], given[name])
        return arrays

    def _input(self, value: Value, array: Any) -> NDArray[Any]:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{value.name} must be an array, not {type(array).__name__}")
        if array.dtype != np.dtype(value.dtype):
            raise TypeError(f"{value.name} must hold {value.dtype}, not {array.dtype}")
        if value.shape is not None:
            want, got = value.shape, array.shape
            fits = want == got
            if self.batchable and len(want) == len(got) and want:
                fits = want[1:] == got[1:] and got[0] > 0 and got[0] % max(want[0], 1) == 0
            if not fits:
                text = f"(n, {', '.join(map(str, want[1:]))})" if self.batchable else str(want)
                raise ValueError(f"{value.name} must have shape {text}, not {got}")
        return array

    def with_nodes(self, nodes: Sequence[Node], values: Mapping[str, Value]) -> "Graph":
        """Returns a graph of other nodes between the same inputs and outputs."""
        return replace(self, nodes=tuple(nodes), values=dict(values))


def run_node(node: Node, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Computes one node with the golden model."""
    inputs = [arrays[name] for name in node.inputs]
    if isinstance(node.layer, ConvLayer):
        return (golden.run_conv(node.layer, inputs[0]),)
    if node.layer is not None:
        x = inputs[0]
        y = golden.run_layer(node.layer, np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T))
        return (np.ascontiguousarray(y.T).reshape(*x.shape[:-1], node.layer.outputs),)
    return run_operation(node.operation, node.attributes, inputs, node.name)


def run_golden(
    graph: Graph, inputs: Any, *, watch: Watch | None = None
) -> dict[str, NDArray[Any]]:
    """Computes a network on the host, every integer as the device would.

    Parameters
    ----------
    graph : Graph
    inputs : array, or a mapping of names to arrays
    watch : function    Called after each node with its outputs.

    Returns
    -------
    dict of name to array    The graph's outputs.
    """
    arrays = graph.input_arrays(inputs)
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for i, node in enumerate(graph.nodes):
        results = run_node(node, arrays)
        arrays.update(zip(node.outputs, results, strict=True))
        if watch is not None:
            watch(node, results)
        for name in node.inputs:
            if last_use[name] == i and name not in graph.outputs:
                arrays.pop(name, None)
    return {name: arrays[name] for name in graph.outputs}
