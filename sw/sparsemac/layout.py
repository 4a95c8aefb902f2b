# SPDX-License-Identifier: Apache-2.0
"""Where activations lie in memory: tensors of words, one element per lane, and areas of pages.

A tensor holds feature maps of ``columns`` samples: words ``[group][channel][row][column]``, a word
with one element per lane. Sample ``n`` is lane ``n % lanes`` of group ``n // lanes``. A vector is a
map of one row and one column. Rows and columns of padding stand around a map, for convolutions that
read beyond it; the host writes the padding, the core only what is inside.

Few samples leave lanes without work, so maps may be cut into *strips* of rows: strip ``s`` of
sample ``n`` takes the place of sample ``n * strips + s`` of maps that are so much lower. There are
no rows of padding then: what a convolution reads beyond its strip, a LOAD takes from the
neighbour's lane. Rows of the last strips that are beyond the map hold anything.

The words of a channel, a *plane*, and those of a group are padded to whole beats of the bus, so
that a LOAD can begin with any channel and any group; but a vector's channels lie without gaps. What
stands in that padding is never used: no weight is stored for it, and the host drops the lanes
beyond the last sample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .registers import WINDOW_GRANULE_BYTES

__all__ = ["Area", "Tensor", "ceil_div", "round_up"]


def ceil_div(value: int, divisor: int) -> int:
    """Returns ``value / divisor``, rounded up."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """Returns the smallest multiple of ``multiple`` that is at least ``value``."""
    return ceil_div(value, multiple) * multiple


@dataclass(frozen=True, slots=True)
class Area:
    """Whole pages of memory that begin at byte ``address``; a window can cover just them."""

    address: int
    length: int
    writable: bool

    @property
    def last_page(self) -> int:
        """Byte address of the last page."""
        return self.address + self.length - WINDOW_GRANULE_BYTES


@dataclass(frozen=True, slots=True)
class Tensor:
    """Feature maps in memory; see the module.

    Attributes
    ----------
    address : int                  Byte address of the first word, a multiple of a beat.
    channels, height, width : int
    columns : int                  Samples.
    lanes : int                    Elements of a word.
    pads : (top, left, bottom, right)    Rows and columns of padding.
    plane : int                    Words from one channel to the next.
    pitch : int                    Words from one group to the next.
    raw : bool                     Elements are int32, not int8.
    strips : int                   Of each sample; a power of two, at most ``lanes``.
    strip_height : int             Rows of a strip, or of the map if it is not cut.
    """

    address: int
    channels: int
    height: int
    width: int
    columns: int
    lanes: int
    pads: tuple[int, int, int, int]
    plane: int
    pitch: int
    raw: bool
    strips: int
    strip_height: int

    @classmethod
    def of(
        cls, config: CoreConfig, channels: int, columns: int, *, height: int = 1, width: int = 1,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0), address: int = 0, raw: bool = False,
        strips: int = 1, strip_height: int | None = None,
    ) -> "Tensor":
        """Lays out a tensor for a core.

        Rows of strips begin with a beat, so that a LOAD can begin with any of them.
        """
        if strip_height is None:
            strip_height = ceil_div(height, strips)
        if strips > 1:
            row = round_up(pads[1] + width + pads[3], config.line_words)
            pads = (0, pads[1], 0, row - width - pads[1])
        plane = (strip_height + pads[0] + pads[2]) * (width + pads[1] + pads[3])
        if plane > 1:
            plane = round_up(plane, config.line_words)
        pitch = round_up(max(channels, 1) * plane, config.line_words)
        return cls(address, channels, height, width, columns, config.lanes, pads, plane, pitch, raw,
                   strips, strip_height)

    @property
    def groups(self) -> int:
        """Groups of ``lanes`` samples, or strips of samples."""
        return ceil_div(self.columns * self.strips, self.lanes)

    @property
    def row_pitch(self) -> int:
        """Words from one row of a map to the next."""
        return self.width + self.pads[1] + self.pads[3]

    @property
    def word_bytes(self) -> int:
        """Bytes of one word."""
        return self.lanes * self.dtype.itemsize

    @property
    def group_bytes(self) -> int:
        """Bytes from one group to the next."""
        return self.pitch * self.word_bytes

    @property
    def length(self) -> int:
        """Bytes of the tensor."""
        return self.groups * self.group_bytes

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Little-endian type of an element."""
        return np.dtype("<i4" if self.raw else "i1")

    def word(self, channel: int, row: int = 0, column: int = 0) -> int:
        """Index of a word in its group; row and column count from the strip, not its padding."""
        return channel * self.plane + (row + self.pads[0]) * self.row_pitch + column + self.pads[1]

    def word_address(self, group: int, channel: int, row: int = 0, column: int = 0) -> int:
        """Byte address of a word."""
        word = group * self.pitch + self.word(channel, row, column)
        return self.address + word * self.word_bytes

    def element_address(self, channel: int, row: int, column: int, sample: int) -> int:
        """Byte address of one element of a sample's map."""
        strip, row = divmod(row, self.strip_height)
        group, lane = divmod(sample * self.strips + strip, self.lanes)
        return self.word_address(group, channel, row, column) + lane * self.dtype.itemsize

    @property
    def words(self) -> NDArray[np.int64]:
        """(channels * strip_height * width,) index of each element's word, in this order."""
        channel = np.arange(self.channels)[:, None, None] * self.plane
        row = (np.arange(self.strip_height)[:, None] + self.pads[0]) * self.row_pitch
        return (channel + row + np.arange(self.width) + self.pads[1]).ravel()

    def to_memory(self, values: NDArray[np.generic], padding: int = 0) -> NDArray[np.generic]:
        """Turns ``values`` into the words of the tensor.

        Parameters
        ----------
        values : (channels, columns) or (channels, height, width, columns)
        padding : int    What stands around the maps.

        Returns
        -------
        (groups, pitch, lanes)
        """
        words = np.full((self.groups, self.pitch, self.lanes), padding, self.dtype)
        columns = self.columns * self.strips
        if self.strips > 1:
            rows = self.strips * self.strip_height
            maps = np.full((self.channels, rows, self.width, self.columns), padding, self.dtype)
            maps[:, : self.height] = values.reshape(
                self.channels, self.height, self.width, self.columns)
            values = maps.reshape(self.channels, self.strips, -1, self.columns)
            values = values.transpose(0, 2, 3, 1)
        values = values.reshape(-1, columns)
        whole = columns // self.lanes
        split = whole * self.lanes
        places = self.words if self.plane > 1 else slice(0, self.channels)
        if whole:
            blocks = values[:, :split].reshape(-1, whole, self.lanes)
            words[:whole, places] = blocks.transpose(1, 0, 2)
        if split < columns:
            words[whole, places, : columns - split] = values[:, split:]
        return words

    def from_memory(self, data: bytes) -> NDArray[np.generic]:
        """Turns the bytes of the tensor into values.

        Returns
        -------
        (channels, columns) of vectors, (channels, height, width, columns) of maps
        """
        words = np.frombuffer(data, self.dtype).reshape(self.groups, self.pitch, self.lanes)
        places = self.words if self.plane > 1 else slice(0, self.channels)
        values = words[:, places].transpose(1, 0, 2)
        values = values.reshape(-1, self.groups * self.lanes)
        native = np.dtype(np.int32 if self.raw else np.int8)
        values = values[:, : self.columns * self.strips]
        if self.strips > 1:
            values = values.reshape(self.channels, -1, self.columns, self.strips)
            values = values.transpose(0, 3, 1, 2).reshape(
                self.channels, -1, self.width * self.columns)
            values = values[:, : self.height].reshape(-1, self.columns)
        values = np.ascontiguousarray(values, dtype=native)
        if self.height * self.width == 1:
            return values
        return values.reshape(self.channels, self.height, self.width, self.columns)
