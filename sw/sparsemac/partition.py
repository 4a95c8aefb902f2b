# SPDX-License-Identifier: Apache-2.0
"""Cuts a graph into stages: host operations one by one, and layers that take one doorbell.

Device and host take turns by *level*: a value has an even level if the host makes it, an odd one if
the device does, and what needs a value of the other side is a level above it. All layers of a level
run together. A layer *joins* the one whose output it reads, directly or through operations that
only move elements (flattening a map for a fully connected layer): then nothing of it passes the
host.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .commands import OutputMode
from .conv import ConvLayer
from .graph import Graph, Layer, Node
from .hostops import HostOperationError, run_operation
from .segment import Segment, Use

__all__ = ["DeviceStage", "HostStage", "Port", "Stage", "columns_of", "partition"]

#: Host operations that only move elements.
MOVES = frozenset({
    "flatten", "onnx_identity", "onnx_squeeze", "onnx_unsqueeze", "reshape", "transpose",
})


@dataclass(frozen=True, slots=True)
class Port:
    """A value that passes between host and device, and the layer that reads or writes it."""

    value: str
    layer: Layer

    def to_device(self, x: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turns the value into what `sparsemac.driver.Core.run` takes."""
        if isinstance(self.layer, ConvLayer):
            g, planes = self.layer.geometry, self.layer.to_planes(x).transpose(1, 2, 3, 0)
            # A map of one row and one column is a vector.
            return planes if g.height * g.width > 1 else planes[:, 0, 0]
        return x.reshape(-1, x.shape[-1]).T

    def from_device(
        self, y: NDArray[np.generic], shape: tuple[int, ...]
    ) -> NDArray[np.generic]:
        """Turns an output of `sparsemac.driver.Core.run` into the value.

        ``shape`` is that of the value, for some batch.
        """
        if isinstance(self.layer, ConvLayer):
            g = self.layer.geometry
            y = y.reshape(self.layer.outputs, g.out_height, g.out_width, -1)
            return self.layer.from_planes(y.transpose(3, 0, 1, 2))
        y = np.ascontiguousarray(y.T)
        return y.reshape(-1, *shape[1:]) if len(shape) > 1 else y.reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class HostStage:
    """One host operation, or a layer that the core cannot run."""

    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStage:
    """Layers of one doorbell.

    Attributes
    ----------
    nodes : tuple of Node       The layers, one for each use of the segment.
    moves : tuple of Node       Operations between them that cost nothing.
    segment : Segment
    inputs, outputs : tuple of Port    One for each input and output of the segment.
    """

    nodes: tuple[Node, ...]
    moves: tuple[Node, ...]
    segment: Segment
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


Stage = HostStage | DeviceStage


@dataclass(frozen=True, slots=True, eq=False)
class _Join:
    """How a layer reads the output of another: through ``moves``, in an order of elements."""

    value: str
    moves: tuple[Node, ...]
    order: NDArray[np.int64] | None


def columns_of(graph: Graph, node: Node) -> int | None:
    """Returns the columns that a layer's node has, None if that shows only in a run."""
    shape = graph.values[node.inputs[0]].shape
    if shape is None:
        return None
    return shape[0] if isinstance(node.layer, ConvLayer) else prod(shape[:-1])


def partition(
    graph: Graph, *, on_host: Collection[str] = (), apart: Collection[str] = ()
) -> tuple[Stage, ...]:
    """Returns the stages of a graph in an order in which they can run.

    Parameters
    ----------
    graph : Graph
    on_host : names of nodes    Layers that the host computes.
    apart : names of nodes      Layers that have a doorbell of their own.
    """
    while True:
        try:
            return _Partition(graph, frozenset(on_host), frozenset(apart)).stages()
        except _Clash as clash:
            apart = {*apart, *clash.names}


