# SPDX-License-Identifier: Apache-2.0
"""The network file, ``.smnet``: a compiled network in one file, opened with NumPy alone.

It is an ordinary zip archive whose members are stored, not compressed:

    sparsemac.json    the manifest
    arrays.bin        all arrays, little-endian, each at a multiple of 64 bytes

and whose archive comment, the last bytes of the file, is

    sparsemac network VERSION sha256 DIGEST

with the SHA-256, in 64 hexadecimal digits, of every byte of the file before the digit where DIGEST
begins: whatever was changed or is missing, shows. The same network makes the same bytes: members
have no dates, and nothing depends on the compression at hand.

The manifest is a JSON object, all keys of which must be there, and no others:

    generator    name and version of the program that wrote it
    arrays       the table of arrays: ``dtype``, ``shape``, ``offset`` in arrays.bin
    graph        a `sparsemac.graph.Graph`: the values, the nodes, the layers with their weights as
                 CSR and their requantization, the host operations with their parameters
    config       the `sparsemac.config.CoreConfig` that it was compiled for
    compiled     a `sparsemac.precompile.Compiled`: where each node runs, and the programs of the
                 device's segments, that is memory images of commands and packed weights, and where
                 inputs and outputs lie: a run on that core compiles nothing
    golden       a `Golden`: SHA-256 of the golden outputs for a seeded input, or null

`sparsemac._netcodec` says how objects are written; their keys are the attributes of the classes,
which document them. A change of any of them is another `FILE_VERSION`.

Sizes are bounded by the size of the file: members are not compressed, each array is used once, and
repeated bytes are limited (`sparsemac._netcodec.MOST_REPEATED`).
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int_in
from ._netcodec import DTYPES, ArrayReader, ArrayTable, decode, encode
from .config import CoreConfig
from .errors import ModelError
from .graph import Graph, Node, run_golden
from .hostops import HostOperationError
from .precompile import Compiled, samples_of

__all__ = [
    "FILE_VERSION", "Golden", "NetworkFile", "first_difference", "golden_of",
    "is_network_file", "load_network", "random_inputs", "read_network_file", "write_network_file",
    "write_whole",
]

FILE_VERSION = 3

MANIFEST, ARRAYS = "sparsemac.json", "arrays.bin"

#: A larger file would need the Zip64 extension [bytes].
MOST_BYTES = (1 << 32) - 1

_MEMBER = b"PK\x03\x04"
_TRAILER = re.compile(rb"sparsemac network ([0-9]{1,9}) sha256 ([0-9a-f]{64})\Z")
_DIGEST_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """What the golden model computed when the file was written.

    Attributes
    ----------
    seed, batch : int                The inputs are ``random_inputs(graph, seed, batch)``.
    nodes : tuple of str             Of each node, SHA-256 of its outputs, one behind another.
    """

    seed: int
    batch: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkFile:
    """What a network file holds; see the module."""

    graph: Graph
    config: CoreConfig
    compiled: Compiled
    golden: Golden | None
    generator: str = ""


# -- the golden outputs -------------------------------------------------------------------------


def random_inputs(graph: Graph, seed: int, batch: int | None = None) -> dict[str, NDArray[Any]]:
    """Makes inputs from a seed.

    Integers are uniform over their type, or 0 and 1 if they have more than 16 bits, as these are
    counts and indices; floats are of a standard normal distribution. Inputs are drawn in their
    order from ``numpy.random.default_rng(seed)``.

    Parameters
    ----------
    graph : Graph
    seed : int
    batch : int    Samples, a multiple of those that the graph was made for. None: as many.

    Raises
    ------
    ModelError     If the shape of an input is not known.
    """
    made_for = samples_of(graph)
    batch = made_for if batch is None else as_int_in("batch", batch, 1, 1 << 24)
    if batch % made_for or (batch != made_for and not graph.batchable):
        what = f"a multiple of {made_for}" if graph.batchable else f"{made_for}"
        raise ValueError(f"batch of {graph.name} must be {what}, not {batch}")
    rng = np.random.default_rng(as_int_in("seed", seed, 0, (1 << 63) - 1))
    inputs = {}
    for name in graph.inputs:
        value = graph.values[name]
        if value.shape is None:
            raise ModelError(f"input {name} of {graph.name} must have a known shape")
        shape = value.shape
        if graph.batchable and shape:
            shape = (shape[0] * batch // made_for, *shape[1:])
        inputs[name] = _random(rng, shape, DTYPES[value.dtype])
    return inputs


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]
            ) -> NDArray[Any]:
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def golden_of(graph: Graph, seed: int, batch: int | None = None) -> Golden:
    """Runs the golden model on a seeded input.

    Raises
    ------
    ModelError            If an input has no known shape.
    HostOperationError    If the network cannot run on random inputs.
    """
    batch = samples_of(graph) if batch is None else batch
    return Golden(seed=seed, batch=batch, nodes=tuple(_digests(graph, seed, batch)))


def first_difference(file: NetworkFile) -> Node | None:
    """Runs the golden model again; returns the first node that computes something else, or None.

    Integers are the same on every machine. The last bits of a float may depend on the machine's
    mathematical functions; `Node.outputs` and the graph's values say what a node makes.
    """
    golden = file.golden
    if golden is None:
        return None
    digests = _digests(file.graph, golden.seed, golden.batch)
    for node, got, want in zip(file.graph.nodes, digests, golden.nodes, strict=True):
        if got != want:
            return node
    return None


def _digests(graph: Graph, seed: int, batch: int) -> list[str]:
    digests: list[str] = []

    def watch(_node: Node, results: tuple[NDArray[Any], ...]) -> None:
        digest = hashlib.sha256()
        for array in results:
            digest.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).data)
        digests.append(digest.hexdigest())

    run_golden(graph, random_inputs(graph, seed, batch), watch=watch)
    return digests


# -- writing ------------------------------------------------------------------------------------


def write_network_file(
    path: str | Path, graph: Graph, config: CoreConfig, compiled: Compiled, *, seed: int = 1
) -> NetworkFile:
    """Writes a network file; the same arguments make the same bytes.

    Parameters
    ----------
    path : path
    graph : Graph
    config : CoreConfig    What it was compiled for.
    compiled : Compiled    By `sparsemac.precompile.compile_graph`.
    seed : int             Of the input for the golden checksums.

    Returns
    -------
    NetworkFile    What was written. Its ``golden`` is None if the network does not run on a random
                   input.

    Raises
    ------
    ModelError    If a parameter of a host operation cannot be written, or the file would be too
                  large.
    OSError       If the file cannot be written; nothing is left of it then.
    """
    from . import __version__

    try:
        golden = golden_of(graph, seed)
    except (ModelError, HostOperationError):
        golden = None
    file = NetworkFile(
        graph=graph, config=config, compiled=compiled, golden=golden,
        generator=f"sparsemac {__version__}")
    data = _to_bytes(file)
    if len(data) > MOST_BYTES:
        raise ModelError(f"{graph.name} must take at most {MOST_BYTES} bytes, not {len(data)}")
    write_whole(Path(path), data)
    return file


def _to_bytes(file: NetworkFile) -> bytes:
    table = ArrayTable()
    manifest = {
        "generator": file.generator,
        "graph": encode(file.graph, Graph, table, "graph"),
        "config": file.config.as_dict(),
        "compiled": encode(file.compiled, Compiled, table, "compiled"),
        "golden": encode(file.golden, Golden | None, table, "golden"),
        "arrays": table.entries,
    }
    text = json.dumps(manifest, separators=(",", ":"), allow_nan=False)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((MANIFEST, text.encode()), (ARRAYS, bytes(table.data))):
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
        comment = f"sparsemac network {FILE_VERSION} sha256 ".encode()
        archive.comment = comment + b"0" * _DIGEST_BYTES
    data = buffer.getvalue()[:-_DIGEST_BYTES]
    return data + hashlib.sha256(data).hexdigest().encode()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, whatever happens on the way."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# -- reading ------------------------------------------------------------------------------------


def is_network_file(path: str | Path) -> bool:
    """Whether a file begins as a network file does, whatever its name."""
    with Path(path).open("rb") as file:
        return _begins_well(file.read(30 + len(MANIFEST)))


def _begins_well(head: bytes) -> bool:
    return head.startswith(_MEMBER) and head[30:] == MANIFEST.encode()


def load_network(path: str | Path) -> Graph:
    """Reads the network of a network file; see `read_network_file`."""
    return read_network_file(path).graph


def read_network_file(path: str | Path) -> NetworkFile:
    """Reads a network file.

    Raises
    ------
    ModelError    Naming the file and what is wrong: not a network file, another version, truncated,
                  damaged, or a manifest that is not as this module says.
    OSError       If the file cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ModelError(f"{path.name} must have at most {MOST_BYTES} bytes, not {size}")
    data = path.read_bytes()
    try:
        _check_whole(data)
        return _from_members(*_members(data))
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None
    except (RecursionError, MemoryError) as error:
        raise ModelError(f"{path.name}: the manifest must be one that can be read, not "
                         f"one that ends in {type(error).__name__}") from None


