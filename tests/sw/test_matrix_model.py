# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import sparsemac.importers.matrix as matrix_model
from sparsemac.errors import ModelError
from sparsemac.graph import run_golden
from sparsemac.importers import load_model
from sparsemac.importers.matrix import load_matrix_model
from sparsemac.matrices import read_matrix
from sparsemac.quantize import quantize_rows

MTX = "%%MatrixMarket matrix coordinate integer general\n3 4 4\n1 1 3\n1 3 -7\n3 2 5\n3 4 6\n"
DENSE = np.array([[3, 0, -7, 0], [0, 0, 0, 0], [0, 5, 0, 6]])


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def random_inputs(graph, samples, seed=1):
    shape = (samples, *graph.values["x"].shape[1:])
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_integers_are_weights_as_they_are(tmp_path, weight_bits):
    pytest.importorskip("scipy", reason="Matrix Market files need SciPy")
    graph = load_model(write(tmp_path, "a.mtx", MTX), weight_bits=weight_bits)
    assert (graph.name, graph.batchable, graph.inputs, graph.outputs) == ("a", True, ("x",), ("y",))
    assert graph.values["x"].shape == (1, 4) and graph.values["y"].shape == (1, 3)
    assert graph.layers[0].weight_bits == weight_bits
    x = random_inputs(graph, 5)
    y = run_golden(graph, x)["y"]
    assert y.dtype == np.int32
    assert (y == x.astype(np.int64) @ DENSE.T).all()


def test_a_pattern_has_ones(tmp_path):
    graph = load_matrix_model(write(tmp_path, "a.smtx", "3, 4, 4\n0 2 2 4\n0 2 1 3\n"))
    x = random_inputs(graph, 3)
    assert (run_golden(graph, x)["y"] == x.astype(np.int64) @ (DENSE != 0).T).all()


# int4 cannot hold -7 in a row that also has 100, int8 cannot hold 300.
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_reals_are_rounded_by_rows(tmp_path, monkeypatch, weight_bits, chunk):
    rng = np.random.default_rng(2)
    dense = rng.normal(size=(40, 30)) * 10.0 ** rng.integers(-6, 6, (40, 1))
    dense[rng.random(dense.shape) < 0.8] = 0
    dense[7] = 0
    dense[8] = 5e-324
    np.save(tmp_path / "a.npy", dense)
    monkeypatch.setattr(matrix_model, "_CHUNK", chunk)
    graph = load_matrix_model(tmp_path / "a.npy", weight_bits=weight_bits)
    integers, scales = quantize_rows(dense, weight_bits)
    assert (graph.layers[0].weights.to_dense() == integers).all()
    assert (graph.nodes[0].attributes["scales"] == scales).all()
    assert ((graph.layers[0].weights.to_dense() != 0) <= (dense != 0)).all()


@pytest.mark.parametrize(("weight_bits", "value", "rounded"), [
    (4, 7, False), (4, 8, True), (8, 127, False), (8, 128, True), (8, -128, False), (8, 0.5, True),
])
def test_only_what_does_not_fit_is_rounded(tmp_path, weight_bits, value, rounded):
    np.save(tmp_path / "a.npy", np.array([[value, 1.0]]))
    graph = load_matrix_model(tmp_path / "a.npy", weight_bits=weight_bits)
    assert ("scales" in graph.nodes[0].attributes) == rounded
    assert rounded or graph.layers[0].weights.data.tolist() == [value, 1]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.smtx", "3, 4\n", r"a\.smtx, line 1: must hold 3 sizes .*, not 2"),
    ("a.smtx", "3, 4, 4\n0 2 2 4\n0 2 1\n", r"a\.smtx, line 3: must hold 4 columns, not 3"),
    ("a.smtx", "0, 3, 0\n0\n\n", r"a\.smtx must have rows and columns, not be 0 by 3"),
    ("a.npy", "\x93NUMPY", r"a\.npy must be a NumPy array: .*"),
    ("a.npz", "PK", r"a\.npz must be a matrix of SciPy's save_npz: .*"),
    ("a.mtx", MTX[:-3], r"a\.mtx must be a Matrix Market file: .*"),
    ("a.csv", "1,2", r"a\.csv must end in \.smnet, \.tflite, .*, not '\.csv'"),
])
def test_damaged_files_are_model_errors(tmp_path, name, text, message):
    if name[2:] in ("mtx", "npz"):
        pytest.importorskip("scipy", reason=f"{name[1:]} files need SciPy")
    with pytest.raises(ModelError, match=message):
        load_model(write(tmp_path, name, text))


def test_a_file_that_is_missing_is_none_of_the_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*a.mtx"):
        load_matrix_model(tmp_path / "a.mtx")


def test_weight_bits_wrong(tmp_path):
    with pytest.raises(ValueError, match="^weight_bits must be 4 or 8, not 5$"):
        load_matrix_model(tmp_path / "a.mtx", weight_bits=5)


def test_files_of_a_parser_suite_are_read_or_refused_by_name(data_dir):
    pytest.importorskip("scipy", reason="Matrix Market files need SciPy")
    read, refused = [], []
    for path in sorted(data_dir.glob("mm_parser/*.mtx")):
        try:
            graph = load_matrix_model(path)
        except ModelError as error:
            assert str(error).startswith(path.name)
            refused.append(path.name)
        else:
            x = random_inputs(graph, 2)
            sums = x.astype(np.int64) @ graph.layers[0].weights.to_dense().T
            assert (run_golden(graph, x)["y"] == sums).all(), path.name
            read.append(path.name)
    assert {"empty.mtx", "skew_int8.mtx", "west0067_noheader.mtx"} & set(read) == {
        "empty.mtx", "skew_int8.mtx"}
    assert {"mangled1.mtx", "mangled13.mtx", "full_noheader.mtx"} <= set(refused)


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("file", ["mtx/conv4_1.mtx", "mtx/west0067.mtx", "mtx/cora.mtx"])
def test_real_matrices_give_the_product_to_half_a_step(data_dir, file, weight_bits):
    pytest.importorskip("scipy", reason="Matrix Market files need SciPy")
    path = data_dir / file
    if not path.exists():
        pytest.skip(f"{file} is missing in {data_dir}")
    graph = load_matrix_model(path, weight_bits=weight_bits)
    x = random_inputs(graph, 3)
    matrix = read_matrix(path)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    dense = np.zeros(matrix.shape)
    np.add.at(dense, (rows, matrix.indices),
              matrix.values if matrix.values is not None else np.ones(len(rows)))
    scales = graph.nodes[0].attributes.get("scales", np.ones(len(dense)))
    found = run_golden(graph, x)["y"] * scales
    # An entry is half a step away, or clipped by as much as the scale leaves out.
    top = (1 << weight_bits - 1) - 1
    largest = np.abs(dense).max(1)
    step = np.maximum(scales / 2, largest - top * scales)
    bound = (dense != 0).sum(1) * step * 128 if "scales" in graph.nodes[0].attributes else 0
    assert (np.abs(found - x @ dense.T) <= bound + 1e-9).all()
