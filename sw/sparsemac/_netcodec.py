# SPDX-License-Identifier: Apache-2.0
"""Objects of a network as JSON and arrays, by the types that their classes state.

An object becomes a JSON object with one key for each attribute of its class, an array a number: its
place in a table of arrays. Reading checks every kind against the class, refuses keys that are
missing or unknown, and takes each array once, so that what is built is never much larger than the
file.

    int, float, bool, str    themselves; a float that is not finite is {"float": "inf"}
    an enumeration           its integer
    a tuple                  a list
    slice(a, b)              [a, b]
    one class of several     the object with its class under "class"
    arrays                   a number: the place in the table, see `ArrayTable`
    bytes                    a number as well; if all are the same, {"byte": value, "count": n}
    Csr                      {"shape": [rows, columns], "counts": entries of each row, "columns",
                             "weights": int8, or two in a byte, see `numerics.pack_int4`}
    parameters of a host operation    themselves; {"list": [...]}, {"tuple": [...]},
                             {"dict": {...}}, {"array": number}, {"scalar": number}
"""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ._checks import as_int_in
from .conv_tiling import ConvTiling
from .csr import Csr, as_csr
from .errors import ModelError
from .numerics import pack_int4, unpack_int4
from .tiling import Tiling

__all__ = ["DTYPES", "ArrayReader", "ArrayTable", "decode", "encode"]

#: Types of arrays by name.
DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("int4", "uint4", "bfloat16")},
}

#: Arrays begin at multiples of this [bytes].
ALIGNMENT = 64

#: Repeated bytes of a file, which it need not hold, may become this many.
MOST_REPEATED = 1 << 28

#: Names that annotations use and that their modules import for type checkers only.
_NAMES = {"Tiling": Tiling, "ConvTiling": ConvTiling}


class ArrayTable:
    """Arrays to be written, one behind another.

    Attributes
    ----------
    entries : list of dict    ``dtype``, a key of `DTYPES`; ``shape``; ``offset`` in the data.
    data : bytearray          Little-endian, in row-major order, each at a multiple of `ALIGNMENT`.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.data = bytearray()

    def add(self, array: NDArray[Any], where: str) -> int:
        """Appends an array; returns its number."""
        if (name := array.dtype.name) not in DTYPES:
            raise ModelError(f"{where} must hold one of {', '.join(DTYPES)}, not {array.dtype}")
        self.data += bytes(-len(self.data) % ALIGNMENT)
        self.entries.append({"dtype": name, "shape": list(array.shape), "offset": len(self.data)})
        little = array.astype(array.dtype.newbyteorder("<"))
        self.data += np.ascontiguousarray(little).tobytes()
        return len(self.entries) - 1


class ArrayReader:
    """Arrays of a file; each may be taken once.

    Parameters
    ----------
    entries : list of dict, data : bytes    As `ArrayTable` has them.
    """

    def __init__(self, entries: Any, data: bytes) -> None:
        self._entries = _expect(entries, list, "arrays")
        self._data = data
        self._taken: set[int] = set()
        self._repeated_left = MOST_REPEATED

    def take(self, number: Any, where: str) -> NDArray[Any]:
        """Returns an array, native and writable; `ModelError` if it is not inside the data."""
        number = _expect(number, int, where)
        if not 0 <= number < len(self._entries):
            raise ModelError(f"{where} must be one of {len(self._entries)} arrays, not {number}")
        if number in self._taken:
            raise ModelError(f"{where} must have an array of its own, but {number} was used before")
        self._taken.add(number)
        entry = _object(self._entries[number], ("dtype", "shape", "offset"), f"arrays[{number}]")
        if entry["dtype"] not in tuple(DTYPES):
            raise ModelError(
                f"dtype of array {number} must be one of {', '.join(DTYPES)}, "
                f"not {entry['dtype']!r}")
        dtype = DTYPES[entry["dtype"]]
        shape = decode(entry["shape"], tuple[int, ...], self, f"arrays[{number}].shape")
        offset = _expect(entry["offset"], int, f"arrays[{number}].offset")
        nbytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not 0 <= offset <= len(self._data) - nbytes:
            raise ModelError(
                f"array {number} must lie in the {len(self._data)} bytes of arrays, "
                f"not {nbytes} bytes at {offset}")
        raw = np.frombuffer(self._data, dtype.newbyteorder("<"), math.prod(shape), offset)
        try:
            return raw.astype(dtype).reshape(shape)
        except ValueError as error:
            raise ModelError(f"shape of array {number} must be possible: {error}") from None

    def grow(self, count: int, where: str) -> int:
        """Allows ``count`` bytes that the file does not hold, up to `MOST_REPEATED` in all."""
        if not 0 <= count <= self._repeated_left:
            raise ModelError(
                f"{where} must be at most {self._repeated_left} bytes, of {MOST_REPEATED} in all, "
                f"not {count}")
        self._repeated_left -= count
        return count

    def check_all_taken(self) -> None:
        """Refuses arrays that nothing uses."""
        if len(self._taken) < len(self._entries):
            unused = next(i for i in range(len(self._entries)) if i not in self._taken)
            raise ModelError(f"array {unused} must be used by the network")


# -- writing ------------------------------------------------------------------------------------


def encode(value: Any, hint: Any, arrays: ArrayTable, where: str) -> Any:
    """Returns what JSON can hold of a value of the stated type; arrays go into the table.

    Raises
    ------
    ModelError    Of a parameter of a host operation that cannot be written; ``where`` names it.
    """
    if hint is Any:
        return _encode_any(value, arrays, where)
    if (classes := _union(hint)) is not None:
        if value is None:
            return None
        if len(classes) == 1:
            return encode(value, classes[0], arrays, where)
        return {"class": type(value).__name__, **encode(value, type(value), arrays, where)}
    if hint is Csr:
        return _encode_csr(value, arrays, where)
    if dataclasses.is_dataclass(hint):
        return {name: encode(getattr(value, name), kind, arrays, f"{where}.{name}")
                for name, kind in _fields(hint).items()}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return [encode(item, kind, arrays, f"{where}[{i}]")
                for i, (item, kind) in enumerate(zip(value, _members(args, len(value)),
                                                     strict=True))]
    if origin is Mapping:
        return {name: encode(item, args[1], arrays, f"{where}.{name}")
                for name, item in value.items()}
    if origin is np.ndarray:
        return arrays.add(np.asarray(value).astype(_array_dtype(args)), where)
    if hint is bytes:
        if value and value == value[:1] * len(value):
            return {"byte": value[0], "count": len(value)}
        return arrays.add(np.frombuffer(value, np.uint8), where)
    if hint is slice:
        return [value.start, value.stop]
    if hint is float:
        return _encode_any(float(value), arrays, where)
    return int(value) if issubclass(hint, enum.Enum) else hint(value)


def _encode_any(value: Any, arrays: ArrayTable, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: arrays.add(np.asarray(value), where)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, (list, tuple)):
        items = [_encode_any(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ModelError(f"{where} must have strings as keys")
        return {"dict": {name: _encode_any(item, arrays, f"{where}.{name}")
                         for name, item in value.items()}}
    raise ModelError(f"{where} must be numbers, text, arrays or lists of them, "
                     f"not {type(value).__name__}")


def _encode_csr(csr: Csr, arrays: ArrayTable, where: str) -> dict[str, Any]:
    four = not csr.nnz or (csr.data.min() >= -8 and csr.data.max() <= 7)
    return {
        "shape": list(csr.shape), "bits": 4 if four else 8,
        "counts": arrays.add(_narrow(csr.row_lengths), where),
        "columns": arrays.add(_narrow(csr.indices), where),
        "weights": arrays.add(pack_int4(csr.data) if four else csr.data, where),
    }


def _narrow(values: NDArray[np.int64]) -> NDArray[Any]:
    """The narrowest unsigned type that holds the values."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


