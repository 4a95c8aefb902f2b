# SPDX-License-Identifier: Apache-2.0
"""Sparse neural networks on a sparse multiply-accumulate core: formats, numerics, driver.

    import sparsemac

    with sparsemac.open("sim:") as core:
        y = core.matmul(matrix, x)  # matrix: SciPy CSR or alike; x: (columns of it, n) int8

Names below are imported when they are first used, so that ``import sparsemac`` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import CoreConfig
    from .csr import Csr, as_csr
    from .driver import Core, Network, open
    from .errors import DeviceError, DeviceFault, UnsupportedLayer
    from .layer import LinearLayer, load_network, save_network
    from .offloading import offload
    from .program import Program, compile_network
    from .result import Counters, Result

__version__ = "0.1.0"

__all__ = [
    "Core",
    "CoreConfig",
    "Counters",
    "Csr",
    "DeviceError",
    "DeviceFault",
    "LinearLayer",
    "Network",
    "Program",
    "Result",
    "UnsupportedLayer",
    "as_csr",
    "compile_network",
    "load_network",
    "offload",
    "open",
    "save_network",
]

_MODULES = {
    "config": ("CoreConfig",),
    "csr": ("Csr", "as_csr"),
    "driver": ("Core", "Network", "open"),
    "errors": ("DeviceError", "DeviceFault", "UnsupportedLayer"),
    "layer": ("LinearLayer", "load_network", "save_network"),
    "offloading": ("offload",),
    "program": ("Program", "compile_network"),
    "result": ("Counters", "Result"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
