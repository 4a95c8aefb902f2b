# SPDX-License-Identifier: Apache-2.0
"""Convolutions and graphs of layers, compiled and run: the same integers as the golden model."""

from dataclasses import replace

import numpy as np
import pytest
import sparsemac
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.errors import UnsupportedLayer
from sparsemac.golden import run_conv, run_layer
from sparsemac.segment import Segment, Use
from support.layers import random_conv, random_geometry, random_layer

SEED = 47
MEMORY_BYTES = 1 << 20


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def random_maps(rng, layer, columns):
    g = layer.geometry
    return rng.integers(-128, 128, (g.channels, g.height, g.width, columns)).astype(np.int8)


def golden(layer, x):
    """Runs a layer on (channels, height, width, columns), or on its elements as a vector."""
    if isinstance(layer, ConvLayer) and x.ndim == 2:
        x = x[:, None, None]
    if not isinstance(layer, ConvLayer):
        return run_layer(layer, x.reshape(-1, x.shape[-1]))
    y = layer.to_planes(run_conv(layer, layer.from_planes(x.transpose(3, 0, 1, 2))))
    y = y.transpose(1, 2, 3, 0)
    return y if y.shape[1] * y.shape[2] > 1 else y[:, 0, 0]


def check(core, layers, x):
    result = core.run(core.load(layers), x)
    want = x
    for layer in layers:
        want = golden(layer, want)
    np.testing.assert_array_equal(result.outputs, want)
    return result


# -- one convolution ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(14))
def test_convolution_equals_golden_model(core, case):
    rng = np.random.default_rng((SEED, case))
    print("seed", SEED, "case", case)
    layer = random_conv(rng, random_geometry(rng), int(rng.integers(1, 6)),
                        float(rng.choice([0.1, 0.5, 1.0])), raw=bool(rng.integers(2)),
                        weight_bits=int(rng.choice([4, 8])))
    result = check(core, [layer], random_maps(rng, layer, int(rng.choice([1, 3, 4, 9]))))
    assert result.macs % layer.macs == 0


@pytest.mark.parametrize("name, geometry, outputs", [
    ("depthwise", Geometry(channels=9, height=8, width=7, kernel=(3, 3), padding=(1, 1, 1, 1),
                           groups=9), 1),
    ("pointwise", Geometry(channels=20, height=6, width=6, kernel=(1, 1)), 10),
    ("one dimension", Geometry(channels=4, height=1, width=90, kernel=(1, 8), stride=(1, 3),
                               padding=(0, 7, 0, 0)), 6),
    ("patches", Geometry(channels=3, height=12, width=12, kernel=(4, 4), stride=(4, 4)), 8),
    ("whole map", Geometry(channels=5, height=6, width=4, kernel=(6, 4)), 9),
    ("steps over rows", Geometry(channels=2, height=13, width=13, kernel=(2, 2), stride=(3, 3)), 5),
    ("one channel", Geometry(channels=1, height=20, width=20, kernel=(3, 3)), 1),
    ("one place", Geometry(channels=20, height=1, width=1, kernel=(1, 1)), 9),
    ("one place of groups", Geometry(channels=6, height=1, width=1, kernel=(1, 1), groups=3), 2),
    ("one padded place", Geometry(channels=5, height=1, width=1, kernel=(3, 3),
                                  padding=(1, 1, 1, 1)), 6),
    ("many channels", Geometry(channels=150, height=3, width=3, kernel=(3, 3),
                               padding=(1, 1, 1, 1)), 4),
])
def test_kinds_of_convolution(core, rng, name, geometry, outputs):
    layer = random_conv(rng, geometry, outputs, 0.4, name=name)
    x = random_maps(rng, layer, 5)
    check(core, [layer], x if geometry.height * geometry.width > 1 else x[:, 0, 0])


