# SPDX-License-Identifier: Apache-2.0
"""Argument checks whose messages name the parameter, the rule and the value."""

import importlib
import operator
from types import ModuleType

from .errors import MissingDependency

__all__ = ["as_int", "as_int_in", "as_power_of_two", "need"]


def as_int(name: str, value: object) -> int:
    """Returns ``value`` as `int`; NumPy integers pass, floats, strings and booleans do not."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def as_int_in(name: str, value: object, low: int, high: int) -> int:
    """Returns ``value`` as `int` if it lies in ``low..high``, both included."""
    number = as_int(name, value)
    if not low <= number <= high:
        nearest = min(max(number, low), high)
        raise ValueError(
            f"{name} must be {low} to {high}, not {number} (nearest legal value: {nearest})"
        )
    return number


def as_power_of_two(name: str, value: object, low: int, high: int) -> int:
    """Returns ``value`` as `int` if it is a power of two in ``low..high``, both included."""
    number = as_int(name, value)
    if low <= number <= high and number & (number - 1) == 0:
        return number
    clamped = min(max(number, low), high)
    below = 1 << (clamped.bit_length() - 1)
    nearest = below if clamped - below <= 2 * below - clamped or 2 * below > high else 2 * below
    raise ValueError(
        f"{name} must be a power of two from {low} to {high}, not {number} "
        f"(nearest legal value: {nearest})"
    )


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional module, or says which extra of this package installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"{purpose} needs the package {module.split('.')[0]!r}, which is not installed: "
            f"pip install 'sparsemac[{extra}]'"
        ) from error
