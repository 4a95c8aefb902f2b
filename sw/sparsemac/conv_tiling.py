# SPDX-License-Identifier: Apache-2.0
"""How a convolution is cut so that each piece fits the core, and what that costs.

A *band* is some rows of the output map of a group of samples; its input rows are loaded together.
A band's rows may be dealt out in *blocks*: each output channel becomes as many matrix rows as there
are blocks, with offsets shifted by the block's place, so that few channels keep many engines busy.
*Row tiles* are output channels of one EXEC, *channel tiles* input channels that are loaded
together; with several of them sums wait on chip as partial sums. Bands of all channels may *slide*
instead: each LOAD brings only the rows that the band before did not have.

Dense and sparse kernels alike: Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided
Pruning", ICLR 2017, section 3.1 (the stretched filter).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .conv import ConvLayer, Geometry
from .conv_slide import Slide
from .csr import Csr
from .errors import UnsupportedLayer
from .layout import Tensor, ceil_div, round_up
from .schedule import EntryCost
from .stream import MAX_COUNT, MAX_OFFSETS, MAX_OUT_OFFSET
from .tiling import EXEC_OVERHEAD_CYCLES, ExecCosts, Timeline, share_out, store_cycles

__all__ = ["ConvTiling", "ConvView", "Pass", "choose_conv_tiling", "row_store_cycles"]

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
    regions : int                  Regions of the activation buffer, filled in turn; 0: bands slide
                                   over it, see `sparsemac.conv_slide`.
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
        regions = f"{self.regions} regions" if self.regions else "sliding"
        return (f"bands of {self.band} rows in {self.blocks} blocks of {self.width} columns, "
                f"{len(self.passes)} passes, "
                f"{tiles} channel tiles, {regions}")


def _cuts(length: int, piece: int) -> list[int]:
    """Where pieces of one size begin that cover a length; the last one ends with it."""
    return [min(first, length - piece) for first in range(0, length, piece)]


@dataclass(frozen=True)
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

    @cached_property
    def geometry(self) -> Geometry:
        """Geometry of the convolution, or of each strip."""
        if self.source.strips == 1:
            return self.layer.geometry
        strip = self.layer.geometry.strip(self.source.strip_height)
        assert strip is not None, "`Segment.cut` makes no such strips"
        return strip

    def start(self, row: int, line: int) -> int:
        """Word of a line of so many words where the window of output row ``row`` begins."""
        if self.source.strips > 1:  # lines are whole rows
            return self.source.pads[1] - self.geometry.padding[1]
        return self.first_word(row) - self.line_start(row, line)

    def line_start(self, row: int, line: int) -> int:
        """Word of a plane at which the line of output row ``row`` begins: a beat's first."""
        if line == self.source.plane:
            return 0
        word = self.first_word(row)
        return word - word % self.config.line_words

    def first_word(self, row: int) -> int:
        """Word in a plane where the window of output row ``row``, column 0 begins."""
        g, source = self.geometry, self.source
        y = row * g.stride[0] - g.padding[0] + source.pads[0]
        return y * source.row_pitch + source.pads[1] - g.padding[1]

    def line_words(self, band: int, starts: list[int]) -> int:
        """Words of a channel that a band needs at most, from the beat in which it begins."""
        g, beat = self.geometry, self.config.line_words
        rows = (band - 1) * g.stride[0] + g.reach[0]
        if self.source.strips > 1:
            return rows * self.source.row_pitch
        slack = max(self.first_word(start) % beat for start in starts)
        needed = round_up(slack + (rows - 1) * self.source.row_pitch + self._row_reach, beat)
        # A whole plane is one line with its neighbours.
        return self.source.plane if needed >= self.source.plane - beat else needed

    def spans(self, starts: list[int], band: int) -> tuple[tuple[int, int], ...]:
        """Words of a plane that bands from these output rows read, each from a beat to a beat."""
        g, beat = self.geometry, self.config.line_words
        rows = (band - 1) * g.stride[0] + g.reach[0]
        needed = (rows - 1) * self.source.row_pitch + self._row_reach
        firsts = [self.first_word(start) for start in starts]
        return tuple((word - word % beat, round_up(word + needed, beat)) for word in firsts)

    def slide(self, tiling: ConvTiling) -> Slide | None:
        """How the bands of a tiling slide; None if they do not."""
        if tiling.regions:
            return None
        inputs = tiling.passes[0].inputs[0]
        return Slide.of(self, tiling.band, tiling.bands(self.geometry.out_height),
                        inputs.stop - inputs.start)

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
        g, csr = self.geometry, self.layer.expanded.take_rows(channels)
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
        repeated = one.take_rows(rows)
        shift = np.array(tiling.block_starts) * g.stride[0] * self.source.row_pitch
        shifts = np.tile(shift, len(channels))[repeated.rows_of_entries]
        return Csr(repeated.shape, repeated.indptr, repeated.indices + shifts, repeated.data)


