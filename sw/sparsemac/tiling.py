# SPDX-License-Identifier: Apache-2.0
"""How a layer is cut so that each piece fits the core, and what that costs.

Three cuts are possible. Position tiles share the activation buffer, in as many regions as are
filled in turn; weights cross the bus once for each of them. Row tiles keep output offsets and
partial sums in range; rows too long for the entry buffer get tiles of their own, which run position
by position. Column tiles serve inputs wider than the buffer: sums wait on chip as partial sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .csr import Csr
from .errors import UnsupportedLayer
from .layout import ceil_div, round_up
from .schedule import EntryCost, header_cycles, row_costs
from .stream import HEADER_BITS, MAX_COUNT, MAX_OFFSETS, MAX_OUT_OFFSET

__all__ = [
    "ExecCosts",
    "RowTile",
    "Step",
    "Tiling",
    "Timeline",
    "choose_tiling",
    "estimate",
    "share_out",
    "steps",
    "store_cycles",
]

#: Cycles of a LOAD and of an EXEC that nothing overlaps: memory latency, pipelines, commands.
LOAD_OVERHEAD_CYCLES = 40
EXEC_OVERHEAD_CYCLES = 80

#: Cycles of a burst of the store, if many follow one another: it may await 16
#: responses, each of which takes the latency of the memory.
BURST_CYCLES = 1.7

#: Engines do not read their streams at quite the same pace: a stream-bound EXEC takes longer.
STREAM_SKEW = 1.05

#: What the engines of one EXEC are uneven by: standard deviations of their loads that the busiest
#: one is above the mean, and the part that stays of it, by tiles in turn and rows of an engine.
#: Measured on random rows dealt out by `balance_tiles`.
UNEVEN, UNEVEN_TILES = 1.5, 0.2

#: Numbers of regions of the activation buffer, and positions of the first tile, to try.
REGIONS = (1, 2, 3, 4)
FIRST_TILES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)

#: Positions of a tile to try with partial sums.
PARTIAL_POSITIONS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, eq=False)
class RowTile:
    """Rows of one EXEC.

    Attributes
    ----------
    rows : (n,) int64    Ascending.
    replayed : bool      All positions of a position tile in one EXEC; else one EXEC for each.
    """

    rows: NDArray[np.int64]
    replayed: bool


#: A layer without outputs is one EXEC of empty streams: a job has at least one command.
NO_ROWS = (RowTile(np.zeros(0, np.int64), True),)


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """Cuts of one layer.

    Attributes
    ----------
    positions : tuple of int    Positions of each position tile.
    columns : int               Channels of a column tile; all of them without partial sums.
    row_tiles : tuple of RowTile
    regions : int               Regions of the activation buffer, filled in turn.
    resident : bool             Each position tile has a region of its own size to itself.
    rows_per_engine : int       Rows that one engine may get of a row tile; 0: any number.
    """

    positions: tuple[int, ...]
    columns: int
    row_tiles: tuple[RowTile, ...]
    regions: int
    resident: bool = False
    rows_per_engine: int = 0

    def column_tiles(self, columns: int) -> list[slice]:
        """Slices of the channels."""
        return [slice(first, min(first + self.columns, columns))
                for first in range(0, max(columns, 1), self.columns)]

    def __str__(self) -> str:
        rows = " + ".join(f"{len(t.rows)}{'' if t.replayed else ' long'}" for t in self.row_tiles)
        return (f"positions {max(self.positions)} x {len(self.positions)}, rows {rows}, "
                f"columns {self.columns}, {self.regions} regions")


@dataclass(frozen=True, slots=True)
class Step:
    """One EXEC of a layer, and the LOAD before it.

    Attributes
    ----------
    tile, row_tile, column_tile : int    Which position tile, row tile, column tile.
    first, positions : int               Positions of the EXEC, counted in its position tile.
    loads : bool                         The channels of its column tile are loaded first.
    is_last_of_tile : bool               Then all outputs of its position tile are there.
    """

    tile: int
    row_tile: int
    column_tile: int
    first: int
    positions: int
    loads: bool
    is_last_of_tile: bool


def steps(tiling: Tiling, column_tiles: int) -> Iterator[Step]:
    """Yields the EXECs of a layer in order: positions outside, then rows, then columns."""
    for tile, positions in enumerate(tiling.positions):
        execs = [(r, first, positions if row_tile.replayed else 1, c)
                 for r, row_tile in enumerate(tiling.row_tiles)
                 for first in range(0, positions, positions if row_tile.replayed else 1)
                 for c in range(column_tiles)]
        for k, (r, first, size, c) in enumerate(execs):
            # With all channels in the buffer, one LOAD serves the whole position tile.
            yield Step(tile, r, c, first, size, column_tiles > 1 or k == 0, k == len(execs) - 1)


class Timeline:
    """Runs LOADs and EXECs, one after another, in a model of the core.

    A LOAD waits for its region of the buffer, an EXEC for its LOAD and for the EXEC before it. An
    EXEC ends no earlier than its weights have crossed the bus, which they share with the LOAD
    behind it, burst by burst.

    Attributes
    ----------
    end : float    Cycle in which the last EXEC ends.
    """

    def __init__(self, regions: int) -> None:
        self._free = [0.0] * regions
        self._load_end = 0.0
        self._turn = self._slot = 0
        self.end = 0.0

    def step(self, took: float, beats: float, load: float, following: float) -> None:
        """Adds an EXEC.

        ``took`` are cycles without the bus, ``beats`` those of its weights, ``load`` those of the
        LOAD before it (0: none) and ``following`` of the LOAD behind it.
        """
        if load:
            self._slot = self._turn % len(self._free)
            self._turn += 1
            start = max(self._load_end, self._free[self._slot])
            self._load_end = start + load + LOAD_OVERHEAD_CYCLES
        start = max(self.end, self._load_end)
        took = max(took, beats * STREAM_SKEW + EXEC_OVERHEAD_CYCLES)
        following_slot = self._turn % len(self._free)
        if following and following_slot != self._slot and self._free[following_slot] <= start:
            # While the LOAD lasts, weights get every second beat; if they need more, they fall
            # behind by the rest, and never catch up, as little is unpacked ahead.
            took += min(following, took / 2) * max(0.0, 2 - took / max(beats, 1))
        self.end = self._free[self._slot] = start + took


@dataclass(frozen=True, slots=True)
class ExecCosts:
    """Of the EXECs of some rows, one for each column tile.

    Attributes
    ----------
    cycles, entries : (tiles,) float      Of the busiest engine, at each position.
    headers : float                       Cycles that an engine reads headers, once.
    beats : (tiles,) float                Of all streams.
    rows, longest : int                   Matrix rows; entries of the longest in a tile.
    """

    cycles: NDArray[np.float64]
    entries: NDArray[np.float64]
    headers: float
    beats: NDArray[np.float64]
    rows: int
    longest: int

    def unpacking(self, entry: EntryCost, positions: int) -> NDArray[np.float64]:
        """(tiles,) cycles to unpack them once, if the largest EXEC has so many positions."""
        header = self.headers / max(1.0, float(self.entries.mean()))
        return self.entries * entry.unpacking(positions, header) + self.headers


def share_out(counts: NDArray[np.int64], config: CoreConfig, entry: EntryCost, row_bits: int,
              blocks: int = 1) -> ExecCosts:
    """Estimates what EXECs cost when rows are dealt out as `balance_tiles` does.

    Parameters
    ----------
    counts : (rows, tiles)       Entries of each row in each column tile.
    entry, row_bits              As in `estimate`.
    blocks : int                 How often each row is there.
    """
    engines, rows, tiles = config.engines, len(counts) * blocks, counts.shape[1]
    if not rows:
        idle = np.zeros(tiles)
        return ExecCosts(idle, idle, 1, idle + engines, 0, 0)
    own = ceil_div(rows, engines)
    costs = row_costs(counts, config.shortest_row_cycles)
    total = costs.sum(axis=0)
    # The engine with most rows, the longest row, and what exchanges of rows leave over.
    spread = (costs.std(axis=0) / costs.mean(axis=0)).mean()
    left = 1 + UNEVEN * spread / own**0.5 * min(1.0, UNEVEN_TILES * tiles / own)
    busiest = np.maximum(total * blocks / engines * left,
                         np.maximum(own * costs.min(axis=0), costs.max(axis=0)))
    # All streams are as long as the longest.
    entries = counts.sum(axis=0) * busiest / total
    bits = entries * entry.bits + own * row_bits
    return ExecCosts(
        cycles=busiest, entries=entries, headers=own * header_cycles(row_bits),
        beats=np.ceil(bits / config.bus_width) * engines, rows=rows,
        longest=int(counts.max(initial=0)))


def store_cycles(word_bytes: int, config: CoreConfig) -> float:
    """Returns cycles that the store takes for an output word of its own burst."""
    return max(BURST_CYCLES, word_bytes / config.bus_bytes)


def estimate(tiling: Tiling, csr: Csr, config: CoreConfig, entry: EntryCost, row_bits: int,
             raw: bool, shared: dict[tuple[int, ...], list[ExecCosts]] | None = None) -> int:
    """Predicts the cycles of a layer by running its LOADs and EXECs on a time line.

    An EXEC takes as long as its compute, its stream (on the bus, or being unpacked at one entry or
    header word a cycle) or its stores, whichever is longest; see `Timeline`. All reads share one
    bus, so the layer takes at least as many cycles as it reads beats.

    Parameters
    ----------
    tiling : Tiling
    csr : Csr            Without explicit zeros.
    config : CoreConfig
    entry : EntryCost
    row_bits : int       Of a row's header and parameters.
    raw : bool           Outputs are int32.
    shared : dict        Costs that tilings of the same cuts share; filled on the way.
    """
    columns = tiling.column_tiles(csr.shape[1])
    shared = {} if shared is None else shared
    key = tiling.columns, tiling.rows_per_engine
    if key not in shared:
        tiles = len(columns)
        keys = csr.rows_of_entries * tiles + csr.indices // tiling.columns
        counts = np.bincount(keys, minlength=csr.shape[0] * tiles).reshape(csr.shape[0], tiles)
        shared[key] = [share_out(counts[tile.rows], config, entry, row_bits)
                       for tile in tiling.row_tiles]
    costs = shared[key]
    each = store_cycles(config.out_word_bytes(raw), config)
    plan = list(steps(tiling, len(columns)))

    def loaded(step: Step) -> int:
        width = columns[step.column_tile].stop - columns[step.column_tile].start
        words = width * tiling.positions[step.tile] * step.loads
        return ceil_div(words * config.lanes, config.bus_bytes)

    loads = [*map(loaded, plan), 0]
    line = Timeline(tiling.regions)
    read, most = 0, max(tiling.positions)
    for k, step in enumerate(plan):
        cost, c = costs[step.row_tile], step.column_tile
        store = cost.rows * step.positions * each if c == len(columns) - 1 else 0.0
        took = max(cost.cycles[c] * step.positions, cost.unpacking(entry, most)[c], store)
        line.step(float(took) + EXEC_OVERHEAD_CYCLES, float(cost.beats[c]), loads[k], loads[k + 1])
        read += int(cost.beats[c]) + loads[k]
    return int(max(line.end, read))


def choose_tiling(
    csr: Csr, config: CoreConfig, positions: int, *, entry: EntryCost, row_bits: int = HEADER_BITS,
    raw: bool, name: str = "layer", plane: int = 1,
) -> tuple[Tiling, int]:
    """Returns the tiling of fewest estimated cycles, and these.

    ``plane`` is the distance of two outputs in memory [words]; the others are as in `estimate`.

    Raises
    ------
    UnsupportedLayer    If none is legal, naming the limit.
    """
    best: tuple[Tiling, int] | None = None
    shared: dict[tuple[int, ...], list[ExecCosts]] = {}
    for tiling in _candidates(csr, config, positions, MAX_OUT_OFFSET // plane):
        cycles = estimate(tiling, csr, config, entry, row_bits, raw, shared)
        if best is None or cycles < best[1]:
            best = tiling, cycles
    if best is None:
        longest = int(csr.row_lengths.max(initial=0))
        raise UnsupportedLayer(
            f"{name} cannot be tiled: {csr.shape[1]} columns and rows of up to {longest} entries "
            f"need an activation buffer of {round_up(csr.shape[1], config.line_words)} words "
            f"(act_depth is {config.act_depth}) or partial sums (psum_depth is "
            f"{config.psum_depth}, and must be at least {config.lanes})"
        )
    return best


def _position_tiles(positions: int, largest: int, first: int) -> tuple[int, ...]:
    """Nearly equal tiles of at most ``largest``, behind a first one of ``first`` positions."""
    tiles = []
    if 0 < first < min(positions, largest):
        tiles.append(first)
        positions -= first
    count = ceil_div(positions, largest)
    tiles += [positions // count + (i < positions % count) for i in range(count)]
    return tuple(tiles)


def _spans(rows: NDArray[np.int64], most: int, reach: int, replayed: bool) -> Iterator[RowTile]:
    """Cuts ascending rows into tiles of at most ``most`` rows, none more than ``reach`` apart."""
    first = 0
    while first < len(rows):
        last = min(first + most, int(np.searchsorted(rows, rows[first] + reach, side="right")))
        yield RowTile(rows[first:last], replayed)
        first = last


def _candidates(csr: Csr, config: CoreConfig, positions: int, reach: int) -> Iterator[Tiling]:
    rows, channels = csr.shape
    lengths = csr.row_lengths
    pitch = round_up(max(channels, 1), config.line_words)
    if pitch <= min(config.act_depth, MAX_OFFSETS) and lengths.max(initial=0) <= MAX_COUNT:
        is_long = lengths > config.entry_depth
        row_tiles = (*_spans(np.flatnonzero(~is_long), max(rows, 1), reach, True),
                     *_spans(np.flatnonzero(is_long), max(rows, 1), reach, False)) or NO_ROWS
        seen = set()
        for regions in REGIONS:
            largest = min(config.act_depth // regions // pitch, config.depth, positions)
            if largest < 1:
                continue
            for first in (0, *(size for size in FIRST_TILES if size < largest)):
                tiles = _position_tiles(positions, largest, first)
                resident = sum(tiles) * pitch <= config.act_depth
                count = len(tiles) if resident else min(regions, len(tiles))
                if (tiles, count) not in seen:
                    seen.add((tiles, count))
                    yield Tiling(tiles, max(channels, 1), row_tiles, count, resident)
    yield from _partial_candidates(csr, config, positions, reach)


def _partial_candidates(csr: Csr, config: CoreConfig, positions: int,
                        reach: int) -> Iterator[Tiling]:
    """Tilings over columns: rows and positions such that all partial sums are kept."""
    rows, channels = csr.shape
    for largest in sorted({min(positions, config.depth, p) for p in PARTIAL_POSITIONS}):
        kept = config.psum_depth // (config.lanes * largest)  # rows per engine
        room = config.act_depth // 2 // largest // config.line_words * config.line_words
        if kept < 1 or room < 1:
            continue
        columns = min(room, MAX_OFFSETS // 2, round_up(channels, config.line_words))
        if largest > 1:
            columns = _narrow(csr, columns, config)
        if columns < 1 or (columns >= channels and largest > 1):
            continue
        row_tiles = tuple(_spans(np.arange(rows), kept * config.engines, reach, True)) or NO_ROWS
        yield Tiling(_position_tiles(positions, largest, 0), columns, row_tiles, 2, False, kept)


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
