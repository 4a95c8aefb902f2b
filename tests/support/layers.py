# SPDX-License-Identifier: Apache-2.0
"""Random layers and activations for tests."""

import numpy as np
from sparsemac.commands import OutputMode
from sparsemac.csr import as_csr
from sparsemac.layer import LinearLayer


def random_matrix(rng, rows, cols, density=0.3, weight_bits=8):
    high = 1 << weight_bits - 1
    mask = rng.random((rows, cols)) < density
    return (mask * rng.integers(-high, high, (rows, cols))).astype(np.int8)


def random_layer(rng, rows, cols, density=0.3, *, raw=False, weight_bits=8, bias=True,
                 name="layer"):
    weights = as_csr(random_matrix(rng, rows, cols, density, weight_bits), weight_bits=weight_bits)
    vector = rng.integers(-1000, 1000, rows).astype(np.int32) if bias else None
    if raw:
        return LinearLayer(weights=weights, weight_bits=weight_bits, bias=vector, name=name)
    low, high = sorted(rng.integers(-128, 128, 2).tolist())
    return LinearLayer(
        weights=weights, weight_bits=weight_bits, bias=vector, name=name,
        mode=OutputMode(int(rng.integers(1, 3))),
        multiplier=rng.integers(1 << 30, 1 << 31, rows).astype(np.uint64),
        shift=rng.integers(3, 12, rows), zero_point=int(rng.integers(-20, 20)), low=low, high=high,
    )


def random_activations(rng, channels, columns):
    return rng.integers(-128, 128, (channels, columns)).astype(np.int8)
