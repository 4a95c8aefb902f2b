# SPDX-License-Identifier: Apache-2.0
"""Turns linear layers into LOADs, EXECs and weight streams, and holds what they become."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .commands import COMMAND_BYTES, Exec, Load, OutputMode, StreamFormat
from .config import CoreConfig
from .csr import Csr
from .layer import LinearLayer
from .layout import Tensor, round_up
from .numerics import check_no_overflow
from .schedule import BlockCost, EntryCost, balance_tiles
from .stream import (
    BIAS_BITS,
    MAX_COUNT,
    MAX_OUT_OFFSET,
    SCALE_BITS,
    PackedStreams,
    entry_counts,
    pack,
)
from .tiling import Step, Tiling, choose_tiling, steps, store_cycles

if TYPE_CHECKING:
    from .conv_tiling import ConvTiling

__all__ = [
    "MAX_LINE_BEATS",
    "Builder",
    "Decision",
    "LayerCompiler",
    "LayerPlan",
    "PackedCache",
    "interleave",
    "row_bits",
]

#: Streams that were packed before, by layer, block and tiling.
PackedCache = dict[tuple[int, ...], list[PackedStreams]]

#: How a layer was cut, and the cycles that it should take.
Decision = tuple[Any, int]

MAX_LINE_BEATS = 65535


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer was compiled."""

    name: str
    fmt: StreamFormat
    tiling: "Tiling | ConvTiling"
    macs: int
    estimated_cycles: int


@dataclass(slots=True)
class Builder:
    """Collects commands and weights while layers are compiled."""

    config: CoreConfig
    commands: list[Load | Exec] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)
    loads: int = 0
    execs: int = 0
    # For each part of the buffer in use: how many EXECs must be complete before it is free.
    busy_until: list[tuple[int, int, int]] = field(default_factory=list)
    packed: list[PackedStreams] = field(default_factory=list)
    cache: PackedCache = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    # For each tensor, by address: groups and rows, and the EXECs that must be complete before these
    # rows of these groups are in memory.
    written: dict[int, list[tuple[range, range, int]]] = field(default_factory=dict)
    turn: int = 0

    def decide(self, index: int, choose: Callable[[], Decision]) -> Decision:
        """Returns how a layer is cut; chooses once."""
        if index not in self.decisions:
            self.decisions[index] = choose()
        return self.decisions[index]

    def take_region(self, words: int, regions: int) -> int:
        """Returns the first word of the part of the buffer whose turn it is, half or all of it."""
        config = self.config
        half = config.act_depth // 2 // config.line_words * config.line_words
        if regions == 1 or words > half:
            return 0
        self.turn += 1
        return self.turn % 2 * half

    def write_rows(self, tensor: int, groups: range, rows: range) -> None:
        """Notes that the EXECs so far write rows of some groups of a tensor."""
        self.written.setdefault(tensor, []).append((groups, rows, self.execs))

    def rows_written(self, tensor: int, groups: range, rows: range) -> int:
        """EXECs that must be complete before rows of a tensor are in memory; 0 of an input."""
        return max((n for g, r, n in self.written.get(tensor, ())
                    if g.start < groups.stop and groups.start < g.stop
                    and r.start < rows.stop and rows.start < r.stop), default=0)

    def put_weights(self, streams: PackedStreams) -> int:
        """Keeps streams; returns their offset from the first weight."""
        offset = len(self.weights)
        self.weights += streams.data
        self.weights += bytes(-len(self.weights) % COMMAND_BYTES)
        self.packed.append(streams)
        return offset

    def free_after(self, first: int, last: int) -> int:
        """EXECs that must be complete before the words ``first..last - 1`` may be overwritten."""
        return max((n for a, b, n in self.busy_until if a < last and first < b), default=0)

    def occupy(self, first: int, last: int, execs: int) -> None:
        """Notes that the words are read until ``execs`` EXECs are complete."""
        self.busy_until = [
            entry for entry in self.busy_until if not (first <= entry[0] and entry[1] <= last)
        ]
        self.busy_until.append((first, last, execs))


