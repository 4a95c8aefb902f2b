# SPDX-License-Identifier: Apache-2.0
"""An ONNX file, checked and unpacked: constants as arrays, nodes with the attributes they may have.

Each node carries the version of its operator that the model's opset means, as ONNX's own table of
operators has it: what an operator does is decided by that version, not by the opset.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the names of the small integers
import numpy as np
from numpy.typing import NDArray

from ..._checks import need
from ...errors import ModelError

__all__ = ["STANDARD", "OnnxInput", "OnnxModel", "OnnxNode", "element_type", "read_model"]

#: Names of the standard domain.
STANDARD = ("", "ai.onnx")

#: Newest opset whose operators were read; it added only types to those of opset 25.
NEWEST_OPSET = 28

#: Domains of QONNX's Quant, which all mean the same.
QONNX = ("onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general")

#: NumPy's names of ONNX's element types that can be computed with.
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 21: "uint4", 22: "int4",
    25: "uint2", 26: "int2",
}

#: Attributes of QONNX's operators, with their defaults.
_QONNX_ATTRIBUTES = {"Quant": {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}}

LARGEST_AXIS = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxInput:
    """An input or output; a size is None where the model leaves it open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxNode:
    """One operator; absent inputs and outputs are empty names."""

    name: str
    kind: str
    domain: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.kind})"

    def input(self, index: int) -> str:
        """Name of an input; empty if it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; what is not given is ``default``."""
        return self.attributes.get(name, default)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxModel:
    """What a model holds."""

    name: str
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[OnnxInput, ...]
    constants: dict[str, NDArray[Any]]
    nodes: tuple[OnnxNode, ...]


def element_type(number: int, what: str) -> str:
    """NumPy's name of an ONNX element type."""
    if number not in _TYPES:
        onnx = need("onnx", "onnx", "an ONNX model")
        known = onnx.TensorProto.DataType.items()
        name = next((key for key, value in known if value == number), str(number))
        raise ModelError(f"type of {what} must be a real or an integer, not {name}")
    return _TYPES[number]


def read_model(proto: Any, name: str, folder: Path | None) -> OnnxModel:
    """Unpacks a ModelProto; ``folder`` holds its external data.

    Raises
    ------
    ModelError    Naming what is damaged or unknown.
    """
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain in STANDARD else entry.domain
        opsets[domain] = max(opsets.get(domain, 0), entry.version)
    opset = opsets.get("", 1 if proto.ir_version < 3 else 0)
    _check_opset(opset)
    graph = proto.graph
    if graph.sparse_initializer:
        raise ModelError(f"initializers of {name} must be dense, not sparse")
    if proto.functions:
        raise ModelError(f"{name} must have no functions of its own")
    constants: dict[str, NDArray[Any]] = {}
    for tensor in graph.initializer:
        if tensor.name in constants:
            raise ModelError(f"initializer {tensor.name!r} must be defined once")
        constants[tensor.name] = read_tensor(tensor, f"initializer {tensor.name!r}", folder)
    inputs = tuple(_value(v, "input") for v in graph.input if v.name not in constants)
    outputs = tuple(_value(v, "output") for v in graph.output)
    if not outputs:
        raise ModelError(f"{name} must have outputs")
    nodes = [_node(node, i, opset, folder) for i, node in enumerate(graph.node)]
    return OnnxModel(name=name, inputs=inputs, outputs=outputs, constants=constants,
                     nodes=tuple(_in_order(nodes)))


def _in_order(nodes: list[OnnxNode]) -> list[OnnxNode]:
    """Nodes so that each stands behind those that make its inputs, else as they are.

    ONNX asks for this order, some writers do not keep it. (Kahn, "Topological sorting of large
    networks", CACM 5, 1962.)
    """
    makers = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    needs = [{makers[name] for name in node.inputs if name in makers} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for i, before in enumerate(needs):
        for j in before:
            users[j].append(i)
    ready = [i for i, before in enumerate(needs) if not before]
    heapq.heapify(ready)
    ordered = []
    while ready:
        i = heapq.heappop(ready)
        ordered.append(nodes[i])
        for j in users[i]:
            needs[j].discard(i)
            if not needs[j]:
                heapq.heappush(ready, j)
    if len(ordered) < len(nodes):
        left = next(nodes[i] for i, before in enumerate(needs) if before)
        raise ModelError(f"nodes must have no cycle, but {left} is in or behind one")
    return ordered


def _check_opset(opset: int) -> None:
    onnx = need("onnx", "onnx", "an ONNX model")
    newest = min(NEWEST_OPSET, onnx.defs.onnx_opset_version())
    if not 1 <= opset <= newest:
        near = min(max(opset, 1), newest)
        raise ModelError(
            f"opset must be 1 to {newest}, not {opset} (nearest legal value: {near})")


def _value(proto: Any, kind: str) -> OnnxInput:
    if not proto.name:
        raise ModelError(f"{kind} must have a name")
    if proto.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"{kind} {proto.name!r} must be a tensor, not "
                         f"{proto.type.WhichOneof('value')}")
    tensor = proto.type.tensor_type
    dtype = element_type(tensor.elem_type, f"{kind} {proto.name!r}")
    if not tensor.HasField("shape"):
        return OnnxInput(name=proto.name, dtype=dtype, shape=None)
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
                  for d in tensor.shape.dim)
    if any(size is not None and size > LARGEST_AXIS for size in shape):
        raise ModelError(f"sizes of {kind} {proto.name!r} must be at most {LARGEST_AXIS}")
    return OnnxInput(name=proto.name, dtype=dtype, shape=shape)


