# SPDX-License-Identifier: Apache-2.0
"""Convolutions: shapes, and the golden model against the definition written out in loops."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.commands import OutputMode
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.golden import run_conv, run_layer
from support.layers import random_conv, random_geometry, random_layer

SEED = 31


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def by_definition(layer, x):
    """Sums of (batch, channels, height, width), one product at a time."""
    g, linear = layer.geometry, layer.linear
    weights = linear.weights.to_dense().astype(np.int64).reshape(
        layer.outputs, g.channels // g.groups, *g.kernel)
    sums = np.zeros((len(x), layer.outputs, g.out_height, g.out_width), np.int64)
    for (o, c, i, j), weight in np.ndenumerate(weights):
        channel = o // (layer.outputs // g.groups) * weights.shape[1] + c
        for v in range(g.out_height):
            for u in range(g.out_width):
                row = v * g.stride[0] + i * g.dilation[0] - g.padding[0]
                column = u * g.stride[1] + j * g.dilation[1] - g.padding[1]
                inside = 0 <= row < g.height and 0 <= column < g.width
                value = x[:, channel, row, column] if inside else linear.input_zero_point
                sums[:, o, v, u] += weight * value
    bias = linear.bias if linear.bias is not None else np.zeros(layer.outputs, np.int64)
    return sums + bias[:, None, None]


@pytest.mark.parametrize("case", range(20))
def test_golden_model_is_the_definition(rng, case):
    rng = np.random.default_rng((SEED, case))
    geometry = random_geometry(rng, most=5)
    layer = random_conv(rng, geometry, int(rng.integers(1, 4)), raw=True,
                        channels_last=bool(case % 2))
    x = rng.integers(-128, 128, layer.input_shape(2)).astype(np.int8)
    got = run_conv(layer, x)
    assert got.dtype == np.int32 and got.shape == layer.output_shape(2)
    np.testing.assert_array_equal(layer.to_planes(got), by_definition(layer, layer.to_planes(x)))


def test_golden_model_requantizes_like_a_linear_layer(rng):
    geometry = Geometry(channels=5, height=1, width=1, kernel=(1, 1))
    linear = random_layer(rng, 7, 5)
    x = rng.integers(-128, 128, (4, 1, 1, 5)).astype(np.int8)
    got = run_conv(ConvLayer(linear=linear, geometry=geometry), x)
    np.testing.assert_array_equal(got[:, 0, 0].T, run_layer(linear, x[:, 0, 0].T.copy()))


def test_one_dimension_is_a_map_of_height_one(rng):
    geometry = Geometry(channels=3, height=1, width=11, kernel=(1, 3), padding=(0, 2, 0, 1))
    flat = replace(random_conv(rng, geometry, 4), one_dimensional=True)
    x = rng.integers(-128, 128, flat.input_shape(2)).astype(np.int8)
    assert x.shape == (2, 11, 3)
    got = run_conv(flat, x)
    assert got.shape == flat.output_shape(2) == (2, 12, 4)
    whole = run_conv(replace(flat, one_dimensional=False), x[:, None])
    np.testing.assert_array_equal(got, whole[:, 0])


@pytest.mark.parametrize("size, kernel, stride, dilation, want", [
    (5, 3, 1, 1, (1, 1)), (5, 3, 2, 1, (1, 1)), (6, 3, 2, 1, (0, 1)), (6, 2, 1, 1, (0, 1)),
    (7, 3, 1, 2, (2, 2)), (5, 1, 3, 1, (0, 0)),
])
def test_same_padding_keeps_the_size(size, kernel, stride, dilation, want):
    pads = Geometry.same(height=size, width=size, kernel=(kernel, kernel),
                         stride=(stride, stride), dilation=(dilation, dilation))
    assert (pads[0], pads[2]) == (pads[1], pads[3]) == want
    geometry = Geometry(channels=1, height=size, width=size, kernel=(kernel, kernel),
                        stride=(stride, stride), dilation=(dilation, dilation), padding=pads)
    assert geometry.out_height == -(-size // stride)
    lower = Geometry.same(height=size, width=size, kernel=(kernel, kernel),
                          stride=(stride, stride), dilation=(dilation, dilation), lower=True)
    assert (lower[2], lower[0]) == want


def test_groups_see_their_own_channels(rng):
    geometry = Geometry(channels=6, height=3, width=3, kernel=(2, 2), groups=3)
    layer = random_conv(rng, geometry, 2, 1.0)
    dense = layer.expanded.to_dense().reshape(6, 6, 4)
    for output in range(6):
        group = output // 2
        inside = dense[output, 2 * group : 2 * group + 2]
        assert inside.any() and np.count_nonzero(dense[output]) == np.count_nonzero(inside)


def test_macs_are_nonzeros_times_positions(rng):
    geometry = Geometry(channels=2, height=4, width=5, kernel=(2, 2))
    layer = random_conv(rng, geometry, 3, 0.5)
    assert layer.macs == np.count_nonzero(layer.linear.weights.to_dense()) * 3 * 4


@pytest.mark.parametrize("change, message", [
    ({"groups": 3}, r"groups must divide the 4 channels, not be 3 \(nearest legal value: 2\)"),
    ({"stride": (0, 1)}, r"stride\[0\] must be 1 to 1048576, not 0"),
    ({"padding": (3, 0, 0, 0)},
     ("padding top must be smaller than the kernel, which reaches over 3, not 3 "
      r"\(nearest legal value: 2\)")),
    ({"padding": (1, 1)}, r"padding must be \(top, left, bottom, right\)"),
    ({"kernel": 9, "padding": (8, 8, 0, 0)}, None),
    ({"kernel": 9}, "height must be at least 9 for a kernel that reaches over 9, not 6"),
    ({"kernel": "3x3"}, "kernel must be one integer or two"),
    ({"channels": 0}, "channels must be 1 to 1048576, not 0"),
])
def test_wrong_geometries_name_the_limit(change, message):
    values = {"channels": 4, "height": 6, "width": 6, "kernel": (3, 3)} | change
    if message is None:
        assert Geometry(**values).out_height == 6
        return
    with pytest.raises((ValueError, TypeError), match=message):
        Geometry(**values)


def test_wrong_layers_are_refused(rng):
    geometry = Geometry(channels=4, height=6, width=6, kernel=(3, 3), groups=2)
    with pytest.raises(ValueError, match="weights of layer must have 18 columns, a patch, not 17"):
        ConvLayer(linear=random_layer(rng, 4, 17), geometry=geometry)
    with pytest.raises(ValueError, match="groups of layer must divide the 3 outputs, not be 2"):
        ConvLayer(linear=random_layer(rng, 3, 18), geometry=geometry)
    with pytest.raises(ValueError, match="must have height 1 in one dimension, not 6"):
        ConvLayer(linear=random_layer(rng, 4, 18), geometry=geometry, one_dimensional=True)
    layer = random_conv(rng, geometry, 2)
    with pytest.raises(ValueError, match=r"inputs of layer must be \(n, 6, 6, 4\)"):
        run_conv(layer, np.zeros((1, 4, 6, 6), np.int8))


def test_output_mode_raw_gives_sums(rng):
    layer = random_conv(rng, random_geometry(rng), 2, raw=True)
    assert layer.linear.mode == OutputMode.RAW
    assert run_conv(layer, np.zeros(layer.input_shape(1), np.int8)).dtype == np.int32
