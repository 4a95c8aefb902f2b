# SPDX-License-Identifier: Apache-2.0
"""Gives layers of sums the rounding that host operations behind them do, where the core's is equal.

What follows a layer's sums up to a quantization is, for each channel, a function of one integer
that never falls (or never rises): scaling, adding a constant, batch normalization, clamps and
rounding are all monotone, in floating point too. Such a function is its steps: for each result, the
least sum that gives it. The core computes ``round(m * (sum + B))`` with integer B and a multiplier
m of 31 bits. The two are equal for all sums that can occur if and only if they are equal on both
sides of each step and at both ends, which is what is checked here, with the core's own arithmetic;
m is looked for between the bounds that the steps put on it, for a few B. If no integer B will do,
weights that leave room in their bits are multiplied, which makes B finer. Otherwise the layer keeps
its sums, and the host operation says why it is one.

The function is that of float32, as the host would compute it, or else that of float64: ONNX does
not say in which order or precision sums of reals are made, and float64 is nearest to what they
mean. The two differ only where float32 rounds a product across a half. What float64 puts exactly on
a half (scales that are powers of two) goes to even, which the core does not do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...commands import OutputMode
from ...conv import ConvLayer
from ...csr import Csr
from ...graph import Graph, Layer, Node, Value
from ...hostops import run_operation
from ...hostops.onnx_integer import integer_limits
from ...layer import LinearLayer
from ...numerics import accumulator_bounds
from .steps import Steps, fixed_point

__all__ = ["round_on_device"]

#: Elements of the largest table of steps; a layer with more keeps its sums.
_LARGEST_TABLE = 1 << 23

#: Operations that end a function of sums, with int8 or uint8.
_ROUNDINGS = ("onnx_quantize_linear", "onnx_requantize", "qonnx_quantize")

#: Monotone functions of two numbers, of which the second is constant.
_MONOTONE = ("add", "sub", "mul", "div", "max", "min")

#: Operations that move int8 values, or choose among them.
_MOVING = ("flatten", "onnx_gather", "onnx_identity", "onnx_max_pool", "onnx_resize", "onnx_slice",
           "onnx_squeeze", "onnx_unsqueeze", "reshape", "transpose")


def round_on_device(
    graph: Graph, nodes: Iterable[Node]
) -> tuple[list[Node], dict[str, Value]]:
    """Returns nodes with rounding layers, and the values between them."""
    nodes, values = list(nodes), dict(graph.values)
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    ranges = _ranges(nodes, values)
    replaced: dict[str, list[Node]] = {}
    for node in nodes:
        if node.layer is None:
            continue
        chain = _chain(node, users, graph)
        if chain:
            _join(node, chain, ranges, values, replaced)
    result = []
    for node in nodes:
        result += replaced.get(node.name, [node])
    return result, values


def _join(
    node: Node, chain: list[Node], ranges: Mapping[str, tuple[int, int]],
    values: dict[str, Value], replaced: dict[str, list[Node]],
) -> None:
    """Joins a layer and what follows, or notes at the last of it why not."""
    last = chain[-1]
    layer, fault = _rounding_layer(node, chain, ranges.get(node.inputs[0], (-128, 127)), values)
    if layer is None:
        replaced[last.name] = [replace(last, reason=fault)]
        return
    linear = layer.linear if isinstance(layer, ConvLayer) else layer
    output = last.outputs[0]
    before = values[output]
    scale = linear.output_scale if before.scale or last.operation == "qonnx_quantize" else 0.0
    if before.dtype == "int8":
        values[output] = replace(before, scale=scale, zero_point=linear.zero_point)
        joined = [replace(node, outputs=(output,), layer=layer)]
    else:
        name = f"{output}:signed"
        while name in values:
            name += "_"
        values[name] = Value(name=name, shape=before.shape, dtype="int8", scale=scale,
                             zero_point=linear.zero_point)
        joined = [replace(node, outputs=(name,), layer=layer),
                  Node(name=f"{node.name}:unsigned", inputs=(name,), outputs=(output,),
                       operation="recode", attributes={"dtype": "uint8"}, source=last.source)]
    replaced[node.name] = joined
    for step in chain:
        replaced[step.name] = []


def _chain(node: Node, users: Mapping[str, list[Node]], graph: Graph) -> list[Node]:
    """The operations from a layer's sums to their rounding; empty if there is none."""
    chain: list[Node] = []
    name = node.outputs[0]
    while True:
        following = users.get(name, [])
        if len(following) != 1 or name in graph.outputs or len(following[0].inputs) != 1:
            return []
        step = following[0]
        chain.append(step)
        if step.operation in _ROUNDINGS:
            return chain if graph.values[step.outputs[0]].dtype in ("int8", "uint8") else []
        if not _is_monotone(step):
            return []
        name = step.outputs[0]


