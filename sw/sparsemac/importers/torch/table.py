# SPDX-License-Identifier: Apache-2.0
"""The table of what PyTorch's functions, methods and modules become in a graph.

A handler takes a `Builder` and the parameters of the function of torch that it stands for, with a
`Symbol` for each tensor that depends on the inputs; it returns a symbol, or several.
"""

import functools
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..._checks import need
from .build import Builder
from .trace import PURPOSE, kind_of

__all__ = ["MODULES", "handler_of", "handles", "module"]

#: Handlers by the name that a function of torch, torch.nn.functional or operator, or a method has.
_HANDLERS: dict[str, Callable[..., Any]] = {}

#: Modules of torch.nn: the handler, and the attributes that are its parameters.
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function under the names that it handles."""
    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLERS.update(dict.fromkeys(names, function))
        return function
    return enter


def module(kinds: str, name: str, *attributes: str) -> None:
    """Enters modules with the handler that runs them, and their attributes that it takes."""
    MODULES.update(dict.fromkeys(kinds.split(), (name, attributes)))


def handler_of(builder: Builder, node: Any) -> Callable[..., Any]:
    """Returns what runs a node of a trace, as a function of the node's arguments."""
    if node.op == "call_module":
        called = builder.module.get_submodule(node.target)
        if (kind := kind_of(called, MODULES)) is None:
            raise builder.refuse()
        name, attributes = MODULES[kind]
        given = {attribute: getattr(called, attribute) for attribute in attributes}
        return functools.partial(_HANDLERS[name], builder, **given)
    if node.op == "call_method":
        function = _HANDLERS.get(node.target.removesuffix("_"))
    else:
        function = _functions(need("torch", "torch", PURPOSE)).get(node.target)
    if function is None:
        raise builder.refuse()
    return functools.partial(function, builder)


@functools.cache
def _functions(torch: ModuleType) -> dict[Any, Callable[..., Any]]:
    """Handlers by the function itself, so that others of the same name are not taken for it."""
    found: dict[Any, Callable[..., Any]] = {getattr: _HANDLERS["getattr"]}
    for name, handler in _HANDLERS.items():
        for place in (torch, torch.nn.functional, operator):
            for spelled in (name, f"{name}_"):
                if callable(function := getattr(place, spelled, None)):
                    found[function] = handler
    del found[torch.batch_norm]  # its parameters stand in another order
    return found
