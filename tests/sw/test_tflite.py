# SPDX-License-Identifier: Apache-2.0
"""What the importer of TensorFlow Lite makes of a model, and what it refuses, by name."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.conv import ConvLayer
from sparsemac.errors import ModelError
from sparsemac.graph import run_golden
from sparsemac.importers import load_model
from sparsemac.layer import LinearLayer

pytest.importorskip("tflite", reason="needs the package tflite: pip install 'sparsemac[tflite]'")

from support.tflite_files import Model, Operator, Tensor, noise  # noqa: E402

FC = {"FusedActivationFunction": 0}
CONV = {"StrideH": 1, "StrideW": 1, "Padding": 0, "FusedActivationFunction": 0}


def dense():
    """A fully connected layer of 6 inputs and 4 outputs, half of its weights zero."""
    w = noise("w", 4, 6)
    w[:, ::2] = 0
    return Model(
        [Tensor("x", (1, 6)), Tensor("w", (4, 6), scale=[0.01], data=w),
         Tensor("b", (4,), "INT32", [0.0005], data=noise("b", 4).astype(np.int32)),
         Tensor("y", (1, 4), scale=[0.3])],
        [Operator("FULLY_CONNECTED", [0, 1, 2], [3], FC)])


def conv():
    return Model(
        [Tensor("x", (1, 5, 5, 2)), Tensor("w", (3, 3, 3, 2), scale=[0.01] * 3, data=noise(
            "w", 3, 3, 3, 2)), Tensor("y", (1, 5, 5, 3), scale=[0.3])],
        [Operator("CONV_2D", [0, 1], [2], CONV)])


def changed(model, index, **fields):
    """The model with other fields of a tensor."""
    model.tensors[index] = replace(model.tensors[index], **fields)
    return model


def operated(model, **fields):
    """The model with other fields of its operator."""
    model.operators[0] = replace(model.operators[0], **fields)
    return model


@pytest.fixture
def load(tmp_path):
    def load(model):
        path = tmp_path / "model.tflite"
        path.write_bytes(model if isinstance(model, bytes) else model.to_bytes())
        return load_model(path)
    return load


def test_zeros_of_the_weights_are_dropped(load):
    model = dense()
    graph = load(model)
    (layer,) = graph.layers
    assert isinstance(layer, LinearLayer)
    assert layer.weights.nnz == np.count_nonzero(noise("w", 4, 6)[:, 1::2]) <= 12
    (node,) = graph.nodes
    assert (node.name, node.source, node.reason) == ("y", "FULLY_CONNECTED", "")
    assert graph.values["y"].scale == np.float32(0.3)


def test_host_operations_say_why_they_are_there(load, data_dir):
    graph = load_model(data_dir / "models" / "pretrainedResnet_quant.tflite")
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    for node in graph.nodes:
        assert node.source in ("CONV_2D", "ADD", "AVERAGE_POOL_2D", "RESHAPE", "FULLY_CONNECTED",
                               "SOFTMAX")
        assert bool(node.reason) == (node.layer is None), node.name
    kinds = [type(node.layer) for node in graph.nodes if node.layer is not None]
    assert kinds == [ConvLayer] * 9 + [LinearLayer]


def test_open_batch_runs_any_number_of_samples(load):
    model = changed(changed(dense(), 0, signature=[-1, 6]), 3, signature=[-1, 4])
    graph = load(model)
    assert graph.batchable
    x = noise("x", 5, 6)
    (whole,) = run_golden(graph, x).values()
    parts = [next(iter(run_golden(graph, row[None]).values())) for row in x]
    assert (whole == np.concatenate(parts)).all()


def test_mean_over_samples_is_not_batchable(load):
    axes = Tensor("axes", (1,), "INT32", (), data=np.array([0], np.int32))
    graph = load(Model([Tensor("x", (3, 4)), axes, Tensor("y", (1, 4))],
                       [Operator("MEAN", [0, 1], [2], {"KeepDims": True})]))
    assert not graph.batchable


def test_uint8_models_keep_their_type(load):
    pool = {"Padding": 1, "FilterHeight": 2, "FilterWidth": 2, "StrideH": 2, "StrideW": 2,
            "FusedActivationFunction": 0}
    graph = load(Model([Tensor("x", (1, 4, 4, 1), "UINT8", zero_point=[128]),
                        Tensor("y", (1, 2, 2, 1), "UINT8", zero_point=[128])],
                       [Operator("MAX_POOL_2D", [0], [1], pool)]))
    x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 17
    (y,) = run_golden(graph, x).values()
    assert y.dtype == np.uint8
    assert y.ravel().tolist() == [85, 119, 221, 255]


def test_constants_are_computed_while_reading(load):
    """A graph may quantize constants again: what they become is no node."""
    graph = load(Model(
        [Tensor("x", (1, 4)),
         Tensor("c", (4,), "FLOAT32", (), data=np.array([1, 2, -3, 0.5], np.float32)),
         Tensor("q", (4,), scale=[0.25]), Tensor("y", (1, 4), scale=[0.1])],
        [Operator("QUANTIZE", [1], [2]), Operator("ADD", [0, 2], [3], FC)]))
    (node,) = graph.nodes
    assert node.attributes["constant"].tolist() == [4, 8, -12, 2]


REFUSED = {
    "not the mark": (replace(dense(), mark=b"TFL2"), r"must be a TensorFlow Lite model"),
    "schema version": (replace(dense(), version=2), r"schema version must be 3, not 2"),
    "two subgraphs": (replace(dense(), subgraphs=2), r"subgraphs must be 1, not 2"),
    "no output": (replace(dense(), outputs=[]), r"a model must have an output"),
    "no input": (replace(dense(), inputs=[]), r"a model must have an input"),
    "unknown operator": (operated(dense(), code="SVDF", options=None),
                         r"operator 0 \(SVDF\): operator must be one of ADD, .*, not SVDF"),
    "custom operator": (operated(dense(), code="CUSTOM", custom="Fancy", options=None),
                        r"custom operator 'Fancy'"),
    "no options": (operated(conv(), options=None), r"\(CONV_2D\): options must be given"),
    "wrong options": (operated(conv(), options={}, table="AddOptions"),
                      r"options of CONV_2D must be Conv2DOptions, not AddOptions"),
    "no weights": (operated(dense(), inputs=[0, -1]), r"inputs must be 2 to 3, not 1"),
    "weights computed": (changed(dense(), 1, data=None), r"'w' must be made by an operator before"),
    "float activations": (changed(dense(), 0, kind="FLOAT32", scale=()),
                          r"'x' must be int8 or uint8, not float32: this is a float model"),
    "16-bit activations": (changed(dense(), 0, kind="INT16"),
                           r"'x' must be int8 or uint8, not int16: 16-bit activations"),
    "float weights": (changed(dense(), 1, kind="FLOAT32", data=np.zeros((4, 6), np.float32)),
                      r"'w' must be int8 or uint8, not float32"),
    "zero point of weights": (changed(dense(), 1, zero_point=[3]),
                              r"zero point of weights 'w' must be 0, not 3: a pruned weight"),
    "zero point of a channel": (changed(conv(), 1, zero_point=[0, 0, -1]),
                                r"zero point of weights 'w' must be 0, not -1"),
    "zero point out of range": (changed(dense(), 0, zero_point=[128]),
                                r"zero point of 'x' must be in the range of int8, not 128"),
    "scale 0": (changed(dense(), 0, scale=[0.0]),
                r"scale of 'x' must be positive and finite, not 0.0"),
    "scale NaN": (changed(dense(), 3, scale=[float("nan")]),
                  r"scale of 'y' must be positive and finite, not nan"),
    "scale infinite": (changed(dense(), 1, scale=[float("inf")]),
                       r"scale of 'w' must be positive and finite, not inf"),
    "scale negative": (changed(conv(), 1, scale=[0.1, -0.1, 0.1]),
                       r"scale of 'w' must be positive and finite, not -0.1"),
    "no scale": (changed(dense(), 0, scale=()), r"scales of 'x' must be 1, not 0"),
    "too few scales": (changed(conv(), 1, scale=[0.1, 0.2]),
                       r"scales of 'w' must be 1 or 3, not 2"),
    "scales along another axis": (changed(conv(), 1, axis=3),
                                  r"scales of 'w' must be along axis 0, not 3"),
    "scales without zero points": (changed(conv(), 1, zero_point=[0, 0]),
                                   r"'w' must have as many zero points as scales, 3, not 2"),
    "factor too large": (changed(conv(), 2, scale=[1e-6]),
                         r"a scale factor must be below 16, not .* \(nearest legal value"),
    "bias of another type": (changed(dense(), 2, kind="INT64", data=np.zeros(4, np.int64)),
                             r"bias 'b' must be int32 of shape \(4,\), not int64"),
    "bias of another scale": (changed(dense(), 2, scale=[0.1]), r"scale of bias 'b' must be that"),
    "open width": (changed(conv(), 0, signature=[-1, 5, -1, 2]),
                   r"shape of 'x' must be known but for the batch, not open along .*\(0, 2\)"),
    "negative shape": (changed(dense(), 0, shape=(1, -6)), r"shape of 'x' must be known, not"),
    "empty shape": (changed(dense(), 0, shape=(0, 6)), r"'x' must have elements, not shape \(0, 6"),
    "huge shape": (changed(dense(), 0, shape=(1 << 16, 1 << 16)),
                   r"'x' must have at most 268435456 elements, not 4294967296"),
    "too many axes": (changed(dense(), 0, shape=(1,) * 9), r"rank of 'x' must be at most 8, not 9"),
    "shape of the output": (changed(conv(), 2, shape=(1, 5, 4, 3)),
                            r"output 'y' must have shape \(1, 5, 5, 3\), not \(1, 5, 4, 3\)"),
    "short data": (changed(dense(), 1, data=b"\0" * 23), r"data of 'w' must be 24 bytes, not 23"),
    "a variable": (changed(dense(), 0, variable=True), r"'x' must be a plain array, but is a var"),
    "no such tensor": (operated(dense(), inputs=[0, 1, 9]),
                       r"inputs of FULLY_CONNECTED must be tensors -1 to 3, not 9"),
    "stride 0": (operated(conv(), options={**CONV, "StrideH": 0}),
                 r"stride and dilation must be at least 1, not \(0, 1\)"),
    "padding 7": (operated(conv(), options={**CONV, "Padding": 7}),
                  r"padding must be 0 \(SAME\) or 1 \(VALID\), not 7"),
    "tanh": (operated(conv(), options={**CONV, "FusedActivationFunction": 4}),
             r"fused activation must be NONE, RELU, RELU_N1_TO_1 or RELU6, not TANH"),
    "made twice": (Model([Tensor("x", (1, 4)), Tensor("y", (1, 4))],
                         [Operator("QUANTIZE", [0], [1]), Operator("QUANTIZE", [0], [1])]),
                   r"operator 1 \(QUANTIZE\): output 'y' must be made once"),
    "used before it is made": (Model(
        [Tensor("x", (1, 4)), Tensor("t", (1, 4)), Tensor("y", (1, 4))],
        [Operator("QUANTIZE", [1], [2]), Operator("QUANTIZE", [0], [1])]),
        r"operator 0 \(QUANTIZE\): 't' must be made by an operator before"),
    "a constant of a gigabyte": (Model(
        [Tensor("x", (1, 4)), Tensor("c", (1,), data=b"\1"),
         Tensor("p", (1, 2), "INT32", (), data=np.array([0, 200_000_000], np.int32)),
         Tensor("t", (200_000_001,)), Tensor("y", (1, 4))],
        [Operator("PAD", [1, 2], [3]), Operator("ADD", [0, 3], [4], FC)]),
        r"a value of constants alone, 't', must have at most 4194304 elements, not 200000001"),
    "empty file": (b"", r"must be a TensorFlow Lite model"),
    "text": (b"hello, TFL3 it is not", r"must be a TensorFlow Lite model"),
    "a mark alone": (b"\0\0\0\0TFL3", r"is damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_models_are_refused_by_name(load, name):
    model, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        load(model)
    assert str(caught.value).startswith("model.tflite")


def test_every_truncation_is_refused(load):
    data = dense().to_bytes()
    for length in range(len(data)):
        with pytest.raises(ModelError):
            load(data[:length])


def test_seanet_vectors_are_refused_for_16_bit_activations(data_dir):
    """All of them have int16 activations: int8 covers none."""
    paths = sorted((data_dir / "tflm_seanet_conv").glob("*.tflite"))
    if not paths:
        pytest.skip("the data folder lacks tflm_seanet_conv")
    for path in paths:
        with pytest.raises(ModelError, match=r"int16: 16-bit activations are not supported"):
            load_model(path)
    print(f"{len(paths)} refused of {len(paths)}")


@pytest.mark.parametrize("name", ["ad01_fp32", "pretrainedResnet"])
def test_float_models_are_refused(data_dir, name):
    with pytest.raises(ModelError, match=r"this is a float model and must be quantized first"):
        load_model(data_dir / "models" / f"{name}.tflite")
