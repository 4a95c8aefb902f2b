# SPDX-License-Identifier: Apache-2.0
"""Which cores fit a board, and the best of them: the largest, or the fastest for a network.

What a core takes is predicted (`area`). A design that uses up a device cannot be routed, so only a
share of the LUTs and flip-flops may be used; of multipliers and block memories all.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sparsemac._checks import as_int_in
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer
from sparsemac.cycles import predict_cycles
from sparsemac.graph import Graph
from sparsemac.partition import columns_of
from sparsemac.precompile import Compiled, compile_graph, samples_of
from sparsemac.tiling import EXEC_OVERHEAD_CYCLES

from .area import Area, multipliers, predict_area
from .registry import Board

__all__ = [
    "FILL",
    "NETWORK_TRIES",
    "DoesNotFit",
    "Fit",
    "NetworkFit",
    "Resource",
    "fastest",
    "largest",
    "resources",
]

#: Share of LUTs and flip-flops that may be used [%].
FILL = 85

#: Configurations that the cycle model is asked about.
NETWORK_TRIES = 6

LANES = tuple(1 << k for k in range(7))
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

#: Partial sums and entries that are tried together for a network.
BUFFERS = ((512, 512), (2048, 512), (8192, 512), (512, 1024), (512, 4096), (2048, 2048))

#: Bits of an entry and of a row's header in the weight streams, as they are on average; used only
#: to tell which configurations are worth asking the cycle model about.
ENTRY_BITS, ROW_BITS = 14, 100

#: How far off the rough estimate may be.
ROUGHLY = 2.0

Progress = Callable[[str], None]


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
class NetworkFit:
    """How a network runs on a configuration.

    Attributes
    ----------
    batch : int              Samples that run at a time.
    cycles : int             Predicted for the batch.
    compiled : Compiled      For the configuration.
    host_macs : int          Multiply-accumulates of layers that the core cannot hold.
    memory_bytes : int       That the programs need; the board may have less.
    """

    batch: int
    cycles: int
    compiled: Compiled
    host_macs: int
    memory_bytes: int

    def time_shares(self, config: CoreConfig) -> dict[str, float]:
        """Where the engines' cycles go: shares by cause; "computing" is what is not lost."""
        total, lost = 0, dict[str, float]()
        for item in self.compiled.programs:
            estimate = predict_cycles(item.program, config)
            total += estimate.cycles
            for name, share in estimate.stalls.items():
                lost[name] = lost.get(name, 0.0) + share * estimate.cycles
        if not total:
            return {}
        shares = {name: cycles / total for name, cycles in lost.items()}
        return {"computing": 1 - sum(shares.values()), **shares}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A configuration that fits a board.

    Attributes
    ----------
    board : Board
    config : CoreConfig
    area : Area                     With the system around the core.
    fill : int                      Share of LUTs and flip-flops that may be used [%].
    network : NetworkFit or None
    """

    board: Board
    config: CoreConfig
    area: Area
    fill: int
    network: NetworkFit | None = None

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


class _Search:
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

    def result(self, config: CoreConfig, network: NetworkFit | None = None) -> Fit:
        area = predict_area(config, self.board.memory_bytes)
        return Fit(board=self.board, config=config, area=area, fill=self.fill, network=network)

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
    search = _Search(board, fill)
    shapes = _shapes(search, ROOMY) or _shapes(search, LEAST)
    if not shapes:
        raise search.refuse()
    most = max(config.macs for config in shapes)
    shapes = [config for config in shapes if config.macs == most]
    deepest = max(config.act_depth for config in shapes)
    grown = [_grown(search, config) for config in shapes if config.act_depth == deepest]
    return search.result(max(grown, key=_size))


def _shapes(search: _Search, least: Mapping[str, int]) -> list[CoreConfig]:
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


def _grown(search: _Search, config: CoreConfig) -> CoreConfig:
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


# -- for a network ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    """What one layer asks of a core: samples, and entries and rows at each position of its map."""

    columns: int
    height: int
    width: int
    entries: int
    rows: int
    longest: int
    input_words: int

    def least_cycles(self, config: CoreConfig) -> float:
        """What the entries take if every lane has work; no core is faster."""
        together = min(config.lanes, self.columns * (self.height if shifts(config) else 1))
        return self.columns * self.height * self.width * self.entries / config.engines / together

    def cycles(self, config: CoreConfig) -> float:
        """A rough estimate: what the engines, the weights and the activations take.

        Infinite if a row is too long to be replayed, and no tile of it fits.
        """
        strips = 1
        while shifts(config) and strips < config.lanes and self.height % (2 * strips) == 0:
            strips *= 2
        groups = math.ceil(self.columns * strips / config.lanes)
        positions = self.height * self.width // strips
        words = math.ceil(self.input_words / strips)
        tiles = math.ceil(words / config.act_depth)
        if positions > 1 and self.longest > config.entry_depth * tiles:
            return math.inf
        if tiles > 1 and self.longest > 1 and not config.psum_depth:
            return math.inf
        each = max(self.entries, self.rows * config.shortest_row_cycles)
        busy = groups * positions * each / min(config.engines, self.rows * positions)
        bits = self.entries * ENTRY_BITS + self.rows * ROW_BITS
        passes = groups if positions == 1 else groups * tiles
        traffic = (bits * passes / config.bus_width
                   + groups * words * config.lanes / config.bus_bytes)
        return max(busy, traffic) + groups * tiles * EXEC_OVERHEAD_CYCLES


def shifts(config: CoreConfig) -> bool:
    """Whether strips of one sample's map can take a lane each."""
    return 1 < config.lanes <= config.bus_bytes


