# SPDX-License-Identifier: Apache-2.0
"""Sparse neural networks on a sparse multiply-accumulate core: formats, numerics, driver."""

__version__ = "0.1.0"
