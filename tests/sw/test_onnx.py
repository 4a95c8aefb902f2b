# SPDX-License-Identifier: Apache-2.0
"""The ONNX importer: every form of quantized layer against exact integers, and what it refuses."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install 'sparsemac[onnx]'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from sparsemac.calibrate import quantize_graph  # noqa: E402
from sparsemac.errors import ModelError  # noqa: E402
from sparsemac.graph import run_golden  # noqa: E402
from sparsemac.importers import load_model  # noqa: E402
from sparsemac.importers.onnx import graph_of_model  # noqa: E402

F32, I8, U8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


def model_of(nodes, inputs, constants=(), opset=21, domains=(), outputs=(("y", None),), **extra):
    """A model; inputs are (name, array or (type, shape)), constants name: array or TensorProto."""
    infos = []
    for name, value in inputs:
        kind, shape = value if isinstance(value, tuple) else (
            helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    tensors = [v if isinstance(v, onnx.TensorProto) else numpy_helper.from_array(np.asarray(v), k)
               for k, v in dict(constants).items()]
    outs = [helper.make_tensor_value_info(name, kind or F32, None) for name, kind in outputs]
    graph = helper.make_graph([helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {}))
                               for n in nodes], "test", infos, outs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **extra)


def run(model, **inputs):
    graph = graph_of_model(model)
    return graph, next(iter(run_golden(graph, inputs).values()))


def modes(graph):
    return [getattr(layer, "linear", layer).mode.name for layer in graph.layers]


def script():
    """The script that compares with ONNX Runtime, which makes random models."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'sparsemac[dev]'")
    path = Path(__file__).parents[2] / "scripts" / "compare_onnxruntime.py"
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


def test_quantized_layers_agree_with_onnx_and_its_runtime():
    compare = script()
    rng = np.random.default_rng(5)
    for kind, options in compare.KINDS.items():
        model, x = compare.random_model(rng, **options)
        graph = graph_of_model(model)
        figures = compare.compare(model, {"x": x}, graph)
        assert len(graph.layers) == 1 and graph.batchable, kind
        assert compare.passes(figures), (kind, figures)
        # Scales that are powers of two put sums on a half, which the core does not take to even.
        assert (modes(graph) == ["RAW"]) == ("powers" in options), kind
        if "powers" in options:
            assert any("rounds otherwise" in node.reason for node in graph.nodes), kind


# Exact integers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("dynamic", [False, True])
def test_matmul_integer_gives_exact_sums(kind, dynamic):
    rng = np.random.default_rng(1)
    info = np.iinfo(kind)
    x = rng.integers(info.min, info.max + 1, (3, 20)).astype(kind)
    w = rng.integers(-128, 128, (20, 6)).astype(np.int8)
    zero = np.array(77, kind)
    node = ("MatMulInteger", ["x", "w", "z"], ["y"])
    inputs = [("x", x)] + ([("z", zero)] if dynamic else [])
    constants = {"w": w} | ({} if dynamic else {"z": zero})
    model = model_of([node], inputs, constants, outputs=[("y", TensorProto.INT32)])
    graph, y = run(model, x=x, **({"z": zero} if dynamic else {}))
    assert modes(graph) == ["RAW"]
    np.testing.assert_array_equal(y, (x.astype(int) - 77) @ w.astype(int))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 0, 1], [5, 5, 5, 5]])
def test_conv_integer_pads_with_the_zero_point(pads):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (2, 4, 6, 7)).astype(np.uint8)
    w = rng.integers(-8, 8, (6, 2, 3, 2)).astype(np.int8)
    node = ("ConvInteger", ["x", "w", "z"], ["y"],
            {"pads": pads, "group": 2, "strides": [2, 1], "dilations": [1, 2]})
    model = model_of([node], [("x", x)], {"w": w, "z": np.uint8(200)},
                     outputs=[("y", TensorProto.INT32)])
    graph, y = run(model, x=x)
    assert modes(graph) == ["RAW"] and graph.layers[0].linear.weight_bits == 4
    want = ReferenceEvaluator(model_of(
        [("Conv", ["x", "w"], ["y"], node[3])], [("x", (F32, x.shape))],
        {"w": w.astype(np.float32)})).run(None, {"x": x.astype(np.float32) - 200})[0]
    np.testing.assert_array_equal(y, want.astype(np.int64))