def _work_of(graph: Graph, batch: int) -> list[_Work]:
    times = batch // samples_of(graph) if graph.batchable else 1
    works = []
    for node in graph.nodes:
        layer = node.layer
        if layer is None:
            continue
        columns = (columns_of(graph, node) or 1) * times
        if isinstance(layer, ConvLayer):
            g = layer.geometry
            csr, height, width = layer.expanded.without_zeros(), g.out_height, g.out_width
            words = g.channels * g.height * g.width
        else:
            csr, height, width = layer.weights.without_zeros(), 1, 1
            words = layer.weights.shape[1]
        longest = int((csr.indptr[1:] - csr.indptr[:-1]).max()) if csr.shape[0] else 0
        works.append(_Work(max(columns, 1), height, width, csr.nnz, max(csr.shape[0], 1), longest,
                           words))
    return works


def _candidates(search: _Search, most_lanes: int) -> Iterator[CoreConfig]:
    """The most engines with all else given; no more lanes than any layer has work for."""
    enough = 1 << (most_lanes - 1).bit_length()
    for bus_width in (w for w in GROWTH["bus_width"] if w >= ROOMY["bus_width"]):
        for act_depth in (n for n in GROWTH["act_depth"] if n >= ROOMY["act_depth"]):
            for psum_depth, entry_depth in BUFFERS:
                yield from search.shapes(
                    {**ROOMY, "bus_width": bus_width, "act_depth": act_depth,
                     "psum_depth": psum_depth, "entry_depth": entry_depth}, enough)


def fastest(board: Board, graph: Graph, batch: int, fill: int = FILL, *,
            tries: int = NETWORK_TRIES, progress: Progress | None = None) -> Fit:
    """Finds the configuration that runs a network in the fewest predicted cycles.

    All candidates are estimated roughly; the cycle model decides among the best, and whether larger
    buffers help that one.

    Parameters
    ----------
    board : Board
    graph : Graph
    batch : int            Samples that run at a time; see `sparsemac.precompile.samples_of`.
    fill : int             Share of LUTs and flip-flops that may be used [%].
    tries : int            Configurations that the cycle model is asked about.
    progress : function    Called with each of them, and what it takes.

    Raises
    ------
    DoesNotFit    If no configuration does.
    ValueError    If no layer of the network can run on a core.
    """
    search = _Search(board, fill)
    works = _work_of(graph, batch)
    if not works:
        raise ValueError(f"network must have a layer that a core runs, {graph.name} has none")
    candidates = set(_candidates(search, max(work.columns * work.height for work in works)))
    if not candidates:  # what is left is tight, or nothing
        candidates = {largest(board, fill).config}

    chosen = _most_promising(candidates, works)[:max(1, tries - 1)]
    best: tuple[tuple[int, int], CoreConfig, NetworkFit] | None = None
    for k in range(len(chosen) + 1):
        if k == len(chosen):  # what the best one leaves free, for buffers
            assert best is not None
            chosen.append(_grown(search, best[1]))
            if chosen[-1] in chosen[:-1]:
                break
        config = chosen[k]
        if best is not None and not best[0][0] and (
                sum(work.least_cycles(config) for work in works) >= best[0][1]):
            continue
        found = _run(graph, config, batch)
        if progress is not None:
            progress(f"{config.engines} x {config.lanes}, {config.bus_width}-bit bus, act_depth "
                     f"{config.act_depth}, psum_depth {config.psum_depth}: {found.cycles} cycles")
        key = (found.host_macs, found.cycles)
        if best is None or key < best[0]:
            best = key, config, found
    assert best is not None
    if not best[2].cycles:
        reasons = "; ".join(p.reason for p in best[2].compiled.placed if p.macs and p.reason)
        raise ValueError(f"network must have a layer that a core of {board.name} can hold: "
                         f"{reasons}")
    return search.result(best[1], best[2])


def _most_promising(candidates: Iterable[CoreConfig], works: list[_Work]) -> list[CoreConfig]:
    """Sorts by the rough estimate, one of each number of lanes first, if it is near the best.

    Of those that differ in the sizes of their buffers only, one is left.
    """
    def rough(config: CoreConfig) -> tuple[float, ...]:
        cycles = [work.cycles(config) for work in works]
        possible = [c for c in cycles if c < math.inf]
        return (len(cycles) - len(possible), sum(possible), -config.act_depth,
                config.psum_depth + config.entry_depth, config.bus_width, config.lanes)

    ranked = sorted(((rough(c), c) for c in candidates), key=lambda pair: pair[0])
    kept = {}
    for key, config in ranked:
        kept.setdefault((config.engines, config.lanes, config.bus_width), (key, config))
    least = ranked[0][0]
    first, seen = [], set()
    for key, config in kept.values():
        if config.lanes not in seen and key[0] == least[0] and key[1] <= ROUGHLY * least[1]:
            seen.add(config.lanes)
            first.append(config)
    return first + [config for _, config in kept.values() if config not in first]


def _run(graph: Graph, config: CoreConfig, batch: int) -> NetworkFit:
    compiled = compile_graph(graph, config, batch)
    ends = [item.program.end for item in compiled.programs]
    return NetworkFit(
        batch=batch, cycles=sum(p.cycles for p in compiled.placed), compiled=compiled,
        host_macs=sum(p.macs for p in compiled.placed if p.where == "host"),
        memory_bytes=max(ends, default=0) - compiled.memory_base)
