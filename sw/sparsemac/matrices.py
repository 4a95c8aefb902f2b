# SPDX-License-Identifier: Apache-2.0
"""Reads sparse matrices from the files they come in.

``.smtx``   the text format of the Deep Learning Matrix Collection (Gale et al., "Sparse GPU
            Kernels for Deep Learning", SC 2020): a line ``rows, cols, nnz``, a line of row
            offsets, a line of column indices; no values
``.mtx``    Matrix Market (Boisvert et al., NISTIR 5935, 1996), by SciPy
``.npz``    SciPy's ``save_npz``
``.npy``    a dense NumPy array
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int, need
from .csr import Csr, as_csr, weight_range

__all__ = ["Matrix", "quantize_matrix", "random_values", "read_matrix"]

#: A declared size beyond this is refused before anything is allocated [elements].
MAX_SIDE = 1 << 24
MAX_ENTRIES = 1 << 28


@dataclass(frozen=True, slots=True)
class Matrix:
    """A sparse matrix as a file has it; duplicates are kept.

    Attributes
    ----------
    name : str                       File name.
    shape : (rows, columns)
    indptr : (rows + 1,) int64
    indices : (nnz,) int64
    values : (nnz,) float64          None: the file has a pattern only.
    """

    name: str
    shape: tuple[int, int]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: NDArray[np.float64] | None


def read_matrix(path: str | Path) -> Matrix:
    """Reads a file by its suffix.

    Raises
    ------
    ValueError           Naming the file, the line where there is one, and what is wrong.
    FileNotFoundError
    MissingDependency    Matrix Market and ``.npz`` files need SciPy.
    """
    path = Path(path)
    readers = {".smtx": _read_smtx, ".mtx": _read_mtx, ".npz": _read_npz, ".npy": _read_npy}
    if path.suffix not in readers:
        raise ValueError(f"a matrix file must end in {', '.join(readers)}, not {path.name!r}")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise ValueError(f"{path.name} must be a file, not a folder")
    matrix = readers[path.suffix](path)
    if matrix.values is not None and (bad := np.flatnonzero(~np.isfinite(matrix.values))).size:
        at = int(bad[0])
        row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
        raise ValueError(
            f"{path.name}: values must be finite, not {matrix.values[at]} "
            f"(row {row}, column {matrix.indices[at]}, both from 0)"
        )
    return matrix


def _check_sizes(where: str, rows: int, columns: int, entries: int) -> None:
    """Refuses what a file declares before anything of that size is allocated."""
    if min(rows, columns, entries) < 0 or max(rows, columns) > MAX_SIDE or entries > MAX_ENTRIES:
        raise ValueError(
            f"{where}: a matrix must be at most {MAX_SIDE} by {MAX_SIDE} with {MAX_ENTRIES} "
            f"entries, not {rows} by {columns} with {entries}"
        )


def _read_smtx(path: Path) -> Matrix:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} must be ASCII text") from None

    def numbers(line: int, name: str, count: int,
                separator: str | None = None) -> NDArray[np.int64]:
        words = lines[line - 1].split(separator) if line <= len(lines) else []
        if len(words) != count:
            raise ValueError(
                f"{path.name}, line {line}: must hold {count} {name}, not {len(words)}"
            )
        try:
            return np.array(list(map(int, words)), np.int64)
        except (ValueError, OverflowError):
            raise ValueError(f"{path.name}, line {line}: must hold 64-bit integers") from None

    rows, columns, nnz = numbers(1, "sizes (rows, columns, nonzeros)", 3, ",").tolist()
    _check_sizes(f"{path.name}, line 1", rows, columns, nnz)
    indptr, indices = numbers(2, "row offsets", rows + 1), numbers(3, "columns", nnz)
    if (more := next((k for k in range(3, len(lines)) if lines[k].strip()), 0)):
        raise ValueError(f"{path.name}, line {more + 1}: must not be there, a file has three lines")
    checked = _named(path, (np.ones(nnz, np.int8), indices, indptr, (rows, columns)))
    return Matrix(path.name, checked.shape, checked.indptr, checked.indices, None)


def _named(path: Path, arrays: tuple[Any, ...]) -> Csr:
    """Checks CSR arrays; an error names the file."""
    try:
        return as_csr(arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _parsed(path: Path, parse: Callable[[Path], Any], kind: str) -> Any:
    """What a parser makes of a file; whatever it raises becomes one kind of error.

    A damaged file meets the ends of SciPy, NumPy, zipfile and zlib: their errors are many and not
    documented.
    """
    try:
        return parse(path)
    except Exception as error:
        raise ValueError(f"{path.name} must be {kind}: {error}") from None


def _read_mtx(path: Path) -> Matrix:
    io = need("scipy.io", "scipy", "reading Matrix Market files")
    kind = "a Matrix Market file"
    rows, columns, entries, _, field, _ = _parsed(path, io.mminfo, kind)
    _check_sizes(path.name, rows, columns, entries)
    if entries > path.stat().st_size:
        raise ValueError(f"{path.name} must have {entries} entries, but is shorter: truncated")
    if field == "complex":
        raise ValueError(f"{path.name}: values must be real, not complex")
    return _from_scipy(path, _parsed(path, io.mmread, kind), pattern=field == "pattern")


def _from_scipy(path: Path, matrix: Any, *, pattern: bool = False) -> Matrix:
    """CSR of a SciPy matrix or a dense array; explicit zeros and duplicates are kept."""
    if len(matrix.shape) != 2:
        raise ValueError(f"{path.name}: a matrix must have 2 dimensions, not {len(matrix.shape)}")
    if isinstance(matrix, np.ndarray):
        rows, columns = np.nonzero(matrix)
        values = np.asarray(matrix[rows, columns])
    else:
        coo = matrix.tocoo()
        rows, columns, values = coo.row, coo.col, coo.data
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: values must be real numbers, not {values.dtype}")
    shape = int(matrix.shape[0]), int(matrix.shape[1])
    _check_sizes(path.name, *shape, len(values))
    order = np.lexsort((columns, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    return Matrix(
        path.name, shape, indptr.astype(np.int64), columns[order].astype(np.int64),
        None if pattern else values[order].astype(np.float64),
    )


def _read_npz(path: Path) -> Matrix:
    sparse = need("scipy.sparse", "scipy", "reading .npz files")

    def load(path: Path) -> Any:
        with path.open("rb") as file:  # given a path, NumPy leaves damaged archives open
            matrix = sparse.load_npz(file)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
        return matrix

    return _from_scipy(path, _parsed(path, load, "a matrix of SciPy's save_npz"))


def _read_npy(path: Path) -> Matrix:
    def load(path: Path) -> Any:
        # Mapped, not read: a header that promises more than the file has allocates nothing.
        return np.lib.format.open_memmap(path, mode="r")

    return _from_scipy(path, _parsed(path, load, "a NumPy array"))


def random_values(matrix: Matrix, weight_bits: int, seed: int) -> Csr:
    """Gives each entry of a pattern a random weight other than zero, from a seed."""
    low, high = weight_range(weight_bits)
    rng = np.random.default_rng(as_int("seed", seed))
    weights = rng.integers(low, high, len(matrix.indices))
    weights += weights >= 0  # skips zero
    return as_csr((weights, matrix.indices, matrix.indptr, matrix.shape), weight_bits=weight_bits)


def quantize_matrix(matrix: Matrix, weight_bits: int) -> tuple[Csr, NDArray[np.float64]]:
    """Rounds real values to weights, each row by the scale that covers its largest value.

    Returns
    -------
    Csr; (rows,) scales, positive. Values that round to zero stay as explicit zeros.
    """
    if matrix.values is None:
        raise ValueError(f"{matrix.name} has a pattern and no values to quantize")
    top = weight_range(weight_bits)[1]
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    largest = np.zeros(matrix.shape[0])
    np.maximum.at(largest, rows, np.abs(matrix.values))
    # A row of denormals keeps a positive scale.
    scales = np.maximum(np.where(largest > 0, largest, 1.0) / top, np.finfo(np.float64).tiny)
    weights = np.clip(np.rint(matrix.values / scales[rows]), -top, top).astype(np.int8)
    csr = as_csr((weights, matrix.indices, matrix.indptr, matrix.shape), weight_bits=weight_bits)
    return csr, scales
