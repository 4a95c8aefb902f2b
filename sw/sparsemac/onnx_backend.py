# SPDX-License-Identifier: Apache-2.0
"""Sparsemac as a backend of ONNX: the interface of ``onnx.backend.base``.

``prepare(model, device)`` gives a representation whose ``run(inputs)`` returns the outputs in
order. Device ``CPU`` is the golden model; any other name is the URI of a core, whose layers run
there with the same integers. ONNX's own tests run against it::

    onnx.backend.test.BackendTest(sparsemac.onnx_backend, __name__)

A model that the importer refuses raises `ModelError` when it is prepared, which is then a
``BackendIsNotSupposedToImplementIt`` too: ONNX's tests are skipped for it.
Source: ONNX, ``docs/ImplementingAnOnnxBackend.md``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import need
from .errors import DeviceError, MissingDependency, ModelError
from .graph import Graph, run_golden
from .importers.onnx import check_model, graph_of_model

__all__ = ["Representation", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]

_GOLDEN = "CPU"


class Representation:
    """A prepared model.

    Parameters
    ----------
    model : onnx.ModelProto
    device : str    ``CPU`` or the URI of a core.

    A model that leaves sizes open gets them from the inputs of each run.
    """

    def __init__(self, model: Any, device: str = _GOLDEN) -> None:
        self._model = model
        self._device = device
        self._outputs = [output.name for output in model.graph.output]
        self._open = _has_open_sizes(model)
        self._graph = None
        if self._open:
            check_model(model)
        else:
            self._graph = graph_of_model(model)
        self._core: Any = None

    def run(self, inputs: Any, **kwargs: Any) -> tuple[NDArray[Any], ...]:
        """Computes the outputs; inputs are one array, some in the model's order, or by name."""
        if kwargs:
            raise TypeError(f"options of a run must be none, not {', '.join(kwargs)}")
        names = _input_names(self._model)
        if not isinstance(inputs, dict):
            given = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            if len(given) != len(names):
                raise ValueError(f"inputs must be {len(names)}, not {len(given)}")
            inputs = dict(zip(names, given, strict=True))
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        graph = self._graph
        if graph is None:
            shapes = [arrays[name].shape if name in arrays else None for name in names]
            try:
                graph = graph_of_model(self._model, shapes=shapes)
            except ModelError as error:
                raise _refusal(error) from error
        results = self._run(graph, arrays)
        return tuple(results[name] for name in self._outputs)

    def _run(self, graph: Graph, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._device == _GOLDEN:
            with np.errstate(all="ignore"):  # infinity and NaN are results like others
                return run_golden(graph, arrays)
        from . import open as open_core
        from .inference import Model

        if self._core is None:
            self._core = open_core(self._device)
        return dict(Model(graph, self._core).run(arrays).outputs)

    def close(self) -> None:
        """Gives the core back, if one was opened."""
        if self._core is not None:
            self._core.close()
            self._core = None

    def __enter__(self) -> "Representation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(model: Any, device: str = _GOLDEN, **kwargs: Any) -> Representation:
    """Imports a ModelProto for a device.

    Raises
    ------
    ModelError    Naming what in the model cannot be run.
    """
    if kwargs:
        raise TypeError(f"options of prepare must be none, not {', '.join(kwargs)}")
    try:
        return Representation(model, device)
    except ModelError as error:
        raise _refusal(error) from error


def _refusal(error: ModelError) -> ModelError:
    """The same error, which ONNX's tests know to mean that an operator is not supported."""
    runner = need("onnx.backend.test.runner", "onnx", "the backend of ONNX")

    class Refusal(ModelError, runner.BackendIsNotSupposedToImplementIt):
        """A model that the importer refuses."""

    return Refusal(str(error))


def run_model(
    model: Any, inputs: Any, device: str = _GOLDEN, **kwargs: Any
) -> tuple[NDArray[Any], ...]:
    """Prepares a model and runs it once."""
    with prepare(model, device, **kwargs) as representation:
        return representation.run(inputs)


def run_node(
    node: Any, inputs: Any, device: str = _GOLDEN, outputs_info: Any = None, **kwargs: Any
) -> tuple[NDArray[Any], ...]:
    """Runs one NodeProto as a model of its own.

    Parameters
    ----------
    node : onnx.NodeProto
    inputs : arrays of its inputs in order, those that are absent left out
    outputs_info : sequence of (NumPy type, shape)    None: as ONNX infers them.
    opset_version : int                               None: the newest that is read.
    """
    onnx = need("onnx", "onnx", "the backend of ONNX")
    opset = kwargs.pop("opset_version", None) or onnx.defs.onnx_opset_version()
    helper = onnx.helper
    names = list(dict.fromkeys(name for name in node.input if name))
    given = [np.asarray(array) for array in
             (inputs if isinstance(inputs, (list, tuple)) else [inputs])]
    if len(given) != len(names):
        raise ValueError(f"inputs of {node.op_type} must be {len(names)}, not {len(given)}")
    infos = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for name, a in zip(names, given, strict=True)]
    made = [name for name in node.output if name]
    if outputs_info is not None:
        outputs = [helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in zip(made, outputs_info, strict=True)]
    else:
        outputs = [onnx.ValueInfoProto(name=name) for name in made]
    graph = helper.make_graph([node], node.op_type, infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    if outputs_info is None:
        model = onnx.shape_inference.infer_shapes(model)
    return run_model(model, given, device, **kwargs)


def is_compatible(model: Any, device: str = _GOLDEN, **kwargs: Any) -> bool:
    """Whether the importer reads a model; one with open sizes is only known when it is run."""
    try:
        prepare(model, device, **kwargs)
    except ModelError:
        return False
    return True


def supports_device(device: str) -> bool:
    """Whether a device is the golden model, or can be opened."""
    if device == _GOLDEN:
        return True
    from . import open as open_core

    try:
        open_core(device).close()
    except (DeviceError, MissingDependency, OSError, ValueError):
        return False
    return True


def _input_names(model: Any) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [i.name for i in model.graph.input if i.name not in constants]


def _has_open_sizes(model: Any) -> bool:
    constants = {tensor.name for tensor in model.graph.initializer}
    return any(
        not i.type.tensor_type.HasField("shape") or any(
            d.dim_value <= 0 for d in i.type.tensor_type.shape.dim)
        for i in model.graph.input
        if i.name not in constants and i.type.WhichOneof("value") == "tensor_type")
