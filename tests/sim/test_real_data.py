# SPDX-License-Identifier: Apache-2.0
"""Real pruned layers, matrices and a network on the simulated core: long, so marked slow."""

import gzip
import json

import numpy as np
import pytest
import sparsemac
from sparsemac.golden import run_network
from sparsemac.quantize import quantize_input, quantize_network
from sparsemac_cli.main import main

SHAPES = [["--engines", "8", "--lanes", "8", "--bus-width", "256"],
          ["--engines", "16", "--lanes", "1", "--bus-width", "512", "--act-depth", "16384"]]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=["8x8", "16x1"])
@pytest.mark.parametrize("weight_bits", ["4", "8"])
@pytest.mark.parametrize("columns", ["1", "16", "64"])
def test_every_real_matrix_is_bit_exact(data_dir, tmp_path, shape, weight_bits, columns):
    files = sorted(map(str, [*data_dir.glob("dlmc/*.smtx"), *data_dir.glob("mtx/*.mtx")]))
    out = tmp_path / "out.json"
    main(["bench", *files, "--columns", columns, "--weight-bits", weight_bits, *shape,
          "--json", str(out)])
    rows = json.loads(out.read_text())
    assert len(rows) == len(files)
    assert sum(row["mismatches"] for row in rows) == 0


@pytest.mark.slow
def test_large_layers_keep_85_percent_of_the_multipliers_busy(data_dir, tmp_path):
    files = sorted(map(str, data_dir.glob("dlmc/*.smtx")))
    out = tmp_path / "out.json"
    assert main(["bench", *files, "--columns", "64", *SHAPES[0], "--json", str(out)]) == 0
    large = [row for row in json.loads(out.read_text()) if row["nnz"] > 40_000]
    assert len(large) >= 7
    assert {row["file"]: row["utilization"] for row in large if row["utilization"] < 0.85} == {}


def lenet(data_dir, weight_bits):
    """LeNet-300-100, quantized; MNIST's test images as its input, and their labels."""
    arrays = np.load(data_dir / "pruned_nets" / "caffe_lenet300100_sparse.npz")
    weights = [arrays[f"ip{i}.weight"] for i in (1, 2, 3)]
    biases = [arrays[f"ip{i}.bias"] for i in (1, 2, 3)]
    with gzip.open(data_dir / "images" / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784) / 256
    with gzip.open(data_dir / "images" / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    layers = quantize_network(weights, biases, images[:512], weight_bits=weight_bits)
    return layers, quantize_input(images.T, layers[0]), labels


@pytest.mark.slow
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_lenet_is_bit_exact_on_mnist(data_dir, weight_bits):
    layers, x, labels = lenet(data_dir, weight_bits)
    golden = run_network(layers, x)
    accuracy = float((golden.argmax(0) == labels).mean())
    print(f"int{weight_bits}: {accuracy:.4f}")
    assert accuracy >= 0.975
    config = sparsemac.CoreConfig(engines=8, lanes=8, bus_width=128)
    with sparsemac.open("reference:", config) as core:
        assert (core.run(core.load(layers), x).outputs == golden).all()
    with sparsemac.open("sim:", config) as core:
        part = x[:, :2000]
        assert (core.run(core.load(layers), part).outputs == golden[:, :2000]).all()
