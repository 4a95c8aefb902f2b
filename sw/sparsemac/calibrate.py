# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization of graphs: float layers become layers for the device.

Scheme: as `sparsemac.quantize`, for graphs. Activations take the range that the float network shows
on calibration inputs; each row of weights has a scale of its own and zero point 0, so that a pruned
weight stays exactly zero. int8 flows from layer to layer where nothing between needs reals.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._layer_quantizer import LayerQuantizer, integer_limits
from .csr import weight_range
from .graph import Graph, Node, Value, run_golden
from .quantize import range_to_scale

__all__ = ["quantize_graph"]

#: Samples that are calibrated at a time, where the model lets one choose [count].
_CHUNK = 32

#: Below it float32 loses precision; what has such a range is zero.
_LEAST_SCALE = 1e-30

_NO_LIMITS = (-np.inf, np.inf)

_LAYERS = ("float_conv", "float_linear")

#: Operations that move or choose elements and so are the same for integers in order.
_ORDER_KEEPING = (
    "flatten", "onnx_identity", "onnx_max_pool", "onnx_slice", "onnx_squeeze", "onnx_unsqueeze",
    "reshape", "transpose",
)


def quantize_graph(
    graph: Graph, calibration: Any, *, weight_bits: int = 8, per_channel: bool = True
) -> Graph:
    """Turns each ``float_conv`` and ``float_linear`` into a layer for the device.

    A layer's input is quantized by a host operation unless a layer before gives int8; its output is
    turned into reals where a host operation or the caller needs them. Clamps and ReLU behind a
    layer become the clamp of its output. What rounding the weights does to the mean of each channel
    is taken out of its bias (Nagel et al., "Data-Free Quantization Through Weight Equalization and
    Bias Correction", ICCV 2019, section 4.2, with measured means).

    Parameters
    ----------
    graph : Graph
    calibration : array, or a mapping of names to arrays    Typical inputs. Of a batchable graph any
                           multiple of its batch.
    weight_bits : int      4 or 8.
    per_channel : bool     A scale for each row of the weights, else one for the layer.

    Returns
    -------
    Graph    With the same inputs and outputs; double rounding. A float layer that the device cannot
             run stays as it is, and its node says the reason.

    Raises
    ------
    ValueError    If calibration inputs are not the graph's, or values on the way are not finite.
    """
    weight_range(weight_bits)
    arrays = graph.input_arrays(calibration)
    measured = _measure(graph, arrays)
    rewriter = _Rewriter(graph, measured, weight_bits, per_channel)
    for node in graph.nodes:
        rewriter.add(node)
    rewriter.finish()
    return _with_real_types(graph.with_nodes(rewriter.nodes, rewriter.values), arrays)


@dataclass(slots=True)
class _Measured:
    """What calibration found: ranges of values, and means of layers' inputs.

    Means are kept by value and operation: for a convolution over samples, for a fully connected
    layer over all axes but the last.
    """

    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    mean: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    count: dict[tuple[str, str], int] = field(default_factory=dict)

    def note(self, name: str, array: NDArray[Any]) -> None:
        """Widens the range of a value."""
        if array.dtype.kind != "f" or not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(
                f"values of {name!r} must be finite in calibration, not {low} to {high}")
        self.low[name] = min(low, self.low.get(name, low))
        self.high[name] = max(high, self.high.get(name, high))

    def scale(
        self, name: str, limits: tuple[float, float] = _NO_LIMITS
    ) -> tuple[float, int]:
        """Scale and zero point for the range of a value, behind a clamp to ``limits``."""
        low, high = np.clip((self.low[name], self.high[name]), *limits)
        wide = max(-low, high) > 255 * _LEAST_SCALE
        return range_to_scale(float(low), float(high)) if wide else (1.0, -128)

    def note_mean(self, name: str, array: NDArray[Any], operation: str) -> None:
        """Adds samples to the mean of a layer's input; what has no real elements has none."""
        if not array.size or not array.ndim or array.dtype.kind != "f":
            return
        if operation == "float_linear":
            array = array.reshape(-1, array.shape[-1])
        key = name, operation
        count, more = self.count.get(key, 0), len(array)
        mean = array.mean(0, dtype=np.float64)
        before = self.mean.get(key, np.zeros_like(mean))
        self.mean[key] = before + (mean - before) * (more / (count + more))
        self.count[key] = count + more


