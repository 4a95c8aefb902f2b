# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac.csr import as_csr
from sparsemac.schedule import EntryCost
from sparsemac.tiling import (
    RowTile,
    Step,
    Tiling,
    Timeline,
    choose_tiling,
    estimate,
    share_out,
    steps,
)
from support.layers import random_matrix

CONFIG = CoreConfig(engines=2, lanes=4, act_depth=256, entry_depth=64, psum_depth=64, depth=8)


def matrix(rows, cols, density=0.2):
    return as_csr(random_matrix(np.random.default_rng(5), rows, cols, density)).without_zeros()


def choose(csr, config=CONFIG, positions=10):
    return choose_tiling(csr, config, positions, entry=EntryCost(12), raw=False)


def check_cover(tiling, csr, config, positions):
    """Every row, column and position exactly once, and nothing beyond a limit of the core."""
    assert sum(tiling.positions) == positions
    rows = np.concatenate([tile.rows for tile in tiling.row_tiles])
    assert sorted(rows.tolist()) == list(range(csr.shape[0]))
    columns = tiling.column_tiles(csr.shape[1])
    assert columns[0].start == 0 and columns[-1].stop == csr.shape[1]
    pitch = -(-tiling.columns // config.line_words) * config.line_words
    for positions_of_tile in tiling.positions:
        assert positions_of_tile <= config.depth
        if not tiling.resident:
            assert positions_of_tile * pitch <= config.act_depth // tiling.regions
        if len(columns) > 1:
            kept = tiling.rows_per_engine * positions_of_tile * config.lanes
            assert 0 < kept <= config.psum_depth
    if tiling.resident:
        assert sum(tiling.positions) * pitch <= config.act_depth
    for tile in tiling.row_tiles:
        for c in columns:
            longest = max(csr.take(slice(r, r + 1), c).nnz for r in tile.rows.tolist())
            assert not tile.replayed or max(tiling.positions) == 1 or longest <= config.entry_depth


@pytest.mark.parametrize("positions", [1, 2, 7, 30])
@pytest.mark.parametrize("shape", [(20, 30), (7, 200), (40, 300), (5, 1000)])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_tiles_cover_the_layer_within_the_limits(shape, positions, density):
    csr = matrix(*shape, density)
    tiling, cycles = choose(csr, positions=positions)
    check_cover(tiling, csr, CONFIG, positions)
    ideal = csr.nnz * positions / CONFIG.engines
    assert cycles >= ideal


def test_small_layer_is_not_cut():
    tiling, _ = choose(matrix(20, 30), positions=1)
    assert tiling.positions == (1,) and len(tiling.row_tiles) == 1


def test_steps_go_positions_then_rows_then_columns():
    tile = RowTile(np.arange(3), True)
    tiling = Tiling((2, 1), 8, (tile, tile), 2, rows_per_engine=4)
    got = [(s.tile, s.row_tile, s.column_tile) for s in steps(tiling, 2)]
    assert got == [(t, r, c) for t in range(2) for r in range(2) for c in range(2)]
    assert all(s.loads for s in steps(tiling, 2))


def test_one_load_serves_all_rows_without_column_tiles():
    tiles = RowTile(np.arange(3), True), RowTile(np.arange(3, 5), False)
    tiling = Tiling((2,), 8, tiles, 1)
    assert list(steps(tiling, 1)) == [
        Step(0, 0, 0, 0, 2, True, False), Step(0, 1, 0, 0, 1, False, False),
        Step(0, 1, 0, 1, 1, False, True)]


def test_estimate_grows_with_the_work():
    csr = matrix(40, 60)
    cycles = [choose(csr, positions=p)[1] for p in (1, 4, 16, 64)]
    assert cycles == sorted(cycles) and cycles[-1] > 10 * cycles[0]


def test_narrow_bus_is_never_faster():
    csr = matrix(200, 64, 0.1)
    tiling, wide = choose(csr)
    narrow = estimate(tiling, csr, CONFIG.replace(bus_width=32), EntryCost(12), 32, False)
    assert narrow > wide


def test_weights_that_barely_cross_the_bus_serve_many_positions():
    csr = matrix(400, 256, 0.03)
    config = CONFIG.replace(engines=8, act_depth=4096, bus_width=32, fifo_depth=16)
    tiling, _ = choose(csr, config, 8)
    assert len(tiling.positions) <= 2


def test_estimate_counts_every_beat_of_the_bus():
    csr = matrix(40, 60)
    tiling, _ = choose(csr)
    beats = sum(
        s.loads * tiling.positions[s.tile] * 60 * 4 // 8 for s in steps(tiling, 1))
    assert estimate(tiling, csr, CONFIG, EntryCost(12), 32, False) > beats


def test_tiling_describes_itself():
    text = str(Tiling((2, 2, 1), 8, (RowTile(np.arange(5), True), RowTile(np.arange(1), False)), 2))
    assert text == "positions 2 x 3, rows 5 + 1 long, columns 8, 2 regions"


def test_load_runs_beside_the_exec_before_it_in_another_region():
    ends = []
    for regions in (1, 2):
        line = Timeline(regions)
        line.step(1000, 100, 500, 500)
        line.step(1000, 100, 500, 0)
        ends.append(line.end)
    assert ends[0] - ends[1] > 450


def test_load_holds_up_weights_that_need_most_of_the_bus():
    ends = []
    for beats in (400, 900):
        line = Timeline(2)
        line.step(1000, beats, 100, 300)
        ends.append(line.end)
    assert ends[1] - ends[0] > 200


def test_costs_are_shared_out_evenly_where_rows_are_alike():
    costs = share_out(np.full((16, 2), 50), CoreConfig(engines=8, lanes=4), EntryCost(12), 32)
    assert costs.cycles.tolist() == [100, 100]
    assert (costs.rows, costs.longest) == (16, 50)
    odd = share_out(np.full((9, 1), 50), CoreConfig(engines=8, lanes=4), EntryCost(12), 32)
    assert odd.cycles.tolist() == [100]
    assert share_out(np.zeros((0, 2), np.int64), CoreConfig(), EntryCost(12), 32).rows == 0