@dataclass(frozen=True, slots=True)
class _Piece:
    """The streams of one block of a layer: some rows, some columns."""

    first_row: int
    columns: slice
    offset: int
    streams: PackedStreams


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Channels of some positions in the activation buffer."""

    destination: int
    pitch: int
    loads: int  # of the list, up to this one


def _over_words(csr: Csr, source: Tensor, order: NDArray[np.int64] | None) -> Csr:
    """Turns columns, the inputs of a layer, into words of a group of the tensor that it reads."""
    if source.plane == 1 and order is None:
        return csr
    words = source.words if order is None else source.words[order]
    columns = words[csr.indices]
    sort = np.lexsort((columns, csr.rows_of_entries))
    return Csr((csr.shape[0], source.channels * source.plane), csr.indptr, columns[sort],
               csr.data[sort])


def _column_blocks(csr: Csr, tiles: Sequence[slice]) -> list[Csr]:
    """Cuts a matrix into tiles of consecutive columns, which together are all of its columns."""
    if len(tiles) == 1:
        return [csr]
    keys = csr.rows_of_entries * csr.shape[1] + csr.indices
    edges = np.array([*(tile.start for tile in tiles), csr.shape[1]])
    bounds = np.searchsorted(keys, np.arange(csr.shape[0])[:, None] * csr.shape[1] + edges)
    blocks = []
    for tile, first, last in zip(tiles, bounds.T[:-1], bounds.T[1:], strict=True):
        indptr = np.concatenate([[0], np.cumsum(last - first)])
        entries = np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], last - first)
        shape = csr.shape[0], tile.stop - tile.start
        blocks.append(Csr(shape, indptr, csr.indices[entries] - tile.start, csr.data[entries]))
    return blocks


def row_bits(layer: LinearLayer, has_bias: bool, target: Tensor) -> int:
    """Returns bits of a row's header and parameters, if as few EXECs as can be hold all rows."""
    count = min(int(layer.weights.row_lengths.max(initial=0)), MAX_COUNT)
    offset = min(layer.weights.shape[0] * target.plane, MAX_OUT_OFFSET)
    return (StreamFormat().fitting(count, offset).header_bits + BIAS_BITS * has_bias
            + SCALE_BITS * (layer.mode != OutputMode.RAW))


def interleave(rows: NDArray[np.int64], costs: NDArray[np.int64], config: CoreConfig,
               positions: int, word_cycles: float) -> NDArray[np.int64]:
    """Orders the rows of an engine, which come longest first, so that short ones hide.

    A row brings a word for each position, and the store takes one in ``word_cycles`` of each
    engine. Behind a row shorter than that words pile up; a longer one lets them drain. The next row
    is the shortest left as long as the engine can hold what it adds, else the longest.

    Parameters
    ----------
    rows : (n,)            Of the engine.
    costs : (all rows,)    Cycles of each row of the EXEC at one position.
    positions : int        Of the EXEC.
    word_cycles : float    Cycles from one word of an engine to the next if all engines store.
    """
    cycles = np.maximum(costs[rows], config.shortest_row_cycles).tolist()
    room = config.out_words * word_cycles / positions
    order = np.empty_like(rows)
    head, tail, piled = 0, len(rows) - 1, 0.0
    for k in range(len(rows)):
        more = word_cycles - cycles[tail]
        if (more <= 0 or piled + more > room) and cycles[head] > word_cycles:
            taken, head = head, head + 1
        else:
            taken, tail = tail, tail - 1
        order[k] = rows[taken]
        piled = max(0.0, piled + word_cycles - cycles[taken])
    return order


