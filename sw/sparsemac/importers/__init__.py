# SPDX-License-Identifier: Apache-2.0
"""Reads trained networks in the files that they already have; each importer is a module of its own.

Importers import their packages when they are used; a missing one is an error that names the extra.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = ["ModelError", "load_model"]


def load_model(path: str | Path, *, weight_bits: int | None = None) -> "Graph":
    """Reads a model by its suffix: ``.smnet``, ``.tflite``, ``.onnx``, or a matrix.

    Parameters
    ----------
    path : path
    weight_bits : int    Of a matrix, whose numbers do not say it: 4 or 8. None: 8.

    Raises
    ------
    ModelError           If the file is damaged, or holds what cannot be run; names what and where.
    MissingDependency    If the importer's package is not installed; names the extra.
    OSError              If the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".smnet":
        from ..netfile import load_network

        return load_network(path)
    if suffix == ".tflite":
        from .tflite import load_tflite

        return load_tflite(path)
    if suffix == ".onnx":
        from .onnx import load_onnx

        return load_onnx(path)
    if suffix in (".mtx", ".smtx", ".npz", ".npy"):
        from .matrix import load_matrix_model

        return load_matrix_model(path, weight_bits=weight_bits or 8)
    raise ModelError(
        f"{path.name} must end in .smnet, .tflite, .onnx, .mtx, .smtx, .npz or .npy, "
        f"not {suffix!r}"
    )
