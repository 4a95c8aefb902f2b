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

- an entry whose weight is not zero multiplies activation offset ``o + field``; then o is that plus 1;
- an entry whose weight is zero is a *filler*: it multiplies nothing, and ``o`` grows by
  ``(field + 1) << delta_bits``. Two entries thus span ``2**(2 * delta_bits)`` columns;
- with absolute offsets, ``field`` is the offset itself: any order, duplicates allowed, no fillers.

With ``delta_bits`` 0 an entry is a bare weight and a zero weight steps over one column: a dense row.
Weights that are explicitly zero are dropped by the packer; an empty row yields its bias.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .commands import StreamFormat
from .csr import Csr
from .errors import UnsupportedLayer
from .registers import FaultCode

__all__ = [
    "MAX_COUNT",
    "MAX_OFFSETS",
    "MAX_OUT_OFFSET",
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


def _gaps(csr: Csr) -> NDArray[np.int64]:
    """(nnz,) columns between an entry and the one before it in its row, both excluded."""
    gaps = csr.indices.copy()
    gaps[1:] -= csr.indices[:-1] + 1
    starts = csr.indptr[:-1][csr.row_lengths > 0]
    gaps[starts] = csr.indices[starts]
    return gaps


def _fillers(gaps: NDArray[np.int64], delta_bits: int) -> NDArray[np.int64]:
    """(nnz,) fillers in front of each entry."""
    return -(-(gaps >> delta_bits) // (1 << delta_bits))


def _merged(csr: Csr, weight_bits: int) -> tuple[Csr, bool]:
    """Without explicit zeros, duplicates summed up where the sum is a weight.

    The second value tells whether duplicates remain, which only absolute offsets can code.
    """
    csr = csr.without_zeros()
    same = (np.diff(csr.indices) == 0) & (np.diff(csr.rows_of_entries) == 0)
    if not same.any():
        return csr, False
    first = np.concatenate([[True], ~same])
    starts = np.flatnonzero(first)
    sums = np.add.reduceat(csr.data.astype(np.int64), starts)
    high = (1 << weight_bits - 1) - 1
    if (sums > high).any() or (sums < -high - 1).any():
        return csr, True
    kept = np.concatenate([[0], np.cumsum(first)])
    merged = Csr(csr.shape, kept[csr.indptr], csr.indices[starts], sums.astype(np.int8))
    return merged.without_zeros(), False


def entry_counts(csr: Csr, weight_bits: int) -> NDArray[np.int64]:
    """Returns (rows,) entries that each row has in a stream, without fillers."""
    return _merged(csr, weight_bits)[0].row_lengths


def choose_format(csr: Csr, weight_bits: int) -> StreamFormat:
    """Returns the format of fewest bits for this matrix; all are tried on its gaps."""
    merged, duplicates = _merged(csr, weight_bits)
    absolute = StreamFormat(delta_bits=0, absolute=True, weight_bits=weight_bits)
    if duplicates:
        return absolute
    gaps, repeats = np.unique(_gaps(merged), return_counts=True)
    best, fewest = absolute, merged.nnz * absolute.entry_bits
    for delta_bits in range(9):
        fmt = StreamFormat(delta_bits=delta_bits, weight_bits=weight_bits)
        bits = int(((_fillers(gaps, delta_bits) + 1) * repeats).sum()) * fmt.entry_bits
        if bits < fewest:
            best, fewest = fmt, bits
    return best


def _check_limits(csr: Csr, out_offsets: NDArray[np.int64]) -> None:
    if csr.shape[1] > MAX_OFFSETS:
        raise UnsupportedLayer(f"columns must be at most {MAX_OFFSETS} in one stream, not {csr.shape[1]}")
    if csr.row_lengths.max(initial=0) > MAX_COUNT:
        row = int(csr.row_lengths.argmax())
        raise UnsupportedLayer(
            f"entries of a row must be at most {MAX_COUNT} in one stream, not {csr.row_lengths[row]} "
            f"(row {row})"
        )
    if out_offsets.size and (out_offsets.min() < 0 or out_offsets.max() > MAX_OUT_OFFSET):
        raise UnsupportedLayer(f"out_offsets must be 0 to {MAX_OUT_OFFSET}, not {out_offsets.max()}")


def _put(bits: NDArray[np.uint8], starts: NDArray[np.int64], values: NDArray[np.int64], width: int) -> None:
    """Writes values of ``width`` bits at their first bits."""
    for k in range(width):
        bits[starts + k] = values >> k & 1


def _entries(csr: Csr, fmt: StreamFormat) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Coded entries of all rows in order, fillers among them; and how many each row has."""
    mask = (1 << fmt.weight_bits) - 1
    weights = csr.data.astype(np.int64) & mask
    if fmt.absolute:
        return weights | csr.indices << fmt.weight_bits, csr.row_lengths
    gaps, d = _gaps(csr), fmt.delta_bits
    fillers = _fillers(gaps, d)
    ends = np.cumsum(fillers + 1)
    coded = np.full(int(ends[-1]) if len(ends) else 0, ((1 << d) - 1) << fmt.weight_bits, np.int64)
    jumps = gaps >> d
    # All fillers but the last of a gap jump as far as they can; the last takes the rest.
    rest = jumps - (fillers - 1) * (1 << d)
    last = ends[fillers > 0] - 2
    coded[last] = (rest[fillers > 0] - 1) << fmt.weight_bits
    coded[ends - 1] = weights | (gaps & ((1 << d) - 1)) << fmt.weight_bits
    totals = np.concatenate([[0], ends])
    return coded, totals[csr.indptr[1:]] - totals[csr.indptr[:-1]]


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
    if len(engine_rows) != engines:
        raise ValueError(f"engine_rows must have {engines} elements, one per engine, not {len(engine_rows)}")
    order = np.concatenate([np.asarray(rows, np.int64) for rows in engine_rows])
    rows = csr.shape[0]
    if len(order) != rows or (rows and (np.bincount(order, minlength=rows) != 1).any()):
        raise ValueError("engine_rows must hold every row exactly once")
    offsets = np.arange(rows) if out_offsets is None else np.asarray(out_offsets, np.int64)
    csr, duplicates = _merged(csr, fmt.weight_bits)
    if duplicates and not fmt.absolute:
        raise ValueError("duplicates whose sum is no weight need a format with absolute offsets")
    _check_limits(csr, offsets)
    coded, sizes = _entries(csr, fmt)
    header = HEADER_BITS + BIAS_BITS * (bias is not None) + SCALE_BITS * (multiplier is not None)

    row_bits = header + sizes * fmt.entry_bits
    coded_start = np.concatenate([[0], np.cumsum(sizes)])
    used = [int(row_bits[r].sum()) if len(r) else HEADER_BITS for r in engine_rows]
    beat_bits = 8 * bus_bytes
    rounds = max(-(-bits // beat_bits) for bits in used)
    stream_bits = rounds * beat_bits
    bits = np.zeros(engines * stream_bits, np.uint8)

    starts = np.zeros(rows, np.int64)  # first bit of each row
    ends = np.zeros(rows, np.int64)
    for e, engine in enumerate(engine_rows):
        base = e * stream_bits
        if len(engine) == 0:
            _put(bits, np.array([base]), np.array([NULL_ROW]), HEADER_BITS)
            continue
        starts[engine] = base + np.cumsum(row_bits[engine]) - row_bits[engine]
        ends[engine[-1]] = 1
    at = starts.copy()
    _put(bits, at, csr.row_lengths | ends << 15 | offsets << 16, HEADER_BITS)
    at += HEADER_BITS
    if bias is not None:
        _put(bits, at, np.asarray(bias).astype(np.int64), BIAS_BITS)
        at += BIAS_BITS
    if multiplier is not None and shift is not None:
        scale = np.asarray(multiplier).astype(np.int64) | np.asarray(shift).astype(np.int64) << 36
        _put(bits, at, scale, SCALE_BITS)
    # Entries in the order of the streams: their bits then lie in the order of the bits.
    before = np.cumsum(sizes[order]) - sizes[order]
    within = np.arange(len(coded)) - np.repeat(before, sizes[order])
    coded = coded[np.repeat(coded_start[:-1][order], sizes[order]) + within]
    edges = np.zeros(len(bits) + 1, np.int8)
    busy = order[sizes[order] > 0]
    np.add.at(edges, starts[busy] + header, 1)
    np.add.at(edges, starts[busy] + row_bits[busy], -1)
    octets = coded.astype("<u4").view(np.uint8).reshape(-1, 4)
    entry_bits = np.unpackbits(octets, axis=1, bitorder="little", count=fmt.entry_bits)
    bits[np.cumsum(edges[:-1], dtype=np.int8).view(bool)] = entry_bits.ravel()

    streams = np.packbits(bits.reshape(engines, rounds, beat_bits), axis=2, bitorder="little")
    live = sum(1 for r in engine_rows if len(r))
    header_bits = HEADER_BITS * (rows + engines - live)
    parameter_bits = (header - HEADER_BITS) * rows
    fillers = len(coded) - csr.nnz
    return PackedStreams(
        data=streams.transpose(1, 0, 2).tobytes(), beats=rounds * engines, fmt=fmt,
        entries=csr.nnz, fillers=fillers, header_bits=header_bits, parameter_bits=parameter_bits,
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
                raise StreamError(self.engine, f"must hold {count} entries of a row, but ends before")
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
    data: bytes | NDArray[np.uint8],
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
    beats = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data, np.uint8)
    if len(beats) % (engines * bus_bytes):
        raise ValueError(f"data must be a multiple of {engines * bus_bytes} bytes, not {len(beats)}")
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


def entropy_bound_bits(csr: Csr) -> float:
    """Returns the fewest bits per nonzero that any code of positions and values could reach.

    Positions: log2 of the number of ways to choose each row's columns, the row lengths known.
    Values: their zeroth-order empirical entropy (Shannon, 1948). 0 of an empty matrix.
    """
    csr = csr.without_zeros()
    if not csr.nnz:
        return 0.0
    lgamma = np.vectorize(math.lgamma, otypes=[float])
    lengths, repeats = np.unique(np.minimum(csr.row_lengths, csr.shape[1]), return_counts=True)
    ways = lgamma(csr.shape[1] + 1) - lgamma(lengths + 1) - lgamma(csr.shape[1] - lengths + 1)
    _, counts = np.unique(csr.data, return_counts=True)
    share = counts / csr.nnz
    return float((ways * repeats).sum() / math.log(2) / csr.nnz - (share * np.log2(share)).sum())
