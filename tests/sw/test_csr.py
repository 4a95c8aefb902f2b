# SPDX-License-Identifier: Apache-2.0
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp
from sparsemac.csr import Csr, as_csr, weight_range

DATA = np.array([3, -4, 5, 6], np.int8)
INDICES = np.array([0, 2, 1, 3])
INDPTR = np.array([0, 2, 2, 4])
DENSE = np.array([[3, 0, -4, 0], [0, 0, 0, 0], [0, 5, 0, 6]])


def check_is_example(csr):
    assert isinstance(csr, Csr)
    assert csr.shape == (3, 4)
    assert csr.indptr.tolist() == INDPTR.tolist()
    assert csr.indices.tolist() == INDICES.tolist()
    assert csr.data.tolist() == DATA.tolist()
    assert (csr.indptr.dtype, csr.indices.dtype, csr.data.dtype) == (np.int64, np.int64, np.int8)


def arrays(**changes):
    """The example as a tuple, some parts exchanged."""
    parts = {"data": DATA, "indices": INDICES, "indptr": INDPTR, "shape": (3, 4), **changes}
    return parts["data"], parts["indices"], parts["indptr"], parts["shape"]


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", [sp.coo_matrix, sp.coo_array])
def test_every_scipy_format_is_accepted(form, kind):
    check_is_example(as_csr(kind(DENSE).asformat(form)))


def test_tuples_dense_arrays_lists_and_lookalikes_are_accepted():
    class Lookalike:
        data, indices, indptr = DATA, INDICES, INDPTR
        shape = (3, 4)

    check_is_example(as_csr(arrays()))
    check_is_example(as_csr(arrays()[:3]))
    check_is_example(as_csr(DENSE))
    check_is_example(as_csr(DENSE.tolist()))
    check_is_example(as_csr(Lookalike()))
    check_is_example(as_csr(as_csr(DENSE)))


@pytest.mark.parametrize("dtype", ["<i2", ">i4", ">i8", "u1", "<f4", ">f8", "f2"])
def test_a9_byte_order_width_and_integral_floats_do_not_matter(dtype):
    dense = np.abs(DENSE).astype(dtype)
    assert as_csr(dense).to_dense().tolist() == np.abs(DENSE).tolist()
    moved = as_csr((np.abs(DATA).astype(dtype), INDICES.astype(">i4"), INDPTR.astype("u2"), (3, 4)))
    assert moved.to_dense().tolist() == np.abs(DENSE).tolist()


def test_a9_non_contiguous_arrays_are_accepted():
    wide = [np.repeat(a, 2)[::2] for a in (DATA, INDICES, INDPTR)]
    check_is_example(as_csr((*wide, (3, 4))))
    check_is_example(as_csr(np.asfortranarray(np.repeat(DENSE, 2, axis=1))[:, ::2]))


def test_int4_arrays_are_accepted():
    check_is_example(as_csr(arrays(data=DATA.astype(ml_dtypes.int4)), weight_bits=4))
    check_is_example(as_csr(DENSE.astype(ml_dtypes.int4), weight_bits=4))


def test_the_result_does_not_share_memory_with_the_input():
    data, indices, indptr = DATA.copy(), INDICES.astype(np.int64), INDPTR.astype(np.int64)
    csr = as_csr((data, indices, indptr, (3, 4)))
    data[:], indices[:], indptr[:] = 0, 0, 0
    check_is_example(csr)


@pytest.mark.parametrize(("changes", "message"), [
    ({"indptr": [1, 2, 2, 4]}, r"indptr\[0\] must be 0, not 1"),
    ({"indptr": [0, 3, 2, 4]}, r"indptr must not decrease, not 3 to 2 at row 1"),
    ({"indptr": [0, 2, -2, 4]}, r"indptr must not decrease, not 2 to -2 at row 1"),
])
def test_a1_indptr_that_does_not_ascend_from_zero_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        as_csr(arrays(**changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"indptr": [0, 2, 2, 3]}, r"indptr must end with the number of entries, 4, not 3"),
    ({"indptr": [0, 2, 2, 5]}, r"indices must have 5 elements as indptr ends with, not 4"),
    ({"data": DATA[:3]}, r"data must have 4 elements as indptr ends with, not 3"),
    ({"indptr": [0, 2, 4]}, r"indptr must have 4 elements for 3 rows, not 3"),
    ({"indptr": []}, r"indptr must have one element more than there are rows, not 0"),
])
def test_a2_lengths_that_disagree_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        as_csr(arrays(**changes))


