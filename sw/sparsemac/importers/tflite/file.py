# SPDX-License-Identifier: Apache-2.0
"""The flatbuffer of a TensorFlow Lite model as plain data, checked.

The generated reader trusts offsets: on a damaged file it raises errors of many kinds, or returns
numbers that were never meant. So everything is read here, once, and counts, indices and sizes are
compared with the file before anything is allocated. Format: ``schema.fbs``, version 3.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._checks import need
from ...errors import ModelError
from ...numerics import unpack_int4

__all__ = ["MAX_ELEMENTS", "FileModel", "FileOperator", "FileTensor", "read_file"]

#: Larger tensors are refused before anything is allocated for them.
MAX_ELEMENTS = 1 << 28
MAX_RANK = 8
MAX_NAME = 4096

_DTYPES = {"FLOAT32": "float32", "INT8": "int8", "UINT8": "uint8", "INT16": "int16",
           "INT32": "int32", "INT64": "int64", "INT4": "int4"}

#: Options of each operator: its table in the schema, and the fields that are read.
_POOL = ("Pool2DOptions", ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth",
                           "FusedActivationFunction"))
_OPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "AVERAGE_POOL_2D": _POOL,
    "CONV_2D": ("Conv2DOptions", ("Padding", "StrideH", "StrideW", "DilationHFactor",
                                  "DilationWFactor", "FusedActivationFunction")),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (
        "Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor",
        "FusedActivationFunction")),
    "FULLY_CONNECTED": ("FullyConnectedOptions", (
        "FusedActivationFunction", "WeightsFormat", "KeepNumDims")),
    "MAX_POOL_2D": _POOL,
    "MEAN": ("ReducerOptions", ("KeepDims",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
}

#: What the generated reader raises when an offset leads nowhere.
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError,
           RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileTensor:
    """A tensor of the file.

    Attributes
    ----------
    name : str                 Unique in the model.
    shape : tuple of int       A batch that the file leaves open is 1, as in the file.
    dynamic : tuple of int     Axes that the file leaves open.
    dtype : str                Of NumPy, ``int4``, or the schema's name of any other type.
    scale : (n,) float32, zero_point : (n,) int64    Empty: not quantized.
    axis : int                 Of the scales, if there are several.
    data : array or None       A constant; int4 as int8.
    special : str              What makes it more than an array; empty: nothing.
    """

    name: str
    shape: tuple[int, ...]
    dynamic: tuple[int, ...]
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int
    data: NDArray[Any] | None
    special: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOperator:
    """An operator of the file; an input that is left out has the index -1."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] | None

    def option(self, name: str) -> Any:
        """Returns a field of the options, by its name in the schema's generated reader."""
        if self.options is None:
            raise ValueError("options must be given")
        return self.options[name]

    @property
    def padding(self) -> str:
        """``SAME`` or ``VALID``."""
        number = self.option("Padding")
        if number not in (0, 1):
            raise ValueError(f"padding must be 0 (SAME) or 1 (VALID), not {number}")
        return ("SAME", "VALID")[number]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileModel:
    """A whole model: one subgraph."""

    name: str
    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_file(path: Path) -> FileModel:
    """Reads a model file.

    Raises
    ------
    ModelError           If it is damaged or not of this format.
    MissingDependency    If the flatbuffer's reader is not installed.
    OSError              If it cannot be read.
    """
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path.name} must be a TensorFlow Lite model, with the mark TFL3")
    schema = need("tflite", "tflite", "reading a TensorFlow Lite model")
    try:
        return _Reader(schema, data, path.stem).model()
    except ModelError as error:
        raise ModelError(f"{path.name} is damaged or not supported: {error}") from None
    except _DAMAGE as error:
        raise ModelError(
            f"{path.name} is damaged: {type(error).__name__} while it was read: {error}") from None