def qlinear_matmul(x, w, zero, **scales):
    names = {"sx": np.float32(0.1), "sw": np.float32(0.02), "sy": np.float32(0.35),
             "zx": np.uint8(100), "zw": zero, "zy": np.uint8(130), **scales}
    node = ("QLinearMatMul", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"], ["y"])
    return model_of([node], [("x", x)], {"w": w, **names}, outputs=[("y", U8)])


def test_uint8_weights_with_a_zero_point_that_fits():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (4, 30)).astype(np.uint8)
    w = rng.integers(0, 256, (30, 5)).astype(np.uint8)
    graph, y = run(qlinear_matmul(x, w, np.uint8(128)), x=x)
    assert modes(graph) == ["SINGLE"]
    sums = (x.astype(int) - 100) @ (w.astype(int) - 128)
    real = sums * (np.float64(np.float32(0.1)) * np.float32(0.02) / np.float32(0.35))
    np.testing.assert_array_equal(y, np.clip(np.rint(real) + 130, 0, 255).astype(np.uint8))


def test_weights_that_their_zero_point_puts_out_of_range_are_refused():
    x, w = np.zeros((2, 3), np.uint8), np.full((3, 4), 200, np.uint8)
    with pytest.raises(ModelError, match=r"weights of node .* must be -128 to 127 with their zero"):
        graph_of_model(qlinear_matmul(x, w, np.uint8(3)))


