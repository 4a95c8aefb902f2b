# SPDX-License-Identifier: Apache-2.0
import struct
import sys

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from sparsemac.errors import MissingDependency
from sparsemac.matrices import MAX_SIDE, Matrix, quantize_matrix, random_values, read_matrix

SMTX = "3, 4, 4\n0 2 2 4 \n0 2 1 3 \n"
MTX = "%%MatrixMarket matrix coordinate real general\n"
DENSE = np.array([[3.5, 0, -4, 0], [0, 0, 0, 0], [0, 5, 0, 6]])


def to_scipy(matrix):
    """What a `Matrix` stands for; duplicates are summed."""
    values = np.ones(len(matrix.indices)) if matrix.values is None else matrix.values
    return sp.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape).toarray()


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -- smtx ---------------------------------------------------------------------------------------


def test_smtx_is_read(tmp_path):
    matrix = read_matrix(write(tmp_path, "a.smtx", SMTX))
    assert (matrix.name, matrix.shape, matrix.values) == ("a.smtx", (3, 4), None)
    assert matrix.indptr.tolist() == [0, 2, 2, 4]
    assert matrix.indices.tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("text", ["0, 3, 0\n0\n\n", "2,0,0\n0 0 0\n", "0,0,0\n0"])
def test_smtx_without_entries_is_read(tmp_path, text):
    assert len(read_matrix(write(tmp_path, "a.smtx", text)).indices) == 0


@pytest.mark.parametrize(("content", "message"), [
    ("", r", line 1: must hold 3 sizes .*, not 0"),
    ("3, 4\n0 2 2 4\n0 2 1 3\n", r", line 1: must hold 3 sizes .*, not 2"),
    ("3, x, 4\n0 2 2 4\n0 2 1 3\n", r", line 1: must hold 64-bit integers"),
    ("3, -4, 4\n0 2 2 4\n0 2 1 3\n", r", line 1: a matrix must be at most .*, not 3 by -4 .*"),
    (f"3, {MAX_SIDE + 1}, 4\n0 2 2 4\n0 2 1 3\n", r", line 1: a matrix must be at most .*"),
    ("3, 4, 999999999999\n0 2 2 4\n0 2 1 3\n", r", line 1: a matrix must be at most .*"),
    ("3, 4, 4\n", r", line 2: must hold 4 row offsets, not 0"),
    ("3, 4, 4\n0 2 4\n0 2 1 3\n", r", line 2: must hold 4 row offsets, not 3"),
    ("3, 4, 4\n0 2 2 4\n0 2 1\n", r", line 3: must hold 4 columns, not 3"),
    ("3, 4, 4\n0 2 2 4\n0 2 1.5 3\n", r", line 3: must hold 64-bit integers"),
    ("3, 4, 4\n0 2 2 4\n0 2 1 99999999999999999999\n", r", line 3: must hold 64-bit integers"),
    ("3, 4, 4\n0 2 2 4\n0 2 1 3\n\n7\n", r", line 5: must not be there, a file has three lines"),
    ("3, 4, 4\n0 3 2 4\n0 2 1 3\n", r": indptr must not decrease, not 3 to 2 at row 1"),
    ("3, 4, 4\n1 2 2 4\n0 2 1 3\n", r": indptr\[0\] must be 0, not 1"),
    ("3, 4, 4\n0 2 2 3\n0 2 1 3\n", r": indptr must end with the number of entries, 4, not 3"),
    ("3, 4, 4\n0 2 2 4\n0 2 1 4\n", r": indices must be 0 to 3, not 4 \(row 2, entry 3\)"),
    (b"\xff\xfe3\x00", r" must be ASCII text"),
    (bytes(64), r", line 1: must hold 3 sizes .*"),
])
def test_a9_malformed_smtx_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"^a\.smtx{message}$"):
        read_matrix(write(tmp_path, "a.smtx", content))


@pytest.mark.parametrize("suffix", ["smtx", "mtx", "npz", "npy"])
def test_a9_any_truncation_and_any_noise_is_refused_or_read(tmp_path, suffix):
    whole = example(tmp_path, suffix)
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    files = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 60))]
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(256)
        files.append(bytes(damaged))
    files += [rng.bytes(300) for _ in range(5)]
    refused = 0
    for content in files:
        path = write(tmp_path, f"damaged.{suffix}", content)
        try:
            matrix = read_matrix(path)
        except ValueError as error:
            assert str(error).startswith(path.name)
            refused += 1
        else:
            assert len(matrix.indptr) == matrix.shape[0] + 1
            assert matrix.indptr[-1] == len(matrix.indices)
            assert ((matrix.indices >= 0) & (matrix.indices < matrix.shape[1])).all()
    assert refused > 10


def example(folder, suffix):
    """Content of a good file."""
    if suffix == "smtx":
        return SMTX.encode()
    path = folder / f"good.{suffix}"
    if suffix == "mtx":
        scipy.io.mmwrite(path, sp.coo_array(DENSE))
    elif suffix == "npz":
        sp.save_npz(path, sp.csr_array(DENSE))
    else:
        np.save(path, DENSE)
    return path.read_bytes()


