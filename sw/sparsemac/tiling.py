# SPDX-License-Identifier: Apache-2.0
"""How a layer is cut so that each piece fits the core, and what that costs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .config import CoreConfig
from .csr import Csr
from .errors import UnsupportedLayer
from .layout import ceil_div, round_up
from .schedule import balance_rows, row_costs
from .stream import MAX_COUNT, MAX_OFFSETS, MAX_OUT_OFFSET

__all__ = ["Tiling", "choose_tiling", "estimate"]

#: Cycles from a command to its first result that nothing overlaps: latency of the memory, of the
#: pipelines, of the commands themselves.
EXEC_OVERHEAD_CYCLES = 60
ROW_HEADER_WORDS = 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """Cuts of one layer.

    Attributes
    ----------
    positions : tuple of int    Positions of each position tile.
    columns : int               Channels of a column tile; all of them if partial sums are not used.
    rows : int                  Rows of a row tile.
    regions : int               Parts of the activation buffer that are filled in turn.
    resident : bool             All positions have a place of their own in the buffer.
    rows_per_engine : int       Rows that one engine may get of a row tile; 0: any number.
    """

    positions: tuple[int, ...]
    columns: int
    rows: int
    regions: int
    resident: bool = False
    rows_per_engine: int = 0

    def column_tiles(self, columns: int) -> Iterator[slice]:
        """Slices of the channels."""
        for first in range(0, max(columns, 1), self.columns):
            yield slice(first, min(first + self.columns, columns))

    def row_tiles(self, rows: int) -> Iterator[slice]:
        """Slices of the rows."""
        for first in range(0, max(rows, 1), self.rows):
            yield slice(first, min(first + self.rows, rows))


def estimate(tiling: Tiling, csr: Csr, config: CoreConfig, entry_bits: int, raw: bool) -> int:
    """Predicts the cycles of a layer: of each EXEC the compute or its traffic, whichever is more.

    A first LOAD is not hidden by anything; weights cross the bus once for each position tile.
    """
    lengths = csr.row_lengths
    columns = [c.stop - c.start for c in tiling.column_tiles(csr.shape[1])]
    costs = row_costs(-(-lengths // len(columns)), config.lanes)
    ideal = int(costs.sum())
    busiest = max((int(costs[r].sum()) for r in balance_rows(costs, config.engines)), default=0)
    if len(columns) == 1 and tiling.rows >= csr.shape[0]:
        compute_per_position = busiest
    else:  # many tiles: each is balanced on its own
        compute_per_position = max(ideal // config.engines, busiest)
    weight_beats = ceil_div(
        int(lengths.sum()) * entry_bits + 32 * ROW_HEADER_WORDS * len(lengths) * len(columns),
        config.bus_width)
    row_tiles = ceil_div(max(csr.shape[0], 1), tiling.rows)
    total = 0
    for k, positions in enumerate(tiling.positions):
        load = ceil_div(sum(columns) * positions * config.lanes, config.bus_bytes)
        loads = load * (row_tiles if len(columns) > 1 or tiling.regions < len(tiling.positions)
                        and row_tiles > 1 else 1)
        store = csr.shape[0] * positions * max(1, config.out_word_bytes(raw) // config.bus_bytes)
        compute = compute_per_position * positions * len(columns)
        traffic = weight_beats + (loads if k else 0)
        execs = row_tiles * len(columns)
        total += max(compute, traffic, store) + execs * EXEC_OVERHEAD_CYCLES
        if k == 0:
            total += min(load, loads)
    return total


def _position_tiles(positions: int, largest: int, first: int) -> tuple[int, ...]:
    tiles = []
    if 0 < first < min(positions, largest):
        tiles.append(first)
        positions -= first
    count = ceil_div(positions, largest)
    tiles += [positions // count + (i < positions % count) for i in range(count)]
    return tuple(tiles)


def choose_tiling(
    csr: Csr, config: CoreConfig, positions: int, *, entry_bits: int, raw: bool, name: str = "layer"
) -> Tiling:
    """Returns the tiling of fewest estimated cycles.

    Raises
    ------
    UnsupportedLayer    If none is legal, naming the limit.
    """
    candidates = list(_candidates(csr, config, positions))
    if not candidates:
        longest = int(csr.row_lengths.max(initial=0))
        raise UnsupportedLayer(
            f"{name} cannot be tiled: {csr.shape[1]} columns and rows of up to {longest} entries "
            f"need an activation buffer of {round_up(csr.shape[1], config.line_words)} words "
            f"(act_depth is {config.act_depth}) or partial sums (psum_depth is "
            f"{config.psum_depth}, and must be at least {config.lanes})"
        )
    return min(candidates, key=lambda t: estimate(t, csr, config, entry_bits, raw))


def _candidates(csr: Csr, config: CoreConfig, positions: int) -> Iterator[Tiling]:
    rows, channels = csr.shape
    pitch = round_up(max(channels, 1), config.line_words)
    longest = int(csr.row_lengths.max(initial=0))
    row_limit = min(max(rows, 1), MAX_OUT_OFFSET + 1)
    if pitch <= min(config.act_depth, MAX_OFFSETS) and longest <= MAX_COUNT:
        replay = config.depth if longest <= config.entry_depth else 1
        for regions in (1, 2, 4):
            largest = min(config.act_depth // regions // pitch, replay, positions)
            for first in (0, 1, largest // 4):
                if largest >= 1:
                    tiles = _position_tiles(positions, largest, first)
                    if regions == 1 and sum(tiles) * pitch <= config.act_depth:
                        yield Tiling(tiles, max(channels, 1), row_limit, len(tiles), True)
                    elif regions > 1 or len(tiles) == 1:
                        yield Tiling(tiles, max(channels, 1), row_limit, regions)
    yield from _column_candidates(csr, config, positions, row_limit)


def _column_candidates(csr: Csr, config: CoreConfig, positions: int,
                       row_limit: int) -> Iterator[Tiling]:
    """Tilings over columns: rows and positions such that all partial sums are kept."""
    channels = csr.shape[1]
    for largest in sorted({min(positions, config.depth, p) for p in (1, 2, 4, 8, 16, 32)}):
        kept = config.psum_depth // (config.lanes * largest)  # rows per engine
        room = config.act_depth // 2 // largest // config.line_words * config.line_words
        if kept < 1 or room < 1:
            continue
        columns = min(room, MAX_OFFSETS // 2, round_up(channels, config.line_words))
        if largest > 1:
            columns = _narrow(csr, columns, config)
        if columns < 1 or columns >= channels and largest > 1:
            continue
        rows = min(row_limit, kept * config.engines)
        yield Tiling(_position_tiles(positions, largest, 0), columns, rows, 2, False, kept)


def _narrow(csr: Csr, columns: int, config: CoreConfig) -> int:
    """Narrows column tiles until no row has more entries in one than can be replayed."""
    rows = csr.rows_of_entries
    while columns >= config.line_words:
        tiles = ceil_div(csr.shape[1], columns)
        counts = np.bincount(rows * tiles + csr.indices // columns)
        if counts.max(initial=0) <= config.entry_depth:
            return columns
        columns = columns // 2 // config.line_words * config.line_words
    return 0
