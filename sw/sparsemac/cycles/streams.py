# SPDX-License-Identifier: Apache-2.0
"""What the cycle model needs to know of an EXEC's weight streams: when what can be unpacked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._coding import MASK_BITS, MASK_CYCLES, MASK_ZEROS, code_entries, gaps_between
from ..commands import Exec, OutputMode, StreamFormat
from ..config import CoreConfig
from ..csr import Csr
from ..stream import UnpackedStreams, unpack

__all__ = [
    "BEGINS_ROW",
    "ENDS_HEADER",
    "ENDS_ROW",
    "WORD_BITS",
    "EngineStream",
    "Streams",
    "read_streams",
]

#: Kinds of a segment, as bits: it ends with a row's first header word, with its last one, with its
#: last entry.
BEGINS_ROW, ENDS_HEADER, ENDS_ROW = 1, 2, 4

#: The unpacker's window holds two words of 32 bits, drawn from a beat that has left the FIFO.
WORD_BITS, WINDOW_BITS = 32, 64

#: Cycles lost behind the last entry of a row, and behind the header of an empty row or stream.
ROW_CYCLES, EMPTY_ROW_CYCLES = 2, 3

#: Cycles from a filler to the entry that is asked for in its place.
FILLER_CYCLES = 4


@dataclass(frozen=True, slots=True)
class EngineStream:
    """The stream of one engine, as its unpacker goes through it: one item per cycle.

    Items are header words, entries, fillers, masks, and cycles in which nothing is unpacked.

    Attributes
    ----------
    counts : list of int       Entries that each row issues at a position, at least 1.
    row_ends : list of int     Entries up to the end of each row.
    segments : list of (items, beat, entries, kind)
        Items that need no other beat, the last beat that they need, entries up to their end.
    pops : list of int         For each beat the item that makes room for it in the window; -1 if
                               there is room from the start.
    closes : list of bool      For each word whether its beat of the output ends with it; empty if
                               all do.
    """

    counts: list[int]
    row_ends: list[int]
    segments: list[tuple[int, int, int, int]]
    pops: list[int]
    closes: list[bool]


@dataclass(frozen=True, slots=True)
class Streams:
    """All streams of an EXEC.

    Attributes
    ----------
    engines : list of EngineStream
    rounds : int               Beats of each engine.
    positions : int
    issued, fillers : int      Entries issued, fillers passed over.
    write_beats, write_bytes : int
    """

    engines: list[EngineStream]
    rounds: int
    positions: int
    issued: int
    fillers: int
    write_beats: int
    write_bytes: int


def read_streams(command: Exec, data: bytes, config: CoreConfig) -> Streams:
    """Reads the interleaved streams of an EXEC.

    Raises
    ------
    StreamError    If a stream ends before its last row does.
    """
    quantized = command.mode != OutputMode.RAW
    rows = unpack(data, config.engines, config.bus_bytes, command.format,
                  has_bias=command.has_bias, quantized=quantized)
    form = command.format
    header = [1 + form.count_bits, form.offset_bits] + [32] * command.has_bias
    header += [32, 16] * quantized
    items = _items(rows, header, command.format)
    firsts = items.firsts
    closes = _closes(command, rows, config)
    rounds = command.beats // config.engines
    engines = []
    bounds = np.searchsorted(rows.engine_of_row, np.arange(config.engines + 1))
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        mine = slice(int(firsts[first]), int(firsts[last]))
        engines.append(_engine(
            _Items(items.bits[mine], items.entry[mine], firsts[first:last + 1] - firsts[first]),
            len(header), np.maximum(rows.counts[first:last], 1), rounds, config.bus_width,
            closes[first:last].ravel().tolist() if closes is not None else []))
    words = len(rows.counts) * command.positions * (not command.psum_out)
    word_bytes = config.out_word_bytes(not quantized)
    bursts = words if closes is None or command.psum_out else int(closes.sum())
    return Streams(
        engines, rounds, command.positions,
        issued=int(np.maximum(rows.counts, 1).sum()) * command.positions, fillers=rows.fillers,
        write_beats=bursts * max(1, word_bytes // config.bus_bytes),
        write_bytes=words * word_bytes)


@dataclass(frozen=True, slots=True)
class _Items:
    """What is unpacked, cycle by cycle.

    Attributes
    ----------
    bits : (items,) int64      Of each item; 0 if nothing is unpacked.
    entry : (items,) bool      It goes to the entry buffer.
    firsts : (rows + 1,) int64 First item of each row.
    """

    bits: NDArray[np.int64]
    entry: NDArray[np.bool_]
    firsts: NDArray[np.int64]


def _items(rows: UnpackedStreams, header: list[int], fmt: StreamFormat) -> _Items:
    """Returns the items of all rows."""
    csr = Csr((len(rows.counts), 1 << 16), rows.indptr, rows.offsets, rows.weights.astype(np.int8))
    bits, entry, sizes = (_rice_items(csr, rows.engine_of_row, fmt) if fmt.rice
                          else _plain_items(csr, fmt))
    lead = len(header) + EMPTY_ROW_CYCLES * (sizes == 0)
    firsts = np.concatenate([[0], np.cumsum(lead + sizes + ROW_CYCLES * (sizes > 0))])
    starts = firsts[:-1]
    places = np.arange(len(bits)) + np.repeat(starts + lead - np.cumsum(sizes) + sizes, sizes)
    all_bits, all_entry = np.zeros(firsts[-1], np.int64), np.zeros(firsts[-1], bool)
    all_bits[places], all_entry[places] = bits, entry
    for k, width in enumerate(header):
        all_bits[starts + k] = width
    # An empty row becomes an entry behind its header.
    all_entry[starts[sizes == 0] + len(header)] = True
    return _Items(all_bits, all_entry, firsts)


def _plain_items(csr: Csr, fmt: StreamFormat
                 ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Bits of entries and fillers, which of them are entries, and how many items each row has."""
    coded, sizes = code_entries(csr, fmt)
    entry = coded & ((1 << fmt.weight_bits) - 1) != 0
    bits = np.full(len(coded), fmt.entry_bits, np.int64)
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    before, lost = _lost_to_fillers(entry, row_of, csr.row_lengths, sizes)
    where = np.repeat(before, lost)
    bits, entry = np.insert(bits, where, 0), np.insert(entry, where, False)
    return bits, entry, sizes + np.bincount(row_of[before], lost, len(sizes)).astype(np.int64)


