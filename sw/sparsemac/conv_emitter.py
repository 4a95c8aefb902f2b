# SPDX-License-Identifier: Apache-2.0
"""Turns a convolution into LOADs, EXECs and weight streams."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .commands import Exec, Load, OutputMode, Shift, StreamFormat
from .conv import ConvLayer
from .conv_tiling import ConvTiling, ConvView, Pass, choose_conv_tiling, row_store_cycles
from .csr import Csr
from .emitter import MAX_LINE_BEATS, Builder, LayerPlan, interleave, row_bits
from .layout import Tensor
from .numerics import check_no_overflow
from .schedule import BlockCost, EntryCost, balance_tiles
from .stream import PackedStreams, pack

__all__ = ["ConvCompiler"]


def _upright(layer: ConvLayer, source: Tensor, target: Tensor
             ) -> tuple[ConvLayer, Tensor, Tensor]:
    """Turns maps of one row into maps of one column, which lie in memory alike.

    Rows can be cut into bands and blocks. Strips are of rows, so their maps stay as they are.
    """
    g = layer.geometry
    flat = g.height == 1 and g.kernel[0] == 1 and not (source.pads[0] or source.pads[2])
    if not flat or source.strips > 1 or target.pads[0] or target.pads[2]:
        return layer, source, target
    turned = replace(
        g, height=g.width, width=1, kernel=g.kernel[::-1], stride=g.stride[::-1],
        dilation=g.dilation[::-1], padding=(g.padding[1], 0, g.padding[3], 0))
    source, target = (
        replace(t, height=t.width, width=1, pads=(t.pads[1], 0, t.pads[3], 0),
                strip_height=t.width)
        for t in (source, target))
    return replace(layer, geometry=turned, one_dimensional=False), source, target


def _within(rows: range, part: slice) -> slice:
    """The rows that lie in a part, as a slice of them."""
    return slice(max(part.start - rows.start, 0), max(part.stop - rows.start, 0))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an EXEC works: its group, first output row and column, and its LOADs.

    ``base`` is the buffer's word where the window of column 0 begins; ``words`` are in use.
    """

    group: int
    row: int
    column: int
    base: int
    words: range
    loads: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Bands that slide: which, and the words of the buffer that they need.

    Attributes
    ----------
    bands : slice
    words : range
    free : int           EXECs that must be complete before these may be written.
    done : list of int   EXECs of the list up to the end of each band so far.
    """

    bands: slice
    words: range
    free: int
    done: list[int]


class ConvCompiler:
    """Cuts one convolution into LOADs and EXECs."""

    def __init__(self, build: Builder, index: int, layer: ConvLayer, source: Tensor,
                 target: Tensor) -> None:
        self.build, self.index, self.config = build, index, build.config
        layer, source, target = _upright(layer, source, target)
        self.layer, self.linear = layer, layer.linear
        self.source, self.target = source, target
        self.view = ConvView(layer, source, build.config)
        self.geometry = self.view.geometry
        bias = self.linear.bias
        # Biases that are all zero cost bits and cycles, and add nothing.
        self.bias = bias if bias is not None and bias.any() else None
        self.row_bits = row_bits(self.linear, self.bias is not None, target)
        self.tiling, self.estimated = build.decide(index, self._choose)
        self.starts = self.tiling.bands(self.geometry.out_height)
        self.slide = self.view.slide(self.tiling)
        #: Words from one channel to the next in the buffer.
        self.line = (self.slide.pitch if self.slide
                     else self.view.line_words(self.tiling.band, self.starts))
        self.fmt: StreamFormat | None = None

    def _choose(self) -> tuple[ConvTiling, int]:
        """Chooses with the entry size of the whole matrix, as if it were one tile."""
        check_no_overflow(self.linear.weights, self.linear.bias, self.config.acc_width)
        one = Pass(np.arange(self.layer.outputs), (slice(0, self.geometry.channels),))
        whole = ConvTiling(1, 1, 1, (one,), 1)
        matrix = self.view.matrix(whole, one.channels, one.inputs[0],
                                  self.geometry.reach[0] * self.source.row_pitch)
        entry = EntryCost.of(matrix, self.linear.weight_bits)
        return choose_conv_tiling(self.view, self.target, entry=entry,
                                  row_bits=self.row_bits)

    def plan(self) -> LayerPlan:
        """Returns what was decided."""
        return LayerPlan(self.layer.name, self.fmt or StreamFormat(), self.tiling,
                         self.layer.macs * self.source.columns, self.estimated)

    # -- streams --------------------------------------------------------------------------------

    def _pack(self, number: int) -> list[PackedStreams]:
        """Streams of one pass, one for each of its channel tiles."""
        tiling, p = self.tiling, self.tiling.passes[number]
        key = (self.index, number, self.source.strips, self.line, tiling.blocks, tiling.band,
               tiling.rows_per_engine, len(p.channels), int(p.channels[0]), p.inputs[0].stop,
               len(p.inputs))
        if key not in self.build.cache:
            # Channels without a weight are written once; see `Program.fills`.
            channels = p.channels[self.linear.weights.filled_rows[p.channels]]
            matrices = [self.view.matrix(self.tiling, channels, inputs, self.line)
                        for inputs in p.inputs]
            self.build.cache[key] = self._pack_tiles(matrices, p, channels)
        return self.build.cache[key]

    def _pack_tiles(self, matrices: list[Csr], p: Pass, channels: NDArray[np.int64]
                    ) -> list[PackedStreams]:
        """Packs the channel tiles of some channels of a pass.

        Engines get the same rows in all of them, as partial sums stay in an engine.
        """
        config, positions = self.config, self.tiling.positions
        parts = [BlockCost(m, self.linear.weight_bits, self.row_bits) for m in matrices]
        formats = [part.choose(positions, config) for part in parts]
        costs = np.array([part.cycles(fmt, (positions,), config.shortest_row_cycles)
                          for part, fmt in zip(parts, formats, strict=True)])
        counts = parts[-1].counts  # words leave only in the last tile
        word_cycles = (config.engines / positions
                       * row_store_cycles(self.tiling, self.target, config))
        assigned = [interleave(rows, counts, config, positions, word_cycles)
                    for rows in balance_tiles(costs, config.engines, self.tiling.rows_per_engine)]
        return [self._pack_tile(matrix, p, channels, assigned, fmt, t)
                for t, (matrix, fmt) in enumerate(zip(matrices, formats, strict=True))]

    def _pack_tile(self, matrix: Csr, p: Pass, channels: NDArray[np.int64],
                   assigned: list[NDArray[np.int64]], fmt: StreamFormat, t: int) -> PackedStreams:
        linear, tiling, target = self.linear, self.tiling, self.target
        rows = np.repeat(channels, tiling.blocks)
        starts = np.tile(np.array(tiling.block_starts), len(channels))

        def part(vector: NDArray | None, wanted: bool) -> NDArray | None:
            return vector[rows] if wanted and vector is not None else None

        is_last = t == len(p.inputs) - 1
        return pack(
            matrix, assigned, fmt,
            engines=self.config.engines, bus_bytes=self.config.bus_bytes,
            out_offsets=(rows - p.channels[0]) * target.plane + starts * target.row_pitch,
            bias=part(self.bias, t == 0), multiplier=part(linear.multiplier, is_last),
            shift=part(linear.shift, is_last))

    # -- commands -------------------------------------------------------------------------------

    def compile(self, weights_address: int) -> None:
        """Emits the commands of the layer."""
        tiling = self.tiling
        streams = []
        for number in range(len(tiling.passes)):
            packed = self._pack(number)
            streams.append([(self.build.put_weights(s), s) for s in packed])
        self.fmt = streams[0][0][1].fmt
        starts = self.starts
        runs = self.slide.runs if self.slide else (slice(0, len(starts)),)
        for group in range(self.source.groups):
            for bands in runs:
                run = self._begin(bands) if self.slide else None
                for k in range(bands.start, bands.stop):
                    self._band(streams, group, k, run, weights_address)
                    self.build.write_rows(self.target.address, range(group, group + 1),
                                          range(starts[k], starts[k] + tiling.band))

    def _begin(self, bands: slice) -> _Run:
        """Takes a part of the buffer for bands that slide."""
        assert self.slide is not None
        extent = self.slide.extent(bands)
        first = self.build.take_region(extent, 2)
        return _Run(bands, range(first, first + extent),
                    self.build.free_after(first, first + extent), [])

    def _band(self, streams: list[list[tuple[int, PackedStreams]]], group: int, k: int,
              run: _Run | None, weights_address: int) -> None:
        """Emits the commands of one band of one group."""
        row = self.starts[k]
        loaded: slice | None = None
        words, base = range(0), 0
        for pieces, p in zip(streams, self.tiling.passes, strict=True):
            for column in self.tiling.parts(self.geometry.out_width):
                for t, inputs in enumerate(p.inputs):
                    if loaded != inputs:
                        loaded = inputs
                        if run is not None:
                            words, base = run.words, self._load_new(group, k, run, inputs)
                        else:
                            destination = self._load(group, row, inputs)
                            count = inputs.stop - inputs.start
                            words = range(destination, destination + count * self.line)
                            base = destination + self.view.start(row, self.line)
                    place = _Place(group, row, column, base, words, self.build.loads)
                    self._exec(pieces[t], p, t, place, weights_address)
        if run is not None:
            run.done.append(self.build.execs)

    def _load_new(self, group: int, k: int, run: _Run, inputs: slice) -> int:
        """Loads what a band lacks; returns the word of the buffer where its window begins."""
        config, source, build, slide = self.config, self.source, self.build, self.slide
        assert slide is not None
        pitch = source.row_pitch
        # Of the buffer, where a plane begins.
        origin = run.words.start - slide.spans[run.bands.start][0]
        first, end = slide.new(run.bands, k)
        if end > first:
            rows = range(first // pitch - source.pads[0], (end - 1) // pitch + 1 - source.pads[0])
            ready = build.rows_written(source.address, range(group, group + 1), rows)
            left = slide.left(run.bands, k)
            word = group * source.pitch + inputs.start * source.plane + first
            build.commands.append(Load(
                address=source.address + word * source.word_bytes, destination=origin + first,
                line_beats=(end - first) * config.lanes // config.bus_bytes, lines=slide.planes,
                stride=source.plane * source.word_bytes, gap=slide.pitch - (end - first),
                wait=max(ready, run.free, run.done[left - 1] if left else 0)))
            build.loads += 1
        return origin + self.view.first_word(self.starts[k])

    def _load(self, group: int, first: int, inputs: slice) -> int:
        """Loads the input rows of a band; returns the first word in the buffer."""
        if self.source.strips > 1:
            return self._load_strips(group, first, inputs)
        config, source, build, g = self.config, self.source, self.build, self.geometry
        count = inputs.stop - inputs.start
        start = self.view.line_start(first, self.line)
        words = count * self.line
        destination = build.take_region(words, self.tiling.regions)
        beats = self.line * config.lanes // config.bus_bytes
        whole = self.line == source.plane and beats * count <= MAX_LINE_BEATS
        lines, line_beats = (1, beats * count) if whole else (count, beats)
        word = group * source.pitch + inputs.start * source.plane + start
        top = first * g.stride[0] - g.padding[0]
        ready = build.rows_written(
            source.address, range(group, group + 1),
            range(top, top + (self.tiling.band - 1) * g.stride[0] + g.reach[0]))
        build.commands.append(Load(
            address=source.address + word * source.word_bytes, destination=destination,
            line_beats=line_beats, lines=lines, stride=source.plane * source.word_bytes,
            wait=max(ready, build.free_after(destination, destination + words))))
        build.loads += 1
        return destination

    def _load_strips(self, group: int, first: int, inputs: slice) -> int:
        """Loads the rows of a band of strips: its own, and those of the strips beside it."""
        config, source, build, g = self.config, self.source, self.build, self.geometry
        lines, height, pitch = inputs.stop - inputs.start, source.strip_height, source.row_pitch
        words = lines * self.line
        destination = build.take_region(words, self.tiling.regions)
        free = build.free_after(destination, destination + words)
        top = first * g.stride[0] - g.padding[0]
        end = top + self.line // pitch
        # Rows of a strip, and that one of them which stands first in the buffer.
        above = range(top + height, height)
        own = range(max(top, 0), min(end, height))
        below = range(end - height)
        # Rows of the strip in which the map ends, and those that it lacks: other lanes are masked.
        last = source.height % height
        parts = (slice(0, last), slice(last, height))
        pieces = [(above[_within(above, part)], top + height, Shift.UP)
                  for part in (parts if self._reads_beyond else (slice(0, height),))]
        for part in parts:
            pieces.append((own[_within(own, part)], top, Shift.NONE))
            pieces.append((below[_within(below, part)], top - height, Shift.DOWN))
        for rows, zeroth, shift in pieces:
            if not rows:
                continue
            ready = build.rows_written(source.address, range(group, group + 1), rows)
            build.commands.append(Load(
                address=source.word_address(group, inputs.start, rows.start, -source.pads[1]),
                destination=destination + (rows.start - zeroth) * pitch,
                line_beats=len(rows) * pitch * config.lanes // config.bus_bytes, lines=lines,
                stride=source.plane * source.word_bytes, gap=self.line - len(rows) * pitch,
                shift=shift, fill=self.linear.input_zero_point,
                mask=self._mask(rows.start, shift), wait=max(ready, free)))
            build.loads += 1
        return destination

    @property
    def _reads_beyond(self) -> bool:
        """Whether outputs lie below the strip in which the map ends, in a strip without any rows.

        They may with more padding below than that strip has room for; but in one strip only, since
        windows begin within the map. Elsewhere rows beyond the map come from above for outputs
        beyond it alone, and need neither a mask nor a LOAD of their own.
        """
        source, target = self.source, self.target
        return (source.height // source.strip_height + 1) * target.strip_height < target.height

    def _mask(self, row: int, shift: Shift) -> int:
        """Lanes for which there is no such row of the map in the strip that it comes from."""
        source, mask = self.source, 0
        step = {Shift.NONE: 0, Shift.UP: -1, Shift.DOWN: 1}[shift]
        for lane in range(source.lanes):
            strip = lane % source.strips + step
            beyond = strip * source.strip_height + row >= source.height
            if strip < 0 or (beyond and (step >= 0 or self._reads_beyond)):
                mask |= 1 << lane
        return mask

    def _exec(self, piece: tuple[int, PackedStreams], p: Pass, t: int, place: "_Place",
              weights_address: int) -> None:
        build, linear, g, target = self.build, self.linear, self.geometry, self.target
        offset, streams = piece
        is_last = t == len(p.inputs) - 1
        words = (p.inputs[t].stop - p.inputs[t].start) * self.line
        step, width = g.stride[1], self.tiling.width
        output = target.word_address(place.group, int(p.channels[0]), place.row, place.column)
        build.commands.append(Exec(
            weights=weights_address + offset, beats=streams.beats,
            output=output if is_last else target.address,
            base=place.base + place.column * step, limit=words,
            positions=self.tiling.positions, width=width, step=step,
            wrap_step=g.stride[0] * self.source.row_pitch - (width - 1) * step,
            out_step=1, out_wrap_step=target.row_pitch - (width - 1), format=streams.fmt,
            has_bias=self.bias is not None and t == 0,
            mode=linear.mode if is_last else OutputMode.RAW, psum_in=t > 0, psum_out=not is_last,
            zero_point=linear.zero_point, low=linear.low, high=linear.high, wait=place.loads))
        build.execs += 1
        build.occupy(place.words.start, place.words.stop, build.execs)
