# SPDX-License-Identifier: Apache-2.0
"""Arrays of files for the inputs of a network, and arrays of outputs to files."""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsemac.graph import Graph, Value
from sparsemac.hostops.integer import quantize, recode
from sparsemac.netfile import write_whole

__all__ = ["INPUT_HELP", "Given", "output_format", "read_inputs", "write_outputs"]

INPUT_HELP = (
    "file with samples, or name=file for a network of several inputs: .npy, .npz (arrays by the "
    "names of inputs), .csv (one sample per line), .bin or .dat (the input's own type, "
    "little-endian). Several files for one input are one batch. Real numbers are quantized with "
    "the input's scale and zero point"
)

_RAW = (".bin", ".dat")


@dataclass(frozen=True, slots=True)
class Given:
    """Inputs by name, and what was done to them on the way.

    Attributes
    ----------
    arrays : dict of arrays    As the graph wants them, but with any number of samples.
    notes : list of str        Conversions, for the user.
    """

    arrays: dict[str, NDArray[Any]]
    notes: list[str]


def read_inputs(graph: Graph, files: Sequence[str]) -> Given:
    """Reads files for all inputs of a network; see `INPUT_HELP`.

    Files without a name belong to the only input, or one to each input in order.

    Raises
    ------
    ValueError    Naming the file, what it must hold and what it does.
    OSError       If a file cannot be read.
    """
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in graph.inputs}
    notes: dict[str, None] = {}  # in order, each once
    for name, path in _assign(graph, files):
        for owner, array in _read(path, graph, name).items():
            value = graph.values[owner]
            array, note = _convert(array, value, path)
            notes |= dict.fromkeys([note] if note else [])
            parts[owner].append(_shaped(array, value, graph.batchable, path))
    for name, arrays in parts.items():
        if not arrays:
            raise ValueError(f"input {name!r} must be given: {name}=FILE")
    return Given({name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
                  for name, arrays in parts.items()}, list(notes))


def _assign(graph: Graph, files: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Pairs files with the names of inputs; None: the file itself says it."""
    given: list[tuple[str | None, Path]] = []
    for text in files:
        name, equals, rest = text.partition("=")
        # A file whose own name has a '=' is meant as it stands.
        if equals and name in graph.inputs:
            given.append((name, Path(rest)))
        elif equals and not Path(text).exists():
            raise ValueError(f"input must be one of {', '.join(graph.inputs)}, not {name!r}")
        else:
            given.append((None, Path(text)))
    loose = [i for i, (name, path) in enumerate(given)
             if name is None and path.suffix.lower() != ".npz"]
    if len(graph.inputs) == 1:
        owners = list(graph.inputs) * len(loose)
    else:
        named = {name for name, _ in given}
        owners = [name for name in graph.inputs if name not in named]
        if loose and len(owners) != len(loose):
            raise ValueError(
                f"{graph.name} has the inputs {', '.join(graph.inputs)}: give name=FILE for each, "
                f"or one file for each in this order, not {len(loose)} files")
    for i, owner in zip(loose, owners, strict=False):
        given[i] = (owner, given[i][1])
    return given


def _read(path: Path, graph: Graph, name: str | None) -> dict[str, NDArray[Any]]:
    """Arrays of a file by the inputs that they are for."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_archive(path, graph, name)
    assert name is not None
    if suffix == ".npy":
        return {name: _load(path)}
    if suffix == ".csv":
        return {name: _read_csv(path)}
    if suffix in _RAW:
        dtype = np.dtype(graph.values[name].dtype)
        data = path.read_bytes()
        if len(data) % dtype.itemsize:
            raise ValueError(f"{path.name} must be whole {dtype} numbers, not {len(data)} bytes")
        return {name: np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)}
    raise ValueError(f"{path.name} must end in .npy, .npz, .csv, .bin or .dat, not {suffix!r}")


def _load(path: Path) -> Any:
    try:
        # From memory: NumPy leaves a damaged archive open.
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} must be a NumPy file of numbers: {error}") from None


def _read_archive(path: Path, graph: Graph, name: str | None) -> dict[str, NDArray[Any]]:
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        raise ValueError(f"{path.name} must be a NumPy archive, not one array")
    with loaded as archive:
        try:
            if name is not None or (len(archive.files) == 1 and len(graph.inputs) == 1):
                if len(archive.files) > 1 and name not in archive.files:
                    raise ValueError(f"{path.name} must hold {name!r} or one array, "
                                     f"not {', '.join(archive.files)}")
                key = name if name in archive.files else archive.files[0]
                return {name or graph.inputs[0]: archive[key]}
            known = {key: archive[key] for key in archive.files if key in graph.inputs}
        except (zipfile.BadZipFile, EOFError, IndexError) as error:
            raise ValueError(f"{path.name} must be a NumPy archive: {error}") from None
        if not known:
            raise ValueError(f"{path.name} must hold {', '.join(graph.inputs)}, "
                             f"not {', '.join(archive.files) or 'nothing'}")
        return known


