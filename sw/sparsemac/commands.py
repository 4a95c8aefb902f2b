# SPDX-License-Identifier: Apache-2.0
"""Commands: what the core executes, as it stands in memory.

A command list is an array of 64-byte commands, sixteen little-endian 32-bit words each, at an
address that is a multiple of 64. Commands are dispatched in order to two units that then work side
by side: LOAD copies activations into the on-chip buffers of all engines, EXEC streams weights
through the engines and stores the results. Order between the units is stated in the commands: a
LOAD waits until so many EXECs of the list are complete (their results stored and acknowledged), an
EXEC until so many LOADs are. A wait for more than has been dispatched before can never be met and
is a fault (DESC), so no list can hang.

Word 0 (both)    [7:0] opcode, [15:8] magic 0x53, [31:16] zero
Word 1 (both)    [15:0] wait: EXECs (of a LOAD) or LOADs (of an EXEC) that must be complete;
                 [31:16] zero
Word 15 (both)   checksum: the exclusive or of all sixteen words is CHECKSUM

LOAD: for each of ``lines`` lines, ``line_beats`` beats from memory go to consecutive buffer words.
A shift moves the elements of each word by one lane on their way: strips of a map then see the rows
of their neighbours. Lanes that have no neighbour, or no such row, get ``fill`` instead. Only cores
whose words are no longer than a beat, and longer than one element, can do either.

    2  address      byte address of the first line, a multiple of a beat
    3  destination  first word in the buffer [words], a multiple of ``config.line_words``
    4  line_beats   beats per line, a multiple of ``config.word_beats``; 1 to 65535
    5  lines        1 to 65535
    6  stride       bytes from one line to the next, a multiple of a beat
    7  gap          buffer words left out between one line and the next, less than the buffer, a
                    multiple of ``config.line_words``
    8  shift        [1:0] 0 none, 1 up: lane v gets what is lane v-1's, 2 down: lane v+1's,
                    [15:8] fill
    9  mask         lanes that get ``fill``, a bit each; word 10 goes on with lane 32

EXEC: y[row, p] = output( bias[row] + sum over entries j:  w[j] * x[base + offset[j] + a(p)] ) for
positions p = 0 .. positions-1, where a(0) = 0, a(p+1) = a(p) + step, or + wrap_step after every
``width`` positions; all modulo 2**16. The word of ``lanes`` results goes to word
out_offset[row] + o(p) of the output, with o(p) made likewise from out_step and out_wrap_step,
modulo 2**32.

    2  weights      byte address of the interleaved weight streams, a multiple of a beat
    3  beats        beats of all streams together, a multiple of ``engines``
    4  output       byte address of output word 0, a multiple of an output word
    5  base         [15:0] first activation word
    6  limit        [16:0] offsets must be below this; 1 to 65536
    7  positions    [15:0] 1 to ``config.depth``, [31:16] width, 1 to 65535
    8  step         [15:0] step [words], [31:16] wrap_step [words]
    9  out_step     [words]
    10 out_wrap     [words]
    11 format       [3:0] delta bits 0 to 8, [4] absolute offsets of 16 bits (delta bits then 0),
                    [5] weights: 0 int8, 1 int4, [6] the stream has a bias per row,
                    [7] Rice-coded deltas (not with absolute offsets),
                    [9:8] output: 0 raw int32, 1 single rounding, 2 double rounding,
                    [10] psum_in: add the partial sums kept by the last psum_out, not the bias,
                    [11] psum_out: keep partial sums, store nothing,
                    [13:12] size of counts, [15:14] of output offsets: places in COUNT_BITS and
                    OFFSET_BITS
    12 clamp        [7:0] zero point, [15:8] lowest, [23:16] highest output, all int8

The weight stream is defined in `sparsemac.stream`.
"""

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import reduce
from operator import xor

__all__ = [
    "CHECKSUM",
    "COMMAND_BYTES",
    "COMMAND_MAGIC",
    "COMMAND_WORDS",
    "COUNT_BITS",
    "DELTA_BITS_MAX",
    "OFFSET_BITS",
    "CommandError",
    "Exec",
    "Load",
    "Opcode",
    "OutputMode",
    "Shift",
    "StreamFormat",
    "decode",
    "decode_list",
    "encode_list",
]

#: Widest delta of a weight stream [bits].
DELTA_BITS_MAX = 8

#: Sizes of a row's count and output offset in a weight stream [bits].
COUNT_BITS = (5, 7, 10, 15)
OFFSET_BITS = (8, 10, 12, 16)

COMMAND_WORDS = 16
COMMAND_BYTES = 4 * COMMAND_WORDS
COMMAND_MAGIC = 0x53
CHECKSUM = 0x5350_4D43


