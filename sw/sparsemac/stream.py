# SPDX-License-Identifier: Apache-2.0
"""The packed weight stream: what CSR becomes in memory. Format version 1.

A matrix is dealt out to the engines row by row; each engine has one bit stream. The streams are cut
into beats of the bus, padded with zero bits to the same number of beats, and interleaved: beat
``i`` of the block belongs to engine ``i % engines``. So all weights of an EXEC are one linear read.

Bits are numbered from the least significant bit of the first byte. A stream is a sequence of rows;
nothing in it is aligned.

Row header::

    count       15 bits   entries of the row that are not fillers (0: the row is empty)
    end          1 bit    this is the last row of the stream
    out_offset  16 bits   output word of the row, relative to the EXEC's output address, 0 to 65534
    bias        32 bits   int32; only if the EXEC says that the stream has biases
    multiplier  36 bits   unsigned, below 2**35; only if the output mode is not raw
    shift        6 bits   0 to 31, right shift; only if the output mode is not raw
    zero         6 bits   reserved; only if the output mode is not raw

A stream without rows is the single word 0xFFFF_8000 (count 0, end, out_offset 65535).

Entries follow until ``count`` of them had a weight other than zero::

    weight       4 or 8 bits, two's complement
    field        delta_bits bits (or 16, absolute)

With o = 0 at the start of the row:

- an entry whose weight is not zero multiplies activation offset ``o + field``; then o is that
  plus 1;
- an entry whose weight is zero is a *filler*: it multiplies nothing, and ``o`` grows by
  ``(field + 1) << delta_bits``. Two entries thus span ``2**(2 * delta_bits)`` columns;
- with absolute offsets, ``field`` is the offset itself: any order, duplicates allowed, no fillers.

With ``delta_bits`` 0 an entry is a bare weight, and a zero weight steps over one column: a dense
row. Weights that are explicitly zero are dropped by the packer; an empty row yields its bias.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._coding import (
    choose_format,
    code_entries,
    entropy_bound_bits,
    entry_counts,
    merge_duplicates,
)
from .commands import StreamFormat
from .csr import Csr, weight_range
from .errors import UnsupportedLayer
from .registers import FaultCode

__all__ = [
    "BIAS_BITS",
    "HEADER_BITS",
    "MAX_COUNT",
    "MAX_OFFSETS",
    "MAX_OUT_OFFSET",
    "SCALE_BITS",
    "PackedStreams",
    "StreamError",
    "UnpackedStreams",
    "choose_format",
    "entropy_bound_bits",
    "entry_counts",
    "pack",
    "unpack",
]

MAX_COUNT = (1 << 15) - 1
MAX_OUT_OFFSET = (1 << 16) - 2
MAX_OFFSETS = 1 << 16
NULL_ROW = 0xFFFF_8000
HEADER_BITS, BIAS_BITS, SCALE_BITS = 32, 32, 48


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
class PackedStreams:
    """Interleaved streams, and what their bits are spent on.

    Attributes
    ----------
    data : bytes             ``beats * bus_bytes`` bytes.
    beats : int              Beats of all engines together.
    fmt : StreamFormat
    entries, fillers : int   Entries with a weight, and without.
    header_bits : int        count, end and out_offset of all rows.
    parameter_bits : int     bias, multiplier and shift of all rows: the layer's, not the matrix's.
    padding_bits : int       Behind the last row of each stream.
    """

    data: bytes
    beats: int
    fmt: StreamFormat
    entries: int
    fillers: int
    header_bits: int
    parameter_bits: int
    padding_bits: int

    @property
    def format_bits(self) -> int:
        """Bits that the matrix takes: all but ``parameter_bits``."""
        return 8 * len(self.data) - self.parameter_bits


def _check_limits(csr: Csr, fmt: StreamFormat) -> None:
    low, high = weight_range(fmt.weight_bits)
    if csr.nnz and not low <= csr.data.min() <= csr.data.max() <= high:
        raise ValueError(
            f"weights must be {low} to {high}, not {csr.data.min()} to {csr.data.max()}"
        )
    if csr.shape[1] > MAX_OFFSETS:
        raise UnsupportedLayer(
            f"columns must be at most {MAX_OFFSETS} in one stream, not {csr.shape[1]}"
        )
    if csr.row_lengths.max(initial=0) > MAX_COUNT:
        row = int(csr.row_lengths.argmax())
        raise UnsupportedLayer(
            f"entries of a row must be at most {MAX_COUNT} in one stream, not "
            f"{csr.row_lengths[row]} (row {row})"
        )


def _check_order(engine_rows: list[NDArray[np.int64]], engines: int, rows: int) -> None:
    if len(engine_rows) != engines:
        raise ValueError(
            f"engine_rows must have {engines} elements, one per engine, not {len(engine_rows)}"
        )
    order = np.concatenate([np.asarray(r, np.int64) for r in engine_rows])
    if not np.array_equal(np.sort(order), np.arange(rows)):
        raise ValueError(f"engine_rows must hold each of {rows} rows exactly once")


def _parameter(name: str, values: Any, rows: int, low: int, high: int,
               error: type[ValueError] = ValueError) -> NDArray[np.int64]:
    """A field of all rows as (rows,) int64, if it fits ``low..high``."""
    vector = np.atleast_1d(np.asarray(values))
    if vector.dtype.kind not in "iu" and vector.size:
        raise TypeError(f"{name} must hold integers, not {vector.dtype}")
    if vector.shape != (rows,):
        raise ValueError(f"{name} must have one element for each of {rows} rows, not {len(vector)}")
    if (bad := np.flatnonzero((vector < low) | (vector > high))).size:
        raise error(f"{name} must be {low} to {high}, not {vector[bad[0]]} (row {bad[0]})")
    return vector.astype(np.int64)


def _put(words: NDArray[np.uint64], starts: NDArray[np.int64], values: NDArray[np.int64],
         width: int) -> None:
    """Writes values of at most 64 bits at their first bits, where zeros stand."""
    bits = values.astype(np.uint64) & np.uint64((1 << width) - 1)
    at, shift = starts >> 6, (starts & 63).astype(np.uint64)
    np.bitwise_or.at(words, at, bits << shift)
    np.bitwise_or.at(words, at + 1, _shifted_out(bits, shift))


def _shifted_out(bits: NDArray[np.uint64], shift: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What leaves words at the top if they are shifted left by 0 to 63 bits."""
    return bits >> (np.uint64(63) - shift) >> np.uint64(1)


