# SPDX-License-Identifier: Apache-2.0
"""Programs of a network file on a core: used if they fit it, refused if they would do harm."""

import dataclasses

import numpy as np
import pytest
import sparsemac
from sparsemac.config import CoreConfig
from sparsemac.errors import ModelError
from sparsemac.graph import Graph, Node, Value, run_golden
from sparsemac.inference import Model
from sparsemac.precompile import compile_graph, preload, samples_of
from support.layers import random_activations, random_conv, random_geometry, random_layer

CONFIG = CoreConfig(engines=2, lanes=4, act_depth=256, fifo_depth=32)


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(3)
    geometry = random_geometry(rng, channels=2, groups=1, height=6, width=5, kernel=(3, 3),
                               stride=(1, 1), dilation=(1, 1), padding=(1, 1, 1, 1))
    conv = random_conv(rng, geometry, 3, name="conv")
    values = [Value(name="x", shape=(1, 6, 5, 2), dtype="int8"),
              Value(name="maps", shape=(1, 6, 5, 3), dtype="int8"),
              Value(name="clipped", shape=(1, 6, 5, 3), dtype="int8"),
              Value(name="y", shape=(1, 6, 5, 4), dtype="int8")]
    nodes = [
        Node(name="conv", inputs=("x",), outputs=("maps",), layer=conv),
        Node(name="clip", inputs=("maps",), outputs=("clipped",), operation="clamp",
             attributes={"low": -90, "high": 90}),
        Node(name="dense", inputs=("clipped",), outputs=("y",),
             layer=random_layer(rng, 4, 3, name="dense")),
    ]
    return Graph(name="net", values={v.name: v for v in values}, inputs=("x",), outputs=("y",),
                 nodes=tuple(nodes), batchable=True)


@pytest.fixture(scope="module")
def compiled(graph):
    return compile_graph(graph, CONFIG, 4)


def run_on(core, graph, batch):
    x = random_activations(np.random.default_rng(1), batch * 60, 1).reshape(batch, 6, 5, 2)
    result = Model(graph, core).run(x, check=True)
    assert result.mismatch is None
    assert (result.outputs["y"] == run_golden(graph, x)["y"]).all()


def test_programs_of_the_batch_are_used(graph, compiled, monkeypatch):
    import sparsemac.driver as driver

    with sparsemac.open("reference:", CONFIG) as core:
        assert preload(core, graph, compiled, CONFIG) == ""
        with monkeypatch.context() as patch:
            patch.setattr(driver, "compile_segment", None)
            run_on(core, graph, 4)
        run_on(core, graph, 9)  # compiled now


def test_placements_are_as_predicted(graph, compiled):
    placed = {p.node.name: p for p in compiled.placements(graph)}
    assert [placed[n].where for n in ("conv", "clip", "dense")] == ["device", "host", "device"]
    assert (placed["conv"].doorbell, placed["dense"].doorbell) == (0, 1)
    predicted = {p.node.name: p for p in sparsemac.inference.predict(graph, CONFIG, 4)}
    for name in ("conv", "dense"):
        assert placed[name].macs == predicted[name].macs
        assert placed[name].cycles == predicted[name].cycles


@pytest.mark.parametrize(("change", "options", "why"), [
    ({"lanes": 8}, {}, "not the one that the network was compiled for"),
    ({}, {"memory_base": 1 << 20}, "memory begins at 0x100000, not at 0x0"),
])
def test_another_core_compiles_for_itself(graph, compiled, change, options, why):
    with sparsemac.open("reference:", CONFIG.replace(**change), **options) as core:
        assert why in preload(core, graph, compiled, CONFIG)
        run_on(core, graph, 4)


def test_another_version_of_the_core_compiles_for_itself(graph, compiled):
    old = dataclasses.replace(compiled, core_version=1)
    with sparsemac.open("reference:", CONFIG) as core:
        assert "the core has version" in preload(core, graph, old, CONFIG)


def test_less_memory_compiles_for_itself(graph, compiled):
    with sparsemac.open("reference:", CONFIG, memory_bytes=3 * 8192) as core:
        assert preload(core, graph, compiled, CONFIG) == ""
        run_on(core, graph, 4)


def test_programs_of_other_shapes_are_not_used(graph, compiled):
    first, *rest = compiled.programs
    tensor = dataclasses.replace(first.program.outputs[0], channels=2)
    program = dataclasses.replace(first.program, outputs=(tensor,))
    other = dataclasses.replace(
        compiled, programs=(dataclasses.replace(first, program=program), *rest))
    with sparsemac.open("reference:", CONFIG) as core:
        assert preload(core, graph, other, CONFIG) == ""
        run_on(core, graph, 4)


def moved(program, **changes):
    return dataclasses.replace(program, **changes)


@pytest.mark.parametrize("harm", [
    lambda p: moved(p, image_address=1 << 20),
    lambda p: moved(p, image_address=-4096),
    lambda p: moved(p, fills=((0, b"x"),)),
    lambda p: moved(p, outputs=(dataclasses.replace(p.outputs[0], address=0),)),
    lambda p: moved(p, inputs=(dataclasses.replace(p.inputs[0], columns=1 << 20),)),
    lambda p: moved(p, areas=()),
    lambda p: moved(p, areas=p.areas[::-1]),
    lambda p: moved(p, areas=(dataclasses.replace(p.areas[0], address=-4096), p.areas[1])),
    lambda p: moved(p, areas=(dataclasses.replace(p.areas[0], length=1 << 20), p.areas[1])),
    lambda p: moved(p, command_count=0),
])
def test_programs_that_leave_their_memory_are_refused(graph, compiled, harm):
    first, *rest = compiled.programs
    program = harm(first.program)
    other = dataclasses.replace(
        compiled, programs=(dataclasses.replace(first, program=program), *rest))
    with sparsemac.open("reference:", CONFIG) as core:
        with pytest.raises(ModelError, match="program of conv|areas of program of conv"):
            preload(core, graph, other, CONFIG)


def test_samples_that_a_graph_was_made_for(graph):
    assert samples_of(graph) == 1
    four = dataclasses.replace(graph.values["x"], shape=(4, 6, 5, 2))
    assert samples_of(dataclasses.replace(graph, values={**graph.values, "x": four})) == 4