def _rice_items(csr: Csr, engine_of_row: NDArray[np.int64], fmt: StreamFormat
                ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """The same of Rice-coded entries, with their masks."""
    counts = csr.row_lengths
    quotients = gaps_between(csr) >> fmt.delta_bits
    engines = np.repeat(engine_of_row, counts)
    first = np.flatnonzero(np.diff(engines, prepend=-1))  # entries of streams
    ends = np.cumsum(quotients + 1)
    base = (ends - quotients - 1)[first]
    # Where each entry's one is in the masks of its stream, and where the one before it is.
    one = ends - 1 - np.repeat(base, np.diff(first, append=len(ends)))
    previous = np.concatenate([[-1], one[:-1]])[:len(one)]
    previous[first] = -1
    masks = one // MASK_BITS - previous // MASK_BITS
    rest = (MASK_BITS - 1 - previous % MASK_BITS) // MASK_ZEROS
    whole = MASK_CYCLES + MASK_BITS // MASK_ZEROS
    lost = np.where(masks == 0, quotients // MASK_ZEROS,
                    rest + masks * MASK_CYCLES + (masks - 1) * (MASK_BITS // MASK_ZEROS)
                    + one % MASK_BITS // MASK_ZEROS)
    places = np.cumsum(lost + 1) - 1
    total = int(places[-1]) + 1 if len(places) else 0
    bits, entry = np.zeros(total, np.int64), np.zeros(total, np.bool_)
    bits[places], entry[places] = fmt.entry_bits, True
    nth = np.arange(int(masks.sum())) - np.repeat(np.cumsum(masks) - masks, masks)
    bits[np.repeat(places - lost + rest + 1, masks) + whole * nth] = MASK_BITS
    before = np.concatenate([[0], np.cumsum(lost + 1)])
    return bits, entry, np.diff(before[csr.indptr])


def _lost_to_fillers(
    entry: NDArray[np.bool_], row_of: NDArray[np.int64], counts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cycles in which nothing is unpacked because a filler was found out too late.

    As many entries are asked for as the row has, and one more for each filler `FILLER_CYCLES`
    behind it: the m-th filler is made up for by entry ``count + m - 1``, if that is far enough.

    Returns
    -------
    (n,) int64 entries or fillers, counted over all rows, and (n,) cycles lost before each.
    """
    starts = np.cumsum(sizes) - sizes
    fillers = np.flatnonzero(~entry)
    row = row_of[fillers]
    passed = np.cumsum(~entry)
    number = passed[fillers] - (passed[starts[row]] - ~entry[starts[row]])
    made_up = starts[row] + counts[row] + number - 1
    late = made_up - fillers < FILLER_CYCLES
    before: list[int] = []
    lost: list[int] = []
    shifts: list[tuple[int, int]] = []  # of the row: item, cycles lost up to it
    this_row = -1
    for filler, item, r in zip(fillers[late].tolist(), made_up[late].tolist(), row[late].tolist(),
                               strict=True):
        if r != this_row:
            this_row, shifts = r, []
        at_filler = max((shift for k, shift in shifts if k <= filler), default=0)
        at_item = shifts[-1][1] if shifts else 0
        shift = at_filler + FILLER_CYCLES - (item - filler)
        if shift > at_item:
            shifts.append((item, shift))
            before.append(item)
            lost.append(shift - at_item)
    return np.array(before, np.int64), np.array(lost, np.int64)


def _engine(items: _Items, header: int, counts: NDArray[np.int64], rounds: int, bus_width: int,
            closes: list[bool]) -> EngineStream:
    """Cuts the items of one engine into segments."""
    if not len(counts):
        return EngineStream([], [], [(1, 0, 0, 0), (EMPTY_ROW_CYCLES, 0, 0, 0)], [-1], [])
    bits, firsts = items.bits, items.firsts
    ends = np.cumsum(bits)
    # The window must hold the word behind the one that an item begins in; zeros behind the last.
    beats = np.minimum(((ends - bits) // WORD_BITS + 1) * WORD_BITS // bus_width, rounds - 1)
    beats = np.maximum.accumulate(np.where(bits > 0, beats, 0))
    entries = np.cumsum(items.entry)
    kinds = np.zeros(len(bits), np.int64)
    kinds[firsts[:-1]] |= BEGINS_ROW
    kinds[firsts[:-1] + header - 1] |= ENDS_HEADER
    row_ends = np.cumsum(counts)
    kinds[np.searchsorted(entries, row_ends)] |= ENDS_ROW
    last = kinds != 0  # of its segment
    last[-1] = True
    last[:-1] |= beats[1:] != beats[:-1]
    last[firsts[1:-1] - 1] = True
    at = np.flatnonzero(last)
    segments = zip(np.diff(at, prepend=-1).tolist(), beats[at].tolist(), entries[at].tolist(),
                   kinds[at].tolist(), strict=True)
    room = bus_width * np.arange(rounds) - WINDOW_BITS
    pops = np.where(room > 0, np.searchsorted(ends, room), -1)
    return EngineStream(counts.tolist(), row_ends.tolist(), list(segments),
                        pops[pops < len(bits)].tolist(), closes)


def _closes(command: Exec, rows: UnpackedStreams, config: CoreConfig
            ) -> NDArray[np.bool_] | None:
    """(rows, positions) words that end a beat; None if all do."""
    word_bytes = config.out_word_bytes(command.mode == OutputMode.RAW)
    each = config.bus_bytes // word_bytes
    if each <= 1 or command.psum_out:
        return None
    p = np.arange(1, command.positions + 1)
    steps = np.where(p % command.width == 0, command.out_wrap_step, command.out_step)
    walk = np.cumsum(steps) - steps
    first = rows.out_offsets[:, None] + command.output // word_bytes
    joins = (steps > 0) & (steps < each) & ((first + walk) % each + steps < each)
    joins[:, -1] = False
    return ~joins
