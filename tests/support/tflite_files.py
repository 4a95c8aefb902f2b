# SPDX-License-Identifier: Apache-2.0
"""Writes small TensorFlow Lite files: what tests of the importer read."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

#: Table of the options of an operator, where it is not the operator's name.
_TABLES = {
    "ADD": "AddOptions", "AVERAGE_POOL_2D": "Pool2DOptions", "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "FULLY_CONNECTED": "FullyConnectedOptions",
    "MAX_POOL_2D": "Pool2DOptions", "MEAN": "ReducerOptions", "SOFTMAX": "SoftmaxOptions",
}


def noise(seed: str, *shape: int, dtype: str = "int8") -> NDArray[Any]:
    """Bytes that follow from ``seed`` alone, on every machine and with every version of NumPy."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    digest = hashlib.shake_128(seed.encode()).digest(size)
    return np.frombuffer(digest, kind.newbyteorder("<")).astype(kind).reshape(shape)


@dataclass
class Tensor:
    """A tensor; ``data`` makes it a constant."""

    name: str
    shape: Sequence[int]
    kind: str = "INT8"
    scale: Sequence[float] = (0.05,)
    zero_point: Sequence[int] | None = None
    axis: int = 0
    data: NDArray[Any] | bytes | None = None
    signature: Sequence[int] = ()
    variable: bool = False


@dataclass
class Operator:
    """An operator, its tensors by index."""

    code: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: Mapping[str, Any] | None = None
    custom: str = ""
    table: str = ""


@dataclass
class Model:
    """A model of one subgraph."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: Sequence[int] = (0,)
    outputs: Sequence[int] = (-1,)
    version: int = 3
    mark: bytes = b"TFL3"
    subgraphs: int = 1

    def to_bytes(self) -> bytes:
        """The file."""
        b = flatbuffers.Builder(1024)
        datas = [t.data if isinstance(t.data, bytes) else np.ascontiguousarray(t.data).tobytes()
                 for t in self.tensors if t.data is not None]
        buffers = _vector(b, [_table(b, "Buffer"), *(
            _table(b, "Buffer", Data=b.CreateByteVector(data)) for data in datas)])
        tensors, used = [], 0
        for t in self.tensors:
            used += t.data is not None
            tensors.append(_tensor(b, t, used if t.data is not None else 0))
        operators = [_operator(b, i, o) for i, o in enumerate(self.operators)]
        codes = [_code(b, o) for o in self.operators]
        last = len(self.tensors)
        graph = _table(
            b, "SubGraph", Tensors=_vector(b, tensors), Operators=_vector(b, operators),
            Inputs=_numbers(b, [i % last for i in self.inputs], "int32"),
            Outputs=_numbers(b, [i % last for i in self.outputs], "int32"))
        root = _table(b, "Model", Version=self.version, Buffers=buffers,
                      OperatorCodes=_vector(b, codes),
                      Subgraphs=_vector(b, [graph] * self.subgraphs))
        b.Finish(root, self.mark)
        return bytes(b.Output())


def _table(b: Any, kind: str, **fields: Any) -> int:
    getattr(tflite, f"{kind}Start")(b)
    for name, value in fields.items():
        if value is not None:
            getattr(tflite, f"{kind}Add{name}")(b, value)
    return getattr(tflite, f"{kind}End")(b)


def _vector(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def _numbers(b: Any, values: Sequence[Any] | None, dtype: str) -> int | None:
    return None if values is None else b.CreateNumpyVector(np.asarray(values, dtype))


def _tensor(b: Any, t: Tensor, buffer: int) -> int:
    zero_point = [0] * len(t.scale) if t.zero_point is None else t.zero_point
    quantization = None
    if len(t.scale) or len(zero_point):
        quantization = _table(
            b, "QuantizationParameters", Scale=_numbers(b, t.scale, "float32"),
            ZeroPoint=_numbers(b, zero_point, "int64"), QuantizedDimension=t.axis)
    return _table(
        b, "Tensor", Name=b.CreateString(t.name), Shape=_numbers(b, t.shape, "int32"),
        ShapeSignature=_numbers(b, t.signature or None, "int32"), Buffer=buffer,
        Type=getattr(tflite.TensorType, t.kind), Quantization=quantization,
        IsVariable=t.variable)


def _operator(b: Any, index: int, o: Operator) -> int:
    options, table = None, o.table or _TABLES.get(o.code, "")
    if o.options is not None:
        options = _table(b, table, **o.options)
    return _table(
        b, "Operator", OpcodeIndex=index, Inputs=_numbers(b, o.inputs, "int32"),
        Outputs=_numbers(b, o.outputs, "int32"), BuiltinOptions=options,
        BuiltinOptionsType=None if options is None else getattr(tflite.BuiltinOptions, table))


def _code(b: Any, o: Operator) -> int:
    number = getattr(tflite.BuiltinOperator, o.code)
    custom = b.CreateString(o.custom) if o.custom else None
    return _table(b, "OperatorCode", DeprecatedBuiltinCode=min(number, 127), BuiltinCode=number,
                  CustomCode=custom, Version=1)
