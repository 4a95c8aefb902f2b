# SPDX-License-Identifier: Apache-2.0
"""The cycle model against the simulated core: cycles of layers, and where they went."""

import numpy as np
import pytest
import sparsemac
from sparsemac.config import CoreConfig
from sparsemac.conv import Geometry
from sparsemac.cycles import MemoryModel, predict_cycles
from sparsemac.matrices import random_values, read_matrix
from support.layers import random_conv, random_layer

SMALL = CoreConfig(engines=2, lanes=4, act_depth=1024, entry_depth=128)
OTHERS = {
    "8x8": CoreConfig(engines=8, lanes=8, bus_width=256),
    "16x1": CoreConfig(engines=16, lanes=1, bus_width=512, act_depth=16384),
    "3x16": CoreConfig(engines=3, lanes=16, bus_width=32, burst_beats=8, act_depth=1024),
    "1x64": CoreConfig(engines=1, lanes=64, fifo_depth=64, act_depth=512, burst_beats=4),
    "1x128": CoreConfig(engines=1, lanes=128, fifo_depth=64, act_depth=512, burst_beats=4),
    "6x2": CoreConfig(engines=6, lanes=2, bus_width=128, entry_depth=16),
}
MAPS = {
    "3x3": Geometry(channels=6, height=10, width=10, kernel=(3, 3), padding=(1, 1, 1, 1)),
    "1x1": Geometry(channels=16, height=7, width=7, kernel=(1, 1)),
    "depthwise": Geometry(channels=8, height=9, width=9, kernel=(3, 3), groups=8,
                          padding=(1, 1, 1, 1)),
    "strided": Geometry(channels=4, height=13, width=11, kernel=(3, 3), stride=(2, 2)),
}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def compare(layers, columns, config, latency=20, bandwidth=None):
    """Runs layers on ``sim:`` and checks the prediction against the bars."""
    with sparsemac.open("sim:", config, latency=latency, bandwidth=bandwidth) as core:
        network = core.load(layers)
        shape = network.segment.shapes[network.segment.inputs[0]]
        maps = (shape.height, shape.width) if shape.height * shape.width > 1 else ()
        result = core.run(network, np.ones((shape.channels, *maps, columns), np.int8))
    memory = MemoryModel(latency=latency, bytes_per_cycle=bandwidth)
    estimate = predict_cycles(result.program, config, memory)
    error = abs(estimate.cycles / result.cycles - 1)
    assert error <= (0.01 if result.cycles > 10_000 else 0.03), (estimate.cycles, result.cycles)
    for cause, share in result.stalls.items():
        assert estimate.stalls[cause] == pytest.approx(share, abs=0.02), cause
    return estimate, result


def layers_of(rng):
    """Random layers of all kinds, and columns."""
    for weight_bits, raw in ((8, False), (4, True), (4, False)):
        for rows, columns, density in ((40, 60, 0.5), (120, 150, 0.05), (30, 1, 1.0)):
            layer = random_layer(rng, rows, columns, density, weight_bits=weight_bits, raw=raw,
                                 bias=rows != 40)
            yield from ((layer, 1), (layer, 24))
    for geometry in MAPS.values():
        yield random_conv(rng, geometry, 12 if geometry.groups == 1 else 1), 4


def test_small_layers_on_a_small_core(toolchain, rng):
    layer = random_layer(rng, 100, 120, 0.2)
    for columns, timing in ((1, {}), (16, {}), (16, {"latency": 100}),
                            (16, {"latency": 30, "bandwidth": 4.0})):
        compare([layer], columns, SMALL, **timing)
    compare([random_conv(rng, MAPS["3x3"], 8)], 4, SMALL)


def test_layers_of_one_job(toolchain, rng):
    layers = [random_layer(rng, 60, 50, 0.3, name="a"), random_layer(rng, 30, 60, 0.2, name="b")]
    estimate, result = compare(layers, 12, SMALL)
    assert [layer.name for layer in estimate.layers] == ["a", "b"]
    _, alone = compare(layers[:1], 12, SMALL)
    assert abs(estimate.layers[0].cycles - alone.cycles) < 100
    assert estimate.cycles == sum(layer.cycles for layer in estimate.layers)


@pytest.mark.slow
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_layers_of_all_kinds(toolchain, rng, config):
    for layer, columns in layers_of(rng):
        compare([layer], columns, config)


@pytest.mark.slow
@pytest.mark.parametrize("config", [OTHERS["8x8"], OTHERS["3x16"]], ids=["8x8", "3x16"])
@pytest.mark.parametrize("timing", [(1, None), (60, None), (250, None), (40, 6.0), (40, 40.0)])
def test_memories(toolchain, rng, config, timing):
    latency, bandwidth = timing
    for layer, columns in ((random_layer(rng, 150, 200, 0.2), 8),
                           (random_layer(rng, 200, 200, 0.02), 32),
                           (random_conv(rng, MAPS["depthwise"], 1), 4)):
        compare([layer], columns, config, latency, bandwidth)


@pytest.mark.slow
@pytest.mark.parametrize("config", [OTHERS["8x8"], OTHERS["16x1"]], ids=["8x8", "16x1"])
@pytest.mark.parametrize("columns", [1, 16, 64])
def test_pruned_layers(toolchain, data_dir, rng, config, columns):
    for path in sorted(data_dir.glob("dlmc/*.smtx"), key=lambda p: p.stat().st_size)[:6]:
        layer = random_layer(rng, 1, 1)
        weights = random_values(read_matrix(path), 8, 1)
        rows = weights.shape[0]
        layer = type(layer)(
            weights=weights, mode=layer.mode, multiplier=np.full(rows, 1 << 30, np.uint64),
            shift=np.full(rows, 8), bias=np.arange(rows, dtype=np.int32))
        compare([layer], columns, config)
