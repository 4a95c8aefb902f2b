# SPDX-License-Identifier: Apache-2.0
"""The core that fits a board and runs a network in the fewest predicted cycles."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer
from sparsemac.cycles import predict_cycles
from sparsemac.graph import Graph, Layer
from sparsemac.partition import DeviceStage, columns_of, partition
from sparsemac.precompile import Compiled, compile_graph, samples_of
from sparsemac.tiling import EXEC_OVERHEAD_CYCLES

from .fit import FILL, GROWTH, LANES, ROOMY, Fit, Search, grown, largest
from .registry import Board

__all__ = ["TRIES", "NetworkFit", "fastest"]

#: Configurations that the cycle model is asked about.
TRIES = 6

#: Partial sums and entries that are tried together for a network.
BUFFERS = ((512, 512), (2048, 512), (8192, 512), (512, 1024), (512, 4096), (2048, 2048))

#: Bits of an entry and of a row's header in the weight streams, as they are on average; used only
#: to tell which configurations are worth asking the cycle model about.
ENTRY_BITS, ROW_BITS = 14, 100

#: How far off the rough estimate may be.
ROUGHLY = 2.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFit(Fit):
    """The configuration on which a network is fastest.

    Attributes
    ----------
    batch : int              Samples that run at a time.
    cycles : int             Predicted for the batch.
    compiled : Compiled
    host_macs : int          Multiply-accumulates of layers that the core cannot hold.
    memory_bytes : int       That the programs need; the board may have less.
    """

    batch: int
    cycles: int
    compiled: Compiled
    host_macs: int
    memory_bytes: int

    def time_shares(self) -> dict[str, float]:
        """Where the engines' cycles go: shares by cause; "computing" is what is not lost."""
        total, lost = 0, dict[str, float]()
        for item in self.compiled.programs:
            estimate = predict_cycles(item.program, self.config)
            total += estimate.cycles
            for name, share in estimate.stalls.items():
                lost[name] = lost.get(name, 0.0) + share * estimate.cycles
        shares = {name: cycles / total for name, cycles in lost.items()}
        return {"computing": 1 - sum(shares.values()), **shares}


@dataclass(frozen=True, slots=True)
class _Work:
    """What one layer asks of a core: samples, and entries and rows at each position of its map.

    ``strips`` is how many a sample's map is cut into, by the lanes of a core that can do that.
    """

    columns: int
    height: int
    width: int
    entries: int
    rows: int
    longest: int
    input_words: int
    strips: dict[int, int]

    def least_cycles(self, config: CoreConfig) -> float:
        """What the entries take if every lane has work; no core is faster."""
        together = min(config.lanes, self.columns * (self.height if config.shifts else 1))
        return self.columns * self.height * self.width * self.entries / config.engines / together

    def cycles(self, config: CoreConfig) -> float:
        """A rough estimate: what the engines, the weights and the activations take.

        Infinite if a row is too long to be replayed, and no tile of it fits.
        """
        strips = self.strips[config.lanes] if config.shifts else 1
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


def _strips_of(stage: DeviceStage, columns: int) -> dict[int, int]:
    """Into how many strips the compiler cuts the maps of a stage, by the lanes there are."""
    cores = (CoreConfig(lanes=lanes, bus_width=512) for lanes in LANES)
    return {core.lanes: stage.segment.cut(columns, core).strips for core in cores}


def _work_of(graph: Graph, batch: int) -> list[_Work]:
    times = batch // samples_of(graph) if graph.batchable else 1
    works = []
    for stage in partition(graph):
        if isinstance(stage, DeviceStage):
            columns = max(columns_of(graph, stage.nodes[0]) or 1, 1) * times
            strips = _strips_of(stage, columns)
            works += [_work(node.layer, columns, strips)
                      for node in stage.nodes if node.layer is not None]
    return works