def _check_whole(data: bytes) -> None:
    """Checks the beginning, the checksum and the version."""
    if not _begins_well(data[: 30 + len(MANIFEST)]):
        raise ModelError("not a network file: it must be a zip archive that begins with "
                         f"{MANIFEST}")
    trailer = _TRAILER.search(data[-128:])
    if trailer is None:
        raise ModelError("the file must end with its checksum: it is truncated or damaged")
    found = hashlib.sha256(data[:-_DIGEST_BYTES]).hexdigest()
    if found != (want := trailer[2].decode()):
        raise ModelError(f"checksum must be {want[:16]}..., as the file says, not {found[:16]}...: "
                         f"it is damaged")
    if int(trailer[1]) != FILE_VERSION:
        raise ModelError(f"version of the network file must be {FILE_VERSION}, not "
                         f"{int(trailer[1])}: compile the network again, or use the sparsemac "
                         f"that wrote it")


def _members(data: bytes) -> tuple[Any, bytes]:
    """The manifest and the arrays."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if names != [MANIFEST, ARRAYS]:
                raise ModelError(f"members must be {MANIFEST} and {ARRAYS}, not {names[:4]}")
            for info in infos:
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                    raise ModelError(f"{info.filename} must be stored, not compressed, "
                                     f"and no larger than the file")
            text, arrays = (archive.read(info) for info in infos)
    except ModelError:
        raise
    except Exception as error:  # damaged archives raise many kinds, which are not documented
        raise ModelError(f"the zip archive must be readable: {error}") from None
    try:
        return json.loads(text), arrays
    except ValueError as error:
        raise ModelError(f"{MANIFEST} must be JSON: {error}") from None


def _from_members(manifest: Any, arrays: bytes) -> NetworkFile:
    names = ("generator", "graph", "config", "compiled", "golden", "arrays")
    if not isinstance(manifest, dict) or set(manifest) != set(names):
        keys = list(manifest) if isinstance(manifest, Mapping) else type(manifest).__name__
        raise ModelError(f"keys of {MANIFEST} must be {', '.join(names)}, not {keys}")
    reader = ArrayReader(manifest["arrays"], arrays)
    graph = decode(manifest["graph"], Graph, reader, "graph")
    _check_values(graph)
    try:
        config = CoreConfig.from_dict(decode(manifest["config"], dict, reader, "config"))
    except (ValueError, TypeError) as error:
        raise ModelError(f"config: {error}") from None
    compiled = decode(manifest["compiled"], Compiled, reader, "compiled")
    golden = decode(manifest["golden"], Golden | None, reader, "golden")
    if golden is not None and len(golden.nodes) != len(graph.nodes):
        raise ModelError(f"golden must have {len(graph.nodes)} nodes, not {len(golden.nodes)}")
    if len(compiled.placed) != len(graph.nodes):
        raise ModelError(f"compiled must place {len(graph.nodes)} nodes, not "
                         f"{len(compiled.placed)}")
    reader.check_all_taken()
    return NetworkFile(graph=graph, config=config, compiled=compiled, golden=golden,
                       generator=decode(manifest["generator"], str, reader, "generator"))


def _check_values(graph: Graph) -> None:
    for name, value in graph.values.items():
        if value.name != name:
            raise ModelError(f"value {name!r} must have its own name, not {value.name!r}")
        if value.dtype not in DTYPES:
            raise ModelError(f"value {name!r} must hold one of {', '.join(DTYPES)}, "
                             f"not {value.dtype!r}")
        if value.shape is not None and min(value.shape, default=0) < 0:
            raise ModelError(f"shape of value {name!r} must not be negative, not {value.shape}")
