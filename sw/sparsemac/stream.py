# SPDX-License-Identifier: Apache-2.0
"""The packed weight stream: what CSR becomes in memory. Format version 2.

A matrix is dealt out to the engines row by row; each engine has one bit stream. The streams are cut
into beats of the bus, padded with zero bits to the same number of beats, and interleaved: beat
``i`` of the block belongs to engine ``i % engines``. So all weights of an EXEC are one linear read.

Bits are numbered from the least significant bit of the first byte. A stream is a sequence of rows;
nothing in it is aligned.

Row header::

    end          1 bit    this is the last row of the stream
    count        5 to 15  entries of the row that are not fillers (0: the row is empty)
    out_offset   8 to 16  output word of the row, relative to the EXEC's output address
    bias        32 bits   int32; only if the EXEC says that the stream has biases
    multiplier  36 bits   unsigned, below 2**35; only if the output mode is not raw
    shift        6 bits   0 to 31, right shift; only if the output mode is not raw
    zero         6 bits   reserved; only if the output mode is not raw

The EXEC says how many bits count and out_offset have. A stream without rows has an end whose count
is all ones, which no row has, and nothing behind it.

Entries follow::

    weight       4 or 8 bits, two's complement
    field        delta_bits bits (or 16, absolute)

With o = 0 at the start of the row, there are three kinds of format:

- *plain*. An entry whose weight is not zero multiplies activation offset ``o + field``; then o is
  that plus 1. One whose weight is zero is a *filler*: it multiplies nothing, and ``o`` grows by
  ``(field + 1) << delta_bits``. Two entries thus span ``2**(2 * delta_bits)`` columns. The row goes
  on until ``count`` entries had a weight other than zero. With ``delta_bits`` 0 an entry is a bare
  weight, and a zero weight steps over one column: a dense row;
- *Rice*. A gap is a quotient and ``delta_bits`` bits of remainder (Golomb, "Run-Length Encodings",
  1966; Rice and Plaunt, "Adaptive Variable-Length Coding", 1971). An entry multiplies offset
  ``o + (quotient << delta_bits) + field``; then o is that plus 1. Quotients stand in *masks* of 16
  bits, in unary: as many zeros, and a one. The masks of a stream follow one another without regard
  to rows. A mask is read when an entry is due for which no one is left; behind it come as many
  entries as it has ones, with headers between them wherever a row is complete. With ``delta_bits``
  0 masks are the bitmap of the matrix, but for what is behind the last nonzero of a row;
- *absolute*. ``field`` is the offset itself: any order, duplicates allowed. Entries whose weight is
  zero count for nothing.

Weights that are explicitly zero are dropped by the packer; an empty row yields its bias.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bits import put, put_entries
from ._coding import (
    BIAS_BITS,
    HEADER_BITS,
    MASK_BITS,
    MAX_COUNT,
    MAX_OFFSETS,
    MAX_OUT_OFFSET,
    SCALE_BITS,
    choose_format,
    code_entries,
    code_rice_entries,
    entropy_bound_bits,
    entry_counts,
    merge_duplicates,
)
from ._unpacking import StreamError, UnpackedStreams, unpack
from .commands import StreamFormat
from .csr import Csr, weight_range
from .errors import UnsupportedLayer

__all__ = [
    "BIAS_BITS",
    "HEADER_BITS",
    "MASK_BITS",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedStreams:
    """Interleaved streams, and what their bits are spent on.

    Attributes
    ----------
    data : bytes             ``beats * bus_bytes`` bytes.
    beats : int              Beats of all engines together.
    fmt : StreamFormat       With the smallest headers that hold what is in the rows.
    entries, fillers : int   Entries with a weight, and without.
    mask_bits : int          Of all masks.
    header_bits : int        end, count and out_offset of all rows.
    parameter_bits : int     bias, multiplier and shift of all rows: the layer's, not the matrix's.
    padding_bits : int       Behind the last row of each stream.
    """

    data: bytes
    beats: int
    fmt: StreamFormat
    entries: int
    fillers: int
    mask_bits: int
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


def _header_fields(
    csr: Csr, fmt: StreamFormat, offsets: NDArray[np.int64], bias: Any, multiplier: Any, shift: Any
) -> list[tuple[NDArray[np.int64], int]]:
    """Words in front of each row's entries: their (rows,) values, without ``end``, and widths."""
    rows = csr.shape[0]
    fields = [(csr.row_lengths << 1 | offsets << 1 + fmt.count_bits, fmt.header_bits)]
    if bias is not None:
        fields.append((_parameter("bias", bias, rows, -(1 << 31), (1 << 31) - 1), BIAS_BITS))
    if (multiplier is None) != (shift is None):
        raise ValueError("multiplier and shift must be given both or neither")
    if multiplier is not None:
        scale = _parameter("multiplier", multiplier, rows, 0, (1 << 35) - 1)
        fields.append((scale | _parameter("shift", shift, rows, 0, 31) << 36, SCALE_BITS))
    return fields


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things go, in bits from the start of their engine's stream.

    Attributes
    ----------
    coded : (entries,) uint32           Entries, fillers among them, run by run.
    sizes, starts, engine_of_run : (runs,)    Entries that stand behind one another.
    masks, mask_starts, engine_of_mask : (masks,)
    row_starts : (rows,)                Headers, in the order of the streams.
    used : (engines,)                   Bits of each stream.
    """

    coded: NDArray[np.uint32]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    engine_of_run: NDArray[np.int64]
    masks: NDArray[np.int64]
    mask_starts: NDArray[np.int64]
    engine_of_mask: NDArray[np.int64]
    row_starts: NDArray[np.int64]
    used: NDArray[np.int64]


def _since(counts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums up counts before each element, from zero again in each of the parts so long."""
    before = np.concatenate([[0], np.cumsum(counts)])
    return before[:-1] - np.repeat(before[np.cumsum(lengths) - lengths], lengths)


