# SPDX-License-Identifier: Apache-2.0
"""Layouts of what travels between the parts of the core."""

from amaranth.hdl import Shape, signed, unsigned
from amaranth.lib import data
from sparsemac.config import CoreConfig

__all__ = [
    "SPARE_BITS",
    "beat_layout",
    "burst_layout",
    "chunk_entries",
    "exec_layout",
    "fault_layout",
    "index_shape",
    "load_layout",
    "out_beat_layout",
    "partial_width",
    "result_layout",
    "row_layout",
    "run_layout",
    "weight_burst_layout",
    "window_layout",
    "words_per_beat",
]

#: A decoded LOAD; field by field as in `sparsemac.commands`. ``index`` is its place in the list.
load_layout = data.StructLayout({
    "address": 32,
    "destination": 17,
    "line_beats": 16,
    "lines": 16,
    "stride": 32,
    "gap": 16,
    "shift": 2,
    "fill": 8,
    "mask": 64,
    "index": 16,
})

#: A decoded EXEC; field by field as in `sparsemac.commands`.
exec_layout = data.StructLayout({
    "weights": 32,
    "beats": 32,
    "output": 32,
    "base": 16,
    "limit": 17,
    "positions": 16,
    "width": 16,
    "step": 16,
    "wrap_step": 16,
    "out_step": 32,
    "out_wrap_step": 32,
    "delta_bits": 4,
    "absolute": 1,
    "int4": 1,
    "has_bias": 1,
    "rice": 1,
    "mode": 2,
    "psum_in": 1,
    "psum_out": 1,
    "count_size": 2,
    "offset_size": 2,
    "zero_point": signed(8),
    "low": signed(8),
    "high": signed(8),
    "index": 16,
})

#: What becomes of a command's wait: so many of the newest commands of the other unit need not be
#: complete; all ones: or more. No unit has more than two under way.
SPARE_BITS = 2

#: What a row header says of the row's output.
row_layout = data.StructLayout({
    "out_offset": 16,
    "bias": signed(32),
    "multiplier": 36,
    "shift": 5,
})

#: A linear read of any length: first byte address, beats.
run_layout = data.StructLayout({"address": 32, "beats": 32})

#: One AXI burst: first byte address, beats (1 to 256).
burst_layout = data.StructLayout({"address": 32, "beats": 9})


def weight_burst_layout(config: CoreConfig) -> data.StructLayout:
    """A burst of a weight stream; counted from its end, ``closing`` beats are an engine's last.

    As many as there are engines, less those that come in later bursts.
    """
    return data.StructLayout({"address": 32, "beats": 9, "closing": range(config.engines + 1)})


#: Why the core stops: a `sparsemac.registers.FaultCode`, and where.
fault_layout = data.StructLayout({"code": 8, "address": 32, "detail": 8, "command": 16})

#: One address window, in pages of 4096 bytes, both ends included.
window_layout = data.StructLayout({"first": 20, "last": 20, "read": 1, "write": 1})


def index_shape(count: int) -> Shape:
    """Shape of an index into ``count`` things: one bit at least, Verilog has no empty signals."""
    return unsigned(max(1, (count - 1).bit_length()))


def words_per_beat(config: CoreConfig) -> int:
    """Output words of int8 that one beat holds; 1 if a word is a beat or more."""
    return max(1, config.bus_bytes // config.lanes)


def result_layout(config: CoreConfig) -> data.StructLayout:
    """One result of one lane: ``value`` is int32, or int8 in its lowest bits.

    ``place`` is the word's place in its beat, in words of int8; ``closes`` says that the next word
    of the engine does not lie behind this one in the same beat.
    """
    return data.StructLayout({
        "value": signed(32),
        "raw": 1,
        "out_word": 32,
        "last_lane": 1,
        "place": index_shape(words_per_beat(config)),
        "closes": 1,
    })


def chunk_entries(config: CoreConfig) -> int:
    """Entries that a lane sums up before its sum leaves to be added to the row's, at least.

    At most one less than twice as many: the rest of a row is not cut if it is shorter than this.
    Sums of one bus must not come faster than its lanes can send them, one per cycle.
    """
    return max(8, config.shortest_row_cycles)


def partial_width(config: CoreConfig) -> int:
    """Bits that hold any sum of a chunk; no more than those of the row's own sum."""
    most = (2 * chunk_entries(config) - 1) << 14  # a product of two int8 is at most 2**14
    return min(most.bit_length() + 1, config.acc_width)


def beat_layout(bus_width: int) -> data.StructLayout:
    """Data of one beat."""
    return data.StructLayout({"data": unsigned(bus_width)})


def out_beat_layout(config: CoreConfig) -> data.StructLayout:
    """One beat of output words: ``out_word`` is the index of one of them from the output address.

    A word of a beat or more makes beats of its own. Shorter words that come one behind another in
    the same beat share it; each bit of ``filled`` tells of a word of int8 whether it is there.
    """
    return data.StructLayout({
        "data": unsigned(config.bus_width),
        "filled": words_per_beat(config),
        "out_word": 32,
        "raw": 1,
        "first": 1,
        "last": 1,
    })