class _Clash(Exception):
    """Layers that cannot share a doorbell, e.g. as they want other padding around one map."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        super().__init__()


class _Partition:
    """See `partition`."""

    def __init__(self, graph: Graph, on_host: frozenset[str], apart: frozenset[str]) -> None:
        self._graph, self._apart = graph, apart
        self._device = {n.name for n in graph.nodes if n.layer is not None} - on_host
        self._makers = {name: node for node in graph.nodes for name in node.outputs}
        self._readers = Counter(name for node in graph.nodes for name in node.inputs)
        self._readers.update(graph.outputs)
        self._joins = {node.name: join for node in graph.nodes
                       if node.name in self._device and (join := self._join(node))}
        self._absorbed = {move.name for join in self._joins.values() for move in join.moves}

    # -- which layer joins which ----------------------------------------------------------------

    def _join(self, node: Node) -> _Join | None:
        if node.name in self._apart:
            return None
        value, moves = node.inputs[0], []
        maker = self._makers.get(value)
        while maker is not None and maker.operation in MOVES and len(maker.inputs) == 1:
            if self._readers[value] > 1:
                return None
            moves.append(maker)
            value = maker.inputs[0]
            maker = self._makers.get(value)
        if maker is None or maker.name not in self._device or maker.name in self._apart:
            return None
        columns = columns_of(self._graph, node)
        if columns is None or columns != columns_of(self._graph, maker):
            return None
        if _raw(maker.layer):
            return None
        elements = self._elements(maker, node, moves[::-1], columns)
        if elements is None:
            return None
        straight = bool((elements == np.arange(len(elements))).all())
        if isinstance(node.layer, ConvLayer):
            g = node.layer.geometry
            if not straight or _map(maker.layer) != (g.channels, g.height, g.width):
                return None
        return _Join(value, tuple(moves[::-1]), None if straight else elements)

    def _elements(
        self, maker: Node, reader: Node, moves: list[Node], columns: int
    ) -> NDArray[np.int64] | None:
        """Which element of a sample of the maker's output is each of the reader's inputs.

        Numbers are sent through the moves. Elements count by channel, row, column.
        """
        channels, height, width = _map(maker.layer)
        count = channels * height * width
        numbers = np.arange(columns * count)
        shape = self._graph.values[maker.outputs[0]].shape
        if isinstance(maker.layer, ConvLayer):
            numbers = maker.layer.from_planes(numbers.reshape(columns, channels, height, width))
        elif shape is not None:
            numbers = numbers.reshape(shape)
        try:
            for move in moves:
                numbers, = run_operation(move.operation, move.attributes, [numbers], move.name)
        except HostOperationError:
            return None
        if isinstance(reader.layer, ConvLayer):
            if numbers.shape != reader.layer.input_shape(columns):
                return None
            numbers = reader.layer.to_planes(numbers)
        elif numbers.ndim == 0 or prod(numbers.shape[:-1]) != columns:
            return None
        numbers = numbers.reshape(columns, -1)
        if numbers.shape[1] != count:
            return None
        elements = numbers[0]
        alike = numbers == elements + count * np.arange(columns)[:, None]
        return elements if alike.all() else None

    # -- stages ---------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """See `partition`."""
        return tuple(self._in_order(self._levels()))

    def _levels(self) -> dict[str, int]:
        """Level of each node that is not absorbed."""
        of_value = dict.fromkeys(self._graph.inputs, 0)
        levels = {}
        for node in self._graph.nodes:
            if node.name in self._absorbed:
                continue
            if join := self._joins.get(node.name):
                level = of_value[join.value]
            else:
                level = max((of_value[name] for name in node.inputs), default=0)
                if node.name in self._device:
                    level += 2 if level % 2 else 1
                else:
                    level += level % 2
            levels[node.name] = level
            of_value.update(dict.fromkeys(node.outputs, level))
        return levels

    def _in_order(self, levels: Mapping[str, int]) -> Iterator[Stage]:
        nodes = [node for node in self._graph.nodes if node.name in levels]
        for level in sorted(set(levels.values())):
            here = [node for node in nodes if levels[node.name] == level]
            if level % 2 == 0:
                yield from (HostStage(node) for node in here)
                continue
            groups: dict[object, list[Node]] = {}
            for node in here:
                columns = columns_of(self._graph, node)
                alone = node.name in self._apart or columns is None
                groups.setdefault(node.name if alone else columns, []).append(node)
            yield from (self._device_stage(group) for group in groups.values())

    def _device_stage(self, nodes: list[Node]) -> DeviceStage:
        numbers: dict[object, int] = {}

        def number(key: object) -> int:
            return numbers.setdefault(key, len(numbers))

        uses, moves, inputs, inner = [], [], {}, Counter()
        for node in nodes:
            layer = node.layer
            assert layer is not None
            join = self._joins.get(node.name)
            if join is not None:
                source, order = number(join.value), join.order
                moves += join.moves
                inner[join.value] += 1
            else:
                value = node.inputs[0]
                source, order = number((value, *_axes(layer))), None
                inputs.setdefault(source, Port(value, layer))
            uses.append(Use(layer, source, number(node.outputs[0]), order))
        outputs = {
            use.target: Port(node.outputs[0], use.layer)
            for node, use in zip(nodes, uses, strict=True)
            # What nobody reads is an output too: every layer's result can be looked at.
            if inner[node.outputs[0]] < max(1, self._readers[node.outputs[0]])
        }
        try:
            segment = Segment(tuple(uses), tuple(inputs), tuple(outputs))
        except ValueError:
            if len(nodes) == 1:
                raise
            raise _Clash({node.name for node in nodes}) from None
        return DeviceStage(tuple(nodes), tuple(moves), segment, tuple(inputs.values()),
                           tuple(outputs.values()))


def _raw(layer: Layer | None) -> bool:
    linear = layer.linear if isinstance(layer, ConvLayer) else layer
    return linear is not None and linear.mode == OutputMode.RAW


def _map(layer: Layer | None) -> tuple[int, int, int]:
    """Channels, height and width of a layer's output."""
    if isinstance(layer, ConvLayer):
        return layer.outputs, layer.geometry.out_height, layer.geometry.out_width
    assert layer is not None
    return layer.outputs, 1, 1


def _axes(layer: Layer) -> tuple[object, ...]:
    """How a layer's arrays stand; equal for layers that can share an input."""
    if isinstance(layer, ConvLayer):
        return layer.channels_last, layer.one_dimensional
    return ()
