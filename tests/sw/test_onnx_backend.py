# SPDX-License-Identifier: Apache-2.0
"""ONNX's own backend tests on the golden model; which of them run, the importer says.

In the fast run there are those that ONNX keeps as files; making the others takes long, so that they
are marked slow.
"""

import os
import unittest
import warnings
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install 'sparsemac[onnx]'")

import sparsemac.onnx_backend as backend  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.backend.test import BackendTest  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402
from onnx.backend.test.runner import (  # noqa: E402
    BackendIsNotSupposedToImplementIt,
    Runner,
)
from sparsemac.errors import ModelError  # noqa: E402

#: Tests that ONNX keeps as files: many kinds of layers as PyTorch exported them.
FILED = ("simple", "pytorch-operator", "pytorch-converted")

#: Least number of ONNX's node tests that pass; ONNX 1.23 has them all.
LEAST_PASSING = 800


def arrays(tensors):
    return [numpy_helper.to_array(t) if isinstance(t, onnx.TensorProto) else t for t in tensors]


def node_tests():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX's own, of the numbers that it makes
        return [case for case in load_model_tests(kind="node") if case.data_sets]


def run_all(cases):
    """Runs cases, as ONNX's runner does; returns the names that passed, and refused with why."""
    passed, refused = [], {}
    for case in cases:
        model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
        try:
            prepared = backend.prepare(model)
            for inputs, outputs in data_sets(case):
                got = prepared.run(arrays(inputs))
                Runner.assert_similar_outputs(arrays(outputs), got, case.rtol, case.atol)
        except ModelError as error:  # of open sizes, when it is run
            refused[case.name] = str(error)
            continue
        passed.append(case.name)
    return passed, refused


def data_sets(case):
    """(inputs, outputs) of a test, of which some are files."""
    if case.data_sets:
        yield from case.data_sets
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
        yield tuple([onnx.load_tensor(str(folder / f"{kind}_{i}.pb"))
                     for i in range(len(list(folder.glob(f"{kind}_*.pb"))))]
                    for kind in ("input", "output"))


def test_networks_on_file():
    cases = [case for kind in FILED for case in load_model_tests(kind=kind)]
    passed, refused = run_all(cases)
    assert len(passed) >= 90, len(passed)
    assert all("must" in text for text in refused.values()), refused
    for layer in ("test_Conv2d", "test_Conv1d", "test_Conv3d", "test_MaxPool2d", "test_AvgPool2d"):
        assert layer in passed


@pytest.mark.slow
def test_all_node_tests():
    passed, refused = run_all(node_tests())
    print(f"passed {len(passed)}, refused {len(refused)}")
    assert len(passed) >= LEAST_PASSING


@pytest.mark.slow
def test_the_runner_of_onnx():
    """ONNX's runner itself, which skips what the backend refuses."""
    assert not os.environ.get("ONNX_MODELS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX's own, of the numbers that it makes
        runner = BackendTest(backend, __name__)
    runner.exclude("test_(bvlc|densenet|inception|resnet50|shufflenet|squeezenet|vgg|zfnet)")
    result = unittest.TestResult()
    runner.test_suite.run(result)
    assert result.testsRun > 1000
    assert not result.failures and not result.errors, [
        str(case) for case, _ in (*result.failures, *result.errors)]


def simple_model():
    return helper.make_model(helper.make_graph(
        [helper.make_node("Mul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])], "two",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", "m"]),
         helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, None),
         helper.make_tensor_value_info("c", TensorProto.FLOAT, None)]),
        opset_imports=[helper.make_opsetid("", 17)])


def test_outputs_in_order_and_open_sizes():
    a, b = np.array([[1, -2]], np.float32), np.array([[3, 4]], np.float32)
    with backend.prepare(simple_model()) as prepared:
        for x, y in (({"a": a, "b": b}, (a, b)), ([a.T, b.T], (a.T, b.T))):
            relu, product = prepared.run(x)
            np.testing.assert_array_equal(product, y[0] * y[1])
            np.testing.assert_array_equal(relu, np.maximum(product, 0))
    with pytest.raises(ValueError, match="inputs must be 2, not 1"):
        prepared.run([a])


def test_what_is_refused_is_skipped_by_the_tests_of_onnx():
    model = simple_model()
    model.graph.node[0].op_type = "LSTM"
    for kind in (ModelError, BackendIsNotSupposedToImplementIt):
        with pytest.raises(kind, match="LSTM"):
            backend.prepare(model)


def test_run_node():
    x = np.array([[-1, 2]], np.float32)
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5)
    (y,) = backend.run_node(node, [x])
    np.testing.assert_array_equal(y, [[-0.5, 2]])
    (y,) = backend.run_node(node, [x], outputs_info=[(np.float32, (1, 2))], opset_version=13)
    np.testing.assert_array_equal(y, [[-0.5, 2]])


def test_devices():
    assert backend.supports_device("CPU")
    assert not backend.supports_device("CUDA")
    assert backend.is_compatible(simple_model())
    with pytest.raises(TypeError, match="options of prepare must be none, not fast"):
        backend.prepare(simple_model(), fast=True)


def test_a_core_gives_the_same():
    """QLinearConv on the reference device, by its URI."""
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (2, 3, 6, 6)).astype(np.int8)
    constants = {
        "sx": np.float32(0.1), "zx": np.int8(4), "w": rng.integers(-99, 99, (5, 3, 3, 3), np.int8),
        "sw": rng.uniform(0.01, 0.03, 5).astype(np.float32), "zw": np.zeros(5, np.int8),
        "sy": np.float32(0.9), "zy": np.int8(-7)}
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"], ["y"])],
        "conv", [helper.make_tensor_value_info("x", TensorProto.INT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT8, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    assert backend.supports_device("reference:")
    (want,), (got,) = (backend.run_model(model, [x], device) for device in ("CPU", "reference:"))
    np.testing.assert_array_equal(got, want)