@pytest.mark.parametrize("column", [4, -1, 1 << 40])
def test_a3_column_out_of_range_is_refused(column):
    message = rf"^indices must be 0 to 3, not {column} \(row 2, entry 3\)$"
    with pytest.raises(ValueError, match=message):
        as_csr(arrays(indices=[0, 2, 1, column]))


def test_a3_scipy_matrix_altered_behind_its_back_is_refused():
    matrix = sp.csr_array(DENSE)
    matrix.indices[1] = 9
    with pytest.raises(ValueError, match="indices must be 0 to 3, not 9"):
        as_csr(matrix)
    coo = sp.coo_array(DENSE)
    coo.row[1] = 7
    with pytest.raises(ValueError, match="row must be 0 to 2, not 7"):
        as_csr(coo)


def test_a4_columns_are_sorted_and_duplicates_keep_their_order():
    csr = as_csr((np.array([1, 2, 3, 4, 5]), np.array([3, 0, 3, 0, 1]), np.array([0, 4, 5])))
    assert csr.indices.tolist() == [0, 0, 3, 3, 1]
    assert csr.data.tolist() == [2, 4, 1, 3, 5]
    assert csr.to_dense().tolist() == [[6, 0, 0, 4], [0, 5, 0, 0]]


@pytest.mark.parametrize("form", ["coo", "csc", "bsr"])
def test_a4_duplicates_whose_8_bit_sum_would_wrap_are_kept(form):
    coo = sp.coo_array((np.array([100, 100], np.int8), ([0, 0], [1, 1])), shape=(2, 2))
    matrix = {
        "coo": coo,
        "csc": sp.csc_array((coo.data, [0, 0], [0, 0, 2]), shape=(2, 2)),
        "bsr": sp.bsr_array((np.array([[[0, 100]]] * 2, np.int8), [0, 0], [0, 2, 2]), shape=(2, 2)),
    }[form]
    assert as_csr(matrix).to_dense()[0, 1] == 200


def test_a5_empty_rows_explicit_zeros_and_empty_matrices_are_legal():
    csr = as_csr(arrays(data=[3, 0, 0, 6]))
    assert csr.nnz == 4 and csr.row_lengths.tolist() == [2, 0, 2]
    assert csr.without_zeros().indices.tolist() == [0, 3]
    assert csr.without_zeros().indptr.tolist() == [0, 1, 1, 2]
    for shape in ((0, 5), (5, 0), (0, 0), (3, 3)):
        for empty in (np.zeros(shape, np.int8), sp.csr_array(shape, dtype=np.int8)):
            csr = as_csr(empty)
            assert csr.shape == shape and csr.nnz == 0 and csr.density == 0.0
            assert csr.to_dense().shape == shape
            assert csr.indptr.tolist() == [0] * (shape[0] + 1)
    assert as_csr(([], [], [0, 0])).shape == (1, 0)
    assert as_csr([[7]]).to_dense().tolist() == [[7]]


def test_a5_one_very_long_row_is_legal():
    row = np.ones((1, 100_000), np.int8)
    assert as_csr(row).row_lengths.tolist() == [100_000]


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -128, 127)])
def test_a6_extreme_weights_are_legal_and_those_beyond_are_refused(bits, low, high):
    assert weight_range(bits) == (low, high)
    assert as_csr([[low, high]], weight_bits=bits).data.tolist() == [low, high]
    for beyond in (low - 1, high + 1):
        message = rf"^weights must be {low} to {high}, not {beyond} \(row 1, column 2\)$"
        with pytest.raises(ValueError, match=message):
            as_csr([[0, 0, 0], [1, 0, beyond]], weight_bits=bits)


@pytest.mark.parametrize(("value", "message"), [
    (np.nan, r"must be finite, not nan \(row 2, column 1\)"),
    (np.inf, r"must be finite, not inf \(row 2, column 1\)"),
    (-np.inf, r"must be finite, not -inf \(row 2, column 1\)"),
    (0.5, r"must hold integers, not 0.5 \(row 2, column 1\): quantize it first"),
    (1e300, r"must fit 64-bit signed integers, not 1e\+300 \(row 2, column 1\)"),
])
def test_a9_values_that_are_no_integers_are_refused(value, message):
    dense = DENSE.astype(float)
    dense[2, 1] = value
    with pytest.raises(ValueError, match=f"^a dense matrix {message}$"):
        as_csr(dense)
    with pytest.raises(ValueError, match=f"^data {message}$"):
        as_csr(arrays(data=np.array([3, -4, value, 6])))


