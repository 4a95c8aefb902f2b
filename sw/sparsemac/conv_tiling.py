# SPDX-License-Identifier: Apache-2.0
"""How a convolution is cut so that each piece fits the core, and what that costs.

A *band* is some rows of the output map of a group of samples; its input rows are loaded together.
A band's rows may be dealt out in *blocks*: each output channel becomes as many matrix rows as there
are blocks, with offsets shifted by the block's place, so that few channels keep many engines busy.
*Row tiles* are output channels of one EXEC, *channel tiles* input channels that are loaded
together; with several of them sums wait on chip as partial sums.

Dense and sparse kernels alike: Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided
Pruning", ICLR 2017, section 3.1 (the stretched filter).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .conv import ConvLayer, Geometry
from .csr import Csr
from .errors import UnsupportedLayer
from .layout import Tensor, ceil_div, round_up
from .schedule import row_costs
from .stream import HEADER_BITS, MAX_COUNT, MAX_OFFSETS, MAX_OUT_OFFSET
from .tiling import EXEC_OVERHEAD_CYCLES, LOAD_OVERHEAD_CYCLES, STREAM_SKEW

__all__ = ["ConvTiling", "ConvView", "Pass", "choose_conv_tiling"]

#: Blocks of a band to try; more only where ``depth`` asks for them.
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)

#: Shares of the channels to try as a channel tile.
CHANNEL_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Output channels of one EXEC, and the input channels that it reads, tile by tile."""

    channels: NDArray[np.int64]
    inputs: tuple[slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ConvTiling:
    """Cuts of one convolution.

    Attributes
    ----------
    band : int                     Output rows of a band; the last one overlaps the one before.
    blocks : int                   Blocks of a band.
    width : int                    Output columns of one EXEC; the last ones overlap others.
    passes : tuple of Pass
    regions : int                  Regions of the activation buffer, filled in turn.
    rows_per_engine : int          Matrix rows that one engine may get; 0: any number.
    """

    band: int
    blocks: int
    width: int
    passes: tuple[Pass, ...]
    regions: int
    rows_per_engine: int = 0

    @property
    def block(self) -> int:
        """Output rows of a block."""
        return ceil_div(self.band, self.blocks)

    @property
    def block_starts(self) -> list[int]:
        """First row of each block in its band; the last one overlaps the one before."""
        return _cuts(self.band, self.block)

    @property
    def positions(self) -> int:
        """Positions of one EXEC."""
        return self.block * self.width

    def parts(self, width: int) -> list[int]:
        """First output columns of the EXECs that make whole rows."""
        return _cuts(width, self.width)

    def bands(self, height: int) -> list[int]:
        """First output rows of all bands."""
        return _cuts(height, self.band)

    def __str__(self) -> str:
        tiles = max(len(p.inputs) for p in self.passes)
        return (f"bands of {self.band} rows in {self.blocks} blocks of {self.width} columns, "
                f"{len(self.passes)} passes, "
                f"{tiles} channel tiles, {self.regions} regions")


def _cuts(length: int, piece: int) -> list[int]:
    """Where pieces of one size begin that cover a length; the last one ends with it."""
    return [min(first, length - piece) for first in range(0, length, piece)]


@dataclass(frozen=True, slots=True)
class ConvView:
    """A convolution that reads a tensor.

    Attributes
    ----------
    layer : ConvLayer
    source : Tensor
    config : CoreConfig
    """

    layer: ConvLayer
    source: Tensor
    config: CoreConfig

    @property
    def geometry(self) -> Geometry:
        """Geometry of the convolution."""
        return self.layer.geometry

    def first_word(self, row: int) -> int:
        """Word in a plane where the window of output row ``row``, column 0 begins."""
        g, source = self.geometry, self.source
        y = row * g.stride[0] - g.padding[0] + source.pads[0]
        return y * source.row_pitch + source.pads[1] - g.padding[1]

    def line_words(self, band: int, starts: list[int]) -> int:
        """Words of a channel that a band needs at most, from the beat in which it begins."""
        g, beat = self.geometry, self.config.line_words
        rows = (band - 1) * g.stride[0] + g.reach[0]
        slack = max(self.first_word(start) % beat for start in starts)
        needed = round_up(slack + (rows - 1) * self.source.row_pitch + self._row_reach, beat)
        # A whole plane is one line with its neighbours.
        return self.source.plane if needed >= self.source.plane - beat else needed

    @property
    def _row_reach(self) -> int:
        g = self.geometry
        return (g.out_width - 1) * g.stride[1] + g.reach[1]

    def matrix(self, tiling: ConvTiling, channels: NDArray[np.int64], inputs: slice,
               line: int) -> Csr:
        """Matrix of one EXEC: a row for each channel and block, columns are buffer words.

        Rows of one channel stand together. ``inputs`` are the channels in the buffer, of ``line``
        words each.
        """
        g, csr = self.geometry, _select(self.layer.expanded, channels)
        taps = g.kernel[0] * g.kernel[1]
        channel, tap = np.divmod(csr.indices, taps)
        keep = (channel >= inputs.start) & (channel < inputs.stop)
        kept = np.concatenate([[0], np.cumsum(keep)])[csr.indptr]
        i, j = np.divmod(tap[keep], g.kernel[1])
        words = ((channel[keep] - inputs.start) * line
                 + i * g.dilation[0] * self.source.row_pitch + j * g.dilation[1])
        one = Csr((len(channels), (inputs.stop - inputs.start) * line), kept, words,
                  csr.data[keep])
        if tiling.blocks == 1:
            return one
        rows = np.repeat(np.arange(len(channels)), tiling.blocks)
        repeated = _select(one, rows)
        shift = np.array(tiling.block_starts) * g.stride[0] * self.source.row_pitch
        shifts = np.tile(shift, len(channels))[repeated.rows_of_entries]
        return Csr(repeated.shape, repeated.indptr, repeated.indices + shifts, repeated.data)


def _select(csr: Csr, rows: NDArray[np.int64]) -> Csr:
    """Returns some rows of a matrix, in this order."""
    lengths = csr.row_lengths[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.arange(indptr[-1]) + np.repeat(csr.indptr[:-1][rows] - indptr[:-1], lengths)
    return Csr((len(rows), csr.shape[1]), indptr, csr.indices[entries], csr.data[entries])


@dataclass(frozen=True, slots=True)
class _Share:
    """Of one EXEC: cycles at each position and cycles to unpack, both of the busiest engine."""

    cycles: int
    beats: int
    unpacking: int
    rows: int
    longest: int


class _Chooser:
    """Enumerates legal tilings of one convolution and estimates each."""

    def __init__(self, view: ConvView, target: Tensor, entry_bits: int, row_bits: int) -> None:
        self.view, self.target = view, target
        self.entry_bits, self.row_bits = entry_bits, row_bits
        g = view.geometry
        csr = view.layer.expanded.without_zeros()
        channel = csr.indices // (g.kernel[0] * g.kernel[1])
        counts = np.bincount(csr.rows_of_entries * g.channels + channel,
                             minlength=csr.shape[0] * g.channels)
        #: (outputs, channels + 1): entries of each output before each input channel.
        self.before = np.zeros((csr.shape[0], g.channels + 1), np.int64)
        np.cumsum(counts.reshape(csr.shape[0], g.channels), axis=1, out=self.before[:, 1:])
        self._shares: dict[tuple[int, ...], _Share] = {}

    def counts(self, p: Pass, inputs: slice) -> NDArray[np.int64]:
        """(channels,) entries of the output channels of a pass in some input channels."""
        before = self.before[p.channels[0] : p.channels[-1] + 1]
        return before[:, inputs.stop] - before[:, inputs.start]

    def share(self, p: Pass, inputs: slice, blocks: int) -> "_Share":
        """What the busiest engine gets of one EXEC."""
        key = (int(p.channels[0]), int(p.channels[-1]), inputs.start, inputs.stop, blocks)
        if key not in self._shares:
            self._shares[key] = self._deal(self.counts(p, inputs), blocks)
        return self._shares[key]

    def _deal(self, counts: NDArray[np.int64], blocks: int) -> "_Share":
        """Deals rows out longest first, to and fro: close to `balance_rows`, and quick."""
        config = self.view.config
        entries = np.repeat(np.sort(counts)[::-1], blocks)
        engines, rows = config.engines, len(entries)
        layers = ceil_div(rows, engines)

        def deal(values: NDArray[np.int64]) -> NDArray[np.int64]:
            table = np.zeros(layers * engines, np.int64)
            table[:rows] = values
            table = table.reshape(layers, engines)
            table[1::2] = table[1::2, ::-1]
            return table.sum(axis=0)

        dealt, own = deal(entries), deal(np.ones_like(entries))
        header_words = ceil_div(self.row_bits, HEADER_BITS)
        bits = int((dealt * self.entry_bits + own * self.row_bits).max())
        return _Share(
            cycles=int(deal(row_costs(entries, config.shortest_row_cycles)).max()),
            beats=ceil_div(bits, config.bus_width) * engines,
            unpacking=int((dealt + own * header_words).max()), rows=rows,
            longest=int(counts.max(initial=0)))

    # -- candidates -----------------------------------------------------------------------------

    def candidates(self) -> Iterator[ConvTiling]:
        g = self.view.geometry
        for halvings in range(g.out_width.bit_length() + 1):
            width = ceil_div(g.out_width, 1 << halvings)
            found = False
            for tiling in self._of_width(width):
                found = True
                yield tiling
            if found or width == 1:
                return

    def _of_width(self, width: int) -> Iterator[ConvTiling]:
        config, g = self.view.config, self.view.geometry
        height = g.out_height
        bands = sorted({ceil_div(height, n) for n in range(1, height + 1)}, reverse=True)
        for share in CHANNEL_SHARES:
            wanted = ceil_div(g.channels, share)
            if share > g.channels:
                break
            for regions in (2, 1):
                room = min(config.act_depth // regions // config.line_words * config.line_words,
                           MAX_OFFSETS)
                fitting = [b for b in bands if self._line(b) * wanted <= room]
                for band in fitting[:3] + fitting[3::4]:
                    yield from self._with_blocks(band, width, wanted, regions)

    def _line(self, band: int) -> int:
        tiling = ConvTiling(band, 1, 1, (), 1)
        return self.view.line_words(band, tiling.bands(self.view.geometry.out_height))

    def _with_blocks(self, band: int, width: int, wanted: int,
                     regions: int) -> Iterator[ConvTiling]:
        depth = self.view.config.depth
        least = ceil_div(band, max(1, depth // width))
        for blocks in sorted({b for b in (*BLOCKS, least) if least <= b <= band}):
            block = ceil_div(band, blocks)
            if ceil_div(band, block) != blocks or block * width > depth:
                continue
            yield from self._with_passes(ConvTiling(band, blocks, width, (), regions), wanted)

    def _with_passes(self, tiling: ConvTiling, wanted: int) -> Iterator[ConvTiling]:
        """Cuts the output channels so that offsets, groups and partial sums stay in range."""
        config, g = self.view.config, self.view.geometry
        blocks, positions = tiling.blocks, tiling.positions
        outputs, own = self.view.layer.outputs, g.channels // g.groups
        per_group = outputs // g.groups
        reach = (blocks - 1) * tiling.block * self.target.row_pitch
        most = min(outputs, (MAX_OUT_OFFSET - reach) // self.target.plane + 1)
        kept = 0
        if wanted < own:  # the channels of one group do not fit: partial sums
            kept = config.psum_depth // (config.lanes * positions)
            most = min(most, kept * config.engines // blocks)
        elif g.groups > 1:
            most = min(most, max(wanted // own, 1) * per_group)
        if most < 1 or MAX_OUT_OFFSET < reach:
            return
        passes = []
        starts = self._starts(outputs, most, per_group)
        for first, last in pairwise((*starts, outputs)):
            low = first // per_group * own
            high = ((last - 1) // per_group + 1) * own
            step = wanted if high - low > wanted else high - low
            inputs = tuple(slice(c, min(c + step, high)) for c in range(low, high, step))
            passes.append(Pass(np.arange(first, last), inputs))
        longest = max(self.share(p, i, blocks).longest for p in passes for i in p.inputs)
        if longest > (config.entry_depth if positions > 1 else MAX_COUNT):
            return
        yield replace(tiling, passes=tuple(passes), rows_per_engine=kept)

    def _starts(self, outputs: int, most: int, per_group: int) -> list[int]:
        """First output channels of passes of at most ``most``; whole groups where they fit."""
        if most >= per_group:
            most = most // per_group * per_group
        starts, first = [], 0
        while first < outputs:
            starts.append(first)
            step = min(most, outputs - first)
            if most < per_group:  # never across groups
                step = min(step, per_group - first % per_group)
            first += step
        return starts

    # -- cost -----------------------------------------------------------------------------------

    def cycles(self, tiling: ConvTiling) -> int:
        """Runs the LOADs and EXECs on a time line; see `sparsemac.tiling.estimate`."""
        view, config = self.view, self.view.config
        g = view.geometry
        bands = tiling.bands(g.out_height)
        line = view.line_words(tiling.band, bands)
        pieces = []
        for p in tiling.passes:
            tiles = []
            for t, inputs in enumerate(p.inputs):
                took, beats = self._exec(tiling, p, inputs, t == len(p.inputs) - 1)
                load = ceil_div((inputs.stop - inputs.start) * line * config.lanes,
                                config.bus_bytes)
                tiles.append((inputs, took, beats, load))
            pieces += tiles * len(tiling.parts(g.out_width))
        free = [0] * tiling.regions
        load_end = exec_end = read = turn = slot = 0
        loaded: tuple[int, slice] | None = None
        # Bands and groups are alike: three of them tell the period of all others.
        tiles = len(bands) * view.source.groups
        marks = []
        for tile in range(min(tiles, 3)):
            for inputs, took, beats, load in pieces:
                if loaded != (tile, inputs):
                    loaded = (tile, inputs)
                    slot, turn = turn % tiling.regions, turn + 1
                    load_end = max(load_end, free[slot]) + load + LOAD_OVERHEAD_CYCLES
                    read += load
                exec_end = free[slot] = max(exec_end, load_end) + took
                read += beats
            marks.append(exec_end)
        if tiles > 3:
            exec_end += (marks[2] - marks[1]) * (tiles - 3)
            read = read * tiles // 3
        return max(exec_end, read)

    def _exec(self, tiling: ConvTiling, p: Pass, inputs: slice, final: bool) -> tuple[int, int]:
        """Cycles and beats of one EXEC."""
        share = self.share(p, inputs, tiling.blocks)
        store = share.rows * self._store_beats(tiling) if final else 0
        took = max(share.cycles * tiling.positions, int(share.beats * STREAM_SKEW),
                   share.unpacking, store)
        return took + EXEC_OVERHEAD_CYCLES, share.beats

    def _store_beats(self, tiling: ConvTiling) -> int:
        """Beats that the output words of one row of an EXEC take: close ones share a beat."""
        config, target = self.view.config, self.target
        if target.word_bytes >= config.bus_bytes:
            return tiling.positions * target.word_bytes // config.bus_bytes
        each = config.bus_bytes // target.word_bytes
        span = (tiling.block - 1) * target.row_pitch + tiling.width
        apart = tiling.block * (ceil_div(tiling.width, each) + 1)
        return min(tiling.positions, ceil_div(span, each) + 1, apart)


def choose_conv_tiling(view: ConvView, target: Tensor, *, entry_bits: int,
                       row_bits: int) -> tuple[ConvTiling, int]:
    """Returns the tiling of fewest estimated cycles, and these.

    Raises
    ------
    UnsupportedLayer    If none is legal, naming the limit.
    """
    chooser = _Chooser(view, target, entry_bits, row_bits)
    best: tuple[ConvTiling, int] | None = None
    for tiling in chooser.candidates():
        cycles = chooser.cycles(tiling)
        if best is None or cycles < best[1]:
            best = tiling, cycles
    if best is None:
        raise UnsupportedLayer(_refusal(view, chooser))
    return best


def _refusal(view: ConvView, chooser: _Chooser) -> str:
    config, g = view.config, view.geometry
    line = view.line_words(1, list(range(g.out_height)))
    name = view.layer.name
    if line > min(config.act_depth, MAX_OFFSETS):
        return (f"{name} cannot be tiled: one channel of one output row needs {line} words of "
                f"activations, and act_depth is {config.act_depth} (nearest legal value: "
                f"{1 << (line - 1).bit_length()})")
    longest = int(np.diff(chooser.before[:, [0, -1]]).max(initial=0))
    return (f"{name} cannot be tiled: rows of up to {longest} entries need an entry buffer that "
            f"long (entry_depth is {config.entry_depth}), or an activation buffer of "
            f"{line * g.channels // g.groups} words (act_depth is {config.act_depth}), or partial "
            f"sums for a position of {config.lanes} lanes (psum_depth is "
            f"{config.psum_depth})")
