# SPDX-License-Identifier: Apache-2.0
"""ONNX models: integer layers for the device, host operations as ONNX's operators define them.

Read are float models, which `sparsemac.calibrate` quantizes, models of QuantizeLinear and
DequantizeLinear, of QLinear and Integer operators, and QONNX's. A quantized layer becomes a layer
for the device that gives its sums exactly, and a host operation that scales them in float32; where
the core's rounding gives the same for every sum that can occur, the layer does both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..._checks import need
from ...errors import ModelError
from ...graph import Graph, Value
from ...hostops.onnx_maps import check_size
from . import (  # noqa: F401  they enter converters
    elementwise,
    layers,
    maps,
    quantized,
)
from .batch import is_batchable
from .build import Builder
from .fuse import optimize
from .model import OnnxModel, OnnxNode, read_model
from .ops import CONVERTERS, Converter

__all__ = ["check_model", "graph_of_model", "load_onnx"]

#: Sizes that a model leaves open, behind the batch, cannot be guessed.
_OPEN_AXIS = "sizes of input {name!r} must be given, but for the batch, not {shape}"


def load_onnx(path: str | Path) -> Graph:
    """Reads an ONNX model; external data is read from the folder it is in.

    Raises
    ------
    ModelError           If the file is damaged, or holds what cannot be run; names the node.
    MissingDependency    If the package ``onnx`` is not installed.
    OSError              If the file cannot be read.
    """
    path = Path(path)
    onnx = need("onnx", "onnx", "an ONNX model")
    data = path.read_bytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's kinds differ between its versions
        raise ModelError(f"{path.name} must be an ONNX model: {error}") from None
    return graph_of_model(proto, name=path.name, folder=path.parent)


def graph_of_model(
    proto: Any, *, name: str = "", folder: Path | None = None,
    shapes: Sequence[Sequence[int] | None] = (),
) -> Graph:
    """Turns a ModelProto into a graph.

    Parameters
    ----------
    proto : onnx.ModelProto
    name : str              Of the model in errors; empty: its own.
    folder : path           Holds external data; None: there must be none.
    shapes : sequence       For each input in order, the shape to use where the model leaves it
                            open.

    Raises
    ------
    ModelError    As `load_onnx`.
    """
    name = name or proto.graph.name or "model"
    try:
        model = read_model(proto, name, folder)
        builder = Builder()
        _add_inputs(builder, model, shapes)
        with np.errstate(all="ignore"):  # what is not finite is checked where it matters
            for node in model.nodes:
                _convert(builder, node)
            return _finish(builder, model)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise ModelError(f"{name}: {error}") from error


def _add_inputs(b: Builder, model: OnnxModel, shapes: Sequence[Sequence[int] | None]) -> None:
    for i, given in enumerate(model.inputs):
        fixed = shapes[i] if i < len(shapes) else None
        shape = given.shape
        if fixed is not None:
            if shape is not None and (len(shape) != len(fixed) or any(
                    s not in (None, f) for s, f in zip(shape, fixed, strict=True))):
                raise ModelError(
                    f"input {given.name!r} must be of {list(shape)}, not {list(fixed)}")
            sizes = tuple(int(size) for size in fixed)
        elif shape is None or None in shape[1:]:
            text = "open" if shape is None else ["?" if s is None else s for s in shape]
            raise ModelError(_OPEN_AXIS.format(name=given.name, shape=text))
        else:
            sizes = tuple(1 if size is None else size for size in shape)
        check_size(f"input {given.name!r}", sizes)
        if given.name in b.values:
            raise ModelError(f"input {given.name!r} must be defined once")
        b.values[given.name] = Value(name=given.name, shape=sizes, dtype=given.dtype)
    b.constants.update(model.constants)


def check_model(proto: Any, *, name: str = "", folder: Path | None = None) -> None:
    """Checks all of a model that does not need the sizes of its inputs.

    Raises
    ------
    ModelError    As `load_onnx`.
    """
    name = name or proto.graph.name or "model"
    try:
        for node in read_model(proto, name, folder).nodes:
            _converter(node)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def _converter(n: OnnxNode) -> Converter:
    converter = CONVERTERS.get((n.kind, n.version))
    if converter is None:
        known = sorted({kind for kind, _ in CONVERTERS})
        if n.kind not in known:
            raise ModelError(f"operator of {n} must be one of {', '.join(known)}, not {n.kind}")
        versions = ", ".join(str(v) for k, v in sorted(CONVERTERS) if k == n.kind)
        raise ModelError(f"version of {n} must be one of {versions}, not {n.version}")
    return converter


def _convert(b: Builder, n: OnnxNode) -> None:
    converter = _converter(n)
    tainted = any(name in b.of_batch for name in n.inputs)
    try:
        converter(b, n)
    except ModelError:
        raise
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise ModelError(f"{n}: {error}") from error
    made = [name for name in n.outputs if name in b.constants]
    if n.kind == "Shape" and n.input(0) in b.values and n.get("start", 0) == 0:
        b.of_batch.update(made)
    elif tainted and made:
        b.of_batch.update(made)
    elif tainted and n.kind not in ("Reshape", "Shape"):
        b.one_batch = True


def _finish(b: Builder, model: OnnxModel) -> Graph:
    for output in model.outputs:
        if output.name in b.constants:
            b.materialize(OnnxNode(name=output.name, kind="Constant", domain="", version=1,
                                   inputs=(), outputs=(output.name,)), output.name)
        elif output.name not in b.values:
            raise ModelError(f"output {output.name!r} must be made by a node")
        made = b.values[output.name]
        if made.dtype != output.dtype:
            raise ModelError(f"output {output.name!r} must be {output.dtype} as the model says, "
                             f"not {made.dtype}")
    inputs = tuple(i.name for i in model.inputs)
    outputs = tuple(dict.fromkeys(o.name for o in model.outputs))
    graph = optimize(Graph(name=model.name, values=b.values, inputs=inputs, outputs=outputs,
                           nodes=tuple(b.nodes)))
    batchable = not b.one_batch and is_batchable(graph)
    return Graph(name=graph.name, values=graph.values, inputs=inputs, outputs=outputs,
                 nodes=graph.nodes, batchable=batchable)
