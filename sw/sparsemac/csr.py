# SPDX-License-Identifier: Apache-2.0
"""Sparse integer matrices as users have them: compressed sparse rows, checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ._checks import as_int_in

__all__ = ["Csr", "as_csr", "weight_range"]

INT4 = np.dtype(ml_dtypes.int4)
LARGEST = (1 << 63) - 1


def weight_range(weight_bits: int) -> tuple[int, int]:
    """Returns the lowest and the highest weight of ``weight_bits`` bits, 4 or 8."""
    if weight_bits not in (4, 8):
        raise ValueError(f"weight_bits must be 4 or 8, not {weight_bits!r}")
    return -(1 << weight_bits - 1), (1 << weight_bits - 1) - 1


@dataclass(frozen=True, slots=True)
class Csr:
    """A sparse matrix of integers; columns ascend in each row, duplicates keep their order.

    A duplicate stands for one more product: the sum over all entries is what counts, as in SciPy.

    Attributes
    ----------
    shape : (rows, columns)
    indptr : (rows + 1,) int64    Row ``r`` has the entries ``indptr[r]`` to ``indptr[r + 1] - 1``.
    indices : (nnz,) int64        Columns.
    data : (nnz,) int8            Weights; explicit zeros may occur.
    """

    shape: tuple[int, int]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    data: NDArray[np.int8]

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return len(self.data)

    @property
    def row_lengths(self) -> NDArray[np.int64]:
        """(rows,) stored entries of each row."""
        return np.diff(self.indptr)

    @property
    def rows_of_entries(self) -> NDArray[np.int64]:
        """(nnz,) row of each entry."""
        return np.repeat(np.arange(self.shape[0]), self.row_lengths)

    @property
    def density(self) -> float:
        """Stored entries as a share of all elements; 0 of an empty shape."""
        size = self.shape[0] * self.shape[1]
        return self.nnz / size if size else 0.0

    def to_dense(self) -> NDArray[np.int32]:
        """Returns (rows, columns) int32; duplicates are summed."""
        dense = np.zeros(self.shape, np.int32)
        np.add.at(dense, (self.rows_of_entries, self.indices), self.data.astype(np.int32))
        return dense

    def without_zeros(self) -> "Csr":
        """Returns the matrix without explicit zeros."""
        keep = self.data != 0
        if keep.all():
            return self
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Csr(self.shape, kept[self.indptr], self.indices[keep], self.data[keep])

    @property
    def filled_rows(self) -> NDArray[np.bool_]:
        """(rows,) whether a row has an entry that is not zero."""
        return self.without_zeros().row_lengths > 0

    def take(self, rows: slice, columns: slice) -> "Csr":
        """Returns a block: some consecutive rows, and of them some consecutive columns."""
        r0, r1, _ = rows.indices(self.shape[0])
        c0, c1, _ = columns.indices(self.shape[1])
        first, last = self.indptr[r0], self.indptr[r1]
        indices, data = self.indices[first:last], self.data[first:last]
        indptr = self.indptr[r0 : r1 + 1] - first
        if (c0, c1) != (0, self.shape[1]):
            keep = (indices >= c0) & (indices < c1)
            indptr = np.concatenate([[0], np.cumsum(keep)])[indptr]
            indices, data = indices[keep], data[keep]
        return Csr((r1 - r0, c1 - c0), indptr, indices - c0, data)

    def take_rows(self, rows: NDArray[np.int64]) -> "Csr":
        """Returns the rows of these numbers, in this order; one may come more than once."""
        lengths = self.row_lengths[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.arange(indptr[-1]) + np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths)
        return Csr((len(rows), self.shape[1]), indptr, self.indices[entries], self.data[entries])


def as_csr(matrix: Any, *, weight_bits: int = 8) -> Csr:
    """Accepts a matrix of integers in any usual form, and checks all of it.

    Parameters
    ----------
    matrix :            SciPy sparse matrix or array of any format, anything with ``indptr``,
                        ``indices``, ``data`` (and ``shape``), a tuple ``(data, indices, indptr)``
                        or ``(data, indices, indptr, shape)``, a dense 2-D array, or a `Csr`.
    weight_bits : int   4 or 8: the range that the weights must keep.

    Raises
    ------
    TypeError           If it is none of these, or its values are not numbers.
    ValueError          Naming the field at fault, and the first row, column and value.
    """
    low, high = weight_range(weight_bits)
    if hasattr(matrix, "tocsr") and not _is_csr(matrix):
        # SciPy's tocsr sums duplicates in their own type, and 8-bit sums wrap around.
        if hasattr(matrix, "tocoo"):
            return _from_coordinates(matrix.tocoo(), low, high)
        matrix = matrix.tocsr()
    if isinstance(matrix, tuple):
        if len(matrix) not in (3, 4):
            raise ValueError(
                f"a tuple must be (data, indices, indptr[, shape]), not {len(matrix)} items"
            )
        data, indices, indptr = matrix[:3]
        shape = matrix[3] if len(matrix) == 4 else None
    elif hasattr(matrix, "indptr") and hasattr(matrix, "indices") and hasattr(matrix, "data"):
        data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
        shape = getattr(matrix, "shape", None)
    elif isinstance(matrix, (np.ndarray, list)):
        return _from_dense(np.asarray(matrix), low, high)
    else:
        raise TypeError(
            f"a matrix must be sparse (indptr, indices, data) or a 2-D array, "
            f"not {type(matrix).__name__}"
        )
    return _from_arrays(data, indices, indptr, shape, low, high)


def _is_csr(matrix: Any) -> bool:
    return getattr(matrix, "format", "csr") == "csr" and hasattr(matrix, "indptr")


def _from_coordinates(matrix: Any, low: int, high: int) -> Csr:
    shape = _shape(matrix.shape, 0, np.zeros(0, np.int64))
    rows, columns = _index_vector("row", matrix.row), _index_vector("col", matrix.col)
    data = _vector("data", matrix.data)
    if not len(rows) == len(columns) == len(data):
        raise ValueError(
            f"row, col and data must have one length, not {len(rows)}, {len(columns)}, {len(data)}"
        )
    if (bad := np.flatnonzero((rows < 0) | (rows >= shape[0]))).size:
        at = int(bad[0])
        raise ValueError(f"row must be 0 to {shape[0] - 1}, not {rows[at]} (entry {at})")
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    return _from_arrays(data[order], columns[order], indptr.astype(np.int64), shape, low, high)


def _from_dense(dense: NDArray[Any], low: int, high: int) -> Csr:
    if dense.ndim != 2:
        raise ValueError(f"a dense matrix must have 2 dimensions, not {dense.ndim}")

    def place(at: int) -> str:
        return f"row {at // dense.shape[1]}, column {at % dense.shape[1]}"

    values = _integers("a dense matrix", dense, place)
    rows, columns = np.nonzero(values)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=dense.shape[0]))])
    return _checked((dense.shape[0], dense.shape[1]), indptr.astype(np.int64),
                    columns.astype(np.int64), values[rows, columns], low, high)


def _integers(name: str, values: NDArray[Any], place: Callable[[int], str]) -> NDArray[np.int64]:
    """Values as int64, if every one of them is an integer; ``place`` names an element."""

    def refuse(bad: NDArray[Any], rule: str, remedy: str = "") -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            value = values.ravel()[at]
            raise ValueError(f"{name} must {rule}, not {value} ({place(at)}){remedy}")

    if values.dtype == INT4 or values.dtype.kind in "ib":
        return values.astype(np.int64)
    if values.dtype.kind == "u":
        refuse(values > np.uint64(LARGEST), "fit 64-bit signed integers")
    elif values.dtype.kind == "f":
        refuse(~np.isfinite(values), "be finite")
        refuse(values != np.rint(values), "hold integers", ": quantize it first")
        wide = values.astype(np.promote_types(values.dtype, np.float64))
        refuse(np.abs(wide) >= 2.0**62, "fit 64-bit signed integers")
    else:
        raise TypeError(f"{name} must hold integers, not {values.dtype}")
    return values.astype(np.int64)


def _vector(name: str, values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, not {array.ndim}")
    return array


def _index_vector(name: str, values: Any) -> NDArray[np.int64]:
    array = _vector(name, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    return array.astype(np.int64)


def _shape(shape: Any, rows: int, indices: NDArray[np.int64]) -> tuple[int, int]:
    if shape is None:
        return rows, int(indices.max(initial=-1)) + 1
    if not isinstance(shape, (tuple, list, np.ndarray)) or len(shape) != 2:
        raise ValueError(f"shape must be (rows, columns), not {shape!r}")
    return as_int_in("rows", shape[0], 0, LARGEST), as_int_in("columns", shape[1], 0, LARGEST)


def _check_indptr(indptr: NDArray[np.int64], shape: tuple[int, int]) -> None:
    if len(indptr) != shape[0] + 1:
        raise ValueError(
            f"indptr must have {shape[0] + 1} elements for {shape[0]} rows, not {len(indptr)}"
        )
    if indptr[0] != 0:
        raise ValueError(f"indptr[0] must be 0, not {indptr[0]}")
    if (falls := np.flatnonzero(np.diff(indptr) < 0)).size:
        row = int(falls[0])
        raise ValueError(
            f"indptr must not decrease, not {indptr[row]} to {indptr[row + 1]} at row {row}"
        )


def _from_arrays(data: Any, indices: Any, indptr: Any, shape: Any, low: int, high: int) -> Csr:
    indices, indptr = _index_vector("indices", indices), _index_vector("indptr", indptr)
    data = _vector("data", data)
    if len(indptr) < 1:
        raise ValueError("indptr must have one element more than there are rows, not 0")
    shape = _shape(shape, len(indptr) - 1, indices)
    _check_indptr(indptr, shape)
    nnz = int(indptr[-1])
    for name, array in (("indices", indices), ("data", data)):
        if len(array) < nnz:
            raise ValueError(
                f"{name} must have {nnz} elements as indptr ends with, not {len(array)}"
            )
    if len(indices) != len(data) or len(indices) != nnz:
        raise ValueError(
            f"indptr must end with the number of entries, {len(indices)}, not {nnz}"
        )

    def place(at: int) -> str:
        row = int(np.searchsorted(indptr, at, side="right")) - 1
        return f"row {row}, column {indices[at]}"

    return _checked(shape, indptr, indices, _integers("data", data, place), low, high)


def _checked(shape: tuple[int, int], indptr: NDArray[np.int64], indices: NDArray[np.int64],
             values: NDArray[np.int64], low: int, high: int) -> Csr:
    """A `Csr` of arrays that fit one another; columns are sorted, columns and values checked."""
    rows = np.repeat(np.arange(shape[0]), np.diff(indptr))
    if (bad := np.flatnonzero((indices < 0) | (indices >= shape[1]))).size:
        at = int(bad[0])
        raise ValueError(
            f"indices must be 0 to {shape[1] - 1}, not {indices[at]} (row {rows[at]}, entry {at})"
        )
    if (bad := np.flatnonzero((values < low) | (values > high))).size:
        at = int(bad[0])
        raise ValueError(
            f"weights must be {low} to {high}, not {values[at]} "
            f"(row {rows[at]}, column {indices[at]})"
        )
    falls = np.diff(indices) < 0
    if (falls & (np.diff(rows) == 0)).any():
        order = np.lexsort((indices, rows))  # stable: duplicates keep their order
        indices, values = indices[order], values[order]
    return Csr(shape, indptr, indices, values.astype(np.int8))
