# SPDX-License-Identifier: Apache-2.0
"""Sparse neural networks on a sparse multiply-accumulate core: formats, numerics, driver.

>>> import numpy as np, sparsemac
>>> with sparsemac.open("reference:") as core:
...     core.matmul([[1, 0, -2], [0, 3, 0]], np.array([[1], [2], [3]])).tolist()
[[-5], [6]]
"""

from .config import CoreConfig
from .csr import Csr, as_csr
from .driver import Core, Network, open
from .layer import LinearLayer, load_network, save_network
from .result import Counters, Result

__all__ = [
    "Core",
    "CoreConfig",
    "Counters",
    "Csr",
    "LinearLayer",
    "Network",
    "Result",
    "__version__",
    "as_csr",
    "load_network",
    "open",
    "save_network",
]

__version__ = "0.1.0"
