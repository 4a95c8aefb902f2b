# SPDX-License-Identifier: Apache-2.0
"""Trained networks from the data folder through the simulated core, compared at every step."""

import numpy as np
import pytest
import sparsemac
from sparsemac.calibrate import quantize_graph
from sparsemac.config import CoreConfig
from sparsemac.graph import run_golden
from sparsemac.importers import load_model
from sparsemac.inference import Model

SEED = 9

#: Small beside these networks, so that maps, channels and rows are all cut.
CONFIG = CoreConfig(engines=4, lanes=4, depth=256, act_depth=8192, entry_depth=512,
                    psum_depth=1024, bus_width=128)

MODELS = {
    "kws_ref_model.tflite": 1, "ad01_int8.tflite": 4, "pretrainedResnet_quant.tflite": 1,
    "vww_96_int8.tflite": 1, "mnist_resnet_q.tflite": 1, "hello_world_int8.tflite": 9,
    "TFC_2W2A.onnx": 9, "kwsmlp_w3a3.onnx": 4, "qkeras_jettagging.onnx": 9,
    "bsd300x3-espcn__nn_resize__quant_model.onnx": 1, "mnist-conv__model.onnx": 2,
}


def random_input(rng, value, samples):
    shape = (samples, *value.shape[1:])
    if np.dtype(value.dtype).kind in "iu":
        info = np.iinfo(value.dtype)
        return rng.integers(info.min, info.max, shape, value.dtype, endpoint=True)
    return rng.random(shape).astype(value.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_network_is_exact_through_the_simulated_core(data_dir, toolchain, name):
    path = data_dir / "models" / name
    if not path.is_file():
        pytest.skip(f"the data folder lacks models/{name}")
    pytest.importorskip(path.suffix[1:])
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    graph = load_model(path)
    value = graph.values[graph.inputs[0]]
    samples = MODELS[name] if graph.batchable else value.shape[0]
    x = random_input(rng, value, samples)
    if any(node.operation in ("float_conv", "float_linear") for node in graph.nodes):
        graph = quantize_graph(graph, random_input(rng, value, 8))
    assert graph.layers
    with sparsemac.open("sim:", CONFIG) as core:
        model = Model(graph, core)
        assert not model.on_host
        result = model.run(x, check=True)
    assert result.mismatch is None, result.mismatch
    want = run_golden(graph, x)
    for output, array in want.items():
        np.testing.assert_array_equal(result.outputs[output], array)
    print(f"{result.cycles} cycles, {result.jobs} doorbells, utilization {result.utilization:.3f}")