@pytest.mark.parametrize("columns, strips", [(1, 4), (2, 2), (3, 4), (4, 1), (9, 4)])
def test_strips_of_few_samples_see_their_neighbours(core, rng, columns, strips):
    """Maps of 16 rows, then 8, on 4 lanes; halos of two rows above and below, and of one."""
    layers = [
        random_conv(rng, Geometry(channels=3, height=16, width=9, kernel=(5, 3), dilation=(1, 2),
                                  padding=(2, 2, 2, 2)), 5, 0.5, name="a"),
        random_conv(rng, Geometry(channels=5, height=16, width=9, kernel=(3, 3), stride=(2, 2),
                                  padding=(0, 1, 1, 1)), 6, 0.5, name="b"),
        random_conv(rng, Geometry(channels=6, height=8, width=5, kernel=(3, 1),
                                  padding=(1, 0, 1, 0), groups=3), 3, 0.9, name="c"),
        random_conv(rng, Geometry(channels=9, height=8, width=5, kernel=(1, 1)), 4, name="d"),
    ]
    result = check(core, layers, random_maps(rng, layers[0], columns))
    assert core.config.lanes == 4 and result.program.output.strips == strips


@pytest.mark.parametrize("columns, strips, heights", [(1, 4, (4, 2)), (2, 2, (8, 4))])
def test_strips_beyond_the_end_of_a_map_are_padding(core, rng, columns, strips, heights):
    """13 rows and then 7, in strips; then 5 without padding."""
    layers = [
        random_conv(rng, Geometry(channels=2, height=13, width=6, kernel=(3, 3), stride=(2, 2),
                                  padding=(1, 1, 1, 1)), 5, 0.5, name="a"),
        random_conv(rng, Geometry(channels=5, height=7, width=3, kernel=(3, 3),
                                  padding=(1, 1, 1, 1)), 4, name="b"),
        random_conv(rng, Geometry(channels=4, height=7, width=3, kernel=(3, 3)), 3, name="c"),
    ]
    result = check(core, layers, random_maps(rng, layers[0], columns))
    ends = result.program.input, result.program.output
    assert [end.strips for end in ends] == [strips, strips]
    assert tuple(end.strip_height for end in ends) == heights


@pytest.mark.parametrize("geometry, strips", [
    (Geometry(channels=2, height=16, width=3, kernel=(3, 3), padding=(1, 1, 1, 1)), 4),
    (Geometry(channels=2, height=16, width=3, kernel=(3, 3)), 4),
    (Geometry(channels=2, height=13, width=3, kernel=(3, 3), padding=(1, 1, 1, 1)), 4),
    (Geometry(channels=2, height=3, width=3, kernel=(3, 3), padding=(1, 1, 1, 1)), 4),
    (Geometry(channels=2, height=6, width=3, kernel=(3, 3), padding=(1, 1, 1, 1)), 4),
    # Halos of two rows, and a strip is no lower.
    (Geometry(channels=2, height=4, width=3, kernel=(5, 3), padding=(2, 1, 2, 1)), 2),
    (Geometry(channels=2, height=16, width=3, kernel=(1, 1), stride=(2, 1)), 4),
    (Geometry(channels=2, height=1, width=16, kernel=(1, 3), padding=(0, 1, 0, 1)), 1),
])
def test_maps_are_cut_where_halos_are_not_higher_than_strips(rng, small_config, geometry, strips):
    layer = random_conv(rng, geometry, 3)
    config = replace(small_config, lanes=4, bus_width=64)
    assert Segment.chain([layer]).cut(1, config).strips == strips
    assert Segment.chain([layer]).cut(1, replace(config, bus_width=32, lanes=8)).strips == 1
    with sparsemac.open("reference:", config, memory_bytes=MEMORY_BYTES) as core:
        check(core, [layer], random_maps(rng, layer, 1))