class _Reader:
    def __init__(self, schema: Any, data: bytes, name: str) -> None:
        self._schema = schema
        self._data = data
        self._name = name
        self._types = _names(schema.TensorType)
        self._codes = _names(schema.BuiltinOperator)
        self._unions = _names(schema.BuiltinOptions)
        self._unpacked: dict[tuple[int, int], NDArray[np.int8]] = {}

    def model(self) -> FileModel:
        model = self._schema.Model.GetRootAs(self._data, 0)
        if model.Version() != 3:
            raise ModelError(f"schema version must be 3, not {model.Version()}")
        if model.SubgraphsLength() != 1:
            raise ModelError(f"subgraphs must be 1, not {model.SubgraphsLength()}")
        for i in range(self._count("buffers", model.BuffersLength())):
            model.Buffers(i).DataAsNumpy()  # Finds a cut even in a buffer that nothing uses.
        graph = model.Subgraphs(0)
        tensors = [self._tensor(model, graph.Tensors(i))
                   for i in range(self._count("tensors", graph.TensorsLength()))]
        codes = [self._code(model.OperatorCodes(i))
                 for i in range(self._count("operator codes", model.OperatorCodesLength()))]
        operators = [self._operator(graph.Operators(i), codes, len(tensors))
                     for i in range(self._count("operators", graph.OperatorsLength()))]
        return FileModel(
            name=self._name, tensors=_unique_names(tensors), operators=tuple(operators),
            inputs=_indices("inputs of the model", graph.InputsAsNumpy(), len(tensors)),
            outputs=_indices("outputs of the model", graph.OutputsAsNumpy(), len(tensors)),
        )

    def _count(self, what: str, count: int) -> int:
        """Checks the length of a vector of tables, each of which takes 4 bytes at least."""
        if not 0 <= count <= len(self._data) // 4:
            raise ModelError(f"{what} must fit the file, not be {count}")
        return count

    def _tensor(self, model: Any, tensor: Any) -> FileTensor:
        name = (tensor.Name() or b"")[:MAX_NAME].decode("utf-8", "replace")
        sizes = _vector(tensor.ShapeAsNumpy())
        if len(sizes) > MAX_RANK:
            raise ModelError(f"rank of {name!r} must be at most {MAX_RANK}, not {len(sizes)}")
        shape = tuple(int(n) for n in sizes)
        if any(n < 0 for n in shape):
            raise ModelError(f"shape of {name!r} must be known, not {shape}")
        elements = 1
        for n in shape:
            elements *= n
        if elements > MAX_ELEMENTS:
            raise ModelError(f"{name!r} must have at most {MAX_ELEMENTS} elements, not {elements}")
        signature = _vector(tensor.ShapeSignatureAsNumpy())
        if len(signature) not in (0, len(shape)):
            raise ModelError(f"shape signature of {name!r} must have {len(shape)} axes, as its "
                             f"shape, not {len(signature)}")
        code = tensor.Type()
        kind = self._types.get(code, f"type {code}")
        dtype = _DTYPES.get(kind, kind)
        scale, zero_point, axis, custom = _quantization(name, tensor.Quantization())
        special = ("a variable" if tensor.IsVariable() else
                   "stored sparse" if tensor.Sparsity() is not None else
                   "quantized in a way of its own" if custom else "")
        return FileTensor(
            name=name, shape=shape, dtype=dtype, scale=scale, zero_point=zero_point, axis=axis,
            dynamic=tuple(int(i) for i in np.flatnonzero(signature < 0)), special=special,
            data=self._constant(model, tensor.Buffer(), name, shape, dtype, special),
        )

    def _constant(self, model: Any, index: int, name: str, shape: tuple[int, ...], dtype: str,
                  special: str) -> NDArray[Any] | None:
        if index == 0:
            return None  # By the format, buffer 0 stands for no data.
        if not 0 < index < model.BuffersLength():
            raise ModelError(f"buffer of {name!r} must be one of the file, not {index}")
        buffer = model.Buffers(index)
        if buffer.Offset() > 1 or buffer.Size() > 1:
            raise ModelError(f"data of {name!r} must be inside the flatbuffer, not behind it")
        if buffer.DataLength() == 0 or special or dtype not in _DTYPES.values():
            return None
        data = np.asarray(buffer.DataAsNumpy(), np.uint8)
        elements = int(np.prod(shape, dtype=np.int64))
        size = (elements + 1) // 2 if dtype == "int4" else elements * np.dtype(dtype).itemsize
        if len(data) != size:
            raise ModelError(f"data of {name!r} must be {size} bytes, not {len(data)}")
        # Many tensors may share a buffer: none gets a copy of its own.
        if dtype == "int4":
            if (index, elements) not in self._unpacked:
                self._unpacked[index, elements] = unpack_int4(data, elements)
            return self._unpacked[index, elements].reshape(shape)
        plain = data.view(np.dtype(dtype).newbyteorder("<"))
        return plain.astype(dtype, copy=False).reshape(shape)

    def _code(self, code: Any) -> str:
        code.Version()  # Not needed, but where files often end: finds a cut.
        # The byte of early schemas; larger codes put 127 there.
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        name = self._codes.get(number, f"operator {number}")
        if name == "CUSTOM":
            return f"custom operator {(code.CustomCode() or b'').decode('utf-8', 'replace')!r}"
        return name

    def _operator(self, operator: Any, codes: list[str], tensors: int) -> FileOperator:
        if not 0 <= operator.OpcodeIndex() < len(codes):
            raise ModelError(f"operator code must be one of the file, not {operator.OpcodeIndex()}")
        code = codes[operator.OpcodeIndex()]
        return FileOperator(
            code=code, options=self._options(code, operator),
            inputs=_indices(f"inputs of {code}", operator.InputsAsNumpy(), tensors, -1),
            outputs=_indices(f"outputs of {code}", operator.OutputsAsNumpy(), tensors),
        )

    def _options(self, code: str, operator: Any) -> Mapping[str, Any] | None:
        table = operator.BuiltinOptions()
        if code not in _OPTIONS or table is None:
            return None
        kind, fields = _OPTIONS[code]
        if (found := self._unions.get(operator.BuiltinOptionsType())) != kind:
            raise ModelError(f"options of {code} must be {kind}, not {found}")
        options = getattr(self._schema, kind)()
        options.Init(table.Bytes, table.Pos)
        return {name: getattr(options, name)() for name in fields}


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _vector(found: Any) -> NDArray[Any]:
    """A vector of numbers; the generated reader returns 0 for one that is left out."""
    return found if isinstance(found, np.ndarray) else np.zeros(0, np.int64)