def _joined(coded: NDArray[np.uint32], width: int) -> NDArray[np.uint64]:
    """Entries of ``width`` bits, at most 32, behind one another in words of 64 bits."""
    words = -(-len(coded) * width // 64)
    joined = np.zeros(len(coded) + -len(coded) % 16, np.uint64)
    joined[: len(coded)] = coded
    while 2 * width <= 64:
        joined = joined[::2] | joined[1::2] << np.uint64(width)
        joined = np.concatenate([joined, joined[:0], np.zeros(len(joined) % 2, np.uint64)])
        width *= 2
    if width == 64:
        return joined[:words]
    # Parts of 33 to 63 bits: a word begins in one and ends in the next, or in the one behind that.
    joined = np.concatenate([joined, np.zeros(3, np.uint64)])
    first, skipped = np.divmod(np.arange(words) * 64, width)
    inside = (width - skipped).astype(np.uint64)  # 1 to 63 bits of the first part
    found = joined[first] >> skipped.astype(np.uint64) | joined[first + 1] << inside
    third = np.flatnonzero(inside + np.uint64(width) < 64)
    found[third] |= joined[first[third] + 2] << inside[third] + np.uint64(width)
    return found


def _put_entries(words: NDArray[np.uint64], coded: NDArray[np.uint32], width: int,
                 sizes: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    """Writes each row's entries behind one another from its first bit, where zeros stand."""
    busy = np.flatnonzero(sizes)
    if not len(busy):
        return
    source = np.concatenate([np.zeros(1, np.uint64), _joined(coded, width),
                             np.zeros(2, np.uint64)])
    origins, starts = ((np.cumsum(sizes) - sizes) * width)[busy], starts[busy]
    last_bits = starts + sizes[busy] * width - 1
    counts = (last_bits >> 6) - (starts >> 6) + 1
    ends = np.cumsum(counts)
    firsts, lasts = ends - counts, ends - 1
    # A word of a row is one of the joined entries, or what two of them share.
    index = np.arange(ends[-1])
    target = index + np.repeat((starts >> 6) - firsts, counts)
    offset = origins - (starts & 63) + 64  # of the first word, behind the zero in front
    shift = np.repeat((offset & 63).astype(np.uint64), counts)
    at = index + np.repeat((offset >> 6) - firsts, counts)
    found = source[at] >> shift | source[at + 1] << (np.uint64(63) - shift) << np.uint64(1)
    ones = np.uint64((1 << 64) - 1)
    found[firsts] &= ones << (starts & 63).astype(np.uint64)
    found[lasts] &= ones >> (63 - (last_bits & 63)).astype(np.uint64)
    # The first word of a row may be the last one of another; all others are its own.
    own = np.ones(len(index), np.bool_)
    own[firsts] = False
    words[target[own]] = found[own]
    np.bitwise_or.at(words, target[firsts], found[firsts])


def _header_fields(
    csr: Csr, out_offsets: Any, bias: Any, multiplier: Any, shift: Any
) -> list[tuple[NDArray[np.int64], int]]:
    """Words in front of each row's entries: their (rows,) values, without ``end``, and widths."""
    rows = csr.shape[0]
    offsets = np.arange(rows) if out_offsets is None else out_offsets
    offsets = _parameter("out_offsets", offsets, rows, 0, MAX_OUT_OFFSET, UnsupportedLayer)
    fields = [(csr.row_lengths | offsets << 16, HEADER_BITS)]
    if bias is not None:
        fields.append((_parameter("bias", bias, rows, -(1 << 31), (1 << 31) - 1), BIAS_BITS))
    if (multiplier is None) != (shift is None):
        raise ValueError("multiplier and shift must be given both or neither")
    if multiplier is not None:
        scale = _parameter("multiplier", multiplier, rows, 0, (1 << 35) - 1)
        fields.append((scale | _parameter("shift", shift, rows, 0, 31) << 36, SCALE_BITS))
    return fields


def pack(
    csr: Csr,
    engine_rows: list[NDArray[np.int64]],
    fmt: StreamFormat,
    *,
    engines: int,
    bus_bytes: int,
    out_offsets: NDArray[np.int64] | None = None,
    bias: NDArray[np.int32] | None = None,
    multiplier: NDArray[np.uint64] | None = None,
    shift: NDArray[np.int64] | None = None,
) -> PackedStreams:
    """Packs a matrix into interleaved streams.

    Parameters
    ----------
    csr : Csr
    engine_rows :                  For each engine its rows, in order; every row exactly once.
    fmt : StreamFormat
    engines, bus_bytes : int       As in the core's configuration.
    out_offsets : (rows,)          Output word of each row; the row's own number by default.
    bias : (rows,) int32           None: the stream has no biases.
    multiplier, shift : (rows,)    Both, or None: the stream has no requantization.
    """
    rows = csr.shape[0]
    _check_order(engine_rows, engines, rows)
    csr, duplicates = merge_duplicates(csr, fmt.weight_bits)
    if duplicates and not fmt.absolute:
        raise ValueError("duplicates whose sum is no weight need a format with absolute offsets")
    _check_limits(csr, fmt)
    fields = _header_fields(csr, out_offsets, bias, multiplier, shift)
    coded, sizes = code_entries(csr, fmt)

    header = sum(width for _, width in fields)
    row_bits = header + sizes * fmt.entry_bits
    used = [int(row_bits[r].sum()) if len(r) else HEADER_BITS for r in engine_rows]
    rounds = max(-(-bits // (8 * bus_bytes)) for bits in used)
    stream_bits = rounds * 8 * bus_bytes
    words = np.zeros(engines * stream_bits // 64 + 2, np.uint64)
    starts = np.zeros(rows, np.int64)  # first bit of each row
    empty: list[int] = []  # first bits of streams without rows
    for e, engine in enumerate(engine_rows):
        base = e * stream_bits
        if len(engine):
            starts[engine] = base + np.cumsum(row_bits[engine]) - row_bits[engine]
            fields[0][0][engine[-1]] |= 1 << 15
        else:
            empty.append(base)
    _put_entries(words, coded, fmt.entry_bits, sizes, starts + header)
    for values, width in fields:
        _put(words, starts, values, width)
        starts += width
    _put(words, np.array(empty, np.int64), np.full(len(empty), NULL_ROW), HEADER_BITS)

    quads = words.astype("<u8", copy=False).view("<u4")[: engines * stream_bits // 32]
    beats = quads.reshape(engines, rounds, bus_bytes // 4)
    idle = sum(1 for r in engine_rows if not len(r))
    return PackedStreams(
        data=beats.transpose(1, 0, 2).tobytes(), beats=rounds * engines, fmt=fmt,
        entries=csr.nnz, fillers=len(coded) - csr.nnz, header_bits=HEADER_BITS * (rows + idle),
        parameter_bits=(header - HEADER_BITS) * rows,
        padding_bits=engines * stream_bits - sum(used),
    )


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

    def __init__(self, engine: int, bits: NDArray[np.uint8], fmt: StreamFormat) -> None:
        self.engine, self.bits, self.fmt = engine, bits, fmt
        self.at = 0
        self.fillers = 0
        self._powers = 1 << np.arange(fmt.entry_bits, dtype=np.int64)

    def take(self, width: int) -> int:
        """Returns the next ``width`` bits."""
        if self.at + width > len(self.bits):
            raise StreamError(self.engine, "must go on to its last row, but ends before")
        packed = np.packbits(self.bits[self.at : self.at + width], bitorder="little")
        self.at += width
        return int.from_bytes(packed.tobytes(), "little")

    def entries(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns offsets and weights of the next ``count`` entries that have a weight."""
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
                raise StreamError(
                    self.engine, f"must hold {count} entries of a row, but ends before"
                )
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
        half = 1 << fmt.weight_bits - 1
        return offsets[real], (weights[real] ^ half) - half


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
        reader = _Reader(e, np.unpackbits(streams[e], bitorder="little"), fmt)
        end = False
        while not end:
            header = reader.take(HEADER_BITS)
            if header >> 15 == NULL_ROW >> 15:
                break
            count, end = header & MAX_COUNT, bool(header >> 15 & 1)
            bias = reader.take(BIAS_BITS) if has_bias else 0
            scale = reader.take(SCALE_BITS) if quantized else 0
            rows.append((e, header >> 16, count, (bias ^ 1 << 31) - (1 << 31),
                         scale & ((1 << 36) - 1), scale >> 36 & 31))
            if count:
                row_offsets, row_weights = reader.entries(count)
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
