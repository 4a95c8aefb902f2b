# SPDX-License-Identifier: Apache-2.0
"""Trained ONNX networks, and conformance tests of ONNX's operators, from the data folder."""

import gzip

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install 'sparsemac[onnx]'")

from onnx import numpy_helper  # noqa: E402
from sparsemac.calibrate import quantize_graph  # noqa: E402
from sparsemac.errors import ModelError  # noqa: E402
from sparsemac.graph import run_golden  # noqa: E402
from sparsemac.importers import load_model  # noqa: E402
from sparsemac.importers.onnx import graph_of_model  # noqa: E402

#: Types of tensors that a conformance test may be refused for.
FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1")


def load(data_dir, name):
    path = data_dir / "models" / name
    if not path.is_file():
        pytest.skip(f"the data folder lacks models/{name}")
    return load_model(path)


def tensor(path):
    return numpy_helper.to_array(onnx.load_tensor(str(path)))


def digits(data_dir, count):
    folder = data_dir / "images"
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return x[:count].astype(np.float32), np.frombuffer(labels, np.uint8, offset=8)[:count]


def run(graph, x):
    return next(iter(run_golden(graph, x).values()))


def modes(graph):
    return [getattr(layer, "linear", layer).mode.name for layer in graph.layers]


def test_tfc_2w2a_accuracy(data_dir):
    graph = load(data_dir, "TFC_2W2A.onnx")
    assert modes(graph) == ["SINGLE"] * 3 + ["RAW"]  # all but the last round on the device
    x, y = digits(data_dir, 300)
    right = run(graph, x / np.float32(255)).argmax(1) == y
    assert right.sum() == 295, f"{right.mean():.2%}"  # 98.3 %


def test_mnist_conv(data_dir):
    graph = load(data_dir, "mnist-conv__model.onnx")
    folder = data_dir / "models"
    got = run(graph, tensor(folder / "mnist-conv__test_data_set_0__input_0.pb"))
    want = tensor(folder / "mnist-conv__test_data_set_0__output_0.pb")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-2)
    x, y = digits(data_dir, 1000)
    assert (run(graph, x).argmax(1) == y).sum() == 987  # 98.7 %
    quantized = quantize_graph(graph, x[:32])
    assert len(quantized.layers) == 3
    assert (run(quantized, x[:100]).argmax(1) == y[:100]).mean() >= 0.97


def test_super_resolution(data_dir):
    graph = load(data_dir, "bsd300x3-espcn__nn_resize__quant_model.onnx")
    assert len(graph.layers) == 4
    folder = data_dir / "models"
    got = run(graph, tensor(folder / "bsd300x3-espcn__test_data__input_0.pb"))
    want = np.load(folder / "bsd300x3-espcn__nn_resize__ref_output.npz")
    steps = np.rint(got * 255) - np.rint(want[want.files[0]] * 255)
    assert (steps == 0).mean() > 0.9999 and np.abs(steps).max() <= 1


def quantized_reals(x, scale, bits, signed, narrow):
    low = -(1 << bits - 1) + narrow if signed else 0
    high = (1 << bits - 1) - 1 if signed else (1 << bits) - 1
    scale = np.asarray(scale, np.float32)
    return np.rint(np.clip(x.astype(np.float32) / scale, low, high)) * scale


def by_hand(model, x):
    """A chain of QONNX and float operators in float64, by their definitions."""
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    known[next(i.name for i in model.graph.input if i.name not in known)] = x
    for node in model.graph.node:
        a = {p.name: onnx.helper.get_attribute_value(p) for p in node.attribute}
        given = [known[name] for name in node.input]
        if node.op_type == "Quant":
            y = quantized_reals(given[0], given[1], int(given[3]), a["signed"], a["narrow"])
        elif node.op_type == "MatMul":
            y = given[0].astype(np.float64) @ given[1]
        elif node.op_type == "BatchNormalization":
            y = (given[0] - given[3]) / np.sqrt(given[4] + a["epsilon"]) * given[1] + given[2]
        elif node.op_type == "Softmax":
            e = np.exp(given[0] - given[0].max(1, keepdims=True))
            y = e / e.sum(1, keepdims=True)
        else:
            y = {"Flatten": lambda v: v.reshape(len(v), -1), "Transpose": lambda v: v.T,
                 "Relu": lambda v: np.maximum(v, 0), "Add": np.add}[node.op_type](*given)
        known[node.output[0]] = y
    return known[model.graph.output[0].name]


