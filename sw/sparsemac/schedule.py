# SPDX-License-Identifier: Apache-2.0
"""What the rows of an EXEC cost in cycles, and which engine computes which of them."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int
from ._coding import format_costs, gaps_between, lost_cycles, merge_duplicates
from .commands import StreamFormat
from .config import CoreConfig
from .csr import Csr
from .layout import ceil_div

__all__ = [
    "BlockCost",
    "EntryCost",
    "balance",
    "balance_rows",
    "balance_tiles",
    "header_cycles",
    "row_costs",
]

#: Bits of a stream that an engine reads in a cycle, unless they are an entry.
HEADER_WORD_BITS = 32

#: Cycles in which an engine reads nothing between two rows, and one as a header is read in two.
ROW_GAP_CYCLES = 3

#: A format may take this share of cycles more than the fastest one if it takes fewer bits.
FORMAT_SLACK = 1 / 256

#: Multiplications that `balance_tiles` may spend on exchanges.
BALANCE_WORK = 1 << 26

#: Share of the cycles that engines may still wait when `balance_tiles` ends.
BALANCE_SLACK = 1 / 512


def row_costs(counts: NDArray[np.int64], shortest: int) -> NDArray[np.int64]:
    """Returns (rows,) cycles that a row takes at each position.

    One cycle for each entry, but no fewer than ``shortest``: `CoreConfig.shortest_row_cycles` for a
    row among longer ones, the lanes if many short rows follow one another, since results leave an
    engine one per cycle.
    """
    return np.maximum(np.maximum(counts, shortest), 1)


def header_cycles(row_bits: int) -> int:
    """Returns cycles to unpack what stands before a row's entries, and those lost behind it."""
    return ceil_div(row_bits, HEADER_WORD_BITS) + ROW_GAP_CYCLES


@dataclass(frozen=True, slots=True)
class EntryCost:
    """What a nonzero costs in the mean, headers of rows left out.

    Attributes
    ----------
    bits : float              In the stream, in the format of fewest bits.
    cycles : tuple of float   To be unpacked, in each format, that of fewest bits first.
    """

    bits: float
    cycles: tuple[float, ...] = (1.0,)

    def unpacking(self, positions: int, header: float) -> float:
        """Cycles to be unpacked in the first format that compute hides, else in the fastest.

        So `BlockCost.choose` takes them, but for the bus. ``header`` are the cycles of a row's
        header for each of its entries.
        """
        hidden = (cycles for cycles in self.cycles if cycles + header <= positions)
        return next(hidden, min(self.cycles))

    @classmethod
    def of(cls, csr: Csr, weight_bits: int) -> "EntryCost":
        """Returns the costs of a matrix."""
        csr, duplicates = merge_duplicates(csr, weight_bits)
        costs = sorted(format_costs(csr, weight_bits, duplicates), key=lambda cost: cost.bits)
        nnz = max(csr.nnz, 1)
        return cls(costs[0].bits / nnz, tuple(1 + cost.lost / nnz for cost in costs))


class BlockCost:
    """What the rows of one EXEC cost.

    An engine unpacks an entry, a filler or a header word in a cycle, a mask in a few, and meanwhile
    works on rows that it has unpacked: an EXEC of one position is as slow as its unpacking.

    Parameters
    ----------
    csr : Csr            The rows; entries outside the EXEC's columns left out.
    weight_bits : int    4 or 8.
    row_bits : int       Of a row's header and parameters in the stream.

    Attributes
    ----------
    counts : (rows,)     Entries of each row, without fillers.
    """

    def __init__(self, csr: Csr, weight_bits: int, row_bits: int) -> None:
        self._csr, self._duplicates = merge_duplicates(csr, weight_bits)
        self._gaps = gaps_between(self._csr)
        self._weight_bits, self._row_bits = weight_bits, row_bits
        self.counts = self._csr.row_lengths

    def choose(self, positions: int, config: CoreConfig) -> StreamFormat:
        """Returns the format of fewest bits among those of about the fewest cycles."""
        rows, nnz, engines = len(self.counts), self._csr.nnz, config.engines
        found = []
        for cost in format_costs(self._csr, self._weight_bits, self._duplicates):
            stream = cost.bits + rows * self._row_bits
            unpack = nnz + cost.lost + rows * header_cycles(self._row_bits)
            found.append((max(nnz * positions / engines, unpack / engines,
                              stream / config.bus_width), stream, cost.fmt))
        most = min(cycles for cycles, _, _ in found) * (1 + FORMAT_SLACK)
        return min((f for f in found if f[0] <= most), key=lambda f: f[1])[2]

    def cycles(self, fmt: StreamFormat, positions: Sequence[int], shortest: int
               ) -> NDArray[np.int64]:
        """Returns (rows,) cycles of each row in EXECs of so many positions.

        ``shortest`` is as in `row_costs`.
        """
        unpack = self.counts + header_cycles(self._row_bits)
        if not fmt.absolute:
            before = np.concatenate([[0], np.cumsum(lost_cycles(self._gaps, fmt))])
            unpack = unpack + np.diff(before[self._csr.indptr]).astype(np.int64)
        compute = row_costs(self.counts, shortest)
        sizes, repeats = np.unique(np.asarray(positions), return_counts=True)
        total = np.zeros_like(unpack)
        for size, times in zip(sizes.tolist(), repeats.tolist(), strict=True):
            total += np.maximum(compute * size, unpack) * times
        return total