@pytest.mark.parametrize("dtype", ["c16", "O", "U3", "M8[s]"])
def test_a9_values_that_are_no_numbers_are_refused(dtype):
    values = np.zeros(4, dtype)
    with pytest.raises(TypeError, match=r"^data must hold integers, not "):
        as_csr(arrays(data=values))
    with pytest.raises(TypeError, match=r"^a dense matrix must hold integers, not "):
        as_csr(values.reshape(2, 2))


@pytest.mark.parametrize("field", ["indices", "indptr"])
def test_a9_indices_that_are_no_integers_are_refused(field):
    with pytest.raises(TypeError, match=rf"^{field} must hold integers, not float64$"):
        as_csr(arrays(**{field: np.asarray(arrays()[{"indices": 1, "indptr": 2}[field]], float)}))


@pytest.mark.parametrize(("matrix", "error", "message"), [
    (np.zeros(3, int), ValueError, "a dense matrix must have 2 dimensions, not 1"),
    (np.zeros((1, 2, 3), int), ValueError, "a dense matrix must have 2 dimensions, not 3"),
    ((1, 2), ValueError, r"a tuple must be \(data, indices, indptr\[, shape\]\), not 2 items"),
    ("matrix", TypeError, r"a matrix must be sparse \(indptr, indices, data\) .* not str"),
    (None, TypeError, r"a matrix must be sparse \(indptr, indices, data\) .* not NoneType"),
    (arrays(shape=(3, -4)), ValueError, r"columns must be 0 to \d+, not -4.*"),
    (arrays(shape=(3, 4.5)), TypeError, "columns must be an integer, not 4.5"),
    (arrays(shape=(3,)), ValueError, r"shape must be \(rows, columns\), not \(3,\)"),
    (arrays(shape=12), ValueError, r"shape must be \(rows, columns\), not 12"),
    (arrays(indices=INDICES.reshape(2, 2)), ValueError, "indices must have 1 dimension, not 2"),
    (arrays(data=np.array([1, 2, 3, 1 << 63], np.uint64)), ValueError,
     r"data must fit 64-bit signed integers, not 9223372036854775808 \(row 2, column 3\)"),
])
def test_a9_other_shapes_and_kinds_are_refused(matrix, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        as_csr(matrix)


def test_weight_bits_other_than_4_and_8_are_refused():
    with pytest.raises(ValueError, match=r"^weight_bits must be 4 or 8, not 6$"):
        as_csr(DENSE, weight_bits=6)


def test_take_returns_blocks():
    rng = np.random.default_rng(3)
    dense = (rng.random((20, 30)) < 0.2) * rng.integers(-9, 10, (20, 30))
    csr = as_csr(dense)
    assert csr.density == pytest.approx((dense != 0).mean())
    for rows, columns in ((slice(3, 9), slice(None)), (slice(None), slice(7, 8)),
                          (slice(5, 5), slice(2, 9)), (slice(0, 20), slice(29, 30))):
        assert np.array_equal(csr.take(rows, columns).to_dense(), dense[rows, columns])


def test_filled_rows_have_an_entry_that_is_not_zero():
    csr = Csr((3, 4), np.array([0, 1, 1, 3]), np.array([2, 0, 1]), np.array([0, 0, -1], np.int8))
    assert csr.filled_rows.tolist() == [False, False, True]


@pytest.mark.parametrize("rows", [[], [3], [7, 0, 7, 19]])
def test_take_rows_returns_them_in_order(rows):
    rng = np.random.default_rng(4)
    dense = (rng.random((20, 30)) < 0.2) * rng.integers(-9, 10, (20, 30))
    taken = as_csr(dense).take_rows(np.array(rows, np.int64))
    assert np.array_equal(taken.to_dense(), dense[rows])


@pytest.mark.parametrize("seed", range(5))
def test_random_matrices_equal_scipys(seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 40, 2)
    dense = ((rng.random(shape) < 0.3) * rng.integers(-128, 128, shape)).astype(np.int8)
    for form in ("csr", "csc", "coo"):
        csr = as_csr(sp.coo_array(dense).asformat(form))
        assert np.array_equal(csr.to_dense(), dense)
        assert csr.indptr.tolist() == sp.csr_array(dense).indptr.tolist()