def _measure(graph: Graph, arrays: dict[str, NDArray[Any]]) -> _Measured:
    measured = _Measured()
    wanted = {(node.inputs[0], node.operation) for node in graph.nodes
              if node.operation in _LAYERS}

    def note(names: tuple[str, ...], results: Any) -> None:
        for name, array in zip(names, results, strict=True):
            measured.note(name, array)
            for operation in _LAYERS:
                if (name, operation) in wanted:
                    measured.note_mean(name, array, operation)

    for part in _chunks(graph, arrays):
        note(tuple(part), part.values())
        run_golden(graph, part, watch=lambda node, results: note(node.outputs, results))
    return measured


def _chunks(graph: Graph, arrays: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """Cuts inputs along the batch, to bound the memory; all inputs have the same multiple of it."""
    if not graph.batchable:
        yield dict(arrays)
        return
    units = {name: (graph.values[name].shape or (1,))[0] for name in arrays}
    parts = {len(array) // units[name] for name, array in arrays.items()}
    if len(parts) != 1:
        sizes = ", ".join(f"{name}: {len(array)}" for name, array in arrays.items())
        raise ValueError(f"calibration inputs must be of as many samples, not {sizes}")
    step = max(1, _CHUNK // max(units.values()))
    for first in range(0, parts.pop(), step):
        yield {name: array[first * units[name] : (first + step) * units[name]]
               for name, array in arrays.items()}


@dataclass(frozen=True, slots=True)
class _Integers:
    """The int8 form of a real value."""

    name: str
    scale: float
    zero_point: int


class _Rewriter:
    """Builds the nodes of the quantized graph, in order."""

    def __init__(
        self, graph: Graph, measured: _Measured, weight_bits: int, per_channel: bool
    ) -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {name: graph.values[name] for name in graph.inputs}
        self._graph = graph
        self._measured = measured
        self._weight_bits = weight_bits
        self._per_channel = per_channel
        self._integers: dict[str, _Integers] = {}
        self._fused: set[str] = set()  # outputs of activations that a layer's clamp does
        self._users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)

    def add(self, node: Node) -> None:
        """Adds what a node of the float graph becomes."""
        source = self._integers.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if node.operation in _LAYERS:
            self._add_layer(node)
        elif source and node.outputs[0] in self._fused:
            self._integers[node.outputs[0]] = source
        elif source and _activation(node) is not None:
            self._add_clamp(node, source)
        elif source and node.operation in _ORDER_KEEPING and len(node.outputs) == 1:
            name = self._new_integers(node.outputs[0], source.scale, source.zero_point)
            self._emit(replace(node, inputs=(source.name,), outputs=(name,)))
        else:
            self._keep(node)

    def finish(self) -> None:
        """Gives the outputs in the reals that the float graph gave."""
        for name in self._graph.outputs:
            self._need_real(name)

    def _keep(self, node: Node, reason: str = "") -> None:
        for name in node.inputs:
            self._need_real(name)
        for name in node.outputs:
            self.values[name] = self._graph.values[name]
        self._emit(replace(node, reason=reason or node.reason))

    def _emit(self, node: Node) -> None:
        self.nodes.append(node)

    def _unused(self, name: str) -> str:
        while name in self.values or name in self._graph.values:
            name += "_"
        return name

    def _new_integers(self, real: str, scale: float, zero_point: int) -> str:
        """Describes the int8 form of a real value and returns its name."""
        name = self._unused(f"{real}.int8")
        shape = self._graph.values[real].shape
        self.values[name] = Value(
            name=name, shape=shape, dtype="int8", scale=scale, zero_point=zero_point)
        self._integers[real] = _Integers(name, scale, zero_point)
        return name

    def _need_real(self, name: str) -> None:
        """Makes the real form of a value of which there is only the int8 form."""
        if name in self.values:
            return
        source = self._integers[name]
        self.values[name] = replace(self._graph.values[name], dtype="float32")
        self._emit(Node(
            name=f"dequantize {name}", inputs=(source.name,), outputs=(name,),
            operation="dequantize",
            attributes={"scale": source.scale, "zero_point": source.zero_point},
        ))

    def _need_integers(self, name: str) -> _Integers:
        if name not in self._integers:
            scale, zero_point = self._measured.scale(name)
            target = self._new_integers(name, scale, zero_point)
            self._emit(Node(
                name=f"quantize {name}", inputs=(name,), outputs=(target,), operation="quantize",
                attributes={"scale": scale, "zero_point": zero_point},
            ))
        return self._integers[name]

    def _add_clamp(self, node: Node, source: _Integers) -> None:
        limits = _activation(node)
        assert limits is not None
        low, high = integer_limits(limits, source.scale, source.zero_point)
        name = self._new_integers(node.outputs[0], source.scale, source.zero_point)
        self._emit(Node(
            name=node.name, inputs=(source.name,), outputs=(name,), operation="clamp",
            attributes={"low": low, "high": high}, source=node.source,
        ))

    def _add_layer(self, node: Node) -> None:
        before, after = node.inputs[0], node.outputs[0]
        limits, activated = self._activation_behind(after)
        try:
            if (mean := self._measured.mean.get((before, node.operation))) is None:
                raise ValueError("its input must have elements, and real ones")
            if after not in self._measured.low:
                raise ValueError("its output must have elements")
            known = self._integers.get(before)
            scale, zero_point = (
                (known.scale, known.zero_point) if known else self._measured.scale(before))
            layer = LayerQuantizer(
                input_scale=scale, input_zero_point=zero_point, limits=limits,
                output_scale=self._measured.scale(after, limits), mean=mean,
                weight_bits=self._weight_bits, per_channel=self._per_channel,
            ).layer(node)
        except ValueError as error:
            self._keep(node, f"the device cannot run it: {error}")
            return
        source = self._need_integers(before)
        name = self._new_integers(after, *self._measured.scale(after, limits))
        self._emit(Node(name=node.name, inputs=(source.name,), outputs=(name,), layer=layer,
                        source=node.source))
        self._fused.update(activated)

    def _activation_behind(self, name: str) -> tuple[tuple[float, float], tuple[str, ...]]:
        """Limits of the activation behind a value, and the activation's output; else no limits.

        Operations that keep the order of elements may stand between: they commute with a clamp.
        """
        while True:
            users = self._users.get(name, [])
            if len(users) != 1 or name in self._graph.outputs:
                return _NO_LIMITS, ()
            if (limits := _activation(users[0])) is not None:
                return limits, users[0].outputs
            if users[0].operation not in _ORDER_KEEPING or len(users[0].outputs) != 1:
                return _NO_LIMITS, ()
            name = users[0].outputs[0]


def _activation(node: Node) -> tuple[float, float] | None:
    """Lower and upper limit of an operation that is a clamp; None of any other."""
    if len(node.inputs) != 1:
        return None
    if node.operation == "onnx_elementwise" and node.attributes["function"] == "relu":
        return 0.0, np.inf
    if node.operation == "clamp":
        return float(node.attributes["low"]), float(node.attributes["high"])
    if node.operation == "onnx_clip":
        given = (node.attributes.get(name) for name in ("low", "high"))
        low, high = (
            none if bound is None else np.asarray(bound, np.float64)
            for bound, none in zip(given, map(np.float64, _NO_LIMITS), strict=True))
        if low.size == high.size == 1:
            return low.item(), high.item()
    return None


def _with_real_types(graph: Graph, arrays: Mapping[str, NDArray[Any]]) -> Graph:
    """Corrects types of values behind layers: what was float64 is float32 where a layer made it."""
    if all(value.dtype != "float64" for value in graph.values.values()):
        return graph
    values = dict(graph.values)

    def note(node: Node, results: tuple[NDArray[Any], ...]) -> None:
        for name, array in zip(node.outputs, results, strict=True):
            values[name] = replace(values[name], dtype=array.dtype.name)

    run_golden(graph, next(_chunks(graph, arrays)), watch=note)
    return graph.with_nodes(graph.nodes, values)
