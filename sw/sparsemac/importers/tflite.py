# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite models: int8 layers for the device, the reference kernels' integers for the rest.

Convolutions, depthwise convolutions and fully connected operators become layers; other operators
become host operations of `sparsemac.hostops.tflite` with the same integers as TensorFlow Lite's
reference kernels. Factors are computed as ``tensorflow/lite/kernels/kernel_util.cc`` does. A uint8
tensor is int8 inside of the graph, with a zero point 128 lower.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..commands import OutputMode
from ..conv import ConvLayer, Geometry
from ..csr import as_csr
from ..errors import ModelError
from ..graph import Graph, Layer, Node, Value, run_node
from ..layer import LinearLayer
from ..numerics import quantize_multiplier
from ._tflite_file import FileModel, FileOperator, FileTensor, read_file
from ._tflite_scales import (
    activation_range,
    add_factors,
    fixed_point,
    layer_factors,
    ratio,
    softmax_factors,
)

__all__ = ["load_tflite"]

PADDINGS = ("SAME", "VALID")


def load_tflite(path: str | Path) -> Graph:
    """Reads a quantized TensorFlow Lite model.

    The graph is batchable if all operators keep samples along axis 0 apart.

    Raises
    ------
    ModelError           If the file is damaged, or holds what cannot be run (a float model, 16-bit
                         activations, weights with a zero point, an unknown operator); names the
                         operator and the tensor.
    MissingDependency    If the package ``tflite`` is not installed.
    OSError              If the file cannot be read.
    """
    path = Path(path)
    return _Importer(read_file(path), path.name).graph()