def _indices(what: str, found: Any, count: int, lowest: int = 0) -> tuple[int, ...]:
    indices = tuple(int(i) for i in _vector(found))
    for i in indices:
        if not lowest <= i < count:
            raise ModelError(f"{what} must be tensors {lowest} to {count - 1}, not {i}")
    return indices


def _quantization(
    name: str, found: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64], int, bool]:
    if found is None:
        return np.zeros(0, np.float32), np.zeros(0, np.int64), 0, False
    scale = _vector(found.ScaleAsNumpy()).astype(np.float32, copy=False)
    zero_point = _vector(found.ZeroPointAsNumpy()).astype(np.int64, copy=False)
    if len(zero_point) == 0:
        zero_point = np.zeros(len(scale), np.int64)
    if len(zero_point) != len(scale):
        raise ModelError(
            f"{name!r} must have as many zero points as scales, {len(scale)}, "
            f"not {len(zero_point)}")
    custom = found.DetailsType() != 0
    return scale, zero_point, int(found.QuantizedDimension()), custom


def _unique_names(tensors: list[FileTensor]) -> tuple[FileTensor, ...]:
    """Gives a tensor that has no name, or that of one before it, a name with its index."""
    taken: set[str] = set()
    named = []
    for i, tensor in enumerate(tensors):
        name = tensor.name
        while not name or name in taken:
            name = f"{name}#{i}"
        taken.add(name)
        named.append(replace(tensor, name=name))
    return tuple(named)
