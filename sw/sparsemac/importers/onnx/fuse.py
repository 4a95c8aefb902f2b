# SPDX-License-Identifier: Apache-2.0
"""Simplifies an imported graph: drops what is not read, folds constants into layers of reals.

Layers of sums get their rounding in `.rounding`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph import Graph, Node
from .rounding import round_on_device

__all__ = ["optimize"]


def optimize(graph: Graph) -> Graph:
    """Returns a graph with the same inputs and outputs that computes the same integers."""
    nodes = _without_copies(graph, graph.nodes)
    nodes = _used(graph, nodes)
    nodes = _fold_reals(graph, nodes)
    nodes, values = round_on_device(graph, nodes)
    graph = graph.with_nodes(nodes, values)
    nodes = _used(graph, _without_copies(graph, nodes))
    named = {*graph.inputs, *(name for node in nodes for name in node.outputs)}
    return graph.with_nodes(nodes, {k: v for k, v in graph.values.items() if k in named})


def _used(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """Nodes that an output depends on."""
    wanted, kept = set(graph.outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


def _without_copies(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """Drops identities, and a recoding that undoes another."""
    same: dict[str, str] = {}
    recoded: dict[str, str] = {}
    kept = []
    for node in nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        source = node.inputs[0] if node.inputs else ""
        if node.operation == "recode":
            before = recoded.get(source)
            if before is not None and graph.values[before].dtype == node.attributes["dtype"]:
                same[node.outputs[0]] = before
            recoded[node.outputs[0]] = source
        elif node.operation == "onnx_identity":
            same[node.outputs[0]] = source
        kept.append(node)
    return kept


def _users(nodes: Iterable[Node]) -> dict[str, int]:
    count: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            count[name] = count.get(name, 0) + 1
    return count


def _fold_reals(graph: Graph, nodes: list[Node]) -> list[Node]:
    """Takes constants that are added, and batch normalization, into the layer of reals before."""
    users = _users(nodes)
    folded: list[Node] = []
    places: dict[str, int] = {}
    for node in nodes:
        place = places.get(node.inputs[0]) if node.inputs else None
        if (place is not None and users[node.inputs[0]] == 1
                and node.inputs[0] not in graph.outputs):
            whole = _folded(folded[place], node, graph)
            if whole is not None:
                folded[place] = whole
                places[node.outputs[0]] = place
                continue
        if node.operation in ("float_conv", "float_linear"):
            places[node.outputs[0]] = len(folded)
        folded.append(node)
    return folded


def _folded(layer: Node, node: Node, graph: Graph) -> Node | None:
    """A layer of reals that does what follows too; None if it cannot."""
    weight: NDArray[Any] = layer.attributes["weight"]
    outputs, conv = len(weight), layer.operation == "float_conv"
    if len(node.inputs) != 1 or weight.dtype.kind != "f":
        return None
    bias = layer.attributes.get("bias")
    real = np.zeros(outputs) if bias is None else bias.astype(np.float64)
    factor = np.ones(outputs)
    if node.operation == "onnx_elementwise" and node.attributes["function"] == "add":
        added = channel_constant(node.attributes.get("b"), len(graph.values[layer.outputs[0]].shape
                                                               or ()), 1 if conv else -1, outputs)
        if added is None:
            return None
        real = real + added
    elif node.operation == "onnx_batch_normalization" and len(
            graph.values[layer.outputs[0]].shape or ()) == (weight.ndim if conv else 2):
        a = {k: v.astype(np.float64) for k, v in node.attributes.items() if k != "epsilon"}
        if len(a) != 4:
            return None
        factor = a["scale"] / np.sqrt(a["variance"] + node.attributes["epsilon"])
        real = (real - a["mean"]) * factor + a["bias"]
    else:
        return None
    if not (np.isfinite(factor).all() and np.isfinite(real).all()):
        return None
    wide = weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))
    attributes = {**layer.attributes, "weight": wide.astype(weight.dtype),
                  "bias": real.astype(weight.dtype)}
    return replace(layer, outputs=node.outputs, attributes=attributes)


def channel_constant(
    array: Any, rank: int, axis: int, channels: int
) -> NDArray[np.float64] | None:
    """A constant that broadcasts along one axis of a value only, as (channels,); else None."""
    if not isinstance(array, np.ndarray) or array.ndim > rank:
        return None
    shape = [1] * (rank - array.ndim) + list(array.shape)
    size = shape[axis]
    shape[axis] = 1
    if any(s != 1 for s in shape) or size not in (1, channels):
        return None
    return np.array(np.broadcast_to(array.astype(np.float64).reshape(-1), channels))
