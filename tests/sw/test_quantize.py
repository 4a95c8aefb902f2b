# SPDX-License-Identifier: Apache-2.0
import gzip

import numpy as np
import pytest
from sparsemac.commands import OutputMode
from sparsemac.golden import run_network
from sparsemac.quantize import dequantize, quantize_input, quantize_network, quantize_rows


def random_network(seed, sizes=(20, 30, 6), density=0.5):
    """Weights, biases and inputs of a float network."""
    rng = np.random.default_rng(seed)
    weights = [
        rng.normal(size=(m, n)) * (rng.random((m, n)) < density) / np.sqrt(n * density)
        for n, m in zip(sizes, sizes[1:], strict=False)
    ]
    return weights, [rng.normal(size=len(w)) * 0.1 for w in weights], rng.random((200, sizes[0]))


def float_network(weights, biases, x):
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if i < len(weights) - 1 else x
    return x


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_rows_are_rounded_with_scales_of_their_own(weight_bits):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(12, 40)) * 10.0 ** rng.integers(-6, 6, (12, 1))
    weights[rng.random(weights.shape) < 0.8] = 0
    weights[3] = 0
    integers, scales = quantize_rows(weights, weight_bits)
    top = 2 ** (weight_bits - 1) - 1
    assert integers.dtype == np.int8 and (scales > 0).all()
    assert (np.abs(integers) <= top).all() and not integers[weights == 0].any()
    assert (np.abs(integers).max(1) == top)[np.arange(12) != 3].all()
    inside = np.abs(weights) <= top * scales[:, None]
    error = np.abs(integers * scales[:, None] - weights) / scales[:, None]
    assert (error[inside] <= 0.5 + 1e-9).all() and (inside.all() or weight_bits == 4)


def test_int4_clips_where_that_costs_less():
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(30, 200))
    integers, scales = quantize_rows(weights, 4)
    full = np.abs(weights).max(1, keepdims=True) / 7
    unclipped = np.rint(weights / full) * full
    error = ((integers * scales[:, None] - weights) ** 2).sum(1)
    assert (error < ((unclipped - weights) ** 2).sum(1)).all()


def test_a9_weights_that_are_not_finite_are_refused():
    weights = np.ones((3, 4))
    weights[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"weights must be finite, not nan \(row 1, column 2\)"):
        quantize_rows(weights, 8)
    with pytest.raises(ValueError, match="weights must have 2 dimensions, not 1"):
        quantize_rows(np.ones(3), 8)
    with pytest.raises(ValueError, match="weight_bits must be 4 or 8, not 6"):
        quantize_rows(np.ones((3, 4)), 6)


@pytest.mark.parametrize(("weight_bits", "share"), [(8, 0.03), (4, 0.3)])
def test_integers_follow_the_float_network(weight_bits, share):
    weights, biases, x = random_network(3)
    layers = quantize_network(weights, biases, x, weight_bits=weight_bits)
    y = dequantize(run_network(layers, quantize_input(x, layers[0]).T), layers[-1]).T
    want = float_network(weights, biases, x)
    assert np.sqrt(((y - want) ** 2).mean()) < share * want.std()


def test_hidden_layers_end_in_relu_and_pruned_weights_stay_pruned():
    weights, biases, x = random_network(4)
    first, last = quantize_network(weights, biases, x)
    assert first.mode == last.mode == OutputMode.DOUBLE
    assert first.low == first.zero_point == -128  # the range begins at zero
    assert (last.low, last.high) == (-128, 127)
    for layer, weight in zip((first, last), weights, strict=True):
        assert not layer.weights.to_dense()[weight == 0].any()
    assert last.input_scale == first.output_scale and last.input_zero_point == first.zero_point


def test_real_zero_is_an_integer():
    weights, biases, x = random_network(5)
    layer = quantize_network(weights, biases, x - 0.3)[0]
    assert quantize_input(np.zeros(1), layer).tolist() == [layer.input_zero_point]
    assert dequantize(np.array([layer.zero_point]), layer).tolist() == [0.0]


def test_inputs_beyond_the_range_saturate():
    weights, biases, x = random_network(6)
    layer = quantize_network(weights, biases, x)[0]
    assert quantize_input(np.array([-1e9, 1e9]), layer).tolist() == [-128, 127]
    with pytest.raises(ValueError, match="inputs must be finite"):
        quantize_input(np.array([0.0, np.nan]), layer)


def test_mean_of_each_output_is_kept():
    weights, biases, x = random_network(7, sizes=(40, 10))
    layer = quantize_network(weights, biases, x, weight_bits=4)[0]
    y = dequantize(run_network([layer], quantize_input(x, layer).T), layer)
    drift = np.abs(y.mean(1) - (x @ weights[0].T + biases[0]).mean(0))
    assert (drift < layer.output_scale).all()


@pytest.mark.parametrize(("change", "text"), [
    ({"weights": []}, "biases must be as many as weights, 0, not 2"),
    ({"calibration": np.ones(20)}, r"calibration must be \(samples, inputs\), not of shape \(20"),
    ({"calibration": np.ones((0, 20))}, "calibration must be"),
    ({"calibration": np.full((1, 20), np.inf)}, "calibration must be finite"),
    ({"calibration": np.ones((5, 19))}, "layer 0 must take 19 inputs and have a bias per output"),
    ({"biases": [np.ones(30), np.ones(7)]}, r"layer 1 must take 30 inputs .* biases \(7,\)"),
    ({"weight_bits": 2}, "weight_bits must be 4 or 8, not 2"),
    ({"biases": [np.full(30, 1e12), np.ones(6)]}, "biases of layer 0 must fit 32 bits"),
    ({"biases": [np.full(30, np.nan), np.ones(6)]}, "biases of layer 0 must be finite, not nan"),
])
def test_a9_wrong_networks_are_refused(change, text):
    weights, biases, x = random_network(8)
    given = {"weights": weights, "biases": biases, "calibration": x, **change}
    with pytest.raises(ValueError, match=text):
        quantize_network(**given)


@pytest.fixture(scope="module")
def lenet(data_dir):
    """LeNet-300-100, pruned by 92 %, and the ten thousand test images of MNIST with labels."""
    path = data_dir / "pruned_nets" / "caffe_lenet300100_sparse.npz"
    folder = data_dir / "images"
    for file in (path, folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"):
        if not file.exists():
            pytest.skip(f"missing in the data folder: {file.relative_to(data_dir)}")
    with np.load(path) as net:
        weights = [net[f"ip{i}.weight"] for i in (1, 2, 3)]
        biases = [net[f"ip{i}.bias"] for i in (1, 2, 3)]
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 784) / 256
    return weights, biases, images, np.frombuffer(labels, np.uint8)


@pytest.mark.parametrize(("weight_bits", "least"), [(8, 0.975), (4, 0.97)])
def test_pruned_lenet_keeps_its_accuracy_on_all_of_mnist(lenet, weight_bits, least):
    weights, biases, images, labels = lenet
    layers = quantize_network(weights, biases, images[:1000], weight_bits=weight_bits)
    scores = run_network(layers, quantize_input(images, layers[0]).T)
    accuracy = (scores.argmax(0) == labels).mean()
    floats = (float_network(weights, biases, images).argmax(1) == labels).mean()
    print(f"int{weight_bits}: {accuracy:.4f}, float: {floats:.4f}")
    assert len(labels) == 10_000 and floats > 0.98
    assert accuracy >= least
    if weight_bits == 8:
        assert layers[0].weights.density < 0.1
