# SPDX-License-Identifier: Apache-2.0
"""Bands that slide: what one band leaves in the buffer, the next one need not load again.

Word ``w`` of plane ``c`` stands at ``c * pitch + w`` of the buffer, less where the run begins. So a
band's window moves on through the buffer as it does through the plane, weights keep their offsets,
and a LOAD brings only the words that the windows before lack. It writes them over those that the
next plane's window has left behind: ``pitch`` is enough for the windows of two bands, that one can
be loaded while the other is in use. When windows reach the end of the buffer, a new *run* begins
with a whole window.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from .config import CoreConfig
from .stream import MAX_OFFSETS

if TYPE_CHECKING:
    from .conv_tiling import ConvView

__all__ = ["Slide"]

#: Cycles of a LOAD's line at least: the loader asks for one burst after another.
LINE_CYCLES = 3


@dataclass(frozen=True)
class Slide:
    """How the bands of a convolution slide.

    Attributes
    ----------
    spans : tuple of (first, end)    Words of a plane that each band reads, from a beat to a beat.
    planes : int                     Channels in the buffer.
    config : CoreConfig
    """

    spans: tuple[tuple[int, int], ...]
    planes: int
    config: CoreConfig

    @classmethod
    def of(cls, view: "ConvView", band: int, starts: list[int], planes: int) -> "Slide | None":
        """Returns how bands of so many rows slide; None if they cannot.

        ``starts`` are the first output rows of the bands.
        """
        if view.source.strips > 1 or len(starts) < 2:
            return None
        words = min(MAX_OFFSETS, view.config.act_depth)
        if band * view.geometry.stride[0] * view.source.row_pitch * planes > words:
            return None
        slide = cls(view.spans(starts, band), planes, view.config)
        return slide if slide.pitch * planes <= words else None

    @cached_property
    def pitch(self) -> int:
        """Words from one channel to the next in the buffer."""
        return max(end - first for (first, _), (_, end) in pairwise(self.spans))

    def extent(self, bands: slice) -> int:
        """Words of the buffer that bands of one run need."""
        spans = self.spans[bands]
        return (self.planes - 1) * self.pitch + spans[-1][1] - spans[0][0]

    @cached_property
    def runs(self) -> tuple[slice, ...]:
        """Bands of each run."""
        runs, first = [], 0
        for k in range(1, len(self.spans) + 1):
            if k == len(self.spans) or self.extent(slice(first, k + 1)) > self.config.act_depth:
                runs.append(slice(first, k))
                first = k
        return tuple(runs)

    def new(self, bands: slice, k: int) -> tuple[int, int]:
        """First word of a plane that band ``k`` lacks, and the end of what it reads.

        ``bands`` is its run. There may be none: a band may lie within the one before it.
        """
        first, end = self.spans[k]
        return (first if k == bands.start else max(first, self.spans[k - 1][1])), end

    def left(self, bands: slice, k: int) -> int:
        """Bands of the run, from its first, that must be done before band ``k`` is loaded."""
        # A plane's new words go where the next plane has those of bands before.
        end = self.spans[k][1] - self.pitch
        return sum(first < end for first, _ in self.spans[bands.start:k])

    @cached_property
    def load_cycles(self) -> tuple[list[int], ...]:
        """For each run, bus cycles of the LOADs before its bands; 0: there is none."""
        config, least = self.config, LINE_CYCLES
        return tuple(
            [self.planes * max((end - first) * config.lanes // config.bus_bytes, least)
             if end > first else 0
             for first, end in (self.new(run, k) for k in range(run.start, run.stop))]
            for run in self.runs)
