# SPDX-License-Identifier: Apache-2.0
"""Whole networks on a core: what runs where, and the golden model's integers."""

from dataclasses import replace

import numpy as np
import pytest
import sparsemac
from sparsemac.config import CoreConfig
from sparsemac.conv import Geometry
from sparsemac.graph import run_golden
from sparsemac.inference import Model, predict
from sparsemac.partition import DeviceStage, partition
from support.graphs import GraphMaker
from support.layers import random_conv, random_layer

SEED = 77


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def conv(rng, channels, outputs, size, kernel=1, *, pad=0, **options):
    geometry = Geometry(channels=channels, height=size, width=size, kernel=(kernel, kernel),
                        padding=(pad,) * 4)
    return random_conv(rng, geometry, outputs, **options)


def flattened(rng, *, channels_last=True, twice=False):
    """A convolution, a reshape, a fully connected layer, and a host operation."""
    make = GraphMaker(2, *((4, 4, 3) if channels_last else (3, 4, 4)))
    y = make.layer("conv", "x", conv(rng, 3, 5, 4, 3, pad=1, channels_last=channels_last))
    y = make.host("flat", "reshape", y, shape=[0, -1])
    z = make.layer("dense", y, random_layer(rng, 6, 80, 0.3))
    z = make.host("clamp", "clamp", z, low=-50, high=50)
    return make.graph(z, y) if twice else make.graph(z)


def residual(rng):
    """Two branches that meet on the host, and a layer behind."""
    make = GraphMaker(1, 5, 5, 2)
    stem = make.layer("stem", "x", conv(rng, 2, 4, 5))
    left = make.layer("left", stem, conv(rng, 4, 3, 5))
    right = make.layer("right", stem, conv(rng, 4, 3, 5))
    total = make.host("sum", "onnx_elementwise", left, right, function="add")
    return make.graph(make.layer("end", total, conv(rng, 3, 2, 5)))


def inputs(rng, graph, times=1):
    shape = graph.values["x"].shape
    return rng.integers(-128, 128, (times * shape[0], *shape[1:])).astype(np.int8)


def check(core, graph, x, **options):
    result = Model(graph, core).run(x, check=True, **options)
    assert result.mismatch is None
    want = run_golden(graph, x)
    assert list(result.outputs) == list(want)
    for name, array in want.items():
        assert result.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(result.outputs[name], array)
    return result


def names(stages):
    return [[node.name for node in stage.nodes] if isinstance(stage, DeviceStage)
            else stage.node.name for stage in stages]


# -- what runs where ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_behind_one_another_take_one_doorbell(core, rng, channels_last):
    graph = flattened(rng, channels_last=channels_last)
    assert names(partition(graph)) == [["conv", "dense"], "clamp"]
    result = check(core, graph, inputs(rng, graph, 3))
    assert (result.jobs, [step.where for step in result.steps]) == (1, ["device", "host"])
    assert result.steps[0].nodes == ("conv", "dense", "flat")
    assert result.bytes_to_device > result.bytes_from_device > 0
    assert result.macs == 6 * sum(
        node.layer.macs if node.name == "conv" else node.layer.weights.without_zeros().nnz
        for node in graph.nodes if node.layer is not None)


def test_value_that_the_host_needs_passes_it(core, rng):
    graph = flattened(rng, twice=True)
    assert names(partition(graph)) == [["conv"], "flat", ["dense"], "clamp"]
    check(core, graph, inputs(rng, graph))


def test_branches_share_a_doorbell(core, rng):
    graph = residual(rng)
    stages = partition(graph)
    assert names(stages) == [["stem", "left", "right"], "sum", ["end"]]
    assert [port.value for port in stages[0].outputs] == ["left:0", "right:0"]


def test_outputs_inside_a_doorbell_come_out(core, rng):
    make = GraphMaker(1, 6)
    y = make.layer("a", "x", random_layer(rng, 5, 6, 0.5))
    z = make.layer("b", y, random_layer(rng, 4, 5, 0.5))
    graph = make.graph(z, y)
    assert check(core, graph, inputs(rng, graph, 7)).jobs == 1


def test_linear_layer_works_on_the_last_axis(core, rng):
    make = GraphMaker(2, 7, 6)
    y = make.layer("a", "x", random_layer(rng, 5, 6, 0.5))
    graph = make.graph(make.layer("b", y, random_layer(rng, 4, 5, 0.5, raw=True)))
    assert check(core, graph, inputs(rng, graph, 2)).jobs == 1


def test_maps_of_one_place_are_vectors(core, rng):
    make = GraphMaker(3, 1, 1, 6)
    y = make.layer("a", "x", conv(rng, 6, 5, 1))
    y = make.layer("b", y, conv(rng, 5, 7, 1))
    y = make.host("flat", "flatten", y)
    graph = make.graph(make.layer("c", y, random_layer(rng, 4, 7)))
    assert check(core, graph, inputs(rng, graph)).jobs == 1


def test_order_of_elements_is_that_of_the_move(core, rng):
    make = GraphMaker(2, 3, 3, 4)
    y = make.layer("conv", "x", conv(rng, 4, 3, 3))
    y = make.host("turn", "transpose", y, axes=[0, 2, 3, 1])
    y = make.host("flat", "reshape", y, shape=[0, -1])
    graph = make.graph(make.layer("dense", y, random_layer(rng, 5, 27, 0.5)))
    assert check(core, graph, inputs(rng, graph, 2)).jobs == 1