# -- reading ------------------------------------------------------------------------------------


def decode(raw: Any, hint: Any, arrays: ArrayReader, where: str) -> Any:
    """Builds a value of the stated type of what `encode` made.

    Raises
    ------
    ModelError    Naming the place, what must stand there and what does.
    """
    if hint is Any:
        return _decode_any(raw, arrays, where)
    if (classes := _union(hint)) is not None:
        return _decode_union(raw, hint, classes, arrays, where)
    if hint is Csr:
        return _decode_csr(raw, arrays, where)
    if dataclasses.is_dataclass(hint):
        kinds = _fields(hint)
        raw = _object(raw, tuple(kinds), where)
        return _build(hint, where, **{name: decode(raw[name], kind, arrays, f"{where}.{name}")
                                      for name, kind in kinds.items()})
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = _expect(raw, list, where)
        kinds = _members(args, len(items))
        if len(items) != len(kinds):
            raise ModelError(f"{where} must have {len(kinds)} members, not {len(items)}")
        return tuple(decode(item, kind, arrays, f"{where}[{i}]")
                     for i, (item, kind) in enumerate(zip(items, kinds, strict=True)))
    if origin is Mapping:
        return {name: decode(item, args[1], arrays, f"{where}.{name}")
                for name, item in _expect(raw, dict, where).items()}
    if origin is np.ndarray:
        return _array(arrays.take(raw, where), _array_dtype(args), where)
    if hint is bytes:
        return _decode_bytes(raw, arrays, where)
    if hint is slice:
        return slice(*decode(raw, tuple[int, int], arrays, where))
    if hint is float and isinstance(raw, dict):
        _object(raw, ("float",), where)
        return _decode_any(raw, arrays, where)
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return _build(float, where, raw)
    if issubclass(hint, enum.Enum):
        return _build(hint, where, _expect(raw, int, where))
    return _expect(raw, hint, where)