# -- Matrix Market ------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", ["general", "symmetric", "skew-symmetric"])
@pytest.mark.parametrize("form", ["coordinate", "array"])
@pytest.mark.parametrize("field", ["real", "integer"])
def test_matrix_market_equals_scipys(tmp_path, form, field, symmetry):
    seed = 5
    print("seed", seed)
    rng = np.random.default_rng(seed)
    dense = rng.integers(-9, 9, (7, 7)) * (rng.random((7, 7)) < 0.5)
    dense = {"general": dense, "symmetric": dense + dense.T,
             "skew-symmetric": dense - dense.T}[symmetry]
    dense = dense * (0.5 if field == "real" else 1)
    path = tmp_path / "a.mtx"
    scipy.io.mmwrite(path, sp.coo_array(dense) if form == "coordinate" else dense,
                     symmetry=symmetry, field=field)
    assert np.array_equal(to_scipy(read_matrix(path)), dense)


def test_matrix_market_pattern_has_no_values(tmp_path):
    text = "%%MatrixMarket matrix coordinate pattern symmetric\n3 3 2\n2 1\n3 3\n"
    matrix = read_matrix(write(tmp_path, "a.mtx", text))
    assert matrix.values is None
    assert to_scipy(matrix).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_a4_duplicates_and_explicit_zeros_of_a_file_are_kept(tmp_path):
    matrix = read_matrix(write(tmp_path, "a.mtx", MTX + "2 2 3\n1 2 3\n1 2 4\n2 1 0\n"))
    assert matrix.indices.tolist() == [1, 1, 0]
    assert matrix.values is not None and matrix.values.tolist() == [3, 4, 0]


@pytest.mark.parametrize(("text", "message"), [
    (MTX + "2 2 3\n1 1 1\n", r"must be a Matrix Market file: .*"),
    (MTX + "2 2 1\n3 1 1\n", r"must be a Matrix Market file: Line 3: Row index out of bounds"),
    (MTX + "2 2 1\n1 1 nan\n", r"values must be finite, not nan \(row 0, column 0, both from 0\)"),
    (MTX + "2 2 1\n2 1 -inf\n", r"values must be finite, not -inf \(row 1, column 0, .*"),
    (MTX + "999999999 2 1\n1 1 1\n", r"a matrix must be at most .*, not 999999999 by 2 .*"),
    (MTX + "9 9 99999999999\n1 1 1\n", r"a matrix must be at most .*"),
    (MTX + "9 9 9999999\n1 1 1\n", r"must have 9999999 entries, but is shorter: truncated"),
    (MTX.replace("real", "complex") + "1 1 1\n1 1 1 2\n", r"values must be real, not complex"),
    ("%%MatrixMarket matrix array real general\n9999 9999\n1\n", r"must have 99980001 entries.*"),
    ("", r"must be a Matrix Market file: .*"),
])
def test_a9_malformed_matrix_market_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"^a\.mtx:? {message}$"):
        read_matrix(write(tmp_path, "a.mtx", text))


def equals_scipy_or_is_refused(path):
    """Whether SciPy's own result came; otherwise a ValueError that names the file."""
    try:
        matrix = read_matrix(path)
    except ValueError as error:
        assert str(error).startswith(path.name)
        return False
    expected = scipy.io.mmread(path)
    expected = expected.toarray() if sp.issparse(expected) else expected
    assert np.array_equal(to_scipy(matrix), expected)
    return True


def test_a9_every_file_of_the_parser_collection_is_read_as_scipy_does_or_refused(data_dir):
    files = sorted((data_dir / "mm_parser").glob("*.mtx"))
    if not files:
        pytest.skip(f"no mm_parser/*.mtx in {data_dir}")
    read = [path.name for path in files if equals_scipy_or_is_refused(path)]
    print("read:", *read)
    assert 10 < len(read) < len(files)


def test_real_matrices_are_read_as_scipy_does(data_dir):
    files = sorted((data_dir / "mtx").glob("*.mtx"))
    if not files:
        pytest.skip(f"no mtx/*.mtx in {data_dir}")
    for path in files:
        matrix, expected = read_matrix(path), scipy.io.mmread(path).tocsr()
        actual = sp.csr_array(
            (np.ones(len(matrix.indices)) if matrix.values is None else matrix.values,
             matrix.indices, matrix.indptr), shape=matrix.shape)
        assert abs(actual - expected).nnz == 0, path.name


def test_pruned_layers_are_read(data_dir):
    files = sorted((data_dir / "dlmc").glob("*.smtx"))
    if not files:
        pytest.skip(f"no dlmc/*.smtx in {data_dir}")
    for path in files:
        header = [int(n) for n in path.read_text().split("\n")[0].split(",")]
        matrix = read_matrix(path)
        assert [*matrix.shape, len(matrix.indices)] == header


# -- NumPy files --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("kind", [sp.coo_matrix, sp.coo_array])
def test_npz_of_every_scipy_format_is_read(tmp_path, form, kind):
    sp.save_npz(tmp_path / "a.npz", kind(DENSE).asformat(form))
    assert np.array_equal(to_scipy(read_matrix(tmp_path / "a.npz")), DENSE)


