# SPDX-License-Identifier: Apache-2.0
"""What the cycle model needs to know of an EXEC's weight streams: when what can be unpacked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._coding import code_entries
from .commands import Exec, OutputMode
from .config import CoreConfig
from .csr import Csr
from .stream import HEADER_BITS, UnpackedStreams, unpack

__all__ = ["EMITS", "ENDS_ROW", "WINDOW_BITS", "EngineStream", "Streams", "read_streams"]

#: Kinds of a segment, as bits: the row goes to the result path; its last entry is unpacked.
EMITS, ENDS_ROW = 1, 2

#: Bits that the unpacker holds beside the FIFO.
WINDOW_BITS = 64


@dataclass(frozen=True, slots=True)
class EngineStream:
    """The stream of one engine, as its unpacker goes through it: one item per cycle.

    Items are header words, the hand-over of the row, entries and fillers.

    Attributes
    ----------
    counts : list of int       Entries that each row issues at a position, at least 1.
    row_ends : list of int     Entries up to the end of each row.
    segments : list of (items, beat, entries, kind)
        Items that need no other beat, the beat that they end in, entries up to their end.
    pops : list of int         For each beat the item with which it leaves the FIFO.
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
    header = [HEADER_BITS] + [32] * command.has_bias + [32, 16] * quantized + [0]
    coded, sizes = code_entries(
        Csr((len(rows.counts), 1 << 16), rows.indptr, rows.offsets, rows.weights.astype(np.int8)),
        command.format)
    bits, entry = _items(coded, sizes, header, command)
    firsts = np.concatenate([[0], np.cumsum(sizes + len(header))])
    closes = _closes(command, rows, config)
    rounds = command.beats // config.engines
    engines = []
    bounds = np.searchsorted(rows.engine_of_row, np.arange(config.engines + 1))
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        mine = slice(int(firsts[first]), int(firsts[last]))
        engines.append(_engine(
            bits[mine], entry[mine], firsts[first:last + 1] - firsts[first], len(header),
            np.maximum(rows.counts[first:last], 1), rounds, config.bus_width,
            closes[first:last].ravel().tolist() if closes is not None else []))
    words = len(rows.counts) * command.positions * (not command.psum_out)
    word_bytes = config.out_word_bytes(not quantized)
    bursts = words if closes is None or command.psum_out else int(closes.sum())
    return Streams(
        engines, rounds, command.positions,
        issued=int(np.maximum(rows.counts, 1).sum()) * command.positions, fillers=rows.fillers,
        write_beats=bursts * max(1, word_bytes // config.bus_bytes),
        write_bytes=words * word_bytes)


def _items(coded: NDArray[np.int64], sizes: NDArray[np.int64], header: list[int], command: Exec
           ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(items,) bits of each item of all rows, and whether it goes to the entry buffer."""
    firsts = np.cumsum(sizes + len(header)) - sizes - len(header)
    bits = np.full(len(coded) + len(header) * len(sizes), command.format.entry_bits, np.int64)
    is_header = np.zeros(len(bits), bool)
    for k, width in enumerate(header):
        bits[firsts + k] = width
        is_header[firsts + k] = True
    entry = np.zeros(len(bits), bool)
    entry[~is_header] = coded & ((1 << command.format.weight_bits) - 1) != 0
    # An empty row becomes an entry when it is handed over.
    entry[(firsts + len(header) - 1)[sizes == 0]] = True
    return bits, entry


def _engine(bits: NDArray[np.int64], entry: NDArray[np.bool_], firsts: NDArray[np.int64],
            header: int, counts: NDArray[np.int64], rounds: int, bus_width: int,
            closes: list[bool]) -> EngineStream:
    """Cuts the items of one engine into segments."""
    if not len(counts):
        return EngineStream([], [], [(1, 0, 0, 0)], [], [])
    ends = np.cumsum(bits)
    beats = (ends - 1) // bus_width
    entries = np.cumsum(entry)
    kinds = np.zeros(len(bits), np.int64)
    emits = firsts[:-1] + header - 1
    kinds[emits] |= EMITS
    kinds[firsts[1:] - 1] |= ENDS_ROW
    last = kinds != 0  # of its segment
    last[emits - 1] = True
    last[:-1] |= beats[1:] != beats[:-1]
    at = np.flatnonzero(last)
    segments = zip(np.diff(at, prepend=-1).tolist(), beats[at].tolist(), entries[at].tolist(),
                   kinds[at].tolist(), strict=True)
    # A beat leaves when its last word does, as soon as there is room in the window for it.
    behind = bus_width * np.arange(1, rounds + 1) - WINDOW_BITS
    pops = np.searchsorted(ends, behind)
    return EngineStream(counts.tolist(), np.cumsum(counts).tolist(), list(segments),
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
