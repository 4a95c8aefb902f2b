# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsemac import golden
from sparsemac.commands import OutputMode
from sparsemac.csr import as_csr
from sparsemac.golden import matmul, run_layer, run_network
from sparsemac.layer import LinearLayer
from sparsemac.numerics import requantize
from support.layers import random_activations, random_layer, random_matrix


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 80), st.integers(0, 9))
def test_product_equals_the_dense_one(seed, rows, inputs, columns):
    rng = np.random.default_rng(seed)
    dense = random_matrix(rng, rows, inputs, density=rng.choice([0.01, 0.3, 1.0]))
    x = random_activations(rng, inputs, columns)
    got = matmul(as_csr(dense), x)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, dense.astype(np.int64) @ x.astype(np.int64))


@pytest.mark.parametrize("density", [0.01, 0.2])  # entry by entry, and in dense blocks
def test_chunks_change_nothing(monkeypatch, density):
    rng = np.random.default_rng(4)
    csr, x = as_csr(random_matrix(rng, 50, 60, density)), random_activations(rng, 60, 17)
    whole = matmul(csr, x)
    monkeypatch.setattr(golden, "_CHUNK", 100)
    np.testing.assert_array_equal(matmul(csr, x), whole)


def test_a4_duplicates_add_up_beyond_int8():
    csr = as_csr(([127, 127, -128], [1, 1, 0], [0, 3], (1, 2)))
    assert matmul(csr, np.array([[2], [10]], np.int8)).tolist() == [[2540 - 256]]


@pytest.mark.parametrize("dense", [
    np.zeros((3, 2), np.int8), np.zeros((0, 2), np.int8), np.array([[-128, 0]], np.int8),
])
def test_a5_empty_rows_yield_their_bias(dense):
    bias = np.arange(len(dense), dtype=np.int32) * 1000 - 7
    x = np.array([[-128] * 3, [5] * 3], np.int8)
    y = run_layer(LinearLayer(weights=as_csr(dense), bias=bias), x)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, dense.astype(int) @ x.astype(int) + bias[:, None])


@pytest.mark.parametrize("mode", [OutputMode.SINGLE, OutputMode.DOUBLE])
def test_each_row_has_a_scale_of_its_own(mode):
    rng = np.random.default_rng(5)
    dense, x = random_matrix(rng, 6, 20), random_activations(rng, 20, 8)
    multiplier = rng.integers(1 << 30, 1 << 31, 6).astype(np.uint64)
    shift, bias = rng.integers(4, 9, 6), rng.integers(-500, 500, 6).astype(np.int32)
    layer = LinearLayer(weights=as_csr(dense), bias=bias, mode=mode, multiplier=multiplier,
                        shift=shift, zero_point=-3, low=-100, high=90)
    got = run_layer(layer, x)
    assert got.dtype == np.int8
    for r in range(6):
        sums = dense[r].astype(int) @ x.astype(int) + bias[r]
        np.testing.assert_array_equal(
            got[r], requantize(sums, multiplier[r], shift[r], -3, -100, 90, mode))


def test_network_is_its_layers_in_turn():
    rng = np.random.default_rng(6)
    layers = [random_layer(rng, *size) for size in ((12, 20), (7, 12))]
    layers.append(random_layer(rng, 3, 7, raw=True))
    x = random_activations(rng, 20, 5)
    want = x
    for layer in layers:
        want = run_layer(layer, want)
    got = run_network(layers, x)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_a9_inputs_of_another_shape_or_type_are_refused():
    layer = random_layer(np.random.default_rng(7), 3, 4, name="fc1")
    with pytest.raises(ValueError, match=r"inputs of fc1 must be \(4, columns\), not \(5, 2\)"):
        run_layer(layer, np.zeros((5, 2), np.int8))
    with pytest.raises(ValueError, match=r"inputs of fc1 must be \(4, columns\), not \(4,\)"):
        run_layer(layer, np.zeros(4, np.int8))
    with pytest.raises(TypeError, match="inputs of fc1 must be int8, not float64"):
        run_layer(layer, np.zeros((4, 2)))


def test_raw_sums_are_no_inputs_of_another_layer():
    rng = np.random.default_rng(8)
    layers = [random_layer(rng, 4, 4, raw=True), random_layer(rng, 3, 4, name="fc2")]
    with pytest.raises(TypeError, match="inputs of fc2 must be int8, not int32"):
        run_network(layers, random_activations(rng, 4, 2))
