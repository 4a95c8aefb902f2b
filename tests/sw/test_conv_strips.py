# SPDX-License-Identifier: Apache-2.0
"""Maps cut into strips: what a lane sees of its neighbours, wherever the map ends."""

from dataclasses import replace

import numpy as np
import pytest
import sparsemac
from sparsemac.commands import COMMAND_BYTES, Load, Shift, decode_list
from sparsemac.config import CoreConfig
from sparsemac.conv import Geometry
from sparsemac.golden import run_conv
from sparsemac.segment import Segment, Use
from support.layers import random_conv

SEED = 71
MEMORY_BYTES = 1 << 20
CONFIG = CoreConfig(engines=2, lanes=4, depth=8, act_depth=1024, entry_depth=64, psum_depth=256,
                    bus_width=128, fifo_depth=32)


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def check(segment, columns, config, rng):
    """Runs a segment of one input on `reference:`; returns its program."""
    g = segment.uses[0].layer.geometry
    x = rng.integers(-128, 128, (g.channels, g.height, g.width, columns)).astype(np.int8)
    maps = {0: x.transpose(3, 0, 1, 2)}
    for use in segment.uses:
        maps[use.target] = run_conv(replace(use.layer, channels_last=False), maps[use.source])
    with sparsemac.open("reference:", config, memory_bytes=MEMORY_BYTES) as core:
        network = core.load(segment)
        result = core.run(network, x if g.height * g.width > 1 else x[:, 0, 0])
    want = maps[segment.outputs[0]].transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(result.outputs.reshape(want.shape), want)
    return result.program


