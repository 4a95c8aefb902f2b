# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsemac.commands import StreamFormat
from sparsemac.config import CoreConfig
from sparsemac.csr import as_csr
from sparsemac.matrices import read_matrix
from sparsemac.schedule import (
    BlockCost,
    balance,
    balance_rows,
    balance_tiles,
    header_cycles,
    row_costs,
)
from sparsemac.stream import choose_format

COSTS = st.lists(st.integers(1, 500), max_size=60).map(lambda costs: np.array(costs, np.int64))


def loads(assignment, costs):
    return [int(costs[rows].sum()) for rows in assignment]


@given(COSTS, st.integers(1, 16))
def test_every_row_goes_to_one_engine(costs, engines):
    assignment = balance_rows(costs, engines)
    assert len(assignment) == engines
    assert sorted(np.concatenate(assignment).tolist()) == list(range(len(costs)))


@given(COSTS, st.integers(1, 16))
def test_engines_begin_with_their_longest_rows(costs, engines):
    for rows in balance_rows(costs, engines):
        assert (np.diff(costs[rows]) <= 0).all()


@given(COSTS, st.integers(1, 16))
def test_last_engine_is_done_within_grahams_bound(costs, engines):
    # The bound of any greedy order (Graham, 1969), in what is known without the optimum.
    longest = max(loads(balance_rows(costs, engines), costs))
    assert engines * longest <= costs.sum() + (engines - 1) * costs.max(initial=0)


def test_optimum_is_missed_where_graham_says_so():
    # Graham's own worst case for 3 machines: 11 against 9.
    costs = np.array([5, 5, 4, 4, 3, 3, 3])
    assert max(loads(balance_rows(costs, 3), costs)) == 11


@given(COSTS, st.integers(1, 8), st.integers(0, 5))
def test_no_engine_gets_more_rows_than_it_may(costs, engines, spare):
    most = max(1, -(-len(costs) // engines) + spare)
    assignment = balance_rows(costs, engines, most)
    assert max(len(rows) for rows in assignment) <= most
    assert sum(len(rows) for rows in assignment) == len(costs)


def test_more_rows_than_fit_are_refused():
    with pytest.raises(ValueError, match="rows must be at most 4 for each of 2 engines, not 9"):
        balance_rows(np.ones(9, np.int64), 2, 4)


@pytest.mark.parametrize("engines", [0, -1])
def test_no_engines_are_refused(engines):
    with pytest.raises(ValueError, match=f"engines must be .*, not {engines}"):
        balance_rows(np.ones(3, np.int64), engines)


def test_row_costs_at_least_the_cycles_of_its_results():
    assert row_costs(np.array([0, 3, 8, 100]), 8).tolist() == [8, 8, 8, 100]
    assert row_costs(np.array([0, 3]), 0).tolist() == [1, 3]


def test_balance_is_the_busy_share():
    costs = np.array([4, 2, 2])
    assert balance([np.array([0]), np.array([1, 2])], costs) == 1.0
    assert balance([np.array([0, 1]), np.array([2])], costs) == 8 / 12
    assert balance([np.array([], np.int64)] * 2, costs) == 1.0


def test_a5_no_rows_are_no_work():
    assignment = balance_rows(np.zeros(0, np.int64), 3)
    assert [rows.tolist() for rows in assignment] == [[], [], []]
    assert assignment[0].dtype == np.int64


def test_hundred_thousand_rows_are_quick():
    costs = np.random.default_rng(1).integers(1, 1000, 100_000)
    start = time.process_time()
    assert balance(balance_rows(costs, 64), costs) > 0.999
    assert time.process_time() - start < 2.0


def test_real_pruned_layers_keep_sixteen_engines_busy(data_dir):
    files = sorted((data_dir / "dlmc").glob("*.smtx"))
    if not files:
        pytest.skip("missing in the data folder: dlmc/*.smtx")
    shares = {}
    for file in files:
        matrix = read_matrix(file)
        if len(matrix.indices) > 40_000:
            costs = row_costs(np.diff(matrix.indptr), 8)
            shares[file.name] = balance(balance_rows(costs, 16), costs)
    assert len(shares) >= 5
    assert {name: share for name, share in shares.items() if share < 0.97} == {}


def last_engines(costs, assigned):
    """Cycles of all EXECs, each as long as its last engine."""
    return int(np.stack([costs[:, rows].sum(axis=1) for rows in assigned]).max(axis=0).sum())


@pytest.mark.parametrize("shape", [(1, 20), (6, 64), (5, 257), (3, 4), (2, 0)])
@pytest.mark.parametrize("engines", [1, 3, 8])
def test_rows_of_several_execs_are_exchanged_until_engines_are_alike(shape, engines):
    costs = np.random.default_rng(3).gamma(3, 10, shape).astype(np.int64) + 1
    most = -(-shape[1] // engines) + 1
    assigned = balance_tiles(costs, engines, most)
    assert sorted(np.concatenate(assigned).tolist()) == list(range(shape[1]))
    assert max(map(len, assigned)) <= most
    before = balance_rows(costs.sum(axis=0), engines, most)
    assert last_engines(costs, assigned) <= last_engines(costs, before)
    for rows in assigned:
        total = costs[:, rows].sum(axis=0)
        assert (np.diff(total) <= 0).all()


def test_exchange_leaves_engines_a_few_percent_apart():
    costs = np.random.default_rng(4).gamma(3, 10, (6, 64)).astype(np.int64) + 1
    assigned = balance_tiles(costs, 8)
    assert costs.sum() / 8 / last_engines(costs, assigned) > 0.94
    assert costs.sum() / 8 / last_engines(costs, balance_rows(costs.sum(axis=0), 8)) < 0.85


def random_csr(density, rows=64, columns=4096):
    dense = np.random.default_rng(5).random((rows, columns)) < density
    return as_csr(dense.astype(np.int8))


@pytest.mark.parametrize("density", [0.5, 0.1, 0.05])
def test_one_position_takes_formats_almost_without_fillers(density):
    cost = BlockCost(random_csr(density), 8, 32)
    wide = CoreConfig(engines=16, lanes=1, bus_width=512)
    one, many = cost.choose(1, wide), cost.choose(8, wide)
    assert one.delta_bits > many.delta_bits
    assert many == choose_format(random_csr(density), 8)
    bare = cost.counts + header_cycles(32)
    fillers = [int((cost.cycles(fmt, (1,), 1) - bare).sum()) for fmt in (one, many)]
    assert fillers[0] < 0.005 * cost.counts.sum() < fillers[1]


def test_narrow_bus_takes_the_format_of_fewest_bits():
    csr = random_csr(0.1)
    narrow = CoreConfig(engines=16, lanes=1, bus_width=32)
    assert BlockCost(csr, 8, 32).choose(1, narrow) == choose_format(csr, 8)


def test_cycles_are_those_of_the_slower_of_work_and_unpacking():
    cost = BlockCost(as_csr(np.eye(4, 50, dtype=np.int8)), 8, 32)
    fmt = StreamFormat(delta_bits=8)
    header = header_cycles(32)
    assert cost.cycles(fmt, (1,), 1).tolist() == [header + 1] * 4
    assert cost.cycles(fmt, (100, 1, 1), 8).tolist() == [800 + 2 * 8] * 4


def test_a5_cost_of_no_rows():
    cost = BlockCost(as_csr(np.zeros((0, 5), np.int8)), 8, 32)
    assert len(cost.cycles(cost.choose(1, CoreConfig()), (1,), 8)) == 0
