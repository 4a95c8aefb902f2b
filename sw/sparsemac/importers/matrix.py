# SPDX-License-Identifier: Apache-2.0
"""A bare sparse matrix as a network of one layer: ``y = matrix @ x`` for each sample."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..csr import Csr, as_csr, weight_range
from ..errors import ModelError
from ..graph import Graph, Node, Value
from ..layer import LinearLayer
from ..matrices import Matrix, read_matrix
from ..quantize import quantize_rows

__all__ = ["load_matrix_model"]

#: Rows are rounded together up to this many entries [elements].
_CHUNK = 1 << 20


def load_matrix_model(path: str | Path, *, weight_bits: int = 8) -> Graph:
    """Reads a matrix as a network.

    Integers that fit ``weight_bits`` are weights as they are, so that the outputs are the exact
    products. Other numbers are rounded by `sparsemac.quantize.quantize_rows`, with a scale for each
    row; the node's attribute ``scales``, (rows,) float64, holds them: a sum times the scale of its
    row is the product. A pattern without values has ones.

    Parameters
    ----------
    path : path            See `sparsemac.matrices` for the formats.
    weight_bits : int      4 or 8.

    Returns
    -------
    Graph    Batchable. Input ``x``: (n, columns) int8. Output ``y``: (n, rows) int32, the sums.

    Raises
    ------
    ModelError           If the file is damaged or is no matrix; names it, and the line where there
                         is one.
    MissingDependency    Matrix Market and ``.npz`` files need SciPy.
    OSError              If the file cannot be read.
    """
    weight_range(weight_bits)
    path = Path(path)
    try:
        matrix = read_matrix(path)
        weights, scales = _weights(matrix, weight_bits)
    except ValueError as error:
        raise ModelError(str(error)) from error
    rows, columns = weights.shape
    if not rows or not columns:
        raise ModelError(f"{path.name} must have rows and columns, not be {rows} by {columns}")
    layer = LinearLayer.from_matrix(weights, weight_bits=weight_bits, name=path.stem)
    values = {
        "x": Value(name="x", shape=(1, columns), dtype="int8"),
        "y": Value(name="y", shape=(1, rows), dtype="int32"),
    }
    node = Node(
        name=path.stem, inputs=("x",), outputs=("y",), layer=layer, source=path.name,
        attributes={} if scales is None else {"scales": scales},
    )
    return Graph(name=path.stem, values=values, inputs=("x",), outputs=("y",), nodes=(node,),
                 batchable=True)


def _weights(matrix: Matrix, weight_bits: int) -> tuple[Csr, NDArray[np.float64] | None]:
    """The weights of a file, and their scales if they had to be rounded."""
    low, high = weight_range(weight_bits)
    values = matrix.values
    if values is None:
        values = np.ones(len(matrix.indices))
    if ((values == np.rint(values)) & (low <= values) & (values <= high)).all():
        whole = values.astype(np.int64)
        arrays = (whole, matrix.indices, matrix.indptr, matrix.shape)
        return as_csr(arrays, weight_bits=weight_bits), None
    whole, scales = _rounded(matrix.indptr, values, weight_bits)
    arrays = (whole, matrix.indices, matrix.indptr, matrix.shape)
    return as_csr(arrays, weight_bits=weight_bits), scales


def _rounded(
    indptr: NDArray[np.int64], values: NDArray[np.float64], weight_bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Rounds entries row by row; returns (nnz,) weights and (rows,) scales.

    Rows of about the same length are made a dense block, filled up with zeros, which change neither
    the scale of a row nor its other entries: the memory is that of the entries, not of the matrix.
    """
    lengths = np.diff(indptr)
    whole, scales = np.zeros(len(values), np.int8), np.ones(len(lengths))
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        width = int(lengths[order[first]])
        rows = order[first : first + max(1, _CHUNK // max(width, 1))]
        filled = np.arange(width) < lengths[rows, None]
        places = (indptr[rows, None] + np.arange(width))[filled]
        block = np.zeros(filled.shape)
        block[filled] = values[places]
        integers, scales[rows] = quantize_rows(block, weight_bits)
        whole[places] = integers[filled]
        first += len(rows)
    return whole, scales
