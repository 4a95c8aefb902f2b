# SPDX-License-Identifier: Apache-2.0
"""Grows a graph from the operators of a TensorFlow Lite file, in their order."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph import Graph, Layer, Node, Value, run_node
from ...hostops.integer import recode
from .file import FileModel, FileOperator, FileTensor
from .scales import quantization, why_not

__all__ = ["Builder"]

#: Elements of the largest constant that is computed while a model is read.
MAX_FOLDED = 1 << 22

#: Why host operations are no layers.
_REASONS = {
    "dequantize": "turns integers into reals: the device computes in integers",
    "pad": "moves elements, no arithmetic",
    "recode": "changes the type, no arithmetic",
    "reshape": "moves elements, no arithmetic",
    "tflite_add": "brings two values of different scales to one scale before it adds them: the "
                  "device scales sums, not operands",
    "tflite_average_pool": "divides with halves away from zero: the device scales by a multiplier, "
                           "which rounds other integers",
    "tflite_max_pool": "takes maxima: the device computes sums of products",
    "tflite_mean": "sums all elements without weights: the device reads a weight for each",
    "tflite_quantize": "turns reals into integers: the device computes in integers",
    "tflite_requantize": "scales each element by itself: the device scales sums of products",
    "tflite_softmax": "needs exponentials and a division: the device has neither",
}


class Builder:
    """Tensors are known by their index in the file, values by their name in the graph.

    A value that is a constant never enters the graph: what depends on constants only is computed
    at once. Every value of a batchable graph has as its axis 0 a multiple of the batch, whose parts
    belong to the samples in their order.

    Attributes
    ----------
    where : str    What is being read, for errors.
    source : str   The operator that is being read.
    batch : int    Of the model's inputs; 0 once an operator has mixed samples.
    """

    def __init__(self, model: FileModel) -> None:
        self.where = self.source = "inputs"
        self.batch = 0
        self._model = model
        self._values: dict[str, Value] = {}
        self._nodes: list[Node] = []
        self._names: dict[int, str] = {}
        self._constants: dict[str, NDArray[Any]] = {}

    def begin(self) -> None:
        """Adds the model's inputs."""
        if not self._model.inputs:
            raise ValueError("a model must have an input")
        for i in self._model.inputs:
            tensor = self.tensor(i)
            if i in self._names:
                raise ValueError(f"input {tensor.name!r} must be given once")
            if tensor.data is not None:
                raise ValueError(f"input {tensor.name!r} must not be a constant")
            if tensor.dtype not in ("int8", "uint8", "float32"):
                raise ValueError(why_not(tensor))
            self._describe(tensor.name, tensor, tensor.shape, tensor.dtype)
            name = tensor.name
            if tensor.dtype == "uint8":
                name = self.step("recode", (name,), tensor, "int8", {"dtype": "int8"})
            self._names[i] = name
        shapes = [self._model.tensors[i].shape for i in self._model.inputs]
        if all(len(shape) > 1 and shape[0] == shapes[0][0] for shape in shapes):
            self.batch = shapes[0][0]

    def start(self, i: int, code: str) -> None:
        """Says which operator comes next."""
        self.where, self.source = f"operator {i} ({code})", code

    def end(self) -> Graph:
        """Adds the model's outputs and returns the graph."""
        self.where = self.source = "outputs"
        if not self._model.outputs:
            raise ValueError("a model must have an output")
        outputs = []
        for i in self._model.outputs:
            tensor = self.tensor(i)
            name = self.input(i)
            if name in self._constants:
                raise ValueError(f"output {tensor.name!r} must not be a constant")
            if tensor.shape[:1] != (self.batch,):
                self.batch = 0
            if tensor.dtype == "uint8":
                self._describe(tensor.name, tensor, tensor.shape, "uint8")
                self._add("recode", (name,), tensor.name, tensor.shape, {"dtype": "uint8"})
            outputs.append(tensor.name)
        inputs = tuple(self._model.tensors[i].name for i in self._model.inputs)
        return Graph(name=self._model.name, values=self._values, inputs=inputs,
                     outputs=tuple(outputs), nodes=tuple(self._nodes), batchable=self.batch > 0)

    def operands(self, operator: FileOperator, least: int, most: int) -> list[int]:
        """Returns ``most`` indices of inputs, -1 for each that is left out; checks the output."""
        inputs = list(operator.inputs)
        if not least <= len(inputs) <= most or -1 in inputs[:least]:
            text = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"inputs must be {text}, not {len(inputs) - inputs.count(-1)}")
        if len(operator.outputs) != 1:
            raise ValueError(f"outputs must be 1, not {len(operator.outputs)}")
        out = self._model.tensors[operator.outputs[0]]
        if operator.outputs[0] in self._names or out.data is not None:
            raise ValueError(f"output {out.name!r} must be made once")
        return inputs + [-1] * (most - len(inputs))

    def tensor(self, i: int) -> FileTensor:
        """Returns a tensor that is an array of known shape."""
        tensor = self._model.tensors[i]
        if tensor.special:
            raise ValueError(f"{tensor.name!r} must be a plain array, but is {tensor.special}")
        if any(axis != 0 for axis in tensor.dynamic):
            raise ValueError(f"shape of {tensor.name!r} must be known but for the batch, "
                             f"not open along the axes {tensor.dynamic}")
        if 0 in tensor.shape:
            raise ValueError(f"{tensor.name!r} must have elements, not shape {tensor.shape}")
        return tensor

    def quantized(self, i: int) -> FileTensor:
        """Returns a tensor that is int8 or uint8 with one scale."""
        tensor = self.tensor(i)
        if tensor.dtype not in ("int8", "uint8"):
            raise ValueError(why_not(tensor))
        quantization(tensor)
        return tensor

    def constant(self, i: int) -> NDArray[Any]:
        """Returns the elements of a constant; uint8 as int8."""
        name = self.input(i)
        if name not in self._constants:
            raise ValueError(f"{name!r} must be a constant")
        return self._constants[name]

    def is_constant(self, i: int) -> bool:
        """Says whether a tensor's elements are known."""
        return self.input(i) in self._constants

    def input(self, i: int) -> str:
        """Returns the name of a value that is there already; one of uint8 is int8."""
        tensor = self._model.tensors[i]
        if i not in self._names:
            if tensor.data is None:
                raise ValueError(f"{tensor.name!r} must be made by an operator before")
            data = self.tensor(i).data
            self._constants[tensor.name] = (
                recode(data, dtype="int8") if tensor.dtype == "uint8" else np.asarray(data))
            self._names[i] = tensor.name
        return self._names[i]

    def open_batch(self, shape: Sequence[int]) -> list[int]:
        """Returns a shape to reshape to, which leaves axis 0 open if the batch may change."""
        self.keep_batch(len(shape) > 0 and self.batch and shape[0] % self.batch == 0)
        return [-1 if self.batch else shape[0], *shape[1:]] if shape else []

    def keep_batch(self, apart: object) -> None:
        """Gives up other batches unless the operator keeps samples apart."""
        if not apart:
            self.batch = 0

    def result(
        self, operator: FileOperator, inputs: Sequence[str], shape: Sequence[int],
        operation: str = "", attributes: Mapping[str, Any] | None = None,
        layer: Layer | None = None, dtype: str = "int8",
    ) -> None:
        """Adds the node that makes the operator's output; the file must agree to its shape."""
        index = operator.outputs[0]
        tensor = self.tensor(index)
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"output {tensor.name!r} must have shape {tuple(shape)}, not {tensor.shape}")
        name = f"{tensor.name}:int8" if tensor.dtype == "uint8" else tensor.name
        self._names[index] = name
        if self._add(operation, inputs, name, shape, attributes or {}, layer):
            self._describe(name, tensor, tensor.shape, dtype)

    def step(
        self, operation: str, inputs: Sequence[str], tensor: FileTensor, dtype: str,
        attributes: Mapping[str, Any], shape: Sequence[int] | None = None,
    ) -> str:
        """Adds a node of its own, whose value means what ``tensor`` does; returns its name."""
        name = f"{inputs[0]}:{len(self._nodes)}:{operation}"
        shape = tensor.shape if shape is None else shape
        if self._add(operation, inputs, name, shape, attributes):
            self._describe(name, tensor, shape, dtype)
        return name

    def _add(self, operation: str, inputs: Sequence[str], name: str, shape: Sequence[int],
             attributes: Mapping[str, Any], layer: Layer | None = None) -> bool:
        """Adds a node, or computes a constant; says whether there is a new value in the graph."""
        node = Node(name=name, inputs=tuple(inputs), outputs=(name,), operation=operation,
                    attributes=attributes, layer=layer, source=self.source,
                    reason=_REASONS.get(operation, ""))
        if all(value in self._constants for value in inputs):
            if (elements := math.prod(shape)) > MAX_FOLDED:
                raise ValueError(f"a value of constants alone, {name!r}, must have at most "
                                 f"{MAX_FOLDED} elements, not {elements}")
            (self._constants[name],) = run_node(node, self._constants)
            return False
        self._nodes.append(node)
        return True

    def _describe(self, name: str, tensor: FileTensor, shape: Sequence[int], dtype: str) -> None:
        scale, zero_point = 0.0, 0
        if tensor.dtype in ("int8", "uint8") and dtype != "float32":
            scale, zero_point = quantization(tensor)
            zero_point += 128 * (dtype == "uint8")
        self._values[name] = Value(name=name, shape=tuple(shape), dtype=dtype, scale=scale,
                                   zero_point=zero_point)