@pytest.mark.parametrize(("name", "shape", "layers"), [
    ("kwsmlp_w3a3.onnx", (200, 1, 10, 49), ["SINGLE"] * 3 + ["RAW"]),
    ("qkeras_jettagging.onnx", (200, 16), ["RAW"] * 3),
])
def test_qonnx_network_against_its_definition(data_dir, name, shape, layers):
    graph = load(data_dir, name)
    assert graph.batchable and modes(graph) == layers
    x = np.random.default_rng(1).normal(0, 20 if "kws" in name else 1, shape).astype(np.float32)
    got = run(graph, x)
    want = by_hand(onnx.load(data_dir / "models" / name), x)
    # A sum next to a half may go to the other side in float32, and change a sample.
    close = np.isclose(got, want, rtol=1e-4, atol=1e-4).all(1)
    assert close.mean() >= 0.97 and (got.argmax(1) == want.argmax(1)).mean() >= 0.99


def test_conformance_of_operators(data_dir, capsys):
    """All tests of the folder: every number equal, or refused by the name of the type."""
    folder = data_dir / "onnx_node"
    if not folder.is_dir():
        pytest.skip("the data folder lacks onnx_node")
    table = {}
    for test in sorted(folder.iterdir()):
        model = onnx.load(test / "model.onnx")
        data = test / "test_data_set_0"
        x = {i.name: tensor(data / f"input_{n}.pb") for n, i in enumerate(model.graph.input)}
        try:
            results = run_golden(graph_of_model(model), x)
        except ModelError as error:
            assert any(kind in str(error) for kind in FLOAT8), error
            table[test.name] = f"refused: {error}"
            continue
        for n, output in enumerate(model.graph.output):
            want, got = tensor(data / f"output_{n}.pb"), results[output.name]
            assert (got.dtype, got.shape) == (want.dtype, want.shape), test.name
            np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
        table[test.name] = "equal"
    with capsys.disabled():
        print()
        for name, result in table.items():
            print(f"{name:44} {result}")
    assert list(table.values()).count("equal") >= len(table) - len(FLOAT8) - 1


def test_conformance_with_constant_weights(data_dir):
    """The same with all inputs but the first as constants, as they stand in networks."""
    folder = data_dir / "onnx_node"
    layers, asymmetric = [], []
    for test in sorted(folder.glob("test_*")):
        model = onnx.load(test / "model.onnx")
        data = test / "test_data_set_0"
        arrays = [onnx.load_tensor(str(data / f"input_{n}.pb"))
                  for n in range(len(model.graph.input))]
        for info, proto in list(zip(model.graph.input, arrays, strict=True))[1:]:
            proto.name = info.name
            model.graph.initializer.append(proto)
        try:
            graph = graph_of_model(model)
        except ModelError as error:
            if "zero point taken off" in str(error):
                asymmetric.append(test.name)
            else:
                assert any(kind in str(error) for kind in FLOAT8), error
            continue
        layers += [test.name] * len(graph.layers)
        results = run_golden(graph, {graph.inputs[0]: numpy_helper.to_array(arrays[0])})
        for n, output in enumerate(model.graph.output):
            want, got = tensor(data / f"output_{n}.pb"), results[output.name]
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64),
                                       rtol=1e-6 if got.dtype.kind == "f" else 0)
    assert layers == ["test_convinteger_without_padding", "test_matmulinteger"]
    # Their weights are uint8 with zero points that leave less than -128.
    assert asymmetric == ["test_qlinearconv", "test_qlinearmatmul_2D_int8_float16",
                          "test_qlinearmatmul_2D_uint8_float16"]