def test_one_place_feeds_a_padded_map(core, rng):
    first = random_conv(rng, Geometry(channels=5, height=1, width=1, kernel=(1, 1)), 6, name="a")
    second = random_conv(rng, Geometry(channels=6, height=1, width=1, kernel=(3, 3),
                                       padding=(1, 1, 1, 1)), 4, name="b")
    check(core, [first, second], random_maps(rng, first, 5)[:, 0, 0])


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("lanes", [1, 4])
def test_counters_of_both_devices_agree(device_uri, rng, small_config, lanes, raw):
    if device_uri == "reference:":
        pytest.skip("compares sim: with reference:")
    # The first layer writes rows with padding between them, the second one after another.
    shape = {"height": 9, "width": 9, "kernel": (3, 3), "padding": (1, 1, 1, 1)}
    layers = [random_conv(rng, Geometry(channels=6, **shape), 7, 0.5),
              random_conv(rng, Geometry(channels=7, **shape), 5, 0.5, raw=raw)]
    x = random_maps(rng, layers[0], lanes + 1)
    config = replace(small_config, lanes=lanes, bus_width=128)
    counted = []
    for uri in ("reference:", device_uri):
        with sparsemac.open(uri, config, memory_bytes=MEMORY_BYTES) as core:
            counted.append(check(core, layers, x).counters)
    for name in ("issued", "fillers", "read_beats", "write_beats", "write_bytes"):
        assert getattr(counted[0], name) == getattr(counted[1], name), name


# -- on the golden model of commands, for cores of all kinds --------------------------------------


@pytest.mark.parametrize("case", range(30))
def test_any_core_runs_it_or_says_why_not(case):
    rng = np.random.default_rng((SEED, 1000 + case))
    print("seed", SEED, "case", case)
    config = CoreConfig(
        engines=int(rng.integers(1, 9)), lanes=int(rng.choice([1, 2, 4, 8])),
        depth=int(rng.choice([4, 16, 256])), act_depth=int(rng.choice([64, 256, 2048])),
        entry_depth=int(rng.choice([16, 64, 256])), psum_depth=int(rng.choice([0, 64, 256])),
        bus_width=int(rng.choice([32, 64, 128, 256])), fifo_depth=64)
    layer = random_conv(rng, random_geometry(rng, most=16), int(rng.integers(1, 8)), 0.4)
    with sparsemac.open("reference:", config, memory_bytes=MEMORY_BYTES) as core:
        try:
            check(core, [layer], random_maps(rng, layer, int(rng.integers(1, 10))))
        except UnsupportedLayer as error:
            print(error)
            assert config.act_depth < 256 or config.psum_depth == 0


def test_map_that_no_tile_can_hold_names_the_limit(rng):
    layer = random_conv(rng, Geometry(channels=1, height=40, width=90, kernel=(40, 3)), 2)
    with (
        sparsemac.open("reference:", CoreConfig(act_depth=64)) as core,
        pytest.raises(UnsupportedLayer, match="act_depth") as caught,
    ):
        core.load(layer)
    print(caught.value)


# -- segments -------------------------------------------------------------------------------------


def test_chain_of_convolutions_takes_one_doorbell(core, rng):
    first = random_conv(rng, Geometry(channels=3, height=8, width=8, kernel=(3, 3)), 4, name="a")
    second = random_conv(rng, Geometry(channels=4, height=6, width=6, kernel=(3, 3), stride=(2, 2),
                                       padding=(1, 1, 1, 1)), 5, name="b")
    third = random_layer(rng, 10, 5 * 9, 0.5, name="c")
    result = check(core, [first, second, third], random_maps(rng, first, 6))
    assert result.jobs == 1
    assert [layer.name for layer in result.program.layers] == ["a", "b", "c"]


@pytest.mark.parametrize("order", [None, "last"])
def test_flattened_map_feeds_a_fully_connected_layer(core, rng, order):
    conv = random_conv(rng, Geometry(channels=3, height=5, width=5, kernel=(2, 2)), 4, name="conv")
    dense = random_layer(rng, 6, 4 * 16, 0.5, name="dense")
    x = random_maps(rng, conv, 3)
    y = golden(conv, x)  # (channels, height, width, columns)
    places = None
    flat = y.reshape(-1, 3)
    if order:  # as a network of channels last would flatten it
        places = np.arange(4 * 16).reshape(4, 16).T.reshape(-1)
        flat = flat[places]
    segment = Segment((Use(conv, 0, 1), Use(dense, 1, 2, places)), (0,), (2,))
    result = core.run(core.load(segment), x)
    np.testing.assert_array_equal(result.outputs, run_layer(dense, flat))