class Opcode(IntEnum):
    """Kinds of command."""

    LOAD = 1
    EXEC = 2


class OutputMode(IntEnum):
    """What becomes of an accumulated sum; see `sparsemac.numerics.requantize`."""

    RAW = 0  # int32, as it is
    SINGLE = 1  # one rounding: TOSA RESCALE, TensorFlow Lite built for single rounding
    DOUBLE = 2  # two roundings: gemmlowp, TensorFlow Lite's reference kernels


class Shift(IntEnum):
    """Where the elements of a word go when it is loaded."""

    NONE = 0
    UP = 1  # lane v gets what is lane v - 1's
    DOWN = 2  # lane v gets what is lane v + 1's


class CommandError(ValueError):
    """A command that the core would answer with fault DESC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFormat:
    """How rows and entries are coded in a weight stream; chosen per layer by the packer.

    Parameters
    ----------
    delta_bits : int     Bits of an entry's delta, 0 to 8.  0 codes a dense row.
    absolute : bool      Entries carry a 16-bit offset instead of a delta.
    rice : bool          Higher bits of a delta stand in masks between the entries; with no
                         ``delta_bits`` these are the bitmap of the matrix.
    weight_bits : int    4 or 8.
    count_bits : int     Bits of a row's count, one of `COUNT_BITS`.
    offset_bits : int    Bits of a row's output offset, one of `OFFSET_BITS`.
    """

    delta_bits: int = 4
    absolute: bool = False
    rice: bool = False
    weight_bits: int = 8
    count_bits: int = COUNT_BITS[-1]
    offset_bits: int = OFFSET_BITS[-1]

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8):
            raise ValueError(f"weight_bits must be 4 or 8, not {self.weight_bits!r}")
        if not 0 <= self.delta_bits <= DELTA_BITS_MAX:
            raise ValueError(
                f"delta_bits must be 0 to {DELTA_BITS_MAX}, not {self.delta_bits!r}")
        if self.absolute and self.delta_bits:
            raise ValueError(f"delta_bits must be 0 with absolute offsets, not {self.delta_bits!r}")
        if self.absolute and self.rice:
            raise ValueError("absolute offsets must not be Rice-coded")
        for name, sizes in (("count_bits", COUNT_BITS), ("offset_bits", OFFSET_BITS)):
            if getattr(self, name) not in sizes:
                raise ValueError(f"{name} must be one of {sizes}, not {getattr(self, name)!r}")

    def fitting(self, count: int, offset: int) -> "StreamFormat":
        """The same with the smallest header that holds such a count and output offset.

        A count of all ones would be that of a stream without rows.
        """
        return replace(
            self, count_bits=next(b for b in COUNT_BITS if count < (1 << b) - 1),
            offset_bits=next(b for b in OFFSET_BITS if offset < 1 << b))

    @property
    def header_bits(self) -> int:
        """Bits of a row's end, count and output offset."""
        return 1 + self.count_bits + self.offset_bits

    @property
    def field_bits(self) -> int:
        """Bits of the delta or offset field."""
        return 16 if self.absolute else self.delta_bits

    @property
    def entry_bits(self) -> int:
        """Bits of one entry."""
        return self.field_bits + self.weight_bits