def _is_monotone(step: Node) -> bool:
    if step.operation == "onnx_elementwise":
        return step.attributes["function"] in (*_MONOTONE, "relu", "neg", "floor", "ceil")
    if step.operation == "onnx_leaky_relu":
        return step.attributes["alpha"] >= 0
    if step.operation == "onnx_cast":
        return step.attributes["dtype"] in ("float32", "float64")
    return step.operation in ("clamp", "onnx_batch_normalization", "onnx_clip", "scale_sums")


def _ranges(nodes: Sequence[Node], values: Mapping[str, Value]) -> dict[str, tuple[int, int]]:
    """Lowest and highest integer of int8 values, where quantizing limits them further."""
    known: dict[str, tuple[int, int]] = {}
    for node in nodes:
        if node.operation == "qonnx_quantize" and values[node.outputs[0]].dtype == "int8":
            a = node.attributes
            known[node.outputs[0]] = a["low"] - a["offset"], a["high"] - a["offset"]
        elif node.operation in _MOVING and node.inputs[0] in known:
            known[node.outputs[0]] = known[node.inputs[0]]
    return known


@dataclass(slots=True)
class _Function:
    """What follows a layer's sums, by channel: integers in, int8 out.

    Attributes
    ----------
    sign : (channels,) int64    -1 where the function falls; it is then of the negative sum.
    exact : bool                Computes in float64.
    """

    chain: list[Node]
    rank: int
    axis: int
    sign: NDArray[np.int64]
    unsigned: bool
    exact: bool = False

    def __call__(self, sums: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of (count, channels) sums."""
        x = (sums * self.sign).astype(np.int32)
        shape = [len(x)] + [1] * (self.rank - 1)
        shape[self.axis] = x.shape[1]
        y = x.reshape(shape)
        with np.errstate(all="ignore"):
            for step in self.chain:
                before = y.shape
                attributes = _in_float64(step) if self.exact else step.attributes
                y = run_operation(step.operation, attributes, [y], step.name)[0]
                if y.shape != before:
                    raise ValueError("it must treat all places of the map alike")
        return y.reshape(x.shape).astype(np.int64) - (128 if self.unsigned else 0)


def _in_float64(step: Node) -> dict[str, Any]:
    """Attributes of an operation that make it compute in float64."""
    attributes = {
        name: value.astype(np.float64)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        for name, value in step.attributes.items()}
    if step.operation in ("scale_sums", "onnx_cast"):
        attributes["dtype"] = "float64"
    attributes.pop("precision", None)
    return attributes


def _rounding_layer(
    node: Node, chain: list[Node], limits: tuple[int, int], values: Mapping[str, Value]
) -> tuple[Layer | None, str]:
    """The layer that does all of it, or why there is none."""
    layer = node.layer
    assert layer is not None
    conv = isinstance(layer, ConvLayer)
    linear = layer.linear if isinstance(layer, ConvLayer) else layer
    shape = values[node.outputs[0]].shape or ()
    try:
        low, high, zero_point, scale = _output(chain[-1])
    except ValueError as error:
        return None, f"the core cannot round for it: {error}"
    if len(shape) < 2 or not linear.outputs:
        return None, "the core rounds channels of samples only"
    if linear.outputs * (high - low) > _LARGEST_TABLE:
        return None, f"its rounding was not compared with the core's: {linear.outputs} channels"
    zero = linear.input_zero_point
    reach = min(limits[0], zero), max(limits[1], zero)
    bottom, top = accumulator_bounds(linear.weights, linear.bias, *reach)
    if bottom.min() <= -(1 << 31) or top.max() >= 1 << 31:
        return None, "its sums can leave 32 bits"
    function = _Function(chain, len(shape), 1 if conv else len(shape) - 1,
                         np.ones(linear.outputs, np.int64),
                         values[chain[-1].outputs[0]].dtype == "uint8")
    try:
        ends = function(np.stack([bottom, top]))
        falls = ends[0] > ends[1]
        if falls.any():
            linear = _negated(linear, falls)
            function.sign[falls] = -1
            bottom, top = np.where(falls, -top, bottom), np.where(falls, -bottom, top)
        tables: list[Steps] = []
        wrong = 0
        for factor in _factors(linear):
            for exact in (False, True):
                if len(tables) <= exact:
                    tables.append(Steps.of(replace(function, exact=exact), bottom, top, low, high,
                                           zero_point))
                steps = tables[exact]
                found, left = steps.fit(factor)
                if found is not None and _fits(linear, factor, found[0]):
                    linear = _with_rounding(linear, factor, found, steps, zero_point, scale)
                    return (replace(layer, linear=linear) if isinstance(layer, ConvLayer)
                            else linear), ""
                wrong = wrong or left
    except ValueError as error:
        return None, f"the core cannot round for it: {error}"
    return None, (f"the core rounds otherwise for some sums in {wrong} of {linear.outputs} "
                  f"channels")


def _output(last: Node) -> tuple[int, int, int, float]:
    """Lowest and highest int8 that a rounding gives, its zero point and its scale."""
    a = last.attributes
    if last.operation == "qonnx_quantize":
        offset, scale = a["offset"], a["scale"]
        return (a["low"] - offset, a["high"] - offset, int(a["zero_point"]) - offset,
                float(scale.reshape(-1)[0]) if scale.size == 1 else 1.0)
    low, high = integer_limits(a["dtype"])
    shift = 128 if a["dtype"] == "uint8" else 0
    points = np.unique(np.asarray(a.get("zero_point", 0)).astype(np.int64))
    scales = np.asarray(a.get("scale", 1.0)).reshape(-1)
    if len(points) != 1:
        raise ValueError("its output must have one zero point")
    return (low - shift, high - shift, int(points[0]) - shift,
            float(scales[0]) if len(scales) == 1 else 1.0)


def _negated(linear: LinearLayer, rows: NDArray[np.bool_]) -> LinearLayer:
    """The layer with some rows negated."""
    csr = linear.weights
    data = np.where(rows[csr.rows_of_entries], -csr.data.astype(np.int64), csr.data)
    if data.size and data.max() > (127 if linear.weight_bits == 8 else 7):
        raise ValueError("its lowest weight cannot be negated")
    assert linear.bias is not None
    bias = np.where(rows, -linear.bias.astype(np.int64), linear.bias).astype(np.int32)
    weights = Csr(csr.shape, csr.indptr, csr.indices, data.astype(np.int8))
    return replace(linear, weights=weights, bias=bias)


def _factors(linear: LinearLayer) -> list[int]:
    """What weights can be multiplied by: 1, the most in their bits, the most in 8 bits."""
    largest = int(np.abs(linear.weights.data.astype(np.int64)).max(initial=1))
    room = 7 if linear.weight_bits == 4 else 127
    return sorted({1, max(room // largest, 1), max(127 // largest, 1)})


def _fits(linear: LinearLayer, factor: int, offset: NDArray[np.int64]) -> bool:
    """Whether sums of any int8 inputs, with their bias, fit 32 bits."""
    assert linear.bias is not None
    bottom, top = accumulator_bounds(linear.weights)
    bias = linear.bias.astype(np.int64) * factor + offset
    ends = np.stack([bias, bottom * factor + bias, top * factor + bias])
    return bool((np.abs(ends) < 1 << 31).all())


def _with_rounding(
    linear: LinearLayer, factor: int, found: tuple[NDArray[np.int64], NDArray[np.float64]],
    steps: Steps, zero_point: int, scale: float,
) -> LinearLayer:
    offset, real = found
    multiplier, shift = fixed_point(real)
    assert linear.bias is not None
    csr = linear.weights
    data = csr.data.astype(np.int64) * factor
    bits = linear.weight_bits if np.abs(data).max(initial=0) <= 7 else 8
    return replace(
        linear, weights=Csr(csr.shape, csr.indptr, csr.indices, data.astype(np.int8)),
        weight_bits=bits, bias=(linear.bias.astype(np.int64) * factor + offset).astype(np.int32),
        mode=OutputMode.SINGLE, multiplier=multiplier, shift=shift, zero_point=zero_point,
        low=steps.low, high=steps.high, output_scale=scale)