def _work(layer: Layer, columns: int, strips: dict[int, int]) -> _Work:
    if isinstance(layer, ConvLayer):
        g = layer.geometry
        csr, height, width = layer.expanded.without_zeros(), g.out_height, g.out_width
        words = g.channels * g.height * g.width
    else:
        csr, height, width = layer.weights.without_zeros(), 1, 1
        words = layer.weights.shape[1]
    longest = int((csr.indptr[1:] - csr.indptr[:-1]).max()) if csr.shape[0] else 0
    return _Work(columns, height, width, csr.nnz, max(csr.shape[0], 1), longest, words,
                 strips)


def _candidates(search: Search, most_lanes: int) -> Iterator[CoreConfig]:
    """The most engines with all else given; no more lanes than any layer has work for."""
    enough = 1 << (most_lanes - 1).bit_length()
    for bus_width in (w for w in GROWTH["bus_width"] if w >= ROOMY["bus_width"]):
        for act_depth in (n for n in GROWTH["act_depth"] if n >= ROOMY["act_depth"]):
            for psum_depth, entry_depth in BUFFERS:
                yield from search.shapes(
                    {**ROOMY, "bus_width": bus_width, "act_depth": act_depth,
                     "psum_depth": psum_depth, "entry_depth": entry_depth}, enough)


def fastest(board: Board, graph: Graph, batch: int, fill: int = FILL, *,
            tries: int = TRIES, progress: Progress | None = None) -> NetworkFit:
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
    search = Search(board, fill)
    works = _work_of(graph, batch)
    if not works:
        raise ValueError(f"network must have a layer that a core runs, {graph.name} has none")
    candidates = dict.fromkeys(
        _candidates(search, max(w.columns * max(w.strips.values()) for w in works)))
    if not candidates:  # what is left is tight, or nothing
        candidates = {largest(board, fill).config: None}

    best: NetworkFit | None = None

    def ask(config: CoreConfig) -> None:
        nonlocal best
        least = sum(work.least_cycles(config) for work in works)
        if best is not None and not best.host_macs and least >= best.cycles:
            return
        found = _run(search, graph, config, batch)
        if progress is not None:
            progress(f"{config.engines} x {config.lanes}, {config.bus_width}-bit bus, act_depth "
                     f"{config.act_depth}, psum_depth {config.psum_depth}: {found.cycles} cycles")
        if best is None or (found.host_macs, found.cycles) < (best.host_macs, best.cycles):
            best = found

    chosen = _most_promising(candidates, works)[:max(1, tries - 1)]
    for config in chosen:
        ask(config)
    assert best is not None
    if (larger := grown(search, best.config)) not in chosen:
        ask(larger)
    if not best.cycles:
        reasons = "; ".join(p.reason for p in best.compiled.placed if p.macs and p.reason)
        raise ValueError(f"network must have a layer that a core of {board.name} can hold: "
                         f"{reasons}")
    return best


def _most_promising(candidates: Iterable[CoreConfig], works: list[_Work]) -> list[CoreConfig]:
    """Sorts by the rough estimate, one of each number of lanes first, if it is near the best.

    Of those that differ in the sizes of their buffers only, one is left.
    """
    def rough(config: CoreConfig) -> tuple[float, ...]:
        cycles = [work.cycles(config) for work in works]
        possible = [c for c in cycles if c < math.inf]
        return (len(cycles) - len(possible), sum(possible), -config.act_depth,
                config.psum_depth + config.entry_depth, config.bus_width, config.lanes,
                config.engines)

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


def _run(search: Search, graph: Graph, config: CoreConfig, batch: int) -> NetworkFit:
    fit = search.result(config)
    compiled = compile_graph(graph, config, batch)
    ends = [item.program.end for item in compiled.programs]
    return NetworkFit(
        board=fit.board, config=config, area=fit.area, fill=fit.fill, batch=batch,
        cycles=sum(p.cycles for p in compiled.placed), compiled=compiled,
        host_macs=sum(p.macs for p in compiled.placed if p.where == "host"),
        memory_bytes=max(ends, default=0) - compiled.memory_base)
