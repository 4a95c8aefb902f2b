# SPDX-License-Identifier: Apache-2.0
"""Files of samples become the arrays that a network wants, or are refused by name."""

import numpy as np
import pytest
from sparsemac.graph import Graph, Node, Value
from sparsemac_cli._inputs import output_format, read_inputs, write_outputs


def graph_of(*values, batchable=True):
    node = Node(name="join", inputs=tuple(v.name for v in values), outputs=("y",),
                operation="onnx_identity")
    known = {v.name: v for v in (*values, Value(name="y", shape=None, dtype="int8"))}
    return Graph(name="net", values=known, inputs=node.inputs, outputs=("y",), nodes=(node,),
                 batchable=batchable)


X = Value(name="x", shape=(1, 2, 3), dtype="int8", scale=0.5, zero_point=-1)
ONE = graph_of(X)
SAMPLES = np.arange(12, dtype=np.int8).reshape(2, 2, 3)


def save(path, array):
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 6), (12,)])
def test_samples_may_be_flat(tmp_path, shape):
    given = read_inputs(ONE, [save(tmp_path / "a.npy", SAMPLES.reshape(shape))])
    assert (given.arrays["x"] == SAMPLES).all() and not given.notes


def test_one_sample_may_lack_its_batch_axis(tmp_path):
    given = read_inputs(ONE, [save(tmp_path / "a.npy", SAMPLES[0])])
    assert (given.arrays["x"] == SAMPLES[:1]).all()


def test_several_files_are_one_batch(tmp_path):
    (tmp_path / "b.bin").write_bytes(SAMPLES[1].tobytes())
    (tmp_path / "c.csv").write_text("# six numbers\n1,2,3,4,5,6\n-1,-2,-3,-4,-5,-128\n")
    files = [save(tmp_path / "a.npy", SAMPLES[:1]), str(tmp_path / "b.bin"),
             str(tmp_path / "c.csv")]
    x = read_inputs(ONE, files).arrays["x"]
    assert x.dtype == np.int8 and (x[:2] == SAMPLES).all()
    assert x[2:].reshape(2, 6).tolist() == [[1, 2, 3, 4, 5, 6], [-1, -2, -3, -4, -5, -128]]


def test_real_numbers_are_quantized_and_said_so(tmp_path):
    real = np.array([0, 0.5, -0.5, 1, 1000, -1000], np.float64)
    given = read_inputs(ONE, [save(tmp_path / "a.npy", real)])
    assert given.arrays["x"].ravel().tolist() == [-1, 0, -2, 1, 127, -128]
    assert given.notes == ["x: float64 quantized to int8 with scale 0.5 and zero point -1"]
    (tmp_path / "a.csv").write_text("0.0,0.5,-5e-1,1,1000,-1000")
    assert (read_inputs(ONE, [str(tmp_path / "a.csv")]).arrays["x"]
            == given.arrays["x"]).all()


def test_unsigned_bytes_are_the_same_numbers(tmp_path):
    given = read_inputs(ONE, [save(tmp_path / "a.npy", np.array([0, 1, 127, 128, 254, 255], "u1"))])
    assert given.arrays["x"].ravel().tolist() == [-128, -127, -1, 0, 126, 127]
    assert "128 away" in given.notes[0]


def test_inputs_by_order_by_name_and_from_an_archive(tmp_path):
    two = graph_of(X, Value(name="k", shape=(1, 1), dtype="int64"))
    x, k = SAMPLES, np.array([[4], [5]])
    a, b = save(tmp_path / "a.npy", x), save(tmp_path / "b.npy", k)
    np.savez(tmp_path / "both.npz", x=x, k=k, other=k)
    for files in ([a, b], [f"k={b}", f"x={a}"], [f"k={b}", a], [str(tmp_path / "both.npz")]):
        arrays = read_inputs(two, files).arrays
        assert (arrays["x"] == x).all() and (arrays["k"] == k).all()
    with pytest.raises(ValueError, match="has the inputs x, k: give name=FILE for each"):
        read_inputs(two, [a])
    with pytest.raises(ValueError, match="input 'k' must be given: k=FILE"):
        read_inputs(two, [f"x={a}"])
    with pytest.raises(ValueError, match="input must be one of x, k, not 'z'"):
        read_inputs(two, [f"z={a}"])


def test_an_archive_of_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "a.npz", anything=SAMPLES)
    assert (read_inputs(ONE, [str(tmp_path / "a.npz")]).arrays["x"] == SAMPLES).all()


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((2, 3, 2), np.int8), r"a\.npy must hold shape \(n, 2, 3\) for x, or 6 numbers"),
    (np.zeros(7, np.int8), "not shape"),
    (np.full(6, 300), "must hold -128 to 127, int8, for x, not 300 to 300"),
    (np.zeros(6, np.complex64), "must hold int8 for x, not complex64"),
    (np.full(6, np.nan), "must be finite"),
    (np.array(["a"]), "must hold int8"),
])
def test_arrays_that_do_not_fit_are_refused(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        read_inputs(ONE, [save(tmp_path / "a.npy", array)])


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.npy", b"nothing", r"a\.npy must be a NumPy file of numbers"),
    ("a.npz", b"PK\x03\x04", r"a\.npz must be a NumPy file of numbers"),
    ("a.csv", b"1,2\n3,x\n", r"a\.csv must be lines of numbers"),
    ("a.csv", b"1,2\n3\n", r"a\.csv must be lines of numbers"),
    ("a.csv", b" \n# none\n", "there are none"),
    ("a.csv", b"\xff\xfe", r"a\.csv must be lines of numbers"),
    ("a.bin", bytes(7), "6 numbers for each sample"),
    ("a.txt", b"1", r"a\.txt must end in \.npy, \.npz, \.csv, \.bin or \.dat"),
])
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_inputs(ONE, [str(tmp_path / name)])


def test_outputs_are_written_whole(tmp_path):
    outputs = {"file": SAMPLES, "a:0": np.zeros(3, np.float32)}
    write_outputs(tmp_path / "out.npz", outputs)
    with np.load(tmp_path / "out.npz") as archive:
        assert set(archive.files) == set(outputs)
        assert (archive["file"] == SAMPLES).all()
    write_outputs(tmp_path / "out.npy", {"y": SAMPLES})
    assert (np.load(tmp_path / "out.npy") == SAMPLES).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "out.npz"]


@pytest.mark.parametrize(("name", "outputs", "message"), [
    ("out.txt", ["y"], r"must end in \.npy or \.npz"),
    ("out.npy", ["y", "z"], r"must end in \.npz, as there are 2 outputs: y, z"),
    ("none/out.npy", ["y"], "folder of the output file must be there"),
])
def test_names_of_output_files_are_checked(tmp_path, name, outputs, message):
    with pytest.raises(ValueError, match=message):
        output_format(tmp_path / name, outputs)
