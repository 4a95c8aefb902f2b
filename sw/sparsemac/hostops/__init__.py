# SPDX-License-Identifier: Apache-2.0
"""What runs on the host: pure NumPy functions by name, the same on every machine.

A function takes arrays and returns one array or a tuple of them; its parameters are keywords, whose
values are what JSON can hold or NumPy arrays, so that a network file can name it and needs no
importer's package to run it. It takes sizes from its arrays, and never changes them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from . import float_ops, integer, onnx, tensor, tflite
from .registry import OPERATIONS, HostOperationError

__all__ = [
    "OPERATIONS", "HostOperationError", "float_ops", "integer", "onnx", "run_operation", "tensor",
    "tflite",
]


def run_operation(
    name: str, attributes: Mapping[str, Any], inputs: Sequence[NDArray[Any]], where: str
) -> tuple[NDArray[Any], ...]:
    """Runs one operation; ``where`` names the node in errors.

    Raises
    ------
    HostOperationError    Of inputs that the operation cannot take.
    """
    try:
        result = OPERATIONS[name](*inputs, **attributes)
    except (ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in inputs)
        raise HostOperationError(f"{where} ({name} of {shapes}): {error}") from error
    return result if isinstance(result, tuple) else (result,)