@pytest.mark.parametrize("arrays", [
    {"x": np.zeros(3)},
    {"format": "csr", "shape": (2, 2), "data": [1.0], "indices": [5], "indptr": [0, 1, 1]},
    {"format": "csr", "shape": (2, 2), "data": [1.0], "indices": [0], "indptr": [0, 2, 1]},
    {"format": "coo", "shape": (2, 2), "data": [1.0], "row": [7], "col": [0]},
    {"format": "csr", "shape": (2, 2), "data": [1j], "indices": [0], "indptr": [0, 1, 1]},
    {"format": "coo", "shape": (1 << 40, 2), "data": [1.0], "row": [7], "col": [0]},
    {"format": "xyz", "shape": (2, 2), "data": [1.0]},
])
def test_a9_npz_of_other_arrays_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **{
        k: np.array(v.encode() if isinstance(v, str) else v) for k, v in arrays.items()})
    with pytest.raises(ValueError, match=r"^a\.npz"):
        read_matrix(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["f8", ">f4", "i1", "?"])
def test_npy_is_read(tmp_path, dtype):
    np.save(tmp_path / "a.npy", DENSE.astype(dtype))
    assert np.array_equal(to_scipy(read_matrix(tmp_path / "a.npy")), DENSE.astype(dtype))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_a5_npy_of_zero_size_is_read(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    assert read_matrix(tmp_path / "a.npy").shape == shape


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros(3), ": a matrix must have 2 dimensions, not 1"),
    (np.zeros((2, 2), complex), ": values must be real numbers, not complex128"),
    (np.array([["a"]]), ": values must be real numbers, not <U1"),
    (np.array([[{}]]), " must be a NumPy array: .*"),
    (np.array([[1, np.nan]]), r": values must be finite, not nan \(row 0, column 1, .*"),
])
def test_a9_npy_of_other_arrays_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"^a\.npy{message}$"):
        read_matrix(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", ["(99999999, 99999999)", "(4611686018427387904, 8)"])
def test_a9_npy_that_promises_more_than_it_has_is_refused(tmp_path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    with pytest.raises(ValueError, match=r"^a\.npy must be a NumPy array: "):
        read_matrix(write(tmp_path, "a.npy", content))


def test_archives_named_npy_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=DENSE)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"^a\.npy must be a NumPy array: the magic string"):
        read_matrix(tmp_path / "a.npy")


# -- paths and dependencies ---------------------------------------------------------------------


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^a matrix file must end in \.smtx, .* not 'a\.csv'$"):
        read_matrix(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_matrix(str(tmp_path / "a.mtx"))
    (tmp_path / "b.smtx").mkdir()
    with pytest.raises(ValueError, match=r"^b\.smtx must be a file, not a folder$"):
        read_matrix(tmp_path / "b.smtx")


def test_a_missing_scipy_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    path = write(tmp_path, "a.mtx", MTX + "1 1 1\n1 1 1\n")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sparsemac\[scipy\]'"):
        read_matrix(path)


# -- values -------------------------------------------------------------------------------------


def pattern():
    return Matrix("a", (3, 400), np.array([0, 300, 300, 400]),
                  np.concatenate([np.arange(300), np.arange(100)]), None)


@pytest.mark.parametrize("bits", [4, 8])
def test_random_values_are_seeded_and_cover_all_weights_but_zero(bits):
    first, again, other = (random_values(pattern(), bits, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.data, again.data)
    assert not np.array_equal(first.data, other.data)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    assert first.data.min() >= low and first.data.max() <= high and (first.data != 0).all()
    if bits == 4:
        assert set(first.data.tolist()) == set(range(low, high + 1)) - {0}
    assert first.indptr.tolist() == pattern().indptr.tolist()


def test_random_values_refuse_a_seed_that_is_no_integer():
    with pytest.raises(TypeError, match=r"^seed must be an integer, not 1\.5$"):
        random_values(pattern(), 8, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "top"), [(4, 7), (8, 127)])
def test_quantization_is_symmetric_by_row(bits, top):
    values = np.array([1.0, -2.0, 0.001, 0.0, 5e-324, 1e300])
    matrix = Matrix("a", (4, 5), np.array([0, 3, 4, 5, 6]), np.array([0, 1, 2, 0, 1, 4]), values)
    csr, scales = quantize_matrix(matrix, bits)
    assert csr.data[:4].tolist() == [(top + 1) // 2, -top, 0, 0]  # half to even
    assert csr.data[5] == top
    assert csr.nnz == 6, "zeros stay as explicit zeros"
    assert (scales > 0).all() and scales[0] == pytest.approx(2 / top)
    error = np.abs(csr.data * scales[csr.rows_of_entries] - values)
    assert (error <= scales[csr.rows_of_entries] * 0.5000001).all()


def test_quantization_of_a_pattern_is_refused():
    with pytest.raises(ValueError, match=r"^a has a pattern and no values to quantize$"):
        quantize_matrix(pattern(), 8)