class _Chooser:
    """Enumerates legal tilings of one convolution and estimates each."""

    def __init__(self, view: ConvView, target: Tensor, entry: EntryCost, row_bits: int) -> None:
        self.view, self.target = view, target
        self.entry, self.row_bits = entry, row_bits
        g = view.geometry
        csr = view.layer.expanded.without_zeros()
        channel = csr.indices // (g.kernel[0] * g.kernel[1])
        counts = np.bincount(csr.rows_of_entries * g.channels + channel,
                             minlength=csr.shape[0] * g.channels)
        #: (outputs, channels + 1): entries of each output before each input channel.
        self.before = np.zeros((csr.shape[0], g.channels + 1), np.int64)
        np.cumsum(counts.reshape(csr.shape[0], g.channels), axis=1, out=self.before[:, 1:])
        self._costs: dict[tuple[int, ...], ExecCosts] = {}
        self._slides: dict[int, Slide | None] = {}
        #: Cycles of the best tiling so far, and those that every tiling takes for its entries.
        self.fewest = np.inf
        self._compute = (self.before[:, -1].sum() * g.out_height * g.out_width
                         * view.source.groups / view.config.engines)

    def costs(self, p: Pass, blocks: int) -> ExecCosts:
        """What the EXECs of a pass cost, one for each channel tile."""
        first, last = int(p.channels[0]), int(p.channels[-1]) + 1
        key = (first, last, p.inputs[0].start, p.inputs[0].stop, p.inputs[-1].stop, blocks)
        if key not in self._costs:
            edges = np.array([p.inputs[0].start, *(i.stop for i in p.inputs)])
            counts = np.diff(self.before[first:last, edges], axis=1)
            self._costs[key] = share_out(counts, self.view.config, self.entry,
                                         self.row_bits, blocks)
        return self._costs[key]

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
        if g.groups == 1:
            sliding = [b for b in bands if self._slide(b)]
            for band in sliding[:3] + sliding[3::4]:
                yield from self._with_blocks(band, width, g.channels, 0)

    def _slide(self, band: int) -> Slide | None:
        """How bands of so many rows slide."""
        if band not in self._slides:
            g = self.view.geometry
            self._slides[band] = Slide.of(self.view, band, _cuts(g.out_height, band), g.channels)
        return self._slides[band]

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
        execs = (len(starts) * ceil_div(own, wanted) * len(tiling.parts(g.out_width))
                 * len(tiling.bands(g.out_height)) * self.view.source.groups)
        if self._compute + execs * EXEC_OVERHEAD_CYCLES >= self.fewest:
            return
        for first, last in pairwise((*starts, outputs)):
            low = first // per_group * own
            high = ((last - 1) // per_group + 1) * own
            step = wanted if high - low > wanted else high - low
            inputs = tuple(slice(c, min(c + step, high)) for c in range(low, high, step))
            passes.append(Pass(np.arange(first, last), inputs))
        longest = max(self.costs(p, blocks).longest for p in passes)
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

    def cycles(self, tiling: ConvTiling) -> float:
        """Runs the LOADs and EXECs on a time line; see `sparsemac.tiling.estimate`.

        Infinite if it is certain to be no better than ``fewest``.
        """
        view, config = self.view, self.view.config
        g = view.geometry
        bands, parts = tiling.bands(g.out_height), len(tiling.parts(g.out_width))
        tiles = len(bands) * view.source.groups
        line = view.line_words(tiling.band, bands)
        took, beats, loads, inputs = [], [], [], []
        for p in tiling.passes:
            costs = self.costs(p, tiling.blocks)
            store = np.zeros(len(p.inputs))
            store[-1] = costs.rows * row_store_cycles(tiling, self.target, config)
            busy = np.maximum(costs.cycles * tiling.positions,
                              costs.unpacking(self.entry, tiling.positions))
            took.append(np.tile(np.maximum(busy, store) + EXEC_OVERHEAD_CYCLES, parts))
            beats.append(np.tile(costs.beats, parts))
            words = np.array([i.stop - i.start for i in p.inputs]) * line
            loads.append(np.tile(np.ceil(words * config.lanes / config.bus_bytes), parts))
            inputs += [(i.start, i.stop) for i in p.inputs] * parts
        took, beats, loads = (np.concatenate(part) for part in (took, beats, loads))
        again = np.array([k == 0 or inputs[k] != inputs[k - 1] for k in range(len(inputs))])
        loads = loads * again
        if not tiling.regions and (slide := self._slide(tiling.band)):
            return self._sliding_cycles(slide, took, beats)
        if max(took.sum(), beats.sum() + loads.sum()) * tiles >= self.fewest:
            return np.inf
        end = _bands_cycles(tiles, tiling.regions, took, beats, [loads] * (min(tiles, 3) + 1))
        return max(end, float(beats.sum() + loads.sum()) * tiles)

    def _sliding_cycles(self, slide: Slide, took: NDArray[np.float64],
                        beats: NDArray[np.float64]) -> float:
        """As `cycles`, of bands that slide: a run begins when the one before it is over."""
        groups, total = self.view.source.groups, 0.0
        if took.sum() * len(slide.spans) * groups >= self.fewest:
            return np.inf
        for cycles in slide.load_cycles:
            loads = np.zeros((min(len(cycles), 4), len(took)))
            loads[:, 0] = cycles[:4]
            end = _bands_cycles(len(cycles), 2, took, beats, list(loads))
            total += max(end, float(beats.sum() * len(cycles) + sum(cycles)))
        return total * groups


def _bands_cycles(bands: int, regions: int, took: NDArray[np.float64],
                  beats: NDArray[np.float64], loads: list[NDArray[np.float64]]) -> float:
    """Runs bands of equal EXECs on a time line; the third one tells the period of all later ones.

    ``loads`` are the LOADs of each band, of the first four at least, if there are so many.
    """
    line, marks = Timeline(regions), [0.0]
    ran = min(bands, 3)
    flat = np.concatenate([*loads[:ran + 1], [0.0]])
    for k in range(ran * len(took)):
        i = k % len(took)
        line.step(float(took[i]), float(beats[i]), float(flat[k]), float(flat[k + 1]))
        if i == len(took) - 1:
            marks.append(line.end)
    return line.end + (marks[-1] - marks[-2]) * (bands - ran)


def row_store_cycles(tiling: ConvTiling, target: Tensor, config: CoreConfig) -> float:
    """Returns cycles of the store for one row of an EXEC: words that are close share a beat."""
    if target.word_bytes >= config.bus_bytes:
        return tiling.positions * store_cycles(target.word_bytes, config)
    each = config.bus_bytes // target.word_bytes
    span = (tiling.block - 1) * target.row_pitch + tiling.width
    apart = tiling.block * (ceil_div(tiling.width, each) + 1)
    return min(tiling.positions, ceil_div(span, each) + 1, apart) * store_cycles(1, config)


def choose_conv_tiling(view: ConvView, target: Tensor, *, entry: EntryCost,
                       row_bits: int) -> tuple[ConvTiling, int]:
    """Returns the tiling of fewest estimated cycles, and these.

    Raises
    ------
    UnsupportedLayer    If none is legal, naming the limit.
    """
    chooser = _Chooser(view, target, entry, row_bits)
    best: ConvTiling | None = None
    for tiling in chooser.candidates():
        cycles = chooser.cycles(tiling)
        if cycles < chooser.fewest:
            best, chooser.fewest = tiling, cycles
    if best is None:
        raise UnsupportedLayer(_refusal(view, chooser))
    return best, int(chooser.fewest)


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