def test_move_across_samples_is_left_to_the_host(core, rng):
    make = GraphMaker(4, 6, batchable=False)
    y = make.layer("a", "x", random_layer(rng, 4, 6, 0.5))
    y = make.host("turn", "transpose", y, axes=[1, 0])
    graph = make.graph(make.layer("b", y, random_layer(rng, 3, 4, 0.5)))
    assert names(partition(graph)) == [["a"], "turn", ["b"]]
    check(core, graph, inputs(rng, graph))


def test_layers_that_want_other_padding_get_their_own_doorbells(core, rng):
    make = GraphMaker(1, 5, 5, 2)
    y = make.layer("a", "x", conv(rng, 2, 3, 5, 3, pad=1))
    z = make.layer("b", "x", conv(rng, 2, 3, 5, 3, pad=1))
    graph = make.graph(y, z)
    points = {node.layer.linear.input_zero_point for node in graph.nodes}
    assert len(points) == 2
    assert names(partition(graph)) == [["a"], ["b"]]
    check(core, graph, inputs(rng, graph))


def test_layer_that_the_core_cannot_run_is_named(rng):
    make = GraphMaker(1, 90)
    y = make.layer("wide", "x", random_layer(rng, 8, 90, 0.9))
    graph = make.graph(make.layer("slim", y, random_layer(rng, 4, 8, 0.9)))
    config = CoreConfig(act_depth=64, psum_depth=0)
    with sparsemac.open("reference:", config) as core:
        model = Model(graph, core)
        assert list(model.on_host) == ["wide"]
        assert "act_depth is 64" in model.on_host["wide"]
        result = check(core, graph, inputs(rng, graph, 3))
        assert [step.where for step in result.steps] == ["host", "device"]
    placed = predict(graph, config)
    assert [p.where for p in placed] == ["host", "device"]
    assert "act_depth is 64" in placed[0].reason


# -- runs -----------------------------------------------------------------------------------------


def test_each_layer_has_its_counters_on_request(core, rng):
    graph = flattened(rng)
    x = inputs(rng, graph)
    result = check(core, graph, x, per_layer=True)
    assert [step.name for step in result.steps] == ["conv", "flat", "dense", "clamp"]
    layers = [step for step in result.steps if step.where == "device"]
    assert all(step.jobs == 1 and step.macs and step.counters for step in layers)
    together = Model(graph, core).run(x)
    assert together.macs == result.macs == sum(step.macs for step in layers)
    assert result.utilization == result.macs / (result.cycles * core.config.macs)


def test_progress_names_each_step(core, rng):
    graph = flattened(rng)
    seen = []
    Model(graph, core).run(inputs(rng, graph), progress=lambda *step: seen.append(step))
    assert seen == [(0, 2, "conv .. dense (2 layers)"), (1, 2, "clamp"), (2, 2, "done")]


@pytest.mark.parametrize("channels_last", [False, True])
def test_first_mismatch_is_named(core, rng, monkeypatch, channels_last):
    graph = flattened(rng, channels_last=channels_last)
    model, x = Model(graph, core), inputs(rng, graph)
    bad = graph.nodes[0].layer
    weights = bad.linear.weights
    data = weights.data.copy()
    row = int(weights.rows_of_entries[len(data) // 2])
    data[len(data) // 2] ^= 64
    wrong = replace(bad, linear=replace(bad.linear, weights=replace(weights, data=data)))
    load = core.load
    # The device gets another weight than the golden model, in the whole network and alone.
    monkeypatch.setattr(core, "load", lambda network: load(_swap(network, bad, wrong)))
    model = Model(graph, core)
    got = model.run(x, check=True)
    assert got.mismatch is not None and not got.outputs
    mismatch = got.mismatch
    channel = mismatch.index[-1 if channels_last else 1]
    assert (mismatch.layer, channel) == ("conv", row)
    text = str(mismatch)
    assert text.startswith("conv, sample ") and f"channel {row}" in text
    assert f"{mismatch.got}, not {mismatch.expected} ({mismatch.count} of 160 values" in text
    assert run_golden(graph, x)  # nothing of the graph was changed


def _swap(network, old, new):
    from sparsemac.segment import Segment

    if network is old:
        return new
    if not isinstance(network, Segment):
        return network
    uses = tuple(replace(u, layer=new if u.layer is old else u.layer) for u in network.uses)
    return Segment(uses, network.inputs, network.outputs)


def test_wrong_inputs_are_refused(core, rng):
    graph = flattened(rng)
    model = Model(graph, core)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 4, 4, 3\), not \(2, 4, 4\)"):
        model.run(np.zeros((2, 4, 4), np.int8))
    with pytest.raises(TypeError, match="x must hold int8, not float64"):
        model.run(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="input must be one of x, not 'y'"):
        model.run({"y": np.zeros((2, 4, 4, 3), np.int8)})


def test_placement_is_predicted(rng, small_config):
    graph = residual(rng)
    placed = predict(graph, small_config, batch=4)
    assert [p.node for p in placed] == list(graph.nodes)
    assert [p.doorbell for p in placed] == [0, 0, 0, -1, 1]
    for p in placed:
        if p.where == "device":
            assert p.macs == 4 * p.node.layer.macs
            assert 0 < p.utilization <= 1 and p.cycles > 0
    assert sum(p.macs for p in predict(graph, small_config)) * 4 == sum(p.macs for p in placed)


def test_predicted_cycles_are_near(device_uri, core, rng):
    if device_uri == "reference:":
        pytest.skip("cycles of the simulated core")
    graph = residual(rng)
    result = Model(graph, core).run(inputs(rng, graph, 8))
    predicted = sum(p.cycles for p in predict(graph, core.config, batch=8))
    print(predicted, result.cycles)
    assert abs(predicted / result.cycles - 1) < 0.05
