# SPDX-License-Identifier: Apache-2.0
"""Reads sparse matrices from the files they come in.

``.smtx``   the text format of the Deep Learning Matrix Collection (Gale et al., "Sparse GPU Kernels
            for Deep Learning", SC 2020): ``rows, cols, nnz``, row offsets, column indices; no values
``.mtx``    Matrix Market (Boisvert et al., NISTIR 5935, 1996), by SciPy
``.npz``    SciPy's ``save_npz``
``.npy``    a dense NumPy array
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int, need
from .csr import Csr, as_csr, weight_range

__all__ = ["Matrix", "quantize_matrix", "random_values", "read_matrix"]

#: A declared size beyond this is refused before anything is allocated [elements].
MAX_SIDE = 1 << 31
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
    matrix = readers[path.suffix](path)
    if matrix.values is not None and not np.isfinite(matrix.values).all():
        at = int(np.flatnonzero(~np.isfinite(matrix.values))[0])
        raise ValueError(f"{path.name}: values must be finite, not {matrix.values[at]} (entry {at})")
    return matrix


def _read_smtx(path: Path) -> Matrix:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} must be ASCII text") from None

    def numbers(line: int, separator: str | None = None) -> NDArray[np.int64]:
        text = lines[line] if line < len(lines) else ""
        try:
            return np.array([int(word) for word in text.split(separator)], np.int64)
        except (ValueError, OverflowError):
            raise ValueError(f"{path.name}, line {line + 1}: must hold integers") from None

    header = numbers(0, ",")
    if len(header) != 3:
        raise ValueError(f"{path.name}, line 1: must be 'rows, columns, nonzeros'")
    rows, columns, nnz = header.tolist()
    if min(rows, columns, nnz) < 0 or max(rows, columns) > MAX_SIDE or nnz > MAX_ENTRIES:
        raise ValueError(f"{path.name}, line 1: sizes must be 0 to {MAX_SIDE}, not {header.tolist()}")
    indptr, indices = numbers(1), numbers(2)
    for line, name, array, count in ((2, "row offsets", indptr, rows + 1), (3, "columns", indices, nnz)):
        if len(array) != count:
            raise ValueError(f"{path.name}, line {line}: must hold {count} {name}, not {len(array)}")
    checked = _named(path, (np.ones(nnz, np.int8), indices, indptr, (rows, columns)))
    return Matrix(path.name, checked.shape, checked.indptr, checked.indices, None)


def _named(path: Path, arrays: tuple[Any, ...]) -> Csr:
    """Checks CSR arrays; an error names the file."""
    try:
        return as_csr(arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _read_mtx(path: Path) -> Matrix:
    io = need("scipy.io", "scipy", "reading Matrix Market files")
    try:
        rows, columns, entries, form, field, _ = io.mminfo(path)
        if max(rows, columns) > MAX_SIDE or entries > MAX_ENTRIES or (
                form == "array" and rows * columns > MAX_ENTRIES):
            raise ValueError(
                f"sizes must be at most {MAX_SIDE} by {MAX_SIDE} with {MAX_ENTRIES} entries, not "
                f"{rows} by {columns} with {entries}"
            )
        if entries > path.stat().st_size:
            raise ValueError(f"{entries} entries must take at least as many bytes, the file is truncated")
        if field == "complex":
            raise ValueError("values must be real, not complex")
        matrix = io.mmread(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # the parser's own kinds of error are not documented
        raise ValueError(f"{path.name}: {error}") from None
    return _from_scipy(path, matrix, pattern=field == "pattern")


def _from_scipy(path: Path, matrix: Any, *, pattern: bool = False) -> Matrix:
    """CSR of a SciPy matrix or a dense array; explicit zeros and duplicates are kept."""
    if isinstance(matrix, np.ndarray):
        rows, columns = np.nonzero(matrix)
        values = matrix[rows, columns]
    else:
        coo = matrix.tocoo()
        rows, columns, values = coo.row, coo.col, coo.data
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: values must be real numbers, not {values.dtype}")
    order = np.lexsort((columns, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=matrix.shape[0]))])
    return Matrix(
        path.name, (int(matrix.shape[0]), int(matrix.shape[1])), indptr.astype(np.int64),
        columns[order].astype(np.int64), None if pattern else values[order].astype(np.float64),
    )


def _read_npz(path: Path) -> Matrix:
    sparse = need("scipy.sparse", "scipy", "reading .npz files")
    try:
        matrix = sparse.load_npz(path)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
        return _from_scipy(path, matrix)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile,
            AttributeError) as error:
        raise ValueError(f"{path.name} must be a sparse matrix of SciPy's save_npz: {error}") from None


def _read_npy(path: Path) -> Matrix:
    try:
        dense = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path.name} must be a NumPy array: {error}") from None
    if not isinstance(dense, np.ndarray) or dense.ndim != 2:
        raise ValueError(f"{path.name} must hold an array of 2 dimensions")
    if dense.dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: values must be real numbers, not {dense.dtype}")
    return _from_scipy(path, dense)


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
    scales = np.where(largest > 0, largest, 1.0) / top
    weights = np.clip(np.rint(matrix.values / scales[rows]), -top, top).astype(np.int8)
    csr = as_csr((weights, matrix.indices, matrix.indptr, matrix.shape), weight_bits=weight_bits)
    return csr, scales