class _Importer:
    """Builds a graph, operator by operator; tensors are known by their index in the file."""

    def __init__(self, model: FileModel, file: str) -> None:
        self._model = model
        self._file = file
        self._values: dict[str, Value] = {}
        self._nodes: list[Node] = []
        self._names: dict[int, str] = {}
        self._constants: dict[int, NDArray[Any]] = {}
        self._where = ""
        self._batch = 0

    def graph(self) -> Graph:
        """Returns the graph of the whole model."""
        try:
            self._inputs()
            for i, operator in enumerate(self._model.operators):
                self._where = f"operator {i} ({operator.code})"
                self._operator(operator)
            self._where = "outputs"
            outputs = tuple(self._output(i) for i in self._model.outputs)
            if not outputs:
                raise ValueError("a model must have an output")
            inputs = tuple(self._model.tensors[i].name for i in self._model.inputs)
            return Graph(name=self._model.name, values=self._values, inputs=inputs,
                         outputs=outputs, nodes=tuple(self._nodes), batchable=self._batch > 0)
        except ValueError as error:
            raise ModelError(f"{self._file}, {self._where}: {error}") from error

    # The graph's edges ---------------------------------------------------------------------------

    def _inputs(self) -> None:
        self._where = "inputs"
        if not self._model.inputs:
            raise ValueError("a model must have an input")
        for i in self._model.inputs:
            tensor = self._tensor(i)
            if i in self._names:
                raise ValueError(f"input {tensor.name!r} must be given once")
            if tensor.data is not None:
                raise ValueError(f"input {tensor.name!r} must not be a constant")
            if tensor.dtype not in ("int8", "uint8", "float32"):
                raise ValueError(_why_not(tensor))
            self._describe(tensor.name, tensor, tensor.dtype)
            self._names[i] = tensor.name
            if tensor.dtype == "uint8":
                self._names[i] = f"{tensor.name}:int8"
                self._describe(self._names[i], tensor, "int8")
                self._add("recode", (tensor.name,), self._names[i], {"dtype": "int8"})
        batches = {self._model.tensors[i].shape[:1] for i in self._model.inputs}
        ranks = {len(self._model.tensors[i].shape) for i in self._model.inputs}
        if len(batches) == 1 and min(ranks) > 1:
            self._batch = batches.pop()[0]

    def _output(self, i: int) -> str:
        tensor = self._tensor(i)
        name = self._input(i)
        self._keep_batch(self._batch and tensor.shape[:1] == (self._batch,))
        if tensor.dtype == "uint8":
            self._describe(tensor.name, tensor, "uint8")
            self._add("recode", (name,), tensor.name, {"dtype": "uint8"})
        return tensor.name

    def _keep_batch(self, samples_stay_apart: object) -> None:
        """Gives up on running other batches when an operator mixes samples."""
        if not samples_stay_apart:
            self._batch = 0

    def _tensor(self, i: int) -> FileTensor:
        tensor = self._model.tensors[i]
        if tensor.special:
            raise ValueError(f"{tensor.name!r} must be a plain array, but is {tensor.special}")
        if any(axis != 0 for axis in tensor.dynamic):
            raise ValueError(f"shape of {tensor.name!r} must be known but for the batch, "
                             f"not open along axes {tensor.dynamic}")
        if 0 in tensor.shape:
            raise ValueError(f"{tensor.name!r} must have elements, not shape {tensor.shape}")
        return tensor

    def _describe(self, name: str, tensor: FileTensor, dtype: str) -> None:
        scale, zero_point = 0.0, 0
        if tensor.dtype in ("int8", "uint8"):
            scale, zero_point = _quantization(tensor)
            zero_point += 128 * (dtype == "uint8")
        self._values[name] = Value(name=name, shape=tensor.shape, dtype=dtype, scale=scale,
                                   zero_point=zero_point)

    # Operators -----------------------------------------------------------------------------------

    def _operator(self, operator: FileOperator) -> None:
        handler = _HANDLERS.get(operator.code)
        if handler is None:
            raise ValueError(f"operator must be one of {', '.join(sorted(_HANDLERS))}, "
                             f"not {operator.code}")
        if len(operator.outputs) != 1:
            raise ValueError(f"outputs must be 1, not {len(operator.outputs)}")
        if operator.outputs[0] in self._names or operator.outputs[0] in self._constants:
            raise ValueError(
                f"{self._model.tensors[operator.outputs[0]].name!r} must be made once")
        handler(self, operator)

    def _operands(self, operator: FileOperator, least: int, most: int) -> list[int]:
        """Indices of the inputs, -1 for those left out, as many as there can be."""
        inputs = list(operator.inputs)
        if not least <= len(inputs) <= most or -1 in inputs[:least]:
            text = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"inputs must be {text}, not {len(inputs) - inputs.count(-1)}")
        return inputs + [-1] * (most - len(inputs))

    def _quantized(self, i: int) -> FileTensor:
        """A tensor that must be int8 or uint8 with one scale."""
        tensor = self._tensor(i)
        if tensor.dtype not in ("int8", "uint8"):
            raise ValueError(_why_not(tensor))
        _quantization(tensor)
        return tensor

    def _constant(self, i: int) -> NDArray[Any]:
        """A constant's elements; uint8 as int8."""
        if i in self._constants:
            return self._constants[i]
        tensor = self._tensor(i)
        if tensor.data is None:
            raise ValueError(f"{tensor.name!r} must be a constant")
        if i in self._names:
            raise ValueError(f"{tensor.name!r} must not be a constant and a result")
        return _signed(tensor.data)

    def _is_constant(self, i: int) -> bool:
        return i in self._constants or (
            i not in self._names and self._model.tensors[i].data is not None)

    def _input(self, i: int) -> str:
        """Name of a value in the graph."""
        if i not in self._names:
            raise ValueError(
                f"{self._model.tensors[i].name!r} must be made by an operator before")
        return self._names[i]

    def _emit(self, operator: FileOperator, inputs: Sequence[int], shape: Sequence[int],
              operation: str = "", attributes: Mapping[str, Any] | None = None,
              layer: Layer | None = None, dtype: str = "int8") -> None:
        """Adds the operator's node, or computes it if all of its inputs are constants."""
        out = operator.outputs[0]
        tensor = self._tensor(out)
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"output {tensor.name!r} must have shape {tuple(shape)}, not {tensor.shape}")
        constant = all(self._is_constant(i) for i in inputs)
        names = tuple(f"constant {i}" if constant else self._input(i) for i in inputs)
        target = f"{tensor.name}:int8" if tensor.dtype == "uint8" else tensor.name
        node = Node(name=f"{operator.code.lower()} {len(self._nodes)}", inputs=names,
                    outputs=(target,), operation=operation, attributes=dict(attributes or {}),
                    layer=layer, source=self._where)
        if constant:
            arrays = {name: self._constant(i) for name, i in zip(names, inputs, strict=True)}
            (self._constants[out],) = run_node(node, arrays)
            return
        self._describe(target, tensor, dtype)
        self._names[out] = target
        self._nodes.append(node)

    def _add(self, operation: str, inputs: tuple[str, ...], output: str,
             attributes: Mapping[str, Any]) -> None:
        """Adds a node that is no operator of the file."""
        self._nodes.append(Node(name=f"{operation} {len(self._nodes)}", inputs=inputs,
                                outputs=(output,), operation=operation, attributes=attributes,
                                source=self._where))

    # Layers --------------------------------------------------------------------------------------

    def _weights(self, i: int, rank: int, axis: int) -> tuple[FileTensor, NDArray[np.int8]]:
        """Weights, whose scales are one, or one for each output channel along ``axis``."""
        tensor = self._tensor(i)
        if tensor.dtype not in ("int8", "uint8", "int4"):
            raise ValueError(_why_not(tensor))
        if len(tensor.shape) != rank:
            raise ValueError(f"weights {tensor.name!r} must have {rank} axes, not {tensor.shape}")
        outputs = tensor.shape[axis]
        if len(tensor.scale) not in (1, outputs):
            raise ValueError(f"scales of {tensor.name!r} must be 1 or {outputs}, "
                             f"not {len(tensor.scale)}")
        if len(tensor.scale) > 1 and tensor.axis != axis:
            raise ValueError(
                f"scales of {tensor.name!r} must be along axis {axis}, not {tensor.axis}")
        zero = 128 if tensor.dtype == "uint8" else 0
        if (bad := tensor.zero_point[tensor.zero_point != zero]).size:
            raise ValueError(f"zero point of weights {tensor.name!r} must be {zero}, not {bad[0]}: "
                             f"a pruned weight would not be zero")
        return tensor, self._constant(i)

    def _linear(self, operator: FileOperator, matrix: NDArray[np.int8], weights: FileTensor,
                bias: int, factors: NDArray[np.float64]) -> LinearLayer:
        """The layer of a matrix (outputs, inputs)."""
        x = self._quantized(operator.inputs[0])
        y = self._quantized(operator.outputs[0])
        x_scale, x_zero = _quantization(x)
        y_scale, y_zero = _quantization(y)
        sums = np.zeros(len(matrix), np.int64)
        if bias >= 0:
            tensor = self._tensor(bias)
            if tensor.dtype != "int32" or tensor.shape != (len(matrix),):
                raise ValueError(f"bias {tensor.name!r} must be int32 of shape ({len(matrix)},), "
                                 f"not {tensor.dtype} of {tensor.shape}")
            if tensor.zero_point.any():
                raise ValueError(f"zero point of bias {tensor.name!r} must be 0")
            sums += self._constant(bias)
        sums -= x_zero * matrix.sum(1, np.int64)
        multiplier, shift = quantize_multiplier(np.broadcast_to(factors, len(matrix)))
        low, high = self._range(operator)
        bits = 4 if weights.dtype == "int4" else 8
        return LinearLayer(
            weights=as_csr(matrix, weight_bits=bits), weight_bits=bits,
            bias=_as_int32(sums, weights.name), mode=OutputMode.DOUBLE, multiplier=multiplier,
            shift=shift, zero_point=y_zero, low=low, high=high, input_scale=x_scale,
            input_zero_point=x_zero, output_scale=y_scale, name=y.name,
        )

    def _range(self, operator: FileOperator) -> tuple[int, int]:
        """What the fused activation leaves of int8."""
        kind = _options(operator)["FusedActivationFunction"]
        return activation_range(kind, *_quantization(self._quantized(operator.outputs[0])))

    def _convolution(self, operator: FileOperator) -> None:
        depthwise = operator.code == "DEPTHWISE_CONV_2D"
        x_index, w_index, bias = self._operands(operator, 2, 3)
        x, y = self._quantized(x_index), self._quantized(operator.outputs[0])
        if len(x.shape) != 4:
            raise ValueError(f"input {x.name!r} must have 4 axes, not {x.shape}")
        tensor, w = self._weights(w_index, 4, 3 if depthwise else 0)
        channels, groups = x.shape[3], x.shape[3]
        if depthwise:
            if len(w) != 1:
                raise ValueError(f"weights {tensor.name!r} must be (1, rows, columns, channels), "
                                 f"not {w.shape}")
            w = w.transpose(3, 1, 2, 0)
        else:
            if channels % w.shape[3]:
                raise ValueError(f"weights {tensor.name!r} must divide the {channels} channels of "
                                 f"{x.name!r} into groups, not have {w.shape[3]}")
            groups = channels // w.shape[3]
        factors = layer_factors(x, tensor, y, float_product="uint8" in (x.dtype, y.dtype))
        matrix = w.transpose(0, 3, 1, 2).reshape(len(w), -1)
        linear = self._linear(operator, matrix, tensor, bias, factors)
        layer = ConvLayer(linear=linear, geometry=_geometry(operator, x.shape, w.shape, groups))
        self._emit(operator, (x_index,), layer.output_shape(x.shape[0]), layer=layer)

    def _fully_connected(self, operator: FileOperator) -> None:
        options = _options(operator)
        if options["WeightsFormat"] != 0:
            raise ValueError(f"format of the weights must be 0, not {options['WeightsFormat']}: "
                             f"shuffled weights are not supported")
        x_index, w_index, bias = self._operands(operator, 2, 3)
        x, y = self._quantized(x_index), self._quantized(operator.outputs[0])
        tensor, w = self._weights(w_index, 2, 0)
        factors = layer_factors(x, tensor, y, float_product=len(tensor.scale) == 1)
        if bias >= 0 and len(tensor.scale) == 1:
            _check_bias_scale(self._tensor(bias), factors, y)
        layer = self._linear(operator, w, tensor, bias, factors)
        if options["KeepNumDims"]:
            if x.shape[-1:] != (layer.inputs,):
                raise ValueError(
                    f"last axis of {x.name!r} must be {layer.inputs}, not {x.shape[-1:]}")
            self._emit(operator, (x_index,), (*x.shape[:-1], layer.outputs), layer=layer)
            return
        elements = math.prod(x.shape)
        if elements % layer.inputs:
            raise ValueError(f"elements of {x.name!r} must be a multiple of {layer.inputs}, "
                             f"not {elements}")
        rows = elements // layer.inputs
        if x.shape != (rows, layer.inputs):
            x_index = self._flattened(x_index, (rows, layer.inputs))
        self._emit(operator, (x_index,), (rows, layer.outputs), layer=layer)
