# SPDX-License-Identifier: Apache-2.0
"""Which engine computes which row."""

import heapq

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int

__all__ = ["balance", "balance_rows", "row_costs"]


def row_costs(counts: NDArray[np.int64], shortest: int) -> NDArray[np.int64]:
    """Returns (rows,) cycles that a row takes at each position.

    One cycle for each entry, but no fewer than ``shortest``: `CoreConfig.shortest_row_cycles` for a
    row among longer ones, the lanes if many short rows follow one another, since results leave an
    engine one per cycle.
    """
    return np.maximum(np.maximum(counts, shortest), 1)


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


def balance(engine_rows: list[NDArray[np.int64]], costs: NDArray[np.int64]) -> float:
    """Returns the busy share of all engines until the last one is done; 1 if there is no work."""
    loads = [int(costs[rows].sum()) for rows in engine_rows]
    longest = max(loads, default=0)
    return sum(loads) / (longest * len(loads)) if longest else 1.0