def balance_rows(
    costs: NDArray[np.int64], engines: int, most: int = 0
) -> list[NDArray[np.int64]]:
    """Deals rows out to engines, longest first, each to the engine with the least to do.

    Longest processing time first (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969): at
    most 4/3 of the optimum. All engines get their long rows first, so they read their interleaved
    streams at nearly the same pace.

    Parameters
    ----------
    costs : (rows,)    Cycles of each row.
    engines : int
    most : int         Rows that one engine may get; 0: any number.

    Returns
    -------
    For each engine its rows, in the order of work.
    """
    if as_int("engines", engines) < 1:
        raise ValueError(f"engines must be at least 1, not {engines}")
    if most and len(costs) > most * engines:
        raise ValueError(
            f"rows must be at most {most} for each of {engines} engines, not {len(costs)}"
        )
    rows: list[list[int]] = [[] for _ in range(engines)]
    load = [(0, e) for e in range(engines)]
    for row in np.argsort(-np.asarray(costs), kind="stable").tolist():
        done, engine = load[0]
        rows[engine].append(row)
        if most and len(rows[engine]) == most:
            heapq.heappop(load)
        else:
            heapq.heapreplace(load, (done + int(costs[row]), engine))
    return [np.array(r, np.int64) for r in rows]


def balance_tiles(
    costs: NDArray[np.int64], engines: int, most: int = 0
) -> list[NDArray[np.int64]]:
    """Deals rows out to engines for several EXECs in turn, each over with its last engine.

    Begins with `balance_rows` for the sums, then exchanges rows of two engines as long as that
    makes the engines more alike in every EXEC: steepest descent of the sum of squared loads.

    Parameters
    ----------
    costs : (execs, rows)    Cycles of each row in each EXEC.
    engines, most : int      As in `balance_rows`.

    Returns
    -------
    For each engine its rows, the longest first.
    """
    total = costs.sum(axis=0)
    assigned = balance_rows(total, engines, most)
    execs, rows = costs.shape
    if execs == 1 or engines == 1 or rows <= engines:
        return assigned
    owner = np.empty(rows, np.int64)
    for e, mine in enumerate(assigned):
        owner[mine] = e
    value = costs.astype(np.float64)
    loads = np.stack([value[:, mine].sum(axis=1) for mine in assigned], axis=1)
    squares = (value**2).sum(axis=0)
    work, quiet, turn = BALANCE_WORK, 0, 0
    enough = float(total.sum()) / engines * (1 + BALANCE_SLACK)
    while work > 0 and quiet < engines and loads.max(axis=1).sum() > enough:
        mine = np.flatnonzero(owner == turn)
        # An exchange of rows i and j moves d = value[j] - value[i] from j's engine to this one.
        lead = loads[:, [turn]] - loads[:, owner]
        gain = (value * lead).sum(axis=0) + squares
        change = (gain[None, :] - value[:, mine].T @ (lead + 2 * value)) + squares[mine, None]
        change[:, mine] = 0.0
        work -= 2 * execs * change.size
        best = int(change.argmin()) if change.size else 0
        if change.size and change.flat[best] < -0.5:
            i, j = int(mine[best // rows]), best % rows
            d = value[:, j] - value[:, i]
            loads[:, turn] += d
            loads[:, owner[j]] -= d
            owner[i], owner[j] = owner[j], owner[i]
            quiet = 0
        else:
            quiet += 1
            turn = (turn + 1) % engines
    order = np.argsort(-total, kind="stable")
    return [order[owner[order] == e] for e in range(engines)]


def balance(engine_rows: list[NDArray[np.int64]], costs: NDArray[np.int64]) -> float:
    """Returns the busy share of all engines until the last one is done; 1 if there is no work."""
    loads = [int(costs[rows].sum()) for rows in engine_rows]
    longest = max(loads, default=0)
    return sum(loads) / (longest * len(loads)) if longest else 1.0
