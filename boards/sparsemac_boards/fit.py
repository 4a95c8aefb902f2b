# SPDX-License-Identifier: Apache-2.0
"""Which cores fit a board, and the largest of them.

What a core takes is predicted (`area`). A design that uses up a device cannot be routed, so only a
share of the LUTs and flip-flops may be used; of multipliers and block memories all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparsemac._checks import as_int_in
from sparsemac.config import CoreConfig

from .area import Area, multipliers, predict_area
from .registry import Board

__all__ = [
    "FILL",
    "GROWTH",
    "LANES",
    "ROOMY",
    "DoesNotFit",
    "Fit",
    "Resource",
    "Search",
    "grown",
    "largest",
    "resources",
]

#: Share of LUTs and flip-flops that may be used [%].
FILL = 85

LANES = tuple(1 << k for k in range(8))
MOST_ENGINES = 64

#: What else may be, and the order in which it is made larger.
GROWTH = {
    "act_depth": tuple(1 << k for k in range(6, 17)),
    "acc_width": (16, 24, 32),
    "bus_width": (32, 64, 128, 256, 512),
    "psum_depth": (0, *(1 << k for k in range(4, 14))),
    "entry_depth": tuple(1 << k for k in range(4, 13)),
    "counters": (False, True),
    "windows": (1, 4),
    "fifo_depth": (4, 8, 16),
    "burst_beats": (1, 2, 4, 8, 16),
}

#: Where the search begins. A block memory holds 512 entries or partial sums, and 2048 activations
#: of a lane, so there is little to save below the first; the second is the least that is legal.
ROOMY = {"bus_width": 64, "act_depth": 512, "psum_depth": 512, "entry_depth": 512,
         "burst_beats": 16, "fifo_depth": 16}
LEAST = {"bus_width": 32, "act_depth": 64, "psum_depth": 0, "entry_depth": 16, "acc_width": 16,
         "burst_beats": 1, "fifo_depth": 4, "windows": 1, "counters": False}


class DoesNotFit(ValueError):
    """No configuration fits the board; the message names the limit and by how much it is missed."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of cell of a device.

    Attributes
    ----------
    name : str          "LUTs", "flip-flops", "multipliers" or "block RAMs".
    used : int          By the core and the board's system around it.
    usable : int        That may be used.
    available : int     That there are.
    """

    name: str
    used: int
    usable: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A configuration that fits a board.

    Attributes
    ----------
    board : Board
    config : CoreConfig
    area : Area                     With the system around the core.
    fill : int                      Share of LUTs and flip-flops that may be used [%].
    """

    board: Board
    config: CoreConfig
    area: Area
    fill: int

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All kinds of cells."""
        return resources(self.board, self.area, self.fill)


def resources(board: Board, area: Area, fill: int) -> tuple[Resource, ...]:
    """Compares what an area takes with what a board has."""
    part = board.part
    return (
        Resource("LUTs", area.luts, part.luts * fill // 100, part.luts),
        Resource("flip-flops", area.flip_flops, part.flip_flops * fill // 100, part.flip_flops),
        Resource("multipliers", area.multipliers, part.multipliers, part.multipliers),
        Resource("block RAMs", area.block_rams, part.block_rams, part.block_rams),
    )


def _make(engines: int, lanes: int, values: Mapping[str, int]) -> CoreConfig | None:
    """A configuration whose FIFOs hold two bursts; None if it is not legal."""
    values = dict(values)
    values["burst_beats"] = min(values["burst_beats"], 4096 // (values["bus_width"] // 8))
    while values["fifo_depth"] * engines < 2 * values["burst_beats"]:
        values["fifo_depth"] *= 2
    try:
        return CoreConfig.from_dict({"engines": engines, "lanes": lanes, **values})
    except ValueError:
        return None


class Search:
    """Tells what fits a board."""

    def __init__(self, board: Board, fill: int) -> None:
        self.board, self.fill = board, as_int_in("fill", fill, 1, 100)

    def fits(self, config: CoreConfig | None) -> bool:
        if config is None or multipliers(config) > self.board.part.multipliers:
            return False
        return all(r.used <= r.usable for r in self.resources(config))

    def resources(self, config: CoreConfig) -> tuple[Resource, ...]:
        area = predict_area(config, self.board.memory_bytes)
        return resources(self.board, area, self.fill)

    def most_engines(self, lanes: int, values: Mapping[str, int]) -> CoreConfig | None:
        """The most engines that fit, by bisection; None if not even one does."""
        fitting, beyond = 0, MOST_ENGINES + 1
        best = None
        while beyond - fitting > 1:
            engines = (fitting + beyond) // 2
            config = _make(engines, lanes, values)
            if self.fits(config):
                fitting, best = engines, config
            else:
                beyond = engines
        return best

    def shapes(self, values: Mapping[str, int], most_lanes: int = LANES[-1]) -> list[CoreConfig]:
        """The most engines for each number of lanes."""
        found = (self.most_engines(lanes, values) for lanes in LANES if lanes <= most_lanes)
        return [config for config in found if config is not None]

    def result(self, config: CoreConfig) -> Fit:
        area = predict_area(config, self.board.memory_bytes)
        return Fit(board=self.board, config=config, area=area, fill=self.fill)

    def refuse(self) -> DoesNotFit:
        """Says by which limit the smallest configuration misses."""
        smallest = _make(1, 1, LEAST)
        assert smallest is not None
        over = [r for r in self.resources(smallest) if r.used > r.usable]
        worst = max(over, key=lambda r: r.used / max(r.usable, 1))
        text = (f"no configuration fits {self.board.name}: the smallest, 1 engine x 1 lane, takes "
                f"{worst.used} {worst.name} with the system around it, "
                f"{worst.used - worst.usable} more than the {worst.usable} that may be used of "
                f"{worst.available}")
        # More of the device may be used, unless all of it would not do.
        if all(r.used <= r.available for r in over):
            needed = max(math.ceil(100 * r.used / r.available) for r in over)
            return DoesNotFit(f"{text} (nearest legal fill: {needed} %)")
        return DoesNotFit(f"{text} (nearest legal value: a device with {worst.used})")


def largest(board: Board, fill: int = FILL) -> Fit:
    """Finds the configuration of most multiply-accumulates per cycle.

    Of those, the one with the deepest activation buffer; then the bus, the partial sums and the
    entry buffer are made as large as there is room for. Buffers for less than 512 partial sums and
    entries, and a core without counters, only if nothing else fits.

    Parameters
    ----------
    board : Board
    fill : int       Share of LUTs and flip-flops that may be used [%].

    Raises
    ------
    DoesNotFit    If none does.
    """
    search = Search(board, fill)
    shapes = _shapes(search, ROOMY) or _shapes(search, LEAST)
    if not shapes:
        raise search.refuse()
    most = max(config.macs for config in shapes)
    shapes = [config for config in shapes if config.macs == most]
    deepest = max(config.act_depth for config in shapes)
    found = [grown(search, config) for config in shapes if config.act_depth == deepest]
    return search.result(max(found, key=_size))


def _shapes(search: Search, least: Mapping[str, int]) -> list[CoreConfig]:
    """The most engines for each number of lanes, bus and activation buffer.

    A deeper buffer may take fewer block memories, where yosys made slices of a shallow one, and so
    may a wider bus.
    """
    return [config for bus_width in GROWTH["bus_width"] if bus_width >= least["bus_width"]
            for act_depth in GROWTH["act_depth"]
            for config in search.shapes({**least, "bus_width": bus_width, "act_depth": act_depth})]


def _size(config: CoreConfig) -> tuple[int, ...]:
    return (config.act_depth, config.bus_width, config.psum_depth, config.entry_depth,
            config.lanes)


def grown(search: Search, config: CoreConfig) -> CoreConfig:
    """The configuration with each parameter in turn as large as fits."""
    for name, values in GROWTH.items():
        for value in sorted(values, reverse=True):
            if value <= getattr(config, name):
                break
            try:
                larger = config.replace(**{name: value})
            except ValueError:
                continue
            if search.fits(larger):
                config = larger
                break
    return config
