# SPDX-License-Identifier: Apache-2.0
"""Reads weight streams back, as the core does; see `sparsemac.stream`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._coding import BIAS_BITS, MASK_BITS, SCALE_BITS
from .commands import StreamFormat
from .registers import FaultCode

__all__ = ["StreamError", "UnpackedStreams", "unpack"]


class StreamError(ValueError):
    """A stream that the core would stop at.

    Attributes
    ----------
    engine : int        Whose stream it is.
    code : FaultCode    STREAM.
    """

    def __init__(self, engine: int, text: str) -> None:
        self.engine = engine
        self.code = FaultCode.STREAM
        super().__init__(f"stream of engine {engine} {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedStreams:
    """The rows of all streams, engine by engine, in stream order.

    Attributes
    ----------
    engine_of_row, out_offsets, counts, bias, multiplier, shift : (rows,) int64
    indptr : (rows + 1,) int64     Row ``r`` has the entries ``indptr[r]`` to ``indptr[r + 1] - 1``.
    offsets : (entries,) int64     Activation offsets.
    weights : (entries,) int64
    fillers : int                  Fillers passed over.
    """

    engine_of_row: NDArray[np.int64]
    out_offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    indptr: NDArray[np.int64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.int64]
    fillers: int


class _Reader:
    """Reads one stream from its bits."""

    def __init__(self, engine: int, stream: NDArray[np.uint8], fmt: StreamFormat) -> None:
        self.engine, self.fmt = engine, fmt
        self.bits, self._bytes = np.unpackbits(stream, bitorder="little"), stream.tobytes()
        self.at = 0
        self.fillers = 0
        self.masks: list[int] = []
        self._ones = 0  # of the last mask, for which no entry has been read
        self._runs: list[tuple[int, int, bool]] = []  # first bit, entries, it begins a row
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._powers = 1 << np.arange(fmt.entry_bits, dtype=np.int64)

    def take(self, width: int) -> int:
        """Returns the next ``width`` bits."""
        if self.at + width > len(self.bits):
            raise StreamError(self.engine, "must go on to its last row, but ends before")
        first, shift = divmod(self.at, 8)
        self.at += width
        part = self._bytes[first : first + (width + 14) // 8]
        return int.from_bytes(part, "little") >> shift & (1 << width) - 1

    def read_row(self, count: int) -> None:
        """Reads ``count`` entries, those that have a weight if the format has fillers."""
        if self.fmt.rice:
            self._read_rice(count)
        else:
            self._parts.append(self._read_plain(count))

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns offsets and weights of all entries that were read."""
        if self.fmt.rice:
            return self._decode_rice()
        empty = np.zeros(0, np.int64)
        offsets, weights = zip((empty, empty), *self._parts, strict=True)
        return np.concatenate(offsets), np.concatenate(weights)

    def _short(self, count: int) -> StreamError:
        return StreamError(self.engine, f"must hold {count} entries of a row, but ends before")

    def _signed(self, weights: NDArray[np.int64]) -> NDArray[np.int64]:
        half = 1 << self.fmt.weight_bits - 1
        return (weights ^ half) - half

    def _read_plain(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        fmt, width = self.fmt, self.fmt.entry_bits
        room = (len(self.bits) - self.at) // width
        guess = min(room, count + 8 + count // 4)
        while True:
            block = self.bits[self.at : self.at + guess * width].reshape(guess, width)
            coded = block @ self._powers
            weights = coded & ((1 << fmt.weight_bits) - 1)
            real = np.flatnonzero(weights)
            if len(real) >= count:
                break
            if guess == room:
                raise self._short(count)
            guess = min(room, 2 * guess)
        used = int(real[count - 1]) + 1
        self.at += used * width
        self.fillers += used - count
        weights, fields = weights[:used], coded[:used] >> fmt.weight_bits
        real = real[:count]
        if fmt.absolute:
            offsets = fields
        else:
            steps = np.where(weights != 0, fields + 1, (fields + 1) << fmt.delta_bits)
            offsets = np.cumsum(steps) - 1
        return offsets[real], self._signed(weights[real])

    def _read_rice(self, count: int) -> None:
        """Notes where the entries of a row stand."""
        left = count
        while left:
            while not self._ones:
                self.masks.append(self.take(MASK_BITS))
                self._ones = self.masks[-1].bit_count()
            size = min(left, self._ones)
            self._runs.append((self.at, size, left == count))
            left -= size
            self._ones -= size
            self.at += size * self.fmt.entry_bits
        if self.at > len(self.bits):
            raise self._short(count)

    def _decode_rice(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        fmt = self.fmt
        starts, sizes, begins = np.array(self._runs, np.int64).reshape(-1, 3).T
        total = int(sizes.sum())
        behind = np.cumsum(sizes)
        place = np.repeat(starts - (behind - sizes) * fmt.entry_bits, sizes)
        place += np.arange(total) * fmt.entry_bits
        coded = np.zeros(total, np.int64)
        for k in range(fmt.entry_bits):
            coded |= self.bits[place + k].astype(np.int64) << k
        masks = np.array(self.masks, "<u2").view(np.uint8)
        ones = np.flatnonzero(np.unpackbits(masks, bitorder="little"))[:total]
        gaps = (np.diff(ones, prepend=-1) - 1 << fmt.delta_bits) + (coded >> fmt.weight_bits)
        ends = np.cumsum(gaps + 1)
        first = (behind - sizes)[begins == 1]  # of each row
        base = ends[first] - gaps[first] - 1
        lengths = np.diff(first, append=total)
        return ends - 1 - np.repeat(base, lengths), self._signed(
            coded & ((1 << fmt.weight_bits) - 1))


def unpack(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],
    engines: int,
    bus_bytes: int,
    fmt: StreamFormat,
    *,
    has_bias: bool,
    quantized: bool,
) -> UnpackedStreams:
    """Reads interleaved streams as the core does.

    Raises
    ------
    StreamError    If a stream ends before its last row does.
    """
    is_buffer = isinstance(data, (bytes, bytearray, memoryview))
    beats = np.frombuffer(data, np.uint8) if is_buffer else np.asarray(data, np.uint8)
    if len(beats) % (engines * bus_bytes):
        raise ValueError(
            f"data must be a multiple of {engines * bus_bytes} bytes, not {len(beats)}"
        )
    streams = beats.reshape(-1, engines, bus_bytes).transpose(1, 0, 2).reshape(engines, -1)
    rows: list[tuple[int, ...]] = []
    offsets: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.int64]] = []
    fillers = 0
    for e in range(engines):
        reader = _Reader(e, streams[e], fmt)
        end = False
        while not end:
            header = reader.take(1 + fmt.count_bits)
            if header == (2 << fmt.count_bits) - 1:
                break
            count, end = header >> 1, bool(header & 1)
            out_offset = reader.take(fmt.offset_bits)
            bias = reader.take(BIAS_BITS) if has_bias else 0
            scale = reader.take(SCALE_BITS) if quantized else 0
            rows.append((e, out_offset, count, (bias ^ 1 << 31) - (1 << 31),
                         scale & ((1 << 36) - 1), scale >> 36 & 31))
            if count:
                reader.read_row(count)
        row_offsets, row_weights = reader.entries()
        offsets.append(row_offsets)
        weights.append(row_weights)
        fillers += reader.fillers
    table = np.array(rows, np.int64).reshape(-1, 6).T
    empty = np.zeros(0, np.int64)
    return UnpackedStreams(
        engine_of_row=table[0], out_offsets=table[1], counts=table[2], bias=table[3] * has_bias,
        multiplier=table[4], shift=table[5], indptr=np.concatenate([[0], np.cumsum(table[2])]),
        offsets=np.concatenate([empty, *offsets]), weights=np.concatenate([empty, *weights]),
        fillers=fillers,
    )
