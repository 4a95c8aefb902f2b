# SPDX-License-Identifier: Apache-2.0
"""The table of host operations."""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["OPERATIONS", "HostOperationError", "operation"]

#: Functions by name.
OPERATIONS: dict[str, Callable[..., Any]] = {}


class HostOperationError(ValueError):
    """A host operation was given inputs that it cannot take."""


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enters a function under its own name.

    Infinity and NaN are results like others, so NumPy's floating-point warnings are off in it. (A
    matrix product of finite numbers may raise them too: the kernels of BLAS compute on padding.)
    """
    name = function.__name__
    if name in OPERATIONS:
        raise ValueError(f"host operation {name!r} must be defined once")
    OPERATIONS[name] = quiet = np.errstate(all="ignore")(function)
    return quiet
