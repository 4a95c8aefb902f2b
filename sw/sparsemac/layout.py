# SPDX-License-Identifier: Apache-2.0
"""Where activations lie in memory: tensors of words, one element per lane, and areas of pages.

A tensor of ``channels`` values for each of ``columns`` samples is an array of words
``[position][channel]``; a word holds one element per lane. Sample ``n`` is lane ``n % lanes`` of
position ``n // lanes``. The channels of a position are padded to ``pitch`` words, a multiple of
``config.line_words``, so that every position begins with a beat of the bus. What stands in the
padding is never used: no weight is stored for it, and the host drops the lanes beyond the last
sample.
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
    """Activations in memory.

    Parameters
    ----------
    address : int       First byte.
    channels : int      Values of a sample.
    columns : int       Samples.
    lanes : int         Samples at a position.
    pitch : int         Words from one position to the next.
    raw : bool          Elements are int32 instead of int8.
    """

    address: int
    channels: int
    columns: int
    lanes: int
    pitch: int
    raw: bool = False

    @classmethod
    def of(
        cls, config: CoreConfig, channels: int, columns: int, *, address: int = 0, raw: bool = False
    ) -> "Tensor":
        """Lays out a tensor for a core."""
        pitch = round_up(max(channels, 1), config.line_words)
        return cls(address, channels, columns, config.lanes, pitch, raw)

    @property
    def positions(self) -> int:
        """Positions: groups of ``lanes`` samples."""
        return ceil_div(self.columns, self.lanes)

    @property
    def word_bytes(self) -> int:
        """Bytes of one word."""
        return self.lanes * self.dtype.itemsize

    @property
    def position_bytes(self) -> int:
        """Bytes from one position to the next."""
        return self.pitch * self.word_bytes

    @property
    def length(self) -> int:
        """Bytes of the tensor."""
        return self.positions * self.position_bytes

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Little-endian type of an element."""
        return np.dtype("<i4" if self.raw else "i1")

    def word_address(self, position: int, channel: int) -> int:
        """Byte address of a word."""
        return self.address + (position * self.pitch + channel) * self.word_bytes

    def to_memory(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turns ``values`` (channels, columns) into words (positions, pitch, lanes)."""
        words = np.zeros((self.positions, self.pitch, self.lanes), self.dtype)
        whole = self.columns // self.lanes
        split = whole * self.lanes
        if whole:
            blocks = values[:, :split].reshape(self.channels, whole, self.lanes)
            words[:whole, : self.channels] = blocks.transpose(1, 0, 2)
        if split < self.columns:
            words[whole, : self.channels, : self.columns - split] = values[:, split:]
        return words

    def from_memory(self, data: bytes) -> NDArray[np.generic]:
        """Turns the bytes of the tensor into values (channels, columns)."""
        words = np.frombuffer(data, self.dtype).reshape(self.positions, self.pitch, self.lanes)
        values = words[:, : self.channels].transpose(1, 0, 2)
        values = values.reshape(self.channels, self.positions * self.lanes)
        native = np.dtype(np.int32 if self.raw else np.int8)
        return np.ascontiguousarray(values[:, : self.columns], dtype=native)