def _lay_out(csr: Csr, fmt: StreamFormat, order: NDArray[np.int64], lengths: NDArray[np.int64],
             header: int) -> _Layout:
    """Lays out plain and absolute entries: a row is a run."""
    coded, sizes = code_entries(csr, fmt)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    bits = header + sizes[order] * fmt.entry_bits
    row_starts = _since(bits, lengths)
    starts, engine_of_row = np.empty_like(sizes), np.empty_like(sizes)
    starts[order], engine_of_row[order] = row_starts + header, owner
    none = np.zeros(0, np.int64)
    return _Layout(coded, sizes, starts, engine_of_row, none, none, none, row_starts,
                   np.bincount(owner, bits, len(lengths)).astype(np.int64))


def _lay_out_rice(csr: Csr, fmt: StreamFormat, order: NDArray[np.int64],
                  lengths: NDArray[np.int64], header: int) -> _Layout:
    """Lays out Rice-coded entries: a run ends with a row, and with the ones of a mask."""
    coded, quotients = code_rice_entries(csr, fmt)
    counts = csr.row_lengths[order]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    of_engine = np.bincount(owner, counts, len(lengths)).astype(np.int64)
    entry_ends = np.cumsum(of_engine)
    entry_starts = entry_ends - of_engine
    # Everything in the order of the streams.
    row_firsts = np.cumsum(counts) - counts
    source = np.repeat(csr.indptr[order] - row_firsts, counts)
    source += np.arange(len(source))
    coded, ones = coded[source], quotients[source]
    ones += 1
    np.cumsum(ones, out=ones)
    ones -= 1
    before = np.concatenate([[0], ones + 1])[entry_starts]  # bits of masks before each stream
    ones -= np.repeat(before, of_engine)  # where each entry's one is in the masks of its stream
    mask = ones // MASK_BITS
    begins = np.ones(len(coded), np.bool_)
    np.not_equal(mask[1:], mask[:-1], out=begins[1:])
    begins[row_firsts[counts > 0]] = True
    firsts = np.flatnonzero(begins)
    row_of_run = np.searchsorted(row_firsts + counts, firsts, side="right")
    engine_of_run = owner[row_of_run]
    rows_before = np.arange(len(order)) - (np.cumsum(lengths) - lengths)[owner]
    starts = ((firsts - entry_starts[engine_of_run]) * fmt.entry_bits
              + (mask[firsts] + 1) * MASK_BITS + (rows_before[row_of_run] + 1) * header)

    filled = of_engine > 0
    mask_counts = np.zeros(len(lengths), np.int64)
    mask_counts[filled] = mask[entry_ends[filled] - 1] + 1
    engine_of_mask = np.repeat(np.arange(len(lengths)), mask_counts)
    masks_before = np.cumsum(mask_counts) - mask_counts
    numbers = mask[firsts] + masks_before[engine_of_run]
    ones -= mask * MASK_BITS
    bits = np.left_shift(1, ones, out=ones)
    mask += np.repeat(masks_before, of_engine)
    masks = np.bincount(mask, bits, int(mask_counts.sum())).astype(np.int64)
    mask -= np.repeat(masks_before, of_engine)
    # Masks stand in front of the first run whose ones are in them, or in one of those behind.
    places = np.arange(len(masks))
    run = np.searchsorted(numbers, places)
    mask_starts = starts[run] - (numbers[run] - places + 1) * MASK_BITS

    entries_before = row_firsts - entry_starts[owner]
    behind = np.concatenate([[0], mask + 1])[row_firsts]  # masks so far
    row_starts = (rows_before * header + entries_before * fmt.entry_bits
                  + np.where(entries_before > 0, behind, 0) * MASK_BITS)
    used = lengths * header + of_engine * fmt.entry_bits + mask_counts * MASK_BITS
    return _Layout(coded, np.diff(firsts, append=len(coded)), starts, engine_of_run, masks,
                   mask_starts, engine_of_mask, row_starts, used)


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
    fmt : StreamFormat             How entries are coded; the sizes of headers are chosen here.
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
    offsets = _parameter("out_offsets", np.arange(rows) if out_offsets is None else out_offsets,
                         rows, 0, MAX_OUT_OFFSET, UnsupportedLayer)
    fmt = fmt.fitting(int(csr.row_lengths.max(initial=0)), int(offsets.max(initial=0)))
    fields = _header_fields(csr, fmt, offsets, bias, multiplier, shift)
    header = sum(width for _, width in fields)
    order = np.concatenate([np.asarray(r, np.int64) for r in engine_rows])
    lengths = np.array([len(r) for r in engine_rows])
    layout = (_lay_out_rice if fmt.rice else _lay_out)(csr, fmt, order, lengths, header)

    idle = np.flatnonzero(lengths == 0)
    used = layout.used.copy()
    used[idle] = no_rows = 1 + fmt.count_bits
    rounds = -(-int(used.max()) // (8 * bus_bytes))
    stream_bits = rounds * 8 * bus_bytes
    words = np.zeros(engines * stream_bits // 64 + 2, np.uint64)
    base = np.arange(engines) * stream_bits
    put_entries(words, layout.coded, fmt.entry_bits, layout.sizes,
                layout.starts + base[layout.engine_of_run])
    put(words, layout.mask_starts + base[layout.engine_of_mask], layout.masks, MASK_BITS)
    fields[0][0][order[np.cumsum(lengths)[lengths > 0] - 1]] |= 1
    starts = layout.row_starts + np.repeat(base, lengths)
    for values, width in fields:
        put(words, starts, values[order], width)
        starts = starts + width
    put(words, base[idle], np.full(len(idle), (1 << no_rows) - 1), no_rows)

    quads = words.astype("<u8", copy=False).view("<u4")[: engines * stream_bits // 32]
    beats = quads.reshape(engines, rounds, bus_bytes // 4)
    return PackedStreams(
        data=beats.transpose(1, 0, 2).tobytes(), beats=rounds * engines, fmt=fmt,
        entries=csr.nnz, fillers=len(layout.coded) - csr.nnz,
        mask_bits=MASK_BITS * len(layout.masks),
        header_bits=fmt.header_bits * rows + no_rows * len(idle),
        parameter_bits=(header - fmt.header_bits) * rows,
        padding_bits=engines * stream_bits - int(used.sum()),
    )