def _seal(words: list[int]) -> bytes:
    words[15] = reduce(xor, words[:15], CHECKSUM)
    return struct.pack("<16I", *words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Copy activations into the buffers of all engines; fields as in the module's table."""

    address: int
    destination: int
    line_beats: int
    lines: int = 1
    stride: int = 0
    gap: int = 0
    shift: Shift = Shift.NONE
    fill: int = 0
    mask: int = 0
    wait: int = 0

    def encode(self) -> bytes:
        """Returns the 64 bytes of the command."""
        words = [0] * COMMAND_WORDS
        words[0] = Opcode.LOAD | COMMAND_MAGIC << 8
        words[1] = self.wait
        words[2:8] = [self.address, self.destination, self.line_beats, self.lines, self.stride,
                      self.gap]
        words[8] = self.shift | (self.fill & 0xFF) << 8
        words[9], words[10] = self.mask & 0xFFFF_FFFF, self.mask >> 32
        return _seal(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """Run weight streams over the loaded activations; fields as in the module's table."""

    weights: int
    beats: int
    output: int
    base: int
    limit: int
    positions: int
    width: int
    step: int
    wrap_step: int
    out_step: int
    out_wrap_step: int
    format: StreamFormat
    has_bias: bool = True
    mode: OutputMode = OutputMode.RAW
    psum_in: bool = False
    psum_out: bool = False
    zero_point: int = 0
    low: int = -128
    high: int = 127
    wait: int = 0

    def encode(self) -> bytes:
        """Returns the 64 bytes of the command."""
        words = [0] * COMMAND_WORDS
        words[0] = Opcode.EXEC | COMMAND_MAGIC << 8
        words[1] = self.wait
        words[2:7] = [self.weights, self.beats, self.output, self.base, self.limit]
        words[7] = self.positions | self.width << 16
        words[8] = (self.step & 0xFFFF) | (self.wrap_step & 0xFFFF) << 16
        words[9] = self.out_step & 0xFFFF_FFFF
        words[10] = self.out_wrap_step & 0xFFFF_FFFF
        words[11] = (
            self.format.delta_bits
            | self.format.absolute << 4
            | (self.format.weight_bits == 4) << 5
            | self.has_bias << 6
            | self.format.rice << 7
            | self.mode << 8
            | self.psum_in << 10
            | self.psum_out << 11
            | COUNT_BITS.index(self.format.count_bits) << 12
            | OFFSET_BITS.index(self.format.offset_bits) << 14
        )
        words[12] = (self.zero_point & 0xFF) | (self.low & 0xFF) << 8 | (self.high & 0xFF) << 16
        return _seal(words)


def _int8(value: int) -> int:
    return (value & 0xFF ^ 0x80) - 0x80


def decode(data: bytes) -> Load | Exec:
    """Decodes one command.

    Raises
    ------
    CommandError    If the core would refuse it with fault DESC.
    """
    if len(data) != COMMAND_BYTES:
        raise CommandError(f"a command must be {COMMAND_BYTES} bytes, not {len(data)}")
    words = struct.unpack("<16I", data)
    if (check := reduce(xor, words)) != CHECKSUM:
        raise CommandError(f"checksum of a command must be {CHECKSUM:#010x}, not {check:#010x}")
    if words[0] >> 8 != COMMAND_MAGIC:
        raise CommandError(f"magic of a command must be {COMMAND_MAGIC:#x}, not {words[0] >> 8:#x}")
    if words[1] >> 16:
        raise CommandError(f"wait must be 0 to 65535, not {words[1]}")
    opcode = words[0] & 0xFF
    if opcode == Opcode.LOAD:
        if words[8] & 3 == 3:
            raise CommandError("shift must be 0, 1 or 2, not 3")
        return Load(
            wait=words[1],
            address=words[2],
            destination=words[3],
            line_beats=words[4],
            lines=words[5],
            stride=words[6],
            gap=words[7],
            shift=Shift(words[8] & 3),
            fill=_int8(words[8] >> 8),
            mask=words[9] | words[10] << 32,
        )
    if opcode != Opcode.EXEC:
        raise CommandError(f"opcode must be 1 or 2, not {opcode}")
    form = words[11]
    mode = form >> 8 & 3
    if mode == 3:
        raise CommandError("output mode must be 0, 1 or 2, not 3")
    try:
        stream = StreamFormat(
            delta_bits=form & 15,
            absolute=bool(form >> 4 & 1),
            rice=bool(form >> 7 & 1),
            weight_bits=4 if form >> 5 & 1 else 8,
            count_bits=COUNT_BITS[form >> 12 & 3],
            offset_bits=OFFSET_BITS[form >> 14 & 3],
        )
    except ValueError as error:
        raise CommandError(str(error)) from None
    return Exec(
        wait=words[1],
        weights=words[2],
        beats=words[3],
        output=words[4],
        base=words[5],
        limit=words[6],
        positions=words[7] & 0xFFFF,
        width=words[7] >> 16,
        step=words[8] & 0xFFFF,
        wrap_step=words[8] >> 16,
        out_step=words[9],
        out_wrap_step=words[10],
        format=stream,
        has_bias=bool(form >> 6 & 1),
        mode=OutputMode(mode),
        psum_in=bool(form >> 10 & 1),
        psum_out=bool(form >> 11 & 1),
        zero_point=_int8(words[12]),
        low=_int8(words[12] >> 8),
        high=_int8(words[12] >> 16),
    )


def encode_list(commands: "list[Load | Exec]") -> bytes:
    """Returns the bytes of a command list."""
    return b"".join(command.encode() for command in commands)


def decode_list(data: bytes) -> "list[Load | Exec]":
    """Decodes a command list; see `decode`."""
    if len(data) % COMMAND_BYTES:
        raise CommandError(
            f"a command list must be a multiple of {COMMAND_BYTES} bytes, not {len(data)}"
        )
    return [decode(data[i : i + COMMAND_BYTES]) for i in range(0, len(data), COMMAND_BYTES)]
