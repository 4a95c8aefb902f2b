# SPDX-License-Identifier: Apache-2.0
import io
import json
import zipfile

import numpy as np
import pytest
from sparsemac.commands import OutputMode
from sparsemac.csr import as_csr
from sparsemac.golden import run_layer
from sparsemac.layer import FILE_VERSION, LinearLayer, load_network, save_network
from support.layers import random_activations, random_layer

WEIGHTS = as_csr(np.array([[1, 0, -2], [0, 0, 7]], np.int8))
SCALED = {
    "mode": OutputMode.DOUBLE, "multiplier": np.full(2, 1 << 30, np.uint64),
    "shift": np.zeros(2, np.int64),
}


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"weights": np.eye(2)}, TypeError, "weights must be a Csr .*, not ndarray"),
    ({"weight_bits": 5}, ValueError, "weight_bits must be 4 or 8, not 5"),
    ({"weights": as_csr([[99]]), "weight_bits": 4}, ValueError, "weights must be -8 to 7, not 99"),
    ({"low": 5, "high": 4}, ValueError, "low must be at most high, 4, not 5"),
    ({"zero_point": 128}, ValueError, "zero_point must be -128 to 127, not 128"),
    ({"low": 0.0}, TypeError, "low must be an integer, not 0.0"),
    ({"mode": 3}, ValueError, "3 is not a valid OutputMode"),
    ({"input_scale": float("nan")}, ValueError, "input_scale must be positive and finite, not nan"),
    ({"output_scale": 0.0}, ValueError, "output_scale must be positive and finite, not 0.0"),
    ({"bias": np.zeros(3, np.int32)}, ValueError, r"bias must have shape \(2,\), not \(3,\)"),
    ({"bias": np.zeros(2)}, TypeError, "bias must be an array of integers, not float64"),
    ({"bias": [0, 0]}, TypeError, "bias must be an array of integers, not list"),
    ({"bias": np.array([0, 2**31])}, ValueError, "bias must be -2147483648 to"),
    ({"mode": OutputMode.SINGLE}, ValueError, "multiplier must be given for output mode SINGLE"),
    ({**SCALED, "mode": 0}, ValueError, "multiplier must be None for output mode RAW"),
    ({**SCALED, "shift": None}, ValueError, "shift must be given for output mode DOUBLE"),
    ({**SCALED, "shift": np.array([0, 32])}, ValueError, "shift must be 0 to 31, not 0 to 32"),
    ({**SCALED, "multiplier": np.array([0, 2**35])}, ValueError, "multiplier must be 0 to"),
])
def test_a9_wrong_parameter_is_refused_by_name(change, error, text):
    with pytest.raises(error, match=text):
        LinearLayer(**{"weights": WEIGHTS, **change})


def test_bare_matrix_gives_raw_sums():
    layer = LinearLayer.from_matrix([[1, 0, -2], [0, 0, 7]])
    assert (layer.outputs, layer.inputs, layer.mode) == (2, 3, OutputMode.RAW)
    assert run_layer(layer, np.array([[3], [9], [1]], np.int8)).tolist() == [[1], [7]]


def test_bare_matrix_spreads_outputs_over_int8():
    rng = np.random.default_rng(1)
    matrix = (rng.random((40, 300)) < 0.2) * rng.integers(-128, 128, (40, 300))
    matrix[7] = 0
    y = run_layer(LinearLayer.from_matrix(matrix, raw=False), random_activations(rng, 300, 200))
    spread = np.delete(y.astype(float), 7, 0).std(1)
    assert (spread > 30).all() and (spread < 60).all()  # a third of 127
    assert (np.abs(y.astype(int)) == 127).mean() < 0.01 and not y[7].any()


def saved(path, weight_bits=4, **extras):
    rng = np.random.default_rng(3)
    layers = [
        random_layer(rng, 9, 14, weight_bits=weight_bits, name="first"),
        random_layer(rng, 5, 9, weight_bits=weight_bits, name="second", bias=False),
        random_layer(rng, 3, 5, raw=True, weight_bits=8, name="last"),
    ]
    save_network(path, layers, extras)
    return layers