def _read_csv(path: Path) -> NDArray[Any]:
    """Numbers of a CSV file: integers if all of them are written as such."""
    try:
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8")).lower()
        if not text.strip():
            raise ValueError("there are none")
        whole = not re.search("[.en]", text)  # a point, an exponent, inf or nan
        array = np.loadtxt(io.StringIO(text), dtype=np.int64 if whole else np.float64,
                           delimiter=",", ndmin=2)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path.name} must be lines of numbers with commas: {error}") from None
    return array


def _convert(array: NDArray[Any], value: Value, path: Path) -> tuple[NDArray[Any], str]:
    """The numbers in the type of an input, and what was done to them."""
    dtype = np.dtype(value.dtype)
    if array.dtype == dtype:
        return array, ""
    if array.dtype.kind == "f" and dtype.kind in "iu":
        if not value.scale:
            raise ValueError(f"{path.name} must hold {dtype} for {value.name}, not {array.dtype}")
        limits = np.iinfo(dtype)
        whole = quantize(array, scale=value.scale, zero_point=value.zero_point,
                         low=int(limits.min), high=int(limits.max), dtype=value.dtype)
        return whole, (f"{value.name}: {array.dtype} quantized to {dtype} with scale "
                       f"{value.scale:g} and zero point {value.zero_point}")
    if array.dtype.kind in "iub" and dtype.kind == "f":
        return array.astype(dtype), f"{value.name}: {array.dtype} taken as {dtype}"
    if {array.dtype, dtype} == {np.dtype(np.uint8), np.dtype(np.int8)}:
        return recode(array, dtype=value.dtype), (
            f"{value.name}: {array.dtype} taken as {dtype}, the same numbers at a zero point "
            f"128 away")
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise ValueError(
                f"{path.name} must hold {limits.min} to {limits.max}, {dtype}, for {value.name}, "
                f"not {array.min()} to {array.max()}")
        return array.astype(dtype), ""
    if array.dtype.kind == dtype.kind == "f":
        return array.astype(dtype), f"{value.name}: {array.dtype} taken as {dtype}"
    raise ValueError(f"{path.name} must hold {dtype} for {value.name}, not {array.dtype}")


def _shaped(array: NDArray[Any], value: Value, batchable: bool, path: Path) -> NDArray[Any]:
    """Samples of the input's shape: as they are, without their batch axis, or flat."""
    shape = value.shape
    if shape is None or not shape:
        return array
    rest = shape[1:]
    elements = int(np.prod(rest))
    if array.shape[1:] == rest and array.ndim == len(shape):
        return array
    flat = array.ndim == 1 and elements and array.size % elements == 0
    lines = array.ndim == 2 and array.shape[1] == elements
    if batchable and (array.shape == rest or flat or lines):
        return array.reshape(-1, *rest)
    if not batchable and array.size and array.size % int(np.prod(shape)) == 0 and (
            array.shape == rest or flat or lines):
        return array.reshape(-1, *rest)
    lead = "n" if batchable else str(shape[0])
    raise ValueError(
        f"{path.name} must hold shape ({', '.join([lead, *map(str, rest)])}) for {value.name}, or "
        f"{elements} numbers for each sample, not shape {array.shape}")


# -- outputs ------------------------------------------------------------------------------------


def output_format(path: Path, outputs: Sequence[str]) -> str:
    """Checks the name of an output file; returns its suffix."""
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz"):
        raise ValueError(f"output file must end in .npy or .npz, not {path.name!r}")
    if suffix == ".npy" and len(outputs) != 1:
        raise ValueError(f"output file must end in .npz, as there are {len(outputs)} outputs: "
                         f"{', '.join(outputs)}")
    if not path.parent.is_dir():
        raise ValueError(f"folder of the output file must be there: {path.parent}")
    return suffix


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Writes outputs whole or not at all: one array as .npy, any number by name as .npz."""
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npy":
        (array,) = outputs.values()
        np.save(buffer, array, allow_pickle=False)
    else:
        # Not savez(**outputs): a name may be any text, such as "file".
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, array in outputs.items():
                part = io.BytesIO()
                np.save(part, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", part.getvalue())
    write_whole(path, buffer.getvalue())