def test_branches_share_their_input(core, rng):
    shape = {"height": 6, "width": 6}
    stem = random_conv(rng, Geometry(channels=2, kernel=(1, 1), **shape), 3, name="stem")
    wide = random_conv(rng, Geometry(channels=3, kernel=(3, 3), padding=(1, 1, 1, 1), **shape), 4,
                       name="wide")
    slim = random_conv(rng, Geometry(channels=3, kernel=(1, 1), stride=(2, 2), **shape), 2,
                       name="slim")
    zero = wide.linear.input_zero_point
    slim = replace(slim, linear=replace(slim.linear, input_zero_point=zero))
    segment = Segment((Use(stem, 0, 1), Use(wide, 1, 2), Use(slim, 1, 3)), (0,), (2, 3, 1))
    x = random_maps(rng, stem, 5)
    result = core.run(core.load(segment), x)
    y = golden(stem, x)
    for got, want in zip(result.all_outputs, (golden(wide, y), golden(slim, y), y), strict=True):
        np.testing.assert_array_equal(got, want)


def test_two_inputs_of_one_doorbell(core, rng):
    conv = random_conv(rng, Geometry(channels=2, height=4, width=4, kernel=(3, 3)), 3, name="conv")
    dense = random_layer(rng, 6, 11, 0.5, name="dense")
    segment = Segment((Use(conv, 0, 1), Use(dense, 2, 3)), (0, 2), (1, 3))
    x = random_maps(rng, conv, 4)
    z = rng.integers(-128, 128, (11, 4)).astype(np.int8)
    result = core.run(core.load(segment), [x, z])
    np.testing.assert_array_equal(result.all_outputs[0], golden(conv, x))
    np.testing.assert_array_equal(result.all_outputs[1], run_layer(dense, z))
    with pytest.raises(ValueError, match="x must be 2 arrays, not 1"):
        core.run(core.load(segment), x)


def test_segments_that_do_not_fit_together_are_refused(rng):
    conv = random_conv(rng, Geometry(channels=2, height=4, width=4, kernel=(3, 3)), 3, name="conv")
    other = random_conv(rng, Geometry(channels=3, height=3, width=2, kernel=(1, 1)), 3, name="next")
    with pytest.raises(ValueError, match="next must take the 3 x 2 x 2 outputs of conv, not 3 x 3"):
        Segment.chain([conv, other])
    padded = [
        random_conv(rng, Geometry(channels=3, height=2, width=2, kernel=(3, 3),
                                  padding=(1, 1, 1, 1)), 1, name=name)
        for name in ("first", "second")
    ]
    with pytest.raises(ValueError, match="second must have the input zero point of the other"):
        Segment((Use(conv, 0, 1), Use(padded[0], 1, 2), Use(padded[1], 1, 3)), (0,), (2, 3))
    raw = replace(conv, linear=random_layer(rng, 3, 18, raw=True, name="conv"))
    with pytest.raises(UnsupportedLayer, match="conv must have int8 outputs, as dense follows it"):
        Segment.chain([raw, random_layer(rng, 2, 12, name="dense")])
    with pytest.raises(ValueError, match="tensor 1 must be written once"):
        Segment((Use(conv, 0, 1), Use(conv, 0, 1)), (0,), (1,))


def test_many_samples_are_split_when_the_memory_is_small(device_uri, rng, small_config):
    layer = random_conv(rng, Geometry(channels=3, height=8, width=8, kernel=(3, 3)), 4)
    with sparsemac.open(device_uri, small_config, memory_bytes=48 << 10) as core:
        assert check(core, [layer], random_maps(rng, layer, 200)).jobs > 1