def described(layer):
    """Everything of a layer, in a form that compares."""
    vectors = [getattr(layer, name) for name in ("bias", "multiplier", "shift")]
    return (
        layer.weights.shape, layer.weights.to_dense().tolist(), layer.weight_bits, layer.mode,
        [None if v is None else v.tolist() for v in vectors], layer.zero_point, layer.low,
        layer.high, layer.input_scale, layer.input_zero_point, layer.output_scale, layer.name,
    )


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_network_comes_back_from_its_file(tmp_path, weight_bits):
    layers = saved(tmp_path / "net.npz", weight_bits, classes=["a", "b"], accuracy=0.5)
    loaded, extras = load_network(tmp_path / "net.npz")
    assert [described(layer) for layer in loaded] == [described(layer) for layer in layers]
    assert extras == {"classes": ["a", "b"], "accuracy": 0.5}


def test_numpy_scalars_can_be_saved(tmp_path):
    layer = LinearLayer(
        weights=WEIGHTS, **SCALED, zero_point=np.int64(3), low=np.int8(3),
        input_scale=np.float32(2),
    )
    save_network(tmp_path / "net.npz", [layer])
    assert described(load_network(tmp_path / "net.npz")[0][0]) == described(layer)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 70_000)])
def test_a5_odd_shapes_come_back(tmp_path, shape):
    weights = as_csr((np.zeros(0, np.int8), [], [0] * (shape[0] + 1), shape))
    if shape[1] > 3:
        weights = as_csr(([5], [69_999], [0, 1], shape))
    save_network(tmp_path / "net.npz", [LinearLayer(weights=weights, weight_bits=4)])
    loaded = load_network(tmp_path / "net.npz")[0][0].weights
    assert loaded.shape == shape and loaded.indices.tolist() == weights.indices.tolist()


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "net.npz"
    saved(path)
    data = path.read_bytes()
    for length in [*range(0, len(data), 41), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="net.npz"):
            load_network(path)


def test_flipped_byte_anywhere_never_changes_a_number(tmp_path):
    """All is refused but the archive's own notes, such as dates, which change nothing."""
    path = tmp_path / "net.npz"
    layer = random_layer(np.random.default_rng(12), 9, 14, weight_bits=4)
    save_network(path, [layer])
    data = path.read_bytes()
    rng = np.random.default_rng(13)
    refused = 0
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        try:
            layers, _ = load_network(path)
        except ValueError as error:
            assert "net.npz" in str(error), at
            refused += 1
        else:
            assert [described(found) for found in layers] == [described(layer)], at
    assert refused > len(data) / 2


def rewritten(path, change):
    """Changes the header of a file, and leaves its arrays."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays["header"].tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(path, **arrays)


def test_other_version_is_refused(tmp_path):
    path = tmp_path / "net.npz"
    saved(path)
    rewritten(path, lambda header, _: header.update(version=FILE_VERSION + 1))
    with pytest.raises(ValueError, match="version of net.npz must be 1, not 2"):
        load_network(path)


@pytest.mark.parametrize("change", [
    lambda header, _: header["layers"][0].update(zero_point=5),
    lambda header, _: header.pop("checksum"),
    lambda _, arrays: arrays.pop("0.bias"),
    lambda _, arrays: arrays["0.data"].__setitem__(0, arrays["0.data"][0] ^ 1),
])
def test_content_that_its_checksum_denies_is_refused(tmp_path, change):
    path = tmp_path / "net.npz"
    saved(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match="checksum of net.npz must be .*: the file is damaged"):
        load_network(path)


def archive_of(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zip_of(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("header", text)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [
    b"", b"not a zip", archive_of(weights=np.eye(3)), zip_of(b"{}"),
    archive_of(header=np.frombuffer(b"[1]", np.uint8)),
    archive_of(header=np.frombuffer(b"{", np.uint8)),
    archive_of(header=np.array([{"pickled": 1}], object)),
])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "net.npz").write_bytes(data)
    with pytest.raises(ValueError, match="net.npz must be a packed network"):
        load_network(tmp_path / "net.npz")


def test_single_array_is_refused(tmp_path):
    np.save(tmp_path / "net.npy", np.eye(3))
    with pytest.raises(ValueError, match="net.npy must be a packed network"):
        load_network(tmp_path / "net.npy")


def test_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "net.npz")
