# SPDX-License-Identifier: Apache-2.0
"""Random layers and activations for tests."""

from dataclasses import replace

import numpy as np
from sparsemac.commands import OutputMode
from sparsemac.conv import ConvLayer, Geometry
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
    low, high = int(rng.integers(-128, -30)), int(rng.integers(30, 128))
    # Sums of random products are about this large; most outputs must not be clamped.
    typical = 73 * 2 ** (weight_bits - 1) / 1.7 * max(density * cols, 1) ** 0.5
    shift = round(np.log2(typical / 50))
    return LinearLayer(
        weights=weights, weight_bits=weight_bits, bias=vector, name=name,
        mode=OutputMode(int(rng.integers(1, 3))),
        multiplier=rng.integers(1 << 30, 1 << 31, rows).astype(np.uint64),
        shift=rng.integers(shift - 1, shift + 2, rows), zero_point=int(rng.integers(-20, 20)),
        low=low, high=high,
    )


def random_activations(rng, channels, columns):
    return rng.integers(-128, 128, (channels, columns)).astype(np.int8)


def random_geometry(rng, *, most=9, **given):
    """A small convolution of any kind, with ``given`` parameters set."""
    kernel = tuple(int(k) for k in rng.integers(1, 4, 2))
    dilation = tuple(int(d) for d in rng.choice([1, 1, 2], 2))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    groups = int(rng.choice([1, 1, 2, 3]))
    values = {
        "channels": groups * int(rng.integers(1, 4)), "groups": groups,
        "height": int(rng.integers(reach[0], reach[0] + most)),
        "width": int(rng.integers(reach[1], reach[1] + most)),
        "kernel": kernel, "dilation": dilation,
        "stride": tuple(int(s) for s in rng.integers(1, 4, 2)),
        "padding": tuple(int(rng.integers(0, r)) for r in reach * 2),
    } | given
    return Geometry(**values)


def random_conv(rng, geometry, outputs, density=0.5, *, channels_last=True, **options):
    """A convolution of random weights; ``outputs`` in each group, ``options`` as `random_layer`."""
    linear = random_layer(rng, outputs * geometry.groups, geometry.patch, density, **options)
    zero_point = int(rng.integers(-128, 128))
    return ConvLayer(linear=replace(linear, input_zero_point=zero_point), geometry=geometry,
                     channels_last=channels_last)