class LayerCompiler:
    """Cuts one layer into LOADs and EXECs."""

    def __init__(self, build: Builder, index: int, layer: LinearLayer, source: Tensor,
                 target: Tensor, order: NDArray[np.int64] | None = None) -> None:
        self.build, self.index, self.layer, self.config = build, index, layer, build.config
        self.source, self.target, self._order = source, target, order
        self.turn = 0
        # Biases that are all zero cost bits and cycles, and add nothing.
        self.bias = layer.bias if layer.bias is not None and layer.bias.any() else None
        self.row_bits = row_bits(layer, self.bias is not None, target)
        (self.tiling, self._nonzeros), self.estimated = build.decide(index, self._choose)
        self.fmt = StreamFormat(weight_bits=layer.weight_bits)
        self.columns = self.tiling.column_tiles(source.channels * source.plane)

    def _choose(self) -> Decision:
        """Checks the layer and chooses how it is cut."""
        layer, config, weights = self.layer, self.config, self.weights
        check_no_overflow(layer.weights, layer.bias, config.acc_width)
        tiling, cycles = choose_tiling(
            weights.without_zeros(), config, self.source.groups,
            entry=EntryCost.of(weights, layer.weight_bits), row_bits=self.row_bits,
            raw=layer.mode == OutputMode.RAW, name=layer.name, plane=self.target.plane)
        nonzeros = int(entry_counts(weights, layer.weight_bits).sum())
        return (tiling, nonzeros), cycles

    @cached_property
    def weights(self) -> Csr:
        """The matrix over the words of a group of the tensor that the layer reads."""
        return _over_words(self.layer.weights, self.source, self._order)

    @cached_property
    def _filled(self) -> NDArray[np.bool_]:
        return self.layer.weights.filled_rows

    def plan(self) -> LayerPlan:
        """Returns what was decided."""
        return LayerPlan(self.layer.name, self.fmt, self.tiling,
                         self._nonzeros * self.source.columns, self.estimated)

    def _pack_rows(self, r: int) -> list[_Piece]:
        """Streams of one row tile, one for each column tile."""
        tiling = self.tiling
        rows = tiling.row_tiles[r].rows
        rows = rows[self._filled[rows]]  # the others are written once; see `Program.fills`
        sizes = tiling.positions if tiling.row_tiles[r].replayed else (1,)
        key = (self.index, r, len(rows), int(rows.sum()), tiling.columns, tiling.rows_per_engine,
               max(sizes) == 1)
        if key not in self.build.cache:
            selected = self.weights.take_rows(rows)
            blocks = _column_blocks(selected, self.columns)
            self.build.cache[key] = self._pack_blocks(blocks, rows, sizes)
        first_row = int(rows[0]) if len(rows) else 0
        return [
            _Piece(first_row, columns, self.build.put_weights(streams), streams)
            for columns, streams in zip(self.columns, self.build.cache[key], strict=True)
        ]

    def _pack_blocks(self, blocks: list[Csr], rows: NDArray[np.int64],
                     sizes: tuple[int, ...]) -> list[PackedStreams]:
        """Packs the blocks of some rows; ``sizes`` are the positions of their EXECs.

        Engines get the same rows in all blocks, as partial sums stay in an engine.
        """
        config, most = self.config, max(sizes)
        parts = [BlockCost(block, self.layer.weight_bits, self.row_bits) for block in blocks]
        formats = [part.choose(most, config) for part in parts]
        costs = np.array([part.cycles(fmt, sizes, config.lanes)
                          for part, fmt in zip(parts, formats, strict=True)])
        counts = np.sum([part.counts for part in parts], axis=0)
        word_cycles = config.engines * store_cycles(self.target.word_bytes, config)
        assigned = [interleave(mine, counts, config, most, word_cycles) for mine in balance_tiles(
            costs, config.engines, self.tiling.rows_per_engine)]
        return [self._pack_block(block, rows, assigned, fmt, c)
                for c, (block, fmt) in enumerate(zip(blocks, formats, strict=True))]

    def _pack_block(self, block: Csr, rows: NDArray[np.int64],
                    assigned: list[NDArray[np.int64]], fmt: StreamFormat, c: int
                    ) -> PackedStreams:
        """Packs one block: the bias goes with the first column tile, the scale with the last."""
        layer, config = self.layer, self.config

        def part(vector: NDArray | None, wanted: bool) -> NDArray | None:
            return vector[rows] if wanted and vector is not None else None

        is_last = c == len(self.columns) - 1
        return pack(
            block, assigned, fmt, engines=config.engines, bus_bytes=config.bus_bytes,
            out_offsets=(rows - rows[0]) * self.target.plane if len(rows) else rows,
            bias=part(self.bias, c == 0), multiplier=part(layer.multiplier, is_last),
            shift=part(layer.shift, is_last))

    def compile(self, weights_address: int) -> None:
        """Emits the commands of the layer."""
        tiling = self.tiling
        pieces = [self._pack_rows(r) for r in range(len(tiling.row_tiles))]
        self.fmt = pieces[0][0].streams.fmt
        starts = np.cumsum((0, *tiling.positions))
        loaded = _Loaded(0, 0, 0)
        for step in steps(tiling, len(self.columns)):
            piece = pieces[step.row_tile][step.column_tile]
            start, size = int(starts[step.tile]), tiling.positions[step.tile]
            if step.loads:
                loaded = self._load(piece.columns, start, size)
            self._exec(piece, loaded, step, start + step.first, weights_address)
            if step.is_last_of_tile:
                self.build.write_rows(self.target.address, range(start, start + size), range(1))

    def _region(self, pitch: int) -> int:
        """First word of the part of the buffer whose turn it is."""
        tiling, line = self.tiling, self.config.line_words
        if tiling.resident:
            starts = np.cumsum((0, *tiling.positions)) * pitch
        else:
            starts = np.arange(tiling.regions) * (self.config.act_depth // tiling.regions
                                                  // line * line)
            if self.turn == 0:  # begin where the layer before is done first
                words = max(tiling.positions) * pitch
                self.turn = min(range(tiling.regions), key=lambda slot: self.build.free_after(
                    int(starts[slot]), int(starts[slot]) + words))
        slot = self.turn % tiling.regions
        self.turn += 1
        return int(starts[slot])

    def _load(self, columns: slice, first: int, positions: int) -> _Loaded:
        """Loads channels of some positions."""
        config, source, build = self.config, self.source, self.build
        pitch = round_up(max(columns.stop - columns.start, 1), config.line_words)
        destination = self._region(pitch)
        beats = pitch * config.lanes // config.bus_bytes
        # Whole positions lie one behind the other: one long line.
        whole = pitch == source.pitch and beats * positions <= MAX_LINE_BEATS
        lines, line_beats = (1, beats * positions) if whole else (positions, beats)
        last = destination + pitch * positions
        ready = build.rows_written(source.address, range(first, first + positions),
                                   range(source.height))
        build.commands.append(Load(
            address=source.address + (first * source.pitch + columns.start) * source.word_bytes,
            destination=destination,
            line_beats=line_beats, lines=lines, stride=source.group_bytes,
            wait=max(ready, build.free_after(destination, last))))
        build.loads += 1
        return _Loaded(destination, pitch, build.loads)

    def _exec(self, piece: _Piece, loaded: _Loaded, step: Step, position: int,
              weights_address: int) -> None:
        build, layer, target = self.build, self.layer, self.target
        c, is_last = step.column_tile, step.column_tile == len(self.columns) - 1
        base = loaded.destination + step.first * loaded.pitch
        # Partial sums are not stored; the tensor's own address suits words of any size.
        output = target.word_address(position, piece.first_row) if is_last else target.address
        build.commands.append(Exec(
            weights=weights_address + piece.offset, beats=piece.streams.beats, output=output,
            base=base, limit=max(piece.columns.stop - piece.columns.start, 1),
            positions=step.positions, width=step.positions, step=loaded.pitch, wrap_step=0,
            out_step=target.pitch, out_wrap_step=0, format=piece.streams.fmt,
            has_bias=self.bias is not None and c == 0,
            mode=layer.mode if is_last else OutputMode.RAW, psum_in=c > 0, psum_out=not is_last,
            zero_point=layer.zero_point, low=layer.low, high=layer.high, wait=loaded.loads))
        build.execs += 1
        build.occupy(base, base + loaded.pitch * step.positions, build.execs)