def chain(rng, *layers):
    """Layers of (outputs, geometry) one after another."""
    return Segment.chain([random_conv(rng, g, n // g.groups, name=str(i))
                          for i, (n, g) in enumerate(layers)])


def reads_beyond(segment, columns, config):
    """Whether outputs lie in a strip that begins beyond the map, and not just where it ends."""
    cut = segment.cut(columns, config)
    for use in segment.uses:
        g = use.layer.geometry
        height, rows = cut.heights[use.source], cut.heights[use.target]
        if any(s * height > g.height and s * rows < g.out_height for s in range(cut.strips)):
            return True
    return False


def up_loads(program):
    commands = decode_list(program.image[: program.command_count * COMMAND_BYTES])
    return [c for c in commands if isinstance(c, Load) and c.shift == Shift.UP]


# -- where the map ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("columns, strips", [(1, 2), (2, 2), (4, 1)])
def test_outputs_below_all_rows_of_the_map_see_its_end_above(rng, columns, strips):
    """Of the second map's strips, of 4 rows, the last one has outputs, but the map is 3 rows."""
    segment = chain(
        rng,
        (7, Geometry(channels=8, height=9, width=14, kernel=(1, 3), stride=(3, 2),
                     padding=(0, 1, 0, 0))),
        (7, Geometry(channels=7, height=3, width=7, kernel=(3, 2), stride=(2, 1), dilation=(2, 1),
                     padding=(3, 0, 4, 0))))
    assert reads_beyond(segment, columns, CONFIG) == (strips > 1)
    assert check(segment, columns, CONFIG, rng).input.strips == strips


@pytest.mark.parametrize("height, bottom, masks", [
    (16, 3, [0b0001]), (15, 3, [0b0001]),  # the last strip has outputs and rows
    (13, 0, [0b0001]), (10, 1, [0b0001]),  # the last outputs are where the last rows are
    (9, 6, [0b0001]),  # the last strip has no rows, but the one above it has all
    (8, 6, [0b0001, 0b1001]),  # the last strip has no rows, and the one above it lacks one
])
def test_rows_from_above_are_masked_only_where_the_map_ends_too_early(rng, height, bottom, masks):
    """Otherwise they come with one LOAD, and only the first strip has none."""
    geometry = Geometry(channels=2, height=height, width=3, kernel=(7, 1),
                        padding=(3, 0, bottom, 0))
    segment = chain(rng, (3, geometry))
    program = check(segment, 1, CONFIG, rng)
    assert program.input.strips == 4
    assert reads_beyond(segment, 1, CONFIG) == (len(masks) > 1)
    assert [load.mask for load in up_loads(program)] == masks


def test_maps_of_one_row_are_cut_beside_higher_ones(rng):
    """The second layer has most of the work; a row is no column then, as strips are of rows."""
    segment = chain(
        rng,
        (4, Geometry(channels=4, height=1, width=6, kernel=(1, 3), padding=(0, 1, 0, 1))),
        (9, Geometry(channels=4, height=1, width=6, kernel=(3, 4), padding=(2, 3, 2, 3))))
    assert check(segment, 1, CONFIG, rng).input.strips == 2


def test_strips_of_one_place_have_neighbours(rng):
    """A word fills a beat here, so the plane of a strip is one word: but it is no vector."""
    config = CONFIG.replace(lanes=8, bus_width=64)
    segment = chain(
        rng,
        (3, Geometry(channels=3, height=8, width=1, kernel=(1, 1))),
        (5, Geometry(channels=3, height=8, width=1, kernel=(3, 1), padding=(1, 0, 1, 0))))
    program = check(segment, 1, config, rng)
    assert (program.input.strips, program.input.plane) == (8, 1)


def test_halos_are_no_higher_than_strips(rng):
    """11 rows of outputs make 8 strips of two rows, but windows begin three rows above."""
    geometry = Geometry(channels=2, height=8, width=3, kernel=(4, 1), padding=(3, 0, 3, 0))
    config = CONFIG.replace(lanes=8, bus_width=64)
    program = check(chain(rng, (3, geometry)), 1, config, rng)
    assert (program.input.strips, program.input.strip_height) == (4, 3)


# -- search ----------------------------------------------------------------------------------------


def random_strips(rng, channels, height, width):
    """A convolution of a map, mostly with as much padding as there may be."""
    while True:
        kernel = rng.integers(1, 5, 2)
        if rng.random() < 0.4:
            kernel[rng.integers(2)] = 1
        dilation, stride = rng.choice([1, 1, 2, 3, 4], 2), rng.choice([1, 1, 2, 3], 2)
        reach = ((kernel - 1) * dilation + 1).tolist() * 2
        top, left, bottom, right = (
            int(rng.choice([0, r - 1, r - 1, rng.integers(0, r)])) for r in reach)
        groups = channels if rng.random() < 0.2 else 1
        if height + top + bottom >= reach[0] and width + left + right >= reach[1]:
            geometry = Geometry(
                channels=channels, height=height, width=width, kernel=tuple(kernel.tolist()),
                stride=tuple(stride.tolist()), dilation=tuple(dilation.tolist()),
                padding=(top, left, bottom, right), groups=groups)
            if geometry.out_height * geometry.out_width <= 250:
                return geometry


def random_segment(rng):
    """One to three layers, each after any one before it; its output is the last one's."""
    shapes = [(int(rng.integers(1, 9)), int(rng.integers(1, 18)),
               int(rng.choice([1, 1, *range(2, 9)])))]
    zero_points, uses = {}, []
    for i in range(int(rng.integers(1, 4))):
        source = int(rng.choice([i, i, i, rng.integers(i + 1)]))
        g = random_strips(rng, *shapes[source])
        outputs = max(1, int(rng.integers(1, 9)) // g.groups)
        layer = random_conv(rng, g, outputs, float(rng.choice([0.3, 1.0])), name=str(i))
        # Readers of one map share its padding.
        zero = zero_points.setdefault(source, layer.linear.input_zero_point)
        layer = replace(layer, linear=replace(layer.linear, input_zero_point=zero))
        uses.append(Use(layer, source, i + 1))
        shapes.append((layer.outputs, g.out_height, g.out_width))
    return Segment(tuple(uses), (0,), (len(uses),))


@pytest.mark.parametrize("lanes, bus_width", [(2, 64), (4, 32), (4, 128), (8, 64), (16, 256)])
def test_any_geometry_is_right_in_strips(lanes, bus_width):
    """At least three of them have outputs in a strip that begins beyond the map."""
    ran = beyond = case = 0
    while ran < 12 or beyond < 3:
        seeds = (SEED, lanes, bus_width, case)
        rng = np.random.default_rng(seeds)
        config = CONFIG.replace(lanes=lanes, bus_width=bus_width,
                                act_depth=int(rng.choice([256, 1024])))
        segment, columns = random_segment(rng), int(rng.choice([1, 1, 2, 3, 5]))
        rare = reads_beyond(segment, columns, config)
        if rare or (ran < 12 and segment.cut(columns, config).strips > 1):
            print("seeds", *seeds)
            check(segment, columns, config, rng)
            ran += 1
            beyond += rare
        case += 1