def _decode_union(raw: Any, hint: Any, classes: list[Any], arrays: ArrayReader, where: str) -> Any:
    if raw is None and type(None) in typing.get_args(hint):
        return None
    if len(classes) == 1:
        return decode(raw, classes[0], arrays, where)
    fields = dict(_expect(raw, dict, where))
    name = fields.pop("class", None)
    for kind in classes:
        if kind.__name__ == name:
            return decode(fields, kind, arrays, where)
    raise ModelError(f"class of {where} must be one of "
                     f"{', '.join(kind.__name__ for kind in classes)}, not {name!r}")


def _decode_any(raw: Any, arrays: ArrayReader, where: str) -> Any:
    if not isinstance(raw, dict):
        if isinstance(raw, list):
            raise ModelError(f"{where} must be no bare list")
        return raw
    if len(raw) != 1:
        raise ModelError(f"{where} must have one key, not {len(raw)}")
    ((kind, value),) = raw.items()
    if kind in ("list", "tuple"):
        items = [_decode_any(item, arrays, f"{where}[{i}]")
                 for i, item in enumerate(_expect(value, list, where))]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {name: _decode_any(item, arrays, f"{where}.{name}")
                for name, item in _expect(value, dict, where).items()}
    if kind == "array":
        return arrays.take(value, where)
    if kind == "scalar":
        array = arrays.take(value, where)
        if array.shape:
            raise ModelError(f"{where} must be one number, not {array.shape}")
        return array[()]
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    raise ModelError(f"{where} must be a list, tuple, dict, array, scalar or float, not {kind!r}")


def _decode_bytes(raw: Any, arrays: ArrayReader, where: str) -> bytes:
    if not isinstance(raw, dict):
        return _array(arrays.take(raw, where), np.dtype(np.uint8), where).tobytes()
    raw = _object(raw, ("byte", "count"), where)
    value, count = (_expect(raw[name], int, f"{where}.{name}") for name in ("byte", "count"))
    return bytes([_build(as_int_in, where, f"{where}.byte", value, 0, 255)]) * arrays.grow(
        count, where)


def _decode_csr(raw: Any, arrays: ArrayReader, where: str) -> Csr:
    raw = _object(raw, ("shape", "bits", "counts", "columns", "weights"), where)
    shape = decode(raw["shape"], tuple[int, int], arrays, f"{where}.shape")
    counts, columns = (arrays.take(raw[name], f"{where}.{name}") for name in ("counts", "columns"))
    for name, array in (("counts", counts), ("columns", columns)):
        if array.ndim != 1 or array.dtype.kind != "u":
            raise ModelError(
                f"{where}.{name} must be one row of unsigned integers, not {array.dtype} "
                f"of shape {array.shape}")
    if counts.size and int(counts.max()) > len(columns):
        raise ModelError(f"{where}.counts must be at most {len(columns)}, not {counts.max()}")
    indptr = np.concatenate([[0], np.cumsum(counts.astype(np.int64))]).astype(np.int64)
    data, bits = arrays.take(raw["weights"], f"{where}.weights"), raw["bits"]
    if bits == 4:
        packed = _array(data, np.dtype(np.uint8), where).ravel()
        data = _build(unpack_int4, where, packed, len(columns))
    elif bits == 8:
        data = _array(data, np.dtype(np.int8), where)
    else:
        raise ModelError(f"{where}.bits must be 4 or 8, not {bits!r}")
    return _build(as_csr, where, (data, columns, indptr, shape))


# -- kinds --------------------------------------------------------------------------------------


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, localns=_NAMES)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _union(hint: Any) -> list[Any] | None:
    """The classes of a union, without None; or None if it is no union."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return None
    return [kind for kind in typing.get_args(hint) if kind is not type(None)]


def _members(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return (args[0],) * count if args[-1] is Ellipsis else args


def _array_dtype(args: tuple[Any, ...]) -> np.dtype[Any]:
    return np.dtype(typing.get_args(args[1])[0])


def _array(array: NDArray[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    if array.dtype != dtype:
        raise ModelError(f"{where} must hold {dtype}, not {array.dtype}")
    return array


def _expect(raw: Any, kind: type, where: str) -> Any:
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        names = {dict: "an object", list: "a list", int: "an integer", float: "a number",
                 bool: "true or false", str: "text"}
        raise ModelError(f"{where} must be {names[kind]}, not {_short(raw)}")
    return raw


def _object(raw: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """An object with just these keys."""
    for name in _expect(raw, dict, where):
        if name not in names:
            raise ModelError(f"{where} must have no key but {', '.join(names)}, not {_short(name)}")
    for name in names:
        if name not in raw:
            raise ModelError(f"{where} must have the key {name!r}")
    return raw


def _build(make: Any, where: str, /, *args: Any, **fields: Any) -> Any:
    try:
        return make(*args, **fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{where}: {error}") from None


def _short(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 40 else text[:37] + "..."