# int4 and blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [0, 4])
def test_int4_weights_with_scales_of_channels_or_blocks(axis, block):
    rng = np.random.default_rng(4)
    w = rng.integers(-8, 8, (12, 8))
    shape = [12, 8]
    shape[axis] = -(-shape[axis] // block) if block else shape[axis]
    scale = rng.uniform(0.01, 0.1, shape if block else shape[axis]).astype(np.float32)
    nodes = [
        ("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        ("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
        ("DequantizeLinear", ["w", "sw"], ["wd"], {"axis": axis, "block_size": block}),
        ("MatMul", ["d", "wd"], ["y"])]
    packed = helper.make_tensor("w", TensorProto.INT4, w.shape, w.ravel().tolist())
    x = rng.normal(0, 1, (5, 12)).astype(np.float32)
    model = model_of(nodes, [("x", x)], {"w": packed, "sw": scale, "sx": np.float32(0.02),
                                         "zx": np.int8(3)})
    graph, y = run(model, x=x)
    assert modes(graph) == ["RAW"] and graph.layers[0].weight_bits == 4
    # One row for each scale of an output.
    scales_of_one = {(0, 0): 12, (0, 4): 3, (1, 0): 1, (1, 4): 12}[axis, block]
    assert graph.layers[0].outputs == 8 * scales_of_one
    full = np.repeat(scale, block, axis)[:12, :8] if block else (
        scale[:, None] if axis == 0 else scale)
    q = np.clip(np.rint(x / np.float32(0.02)) + 3, -128, 127) - 3
    np.testing.assert_allclose(y, (q * 0.02) @ (w * full), rtol=1e-5, atol=1e-5)
    twice = next(iter(run_golden(graph, np.concatenate([x, x])).values()))
    np.testing.assert_array_equal(twice, np.concatenate([y, y]))


# QONNX -------------------------------------------------------------------------------------------


def qonnx_quant(x, scale, zero, bits, signed, narrow):
    low = -(1 << bits - 1) + narrow if signed else 0
    high = (1 << bits - 1) - 1 if signed else (1 << bits) - 1 - narrow
    return (np.rint(np.clip(x / np.float32(scale) + np.float32(zero), low, high))
            - np.float32(zero)) * np.float32(scale)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("domain", ["onnx.brevitas", "qonnx.custom_op.general"])
def test_quant_of_2_to_8_bits(bits, signed, domain):
    rng = np.random.default_rng(bits)
    narrow = int(bits > 2)
    x = rng.normal(0, 1, (4, 10)).astype(np.float32)
    w = rng.normal(0, 1, (6, 10)).astype(np.float32)
    scale = rng.uniform(0.1, 0.3, (6, 1)).astype(np.float32)
    q = {"domain": domain, "narrow": narrow, "rounding_mode": "ROUND"}
    nodes = [("Quant", ["x", "s", "z", "b"], ["q"], {**q, "signed": signed}),
             ("Quant", ["w", "ws", "z", "b"], ["wq"], {**q, "signed": 1}),
             ("Transpose", ["wq"], ["wt"], {"perm": [1, 0]}), ("MatMul", ["q", "wt"], ["y"])]
    constants = {"s": np.float32(0.07), "z": np.float32(0), "b": np.float32(bits), "w": w,
                 "ws": scale}
    graph, y = run(model_of(nodes, [("x", x)], constants, domains=[domain]), x=x)
    assert modes(graph) == ["RAW"] and graph.layers[0].weight_bits == (4 if bits <= 4 else 8)
    want = qonnx_quant(x, 0.07, 0, bits, signed, narrow).astype(np.float64) @ qonnx_quant(
        w, scale, 0, bits, True, narrow).astype(np.float64).T
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_a_falling_function_is_rounded_on_the_device():
    """Batch normalization with negative scales, and a Quant of 2 bits behind it."""
    rng = np.random.default_rng(9)
    w = rng.integers(-1, 2, (30, 8)).astype(np.float32)
    q = {"domain": "onnx.brevitas", "signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
    nodes = [("Quant", ["x", "one", "z", "b"], ["q"], q),
             ("Quant", ["w", "one", "z", "b"], ["wq"], q),
             ("MatMul", ["q", "wq"], ["m"]),
             ("BatchNormalization", ["m", "g", "c", "mean", "var"], ["n"]),
             ("Quant", ["n", "one", "z", "b"], ["y"], q)]
    x = rng.normal(0, 1, (200, 30)).astype(np.float32)
    constants = {
        "one": np.float32(1), "z": np.float32(0), "b": np.float32(2), "w": w,
        "g": np.linspace(-2, 2, 8).astype(np.float32) + np.float32(0.1),
        "c": rng.normal(0, 1, 8).astype(np.float32), "mean": rng.normal(0, 3, 8).astype(np.float32),
        "var": rng.uniform(1, 20, 8).astype(np.float32)}
    model = model_of(nodes, [("x", x)], constants, domains=["onnx.brevitas"], opset=14)
    graph, y = run(model, x=x)
    assert modes(graph) == ["SINGLE"]
    sums = qonnx_quant(x, 1, 0, 2, 1, 1) @ w
    normal = (sums - constants["mean"]) / np.sqrt(constants["var"] + np.float32(1e-5))
    np.testing.assert_array_equal(y, qonnx_quant(normal * constants["g"] + constants["c"],
                                                 1, 0, 2, 1, 1))
    assert len(np.unique(y)) == 3


# Graphs ------------------------------------------------------------------------------------------


def test_int8_flows_from_layer_to_layer():
    """QDQ with a pooling and a reshape between two layers: nothing on the host is in reals."""
    rng = np.random.default_rng(6)
    s = {"s": np.float32(0.05), "z": np.int8(4), "ws": np.float32(0.011), "wz": np.int8(0)}
    w1 = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    w2 = rng.integers(-127, 128, (5, 36)).astype(np.int8)
    q = [("QuantizeLinear", ["x", "s", "z"], ["q0"]),
         ("DequantizeLinear", ["q0", "s", "z"], ["d0"]),
         ("DequantizeLinear", ["w1", "ws", "wz"], ["w1d"]), ("Conv", ["d0", "w1d"], ["c"]),
         ("Relu", ["c"], ["r"]), ("QuantizeLinear", ["r", "s2", "z"], ["q1"]),
         ("DequantizeLinear", ["q1", "s2", "z"], ["d1"]),
         ("MaxPool", ["d1"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
         ("QuantizeLinear", ["p", "s2", "z"], ["q2"]),
         ("DequantizeLinear", ["q2", "s2", "z"], ["d2"]), ("Flatten", ["d2"], ["f"]),
         ("DequantizeLinear", ["w2", "ws", "wz"], ["w2d"]),
         ("Gemm", ["f", "w2d"], ["g"], {"transB": 1}), ("QuantizeLinear", ["g", "s3", "z"], ["y"])]
    x = rng.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    constants = {**s, "w1": w1, "w2": w2, "s2": np.float32(0.173), "s3": np.float32(0.37)}
    model = model_of(q, [("x", x)], constants, outputs=[("y", I8)])
    graph, y = run(model, x=x)
    assert modes(graph) == ["SINGLE", "SINGLE"] and graph.batchable
    assert [node.operation for node in graph.nodes if node.layer is None] == [
        "onnx_quantize_linear", "onnx_max_pool", "flatten"]
    want = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert (y == want).mean() > 0.999 and np.abs(y.astype(int) - want).max() <= 1


def test_a_float_model_is_quantized_by_calibration():
    rng = np.random.default_rng(7)
    c = {"w": rng.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
         "b": rng.normal(0, 0.1, 6).astype(np.float32), "g": rng.uniform(0.5, 2, 6).astype("f4"),
         "be": rng.normal(0, 1, 6).astype(np.float32), "m": rng.normal(0, 1, 6).astype(np.float32),
         "v": rng.uniform(0.5, 2, 6).astype(np.float32),
         "w2": rng.normal(0, 0.1, (216, 10)).astype(np.float32),
         "b2": rng.normal(0, 1, 10).astype(np.float32)}
    nodes = [("Conv", ["x", "w", "b"], ["c"]),
             ("BatchNormalization", ["c", "g", "be", "m", "v"], ["n"]),
             ("Relu", ["n"], ["r"]), ("Flatten", ["r"], ["f"]), ("MatMul", ["f", "w2"], ["mm"]),
             ("Add", ["b2", "mm"], ["y"])]
    x = rng.normal(0, 1, (40, 3, 8, 8)).astype(np.float32)
    model = model_of(nodes, [("x", (F32, ["batch", 3, 8, 8]))], c)
    graph, y = run(model, x=x)
    assert [node.operation for node in graph.nodes] == [
        "float_conv", "clamp", "flatten", "float_linear"]
    want = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    quantized = quantize_graph(graph, x)
    assert len(quantized.layers) == 2
    close = next(iter(run_golden(quantized, x).values()))
    assert np.abs(close - want).max() < 0.05 * np.abs(want).max()


def test_a_batch_that_is_open():
    """Reshapes by Shape keep the batch open; its size in arithmetic does not."""
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    shape = [("Shape", ["x"], ["s"]), ("Gather", ["s", "zero"], ["n"])]
    ends = {"zero": np.array([0]), "rest": np.array([-1])}
    reshape = [*shape, ("Concat", ["n", "rest"], ["t"], {"axis": 0}),
               ("Reshape", ["x", "t"], ["y"])]
    graph, y = run(model_of(reshape, [("x", (F32, ["n", 3, 4]))], ends), x=x)
    assert graph.batchable and y.shape == (1, 12)
    assert next(iter(run_golden(graph, np.repeat(x, 5, 0)).values())).shape == (5, 12)
    scaled = [*shape, ("Cast", ["n"], ["f"], {"to": F32}), ("Mul", ["x", "f"], ["y"])]
    assert not graph_of_model(model_of(scaled, [("x", (F32, ["n", 3, 4]))], ends)).batchable


@pytest.mark.parametrize(("node", "batchable"), [
    (("Transpose", ["x"], ["y"], {"perm": [0, 2, 1]}), True),
    (("Transpose", ["x"], ["y"], {"perm": [1, 0, 2]}), False),
    (("Softmax", ["x"], ["y"], {"axis": 0}), False), (("Softmax", ["x"], ["y"]), True),
    (("ReduceMean", ["x"], ["y"]), False), (("Flatten", ["x"], ["y"], {"axis": 2}), False),
    (("Concat", ["x", "x"], ["y"], {"axis": 0}), False),
    (("Concat", ["x", "x"], ["y"], {"axis": -1}), True), (("MatMul", ["x", "square"], ["y"]), True),
    (("Add", ["x", "rows"], ["y"]), False), (("Mul", ["square", "x"], ["y"]), True),
    (("Reshape", ["x", "swap"], ["y"]), False), (("Gather", ["x", "zero"], ["y"]), False),
])
def test_samples_that_see_one_another_are_noticed(node, batchable):
    rng = np.random.default_rng(8)
    x = rng.normal(0, 1, (2, 4, 4)).astype(np.float32)
    constants = {"square": rng.normal(0, 1, (4, 4)).astype(np.float32), "zero": np.array([0, 1]),
                 "rows": rng.normal(0, 1, (2, 1, 1)).astype(np.float32),
                 "swap": np.array([4, 2, 4])}
    graph, y = run(model_of([node], [("x", x)], constants), x=x)
    assert graph.batchable == batchable
    if batchable:
        twice = next(iter(run_golden(graph, np.concatenate([x, -x])).values()))
        np.testing.assert_allclose(twice[:2], y, rtol=1e-6)


# What is refused ---------------------------------------------------------------------------------

X = ("x", (F32, [1, 4]))
ONE = {"s": np.float32(0.1), "z": np.int8(0)}
REFUSED = {
    "operator": (model_of([("LSTM", ["x", "x", "x"], ["y"])], [X]), "operator of node"),
    "unknown": (model_of([("Nothing", ["x"], ["y"])], [X]), "must be an operator of ONNX's opset"),
    "domain": (model_of([("Relu", ["x"], ["y"], {"domain": "my.own"})], [X]),
               "must be of the standard domain"),
    "new": (model_of([("Relu", ["x"], ["y"])], [X], opset=999), r"opset must be 1 to \d+, not 999"),
    "old version": (model_of([("Add", ["x", "x"], ["y"])], [X], opset=3), "version of node"),
    "attribute": (model_of([("Relu", ["x"], ["y"], {"slope": 3})], [X]), "attribute of node"),
    "attribute type": (model_of([("Softmax", ["x"], ["y"], {"axis": "last"})], [X]),
                       "must be of the type"),
    "cycle": (model_of([("Add", ["x", "b"], ["a"]), ("Relu", ["a"], ["b"]),
                        ("Relu", ["b"], ["y"])], [X]), "cycle"),
    "nothing": (model_of([("Relu", ["q"], ["y"])], [X]), "'q' must be an input"),
    "no output": (model_of([("Relu", ["x"], ["q"])], [X]), "output 'y' must be made"),
    "twice": (model_of([("Relu", ["x"], ["y"]), ("Relu", ["x"], ["y"])], [X]), "made once"),
    "output type": (model_of([("Relu", ["x"], ["y"])], [X], outputs=[("y", I8)]), "must be int8"),
    "open size": (model_of([("Relu", ["x"], ["y"])], [("x", (F32, [1, "n"]))]),
                  "sizes of input 'x' must be given"),
    "no shape": (model_of([("Relu", ["x"], ["y"])], [("x", (F32, None))]), "sizes of input"),
    "huge": (model_of([("Relu", ["x"], ["y"])], [("x", (F32, [1, 1 << 27, 1 << 27]))]), "at most"),
    "huge pads": (model_of([("MaxPool", ["x"], ["y"], {
        "kernel_shape": [1 << 30], "pads": [1 << 30, 1 << 30]})], [("x", (F32, [1, 1, 4]))]),
        "at most"),
    "huge expand": (model_of([("Expand", ["x", "t"], ["y"])], [X], {"t": np.array([1 << 40, 4])}),
                    "at most"),
    "string": (model_of([("Identity", ["x"], ["y"])], [("x", (TensorProto.STRING, [1]))]),
               "must be a real or an integer, not STRING"),
    "scale 0": (model_of([("QuantizeLinear", ["x", "s", "z"], ["y"])], [X],
                         {**ONE, "s": np.float32(0)}), "scale of node .* positive and finite"),
    "scale nan": (model_of([("QuantizeLinear", ["x", "s", "z"], ["y"])], [X],
                           {**ONE, "s": np.float32("nan")}), "positive and finite, not nan"),
    "scale count": (model_of([("QuantizeLinear", ["x", "s", "z"], ["y"])], [X],
                             {**ONE, "s": np.ones(3, np.float32)}), "scales must have shape"),
    "bits": (model_of([("Quant", ["x", "s", "f", "b"], ["y"], {"domain": "onnx.brevitas"})], [X],
                      {**ONE, "f": np.float32(0), "b": np.float32(1.5)}), "bit width"),
    "weight zero point": (model_of(
        [("QuantizeLinear", ["x", "s", "z"], ["q"]), ("DequantizeLinear", ["q", "s", "z"], ["d"]),
         ("DequantizeLinear", ["w", "s", "wz"], ["wd"]), ("MatMul", ["d", "wd"], ["y"])], [X],
        {**ONE, "w": np.full((4, 2), -100, np.int8), "wz": np.int8(100)}), "must be -128 to 127"),
    "weights nan": (model_of([("MatMul", ["x", "w"], ["y"])], [X],
                             {"w": np.full((4, 2), np.nan, np.float32)}), "must be finite"),
    "dequantize reals": (model_of([("DequantizeLinear", ["x", "s"], ["y"])], [X], ONE),
                         "must be integers, not float32"),
    "sizes": (model_of([("MatMul", ["x", "w"], ["y"])], [X], {"w": np.ones((5, 2), np.float32)}),
              "must be 5"),
    "groups": (model_of([("Conv", ["x", "w"], ["y"], {"group": 3})], [("x", (F32, [1, 4, 8]))],
                        {"w": np.ones((3, 2, 3), np.float32)}), "groups"),
    "no kernel": (model_of([("MaxPool", ["x"], ["y"], {"kernel_shape": [0]})],
                           [("x", (F32, [1, 4, 8]))]), "kernel"),
    "reshape": (model_of([("Reshape", ["x", "t"], ["y"])], [X], {"t": np.array([3, 3])}), "fit"),
    "training": (model_of([("BatchNormalization", ["x", *"abcd"], ["y"], {"training_mode": 1})],
                          [X], {k: np.ones(4, np.float32) for k in "abcd"}), "training_mode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    model, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        graph_of_model(model)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "bad.onnx"
    for data in (b"", b"\x08", bytes(range(256)), b"not a model"):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="bad.onnx"):
            load_model(path)
    with pytest.raises(OSError):
        load_model(tmp_path / "missing.onnx")


def test_external_data(tmp_path):
    w = np.arange(8, dtype=np.float32).reshape(4, 2)
    model = model_of([("MatMul", ["x", "w"], ["y"])], [X], {"w": w})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(run_golden(load_model(path), x)["y"], x @ w)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="external data of initializer 'w'"):
        load_model(path)


def test_external_data_stays_in_its_folder(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    model = model_of([("MatMul", ["x", "w"], ["y"])], [X], {"w": np.ones((4, 2), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="external data"):
        load_model(path)


def test_nodes_in_any_order():
    nodes = [("Relu", ["a"], ["y"]), ("Neg", ["x"], ["a"])]
    _, y = run(model_of(nodes, [X]), x=np.array([[1, -2, 3, -4]], np.float32))
    np.testing.assert_array_equal(y, [[0, 2, 0, 4]])