def read_tensor(proto: Any, what: str, folder: Path | None) -> NDArray[Any]:
    """Unpacks a TensorProto, reading its external data if it has any."""
    onnx = need("onnx", "onnx", "an ONNX model")
    dtype = element_type(proto.data_type, what)
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        if folder is None:
            raise ModelError(f"{what} must be in the model, not in external data")
        try:
            copy = onnx.TensorProto()
            copy.CopyFrom(proto)
            onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
        except Exception as error:  # the checker's own kinds, which are not documented
            raise ModelError(f"external data of {what} must be readable: {error}") from None
        proto = copy
    total = 1
    for size in proto.dims:
        total *= size
        if size < 0 or total > LARGEST_AXIS:
            raise ModelError(f"sizes of {what} must be 0 or more, and at most {LARGEST_AXIS} "
                             f"elements, not {list(proto.dims)}")
    try:
        array = onnx.numpy_helper.to_array(proto)
    except Exception as error:  # damaged tensors raise many kinds
        raise ModelError(f"{what} must hold {list(proto.dims)} of {dtype}: {error}") from None
    if array.dtype != np.dtype(dtype):
        array = array.astype(np.dtype(dtype))
    return array


def _node(proto: Any, index: int, opset: int, folder: Path | None) -> OnnxNode:
    domain = "" if proto.domain in STANDARD else proto.domain
    name = proto.name or f"{proto.op_type}_{index}"
    node = OnnxNode(name=name, kind=proto.op_type, domain=domain, version=0,
                    inputs=tuple(proto.input), outputs=tuple(proto.output))
    if domain in QONNX and proto.op_type in _QONNX_ATTRIBUTES:
        given = {a.name: _attribute(a, str(node), folder) for a in proto.attribute}
        allowed = _QONNX_ATTRIBUTES[proto.op_type]
        for key in given:
            if key not in allowed:
                raise ModelError(f"attribute of {node} must be one of {', '.join(allowed)}, "
                                 f"not {key!r}")
            if type(given[key]) is not type(allowed[key]):
                raise ModelError(f"attribute {key!r} of {node} must be "
                                 f"{type(allowed[key]).__name__}, not {given[key]!r}")
        return OnnxNode(name=name, kind=node.kind, domain=domain, version=1, inputs=node.inputs,
                        outputs=node.outputs, attributes={**allowed, **given})
    if domain:
        raise ModelError(f"{node} must be of the standard domain or QONNX's Quant, "
                         f"not of {domain!r}")
    schema = _schema(node, opset)
    attributes = {}
    for attribute in proto.attribute:
        if attribute.name not in schema.attributes:
            raise ModelError(f"attribute of {node} must be one that version "
                             f"{schema.since_version} has, not {attribute.name!r}")
        if attribute.type != int(schema.attributes[attribute.name].type.value):
            raise ModelError(f"attribute {attribute.name!r} of {node} must be of the type that "
                             f"its operator has")
        attributes[attribute.name] = _attribute(attribute, str(node), folder)
    _check_counts(node, schema)
    return OnnxNode(name=name, kind=node.kind, domain="", version=schema.since_version,
                    inputs=node.inputs, outputs=node.outputs, attributes=attributes)


def _schema(node: OnnxNode, opset: int) -> Any:
    onnx = need("onnx", "onnx", "an ONNX model")
    try:
        schema = onnx.defs.get_schema(node.kind, opset, "")
    except Exception:  # a kind of the extension module's own
        raise ModelError(f"{node} must be an operator of ONNX's opset {opset}") from None
    if schema.deprecated:
        raise ModelError(f"{node} must not be used in opset {opset}, where it is deprecated")
    return schema


def _check_counts(node: OnnxNode, schema: Any) -> None:
    for what, names, low, high in (
        ("inputs", node.inputs, schema.min_input, schema.max_input),
        ("outputs", node.outputs, schema.min_output, schema.max_output),
    ):
        if not low <= len(names) <= high:
            raise ModelError(f"{node} must have {low} to {high} {what}, not {len(names)}")
    for i, name in enumerate(node.inputs):
        if not name and i < schema.min_input:
            raise ModelError(f"input {i} of {node} must be given")


def _attribute(proto: Any, where: str, folder: Path | None) -> Any:
    onnx = need("onnx", "onnx", "an ONNX model")
    kinds = onnx.AttributeProto
    what = f"attribute {proto.name!r} of {where}"
    if proto.type == kinds.TENSOR:
        return read_tensor(proto.t, what, folder)
    if proto.type in (kinds.INT, kinds.FLOAT):
        return proto.i if proto.type == kinds.INT else proto.f
    if proto.type == kinds.STRING:
        return proto.s.decode("utf-8", "replace")
    if proto.type in (kinds.INTS, kinds.FLOATS):
        return list(proto.ints if proto.type == kinds.INTS else proto.floats)
    raise ModelError(f"{what} must be a number, a text, a tensor or a list of numbers, "
                     f"not of type {proto.type}")
