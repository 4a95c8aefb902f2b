# SPDX-License-Identifier: Apache-2.0
"""Whether the samples of a graph along axis 0 stay apart, node by node."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...conv import ConvLayer
from ...graph import Graph, Node, Value

__all__ = ["is_batchable"]

Values = Mapping[str, Value]

#: Operations of one value that work on each element, or on each sample's map.
_FREE = {"clamp", "dequantize", "float_conv", "onnx_activation", "onnx_average_pool",
         "onnx_batch_normalization", "onnx_cast", "onnx_conv", "onnx_conv_integer",
         "onnx_depth_space", "onnx_identity", "onnx_leaky_relu", "onnx_max_pool",
         "onnx_qlinear_conv", "recode"}

#: Operations for which only the first input may carry samples; the others are parameters.
_FIRST_ONLY = {"onnx_batch_normalization", "onnx_clip", "onnx_conv", "onnx_conv_integer",
               "onnx_dequantize_linear", "onnx_gather", "onnx_gemm", "onnx_normalization",
               "onnx_qlinear_conv", "onnx_qlinear_matmul", "onnx_quantize_linear"}


def is_batchable(graph: Graph) -> bool:
    """Returns whether any multiple of the batch can be run, and each sample gives the same."""
    shapes = [graph.values[name].shape for name in graph.inputs]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes if shape}) != 1:
        return False
    carried = set(graph.inputs)
    for node in graph.nodes:
        given = [name in carried for name in node.inputs]
        if not any(given):
            continue
        if not _keeps_apart(node, graph.values, given):
            return False
        carried.update(node.outputs)
    return all(name in carried for name in graph.outputs)


def _keeps_apart(node: Node, values: Values, given: list[bool]) -> bool:
    ranks = [len(values[name].shape or ()) for name in node.inputs]
    if node.layer is not None:
        return isinstance(node.layer, ConvLayer) or ranks[0] > 1
    if node.operation in _FIRST_ONLY and (not given[0] or any(given[1:])):
        return False
    if node.operation in _FREE:
        return True
    rule = _RULES.get(node.operation)
    return rule is not None and rule(node, values, given)


def _shape(node: Node, values: Values, index: int = 0) -> tuple[int, ...]:
    return values[node.inputs[index]].shape or ()


def _spreads(array: Any, rank: int) -> bool:
    """Whether a parameter is the same for all samples of a value with so many axes."""
    shape = np.shape(array)
    return len(shape) < rank or (len(shape) == rank and shape[:1] == (1,))


def _off_axis(name: str) -> Callable[[Node, Values, list[bool]], bool]:
    """A rule: an axis, or some, that must not be the first."""
    def rule(node: Node, values: Values, given: list[bool]) -> bool:
        chosen = node.attributes[name]
        if chosen is None or not all(given):
            return False
        chosen = [chosen] if isinstance(chosen, int) else chosen
        rank = max(len(_shape(node, values)), 1)
        return all(axis % rank for axis in chosen)
    return rule


def _channels(node: Node, values: Values, given: list[bool]) -> bool:
    """Scales along an axis that is not the first, or of one element."""
    rank = len(_shape(node, values))
    scales = node.attributes.get("scale", node.attributes.get("factor"))
    if rank == 0 or scales is None or any(given[1:]):
        return False
    return np.size(scales) == 1 or (
        node.attributes.get("axis", -1) % rank != 0
        and (np.ndim(scales) < 2 or np.shape(scales)[0] == 1))


def _elementwise(node: Node, values: Values, given: list[bool]) -> bool:
    shapes = [_shape(node, values, i) for i in range(len(node.inputs))]
    rank = max(len(shape) for shape in shapes)
    if rank == 0:
        return False
    for shape, carried in zip(shapes, given, strict=True):
        if carried and len(shape) != rank:
            return False
        if not carried and not (len(shape) < rank or shape[0] == 1):
            return False
    return all(_spreads(node.attributes[name], rank) for name in ("a", "b")
               if name in node.attributes)


def _matmul(node: Node, values: Values, given: list[bool]) -> bool:
    ranks = [len(_shape(node, values, i)) for i in range(len(node.inputs))]
    if len(ranks) == 1:
        ranks.append(np.ndim(node.attributes["b"]))
        given = [*given, False]
    if given[0] and given[1]:
        return ranks[0] == ranks[1] >= 3
    if any(given[2:]):
        return False
    lone, other = (ranks[0], ranks[1]) if given[0] else (ranks[1], ranks[0])
    return lone >= (2 if given[0] else 3) and other < max(lone, 3)


def _gemm(node: Node, values: Values, given: list[bool]) -> bool:
    bias = node.attributes.get("c")
    return (not node.attributes["transpose_a"] and len(node.inputs) < 3
            and (bias is None or _spreads(bias, 2)))


def _clip(node: Node, values: Values, given: list[bool]) -> bool:
    return len(_shape(node, values)) > 0


def _reshape(node: Node, values: Values, given: list[bool]) -> bool:
    before, after = _shape(node, values), values[node.outputs[0]].shape or ()
    return (bool(before) and bool(after) and before[0] == after[0]
            and node.attributes["shape"][0] in (-1, 0))


def _qonnx(node: Node, values: Values, given: list[bool]) -> bool:
    return _spreads(node.attributes["scale"], len(_shape(node, values)))


def _normalization(node: Node, values: Values, given: list[bool]) -> bool:
    rank = len(_shape(node, values))
    parameters = [values[name].shape for name in node.inputs[1:]] + [
        np.shape(node.attributes[name]) for name in ("scale", "bias") if name in node.attributes]
    return 0 not in node.attributes["axes"] and all(
        len(shape or ()) < rank for shape in parameters)


def _softmax(node: Node, values: Values, given: list[bool]) -> bool:
    return node.attributes["axis"] % len(_shape(node, values)) != 0


def _gather(node: Node, values: Values, given: list[bool]) -> bool:
    return node.attributes["axis"] != 0


_RULES: dict[str, Callable[[Node, Values, list[bool]], bool]] = {
    "flatten": lambda node, values, given: node.attributes["axis"] == 1,
    "float_linear": lambda node, values, given: len(_shape(node, values)) > 1,
    "onnx_argmax": _off_axis("axis"),
    "onnx_clip": _clip,
    "onnx_concat": _off_axis("axis"),
    "onnx_dequantize_linear": _channels,
    "onnx_elementwise": _elementwise,
    "onnx_gather": _gather,
    "onnx_gemm": _gemm,
    "onnx_matmul": _matmul,
    "onnx_matmul_integer": _matmul,
    "onnx_normalization": _normalization,
    "onnx_pad": lambda node, values, given: not any(node.attributes["pads"][0]),
    "onnx_quantize_linear": _channels,
    "onnx_reduce": _off_axis("axes"),
    "onnx_requantize": _channels,
    "onnx_resize": lambda node, values, given: node.attributes["sizes"][0] == -1,
    "onnx_slice": _off_axis("axes"),
    "onnx_softmax": _softmax,
    "onnx_squeeze": _off_axis("axes"),
    "onnx_tile": lambda node, values, given: node.attributes["repeats"][:1] == [1],
    "onnx_unsqueeze": lambda node, values, given: 0 not in node.attributes["axes"],
    "onnx_where": _elementwise,
    "pad": lambda node, values, given: not any(node.attributes["pads"][0]),
    "qonnx_dequantize": _qonnx,
    "qonnx_quantize": _qonnx,
    "reshape": _reshape,
    "scale_sums": _channels,
    "transpose": lambda node, values, given: node.attributes["axes"][0] == 0,
}
