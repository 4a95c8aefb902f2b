# SPDX-License-Identifier: Apache-2.0
"""Turns the bit stream of one engine into rows and entries."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.commands import OutputMode
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .layouts import exec_layout, index_shape, row_layout

__all__ = ["Unpacker", "entry_layout", "weight_beat_layout"]

#: Bits that the widest item of a stream takes: a header word.
WINDOW_BITS = 32

#: One nonzero: activation offset and weight.
entry_layout = data.StructLayout({"offset": 16, "weight": signed(8)})


def weight_beat_layout(bus_width: int) -> data.StructLayout:
    """One beat of an engine's stream; ``last``: the final one that this EXEC has for the engine."""
    return data.StructLayout({"data": bus_width, "last": 1})


class BitWindow(wiring.Component):
    """Shows the next 32 bits of a stream of beats, and steps over any number of them.

    Members
    -------
    i : In(stream of weight_beat_layout)
    open : In(1)        Strobe: start with a fresh beat.
    discard : In(1)     Drop beats up to the last one.
    step : In(1)        Step over ``step_bits`` bits, 1 to 32; only while ``valid``.
    step_bits : In(6)   How many bits the next item has.
    bits : Out(32)      The next bits of the stream.
    valid : Out(1)      ``step_bits`` bits are there.
    short : Out(1)      The stream has ended before ``step_bits`` bits.
    ended : Out(1)      The last beat has been taken.
    """

    i: stream.Interface
    open: Signal
    discard: Signal
    step: Signal
    step_bits: Signal
    bits: Signal
    valid: Signal
    short: Signal
    ended: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._bus_width = config.bus_width
        super().__init__({
            "i": In(stream.Signature(weight_beat_layout(config.bus_width))),
            "open": In(1),
            "discard": In(1),
            "step": In(1),
            "step_bits": In(6),
            "bits": Out(32),
            "valid": Out(1),
            "short": Out(1),
            "ended": Out(1),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words = self._bus_width // WINDOW_BITS
        word_idx = Signal(index_shape(words))
        current = Signal(WINDOW_BITS, reset_less=True)
        following = Signal(WINDOW_BITS, reset_less=True)
        current_valid = Signal()
        following_valid = Signal()
        position = Signal(5)
        finished = Signal(init=1)

        word = Signal(WINDOW_BITS)
        word_valid = Signal()
        m.d.comb += [
            word.eq(self.i.p.data.word_select(word_idx, WINDOW_BITS)),
            word_valid.eq(self.i.valid & ~finished & ~self.discard),
        ]

        # Widest step first, and of each step only the bits that the next ones can still reach: half
        # of what a shift of all bits takes.
        shifted = Cat(current, following)
        for k in reversed(range(len(position))):
            reach = WINDOW_BITS + (1 << k) - 1
            stage = Signal(reach, name=f"shifted_{k}")
            m.d.comb += stage.eq(Mux(position[k], shifted[1 << k :], shifted[:reach]))
            shifted = stage

        end = Signal(7)
        advance = Signal()
        m.d.comb += [
            end.eq(position + self.step_bits),
            self.bits.eq(shifted),
            self.valid.eq(current_valid & (following_valid | (end <= WINDOW_BITS))),
            self.short.eq(~self.valid & finished & ~following_valid),
            advance.eq(self.step & end[5:7].any()),
            self.ended.eq(finished),
        ]
        with m.If(self.step):
            m.d.sync += position.eq(end[:5])

        # `following` refills `current`; both refill from the beats.
        take = Signal()
        m.d.comb += take.eq(word_valid & (~current_valid | ~following_valid | advance))
        with m.If(advance | ~current_valid):
            m.d.sync += [
                current.eq(Mux(following_valid, following, word)),
                current_valid.eq(following_valid | word_valid),
                following.eq(word),
                following_valid.eq(following_valid & word_valid),
            ]
        with m.Elif(~following_valid):
            m.d.sync += [following.eq(word), following_valid.eq(word_valid)]

        last_word = word_idx == words - 1
        with m.If(take):
            m.d.sync += word_idx.eq((word_idx + 1) & (words - 1))
        drop = self.discard & self.i.valid & ~finished
        m.d.comb += self.i.ready.eq((take & last_word) | drop)
        with m.If(self.i.ready & self.i.valid & self.i.p.last):
            m.d.sync += finished.eq(1)
        with m.If(self.open | self.discard):
            m.d.sync += [current_valid.eq(0), following_valid.eq(0), position.eq(0), word_idx.eq(0)]
        with m.If(self.open):
            m.d.sync += finished.eq(0)
        return m


class Unpacker(wiring.Component):
    """Reads rows from a stream as `sparsemac.stream` defines it.

    An EXEC begins with ``start``. Each row appears on ``o_row`` (what its output needs) and
    ``o_count`` (its number of entries, at least 1), then its entries on ``o``; an empty row yields
    one entry of weight 0. Beats behind the last row are dropped.

    Throughput: one entry, filler or header word per cycle.

    Members
    -------
    i : In(stream of weight_beat_layout)
    start : In(1)                    Strobe: an EXEC begins; ``command`` is valid until ``done``.
    command : In(exec_layout)
    o : Out(stream of entry_layout)
    o_row : Out(stream of row_layout)
    o_count : Out(stream of 15 bits)
    done : Out(1)                    The stream of the EXEC has been read to its end.
    filler : Out(1)                  Strobe: a filler was read.
    fault : Out(8)                   Strobe: a FaultCode, 0 if there is none.
    """

    i: stream.Interface
    start: Signal
    command: Any
    o: stream.Interface
    o_row: stream.Interface
    o_count: stream.Interface
    done: Signal
    filler: Signal
    fault: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "i": In(stream.Signature(weight_beat_layout(config.bus_width))),
            "start": In(1),
            "command": In(exec_layout),
            "o": Out(stream.Signature(entry_layout)),
            "o_row": Out(stream.Signature(row_layout)),
            "o_count": Out(stream.Signature(15)),
            "done": Out(1),
            "filler": Out(1),
            "fault": Out(8),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window = window = BitWindow(self._config)
        wiring.connect(m, wiring.flipped(self.i), window.i)
        command = self.command
        quantized = Signal()
        m.d.comb += [quantized.eq(command.mode != OutputMode.RAW), window.open.eq(self.start)]

        entry_bits = Signal(6)
        field_bits = Mux(command.absolute, 16, command.delta_bits)
        m.d.sync += entry_bits.eq(field_bits + Mux(command.int4, 4, 8))

        count = Signal(15)  # entries of the row still to come
        end = Signal()
        row = Signal(row_layout)
        take_entry = Signal()
        out_ready = Signal()
        weight = Signal(signed(8))
        m.d.comb += weight.eq(Mux(command.int4, window.bits[:4].as_signed(),
                                  window.bits[:8].as_signed()))
        running = Signal()
        with m.FSM(name="unpack") as fsm:
            with m.State("IDLE"):  # no EXEC, or its stream has been read
                with m.If(self.start):
                    m.d.sync += running.eq(1)
                    m.next = "READ_ROW"
            with m.State("READ_ROW"):  # count, end, out_offset
                m.d.comb += window.step_bits.eq(32)
                null = window.bits[15:32].all()
                m.d.comb += self.o_count.valid.eq(window.valid & ~null)
                with m.If(window.valid & (self.o_count.ready | null)):
                    m.d.comb += window.step.eq(1)
                    m.d.sync += [
                        count.eq(window.bits[:15]), end.eq(window.bits[15]),
                        row.out_offset.eq(window.bits[16:32]), row.bias.eq(0),
                    ]
                    with m.If(null):
                        m.next = "DISCARD"
                    with m.Elif(command.has_bias):
                        m.next = "READ_BIAS"
                    with m.Elif(quantized):
                        m.next = "READ_MULTIPLIER"
                    with m.Else():
                        m.next = "EMIT_ROW"
            with m.State("READ_BIAS"):
                m.d.comb += window.step_bits.eq(32)
                with m.If(window.valid):
                    m.d.comb += window.step.eq(1)
                    m.d.sync += row.bias.eq(window.bits)
                    with m.If(quantized):
                        m.next = "READ_MULTIPLIER"
                    with m.Else():
                        m.next = "EMIT_ROW"
            with m.State("READ_MULTIPLIER"):  # its low 32 bits
                m.d.comb += window.step_bits.eq(32)
                with m.If(window.valid):
                    m.d.comb += window.step.eq(1)
                    m.d.sync += row.multiplier[:32].eq(window.bits)
                    m.next = "READ_SHIFT"
            with m.State("READ_SHIFT"):  # the multiplier's high 4 bits, shift, 6 reserved bits
                m.d.comb += window.step_bits.eq(16)
                with m.If(window.valid):
                    m.d.comb += window.step.eq(1)
                    m.d.sync += [row.multiplier[32:].eq(window.bits[:4]),
                                 row.shift.eq(window.bits[4:9])]
                    m.next = "EMIT_ROW"
            with m.State("EMIT_ROW"):  # hand the row on; an empty one becomes an entry of weight 0
                m.d.comb += [window.step_bits.eq(1), self.o_row.valid.eq((count != 0) | out_ready)]
                with m.If(self.o_row.valid & self.o_row.ready):
                    with m.If(count != 0):
                        m.next = "READ_ENTRIES"
                    with m.Elif(end):
                        m.next = "DISCARD"
                    with m.Else():
                        m.next = "READ_ROW"
            with m.State("READ_ENTRIES"):
                m.d.comb += window.step_bits.eq(entry_bits)
                with m.If(window.valid & out_ready):
                    m.d.comb += [window.step.eq(1), take_entry.eq(1)]
                    with m.If(weight != 0):
                        m.d.sync += count.eq(count - 1)
                        with m.If((count == 1) & end):
                            m.next = "DISCARD"
                        with m.Elif(count == 1):
                            m.next = "READ_ROW"
            with m.State("DISCARD"):  # padding behind the last row
                m.d.comb += [window.step_bits.eq(1), window.discard.eq(1)]
                with m.If(window.ended):
                    m.d.sync += running.eq(0)
                    m.next = "IDLE"
        m.d.comb += [
            self.o_count.p.eq(Mux(window.bits[:15] == 0, 1, window.bits[:15])),
            self.o_row.p.eq(row),
            self.done.eq(~running),
        ]
        emit_empty = Signal()
        m.d.comb += emit_empty.eq(fsm.ongoing("EMIT_ROW") & self.o_row.valid & self.o_row.ready
                                  & (count == 0))
        column_fault = self._offsets(m, window, weight, take_entry, emit_empty, out_ready,
                                     fsm.ongoing("READ_ROW"))
        too_long = Signal()
        m.d.comb += too_long.eq(
            self.o_count.valid & self.o_count.ready & (command.positions > 1)
            & (self.o_count.p > self._config.entry_depth)
        )
        m.d.comb += self.fault.eq(Mux(
            column_fault, FaultCode.COLUMN, Mux(
                too_long, FaultCode.ROW, Mux(
                    running & window.short & ~fsm.ongoing("DISCARD")
                    & ~fsm.ongoing("EMIT_ROW"), FaultCode.STREAM, FaultCode.NONE))))
        return m

    def _offsets(self, m: Module, window: BitWindow, weight: Signal, take_entry: Signal,
                 emit_empty: Signal, out_ready: Signal, new_row: Value) -> Value:
        """Accumulates deltas into offsets, two stages behind the window.

        ``previous`` is the last offset used or passed over; it starts a row at -1.
        """
        command = self.command
        # Stage 1: the entry as it stands in the stream.
        s1_valid = Signal()
        s1_weight = Signal(signed(8), reset_less=True)
        s1_field = Signal(16, reset_less=True)
        s1_first = Signal(reset_less=True)
        s1_empty = Signal(reset_less=True)
        first = Signal()
        field = Signal(16)
        raw_field = Mux(command.int4, window.bits[4:20], window.bits[8:24])
        mask = Signal(16, reset_less=True)
        m.d.sync += mask.eq(Mux(command.absolute, 0xFFFF,
                                (Const(1, 9) << command.delta_bits)[:9] - 1))
        m.d.comb += field.eq(raw_field & mask)

        s2_ready = Signal()
        s1_advance = ~s1_valid | s2_ready
        m.d.comb += out_ready.eq(s1_advance)
        with m.If(s1_advance):
            m.d.sync += [
                s1_valid.eq(take_entry | emit_empty),
                s1_weight.eq(Mux(emit_empty, 0, weight)),
                s1_field.eq(Mux(emit_empty, 0, field)),
                s1_first.eq(first | emit_empty),
                s1_empty.eq(emit_empty),
            ]
        with m.If(new_row):
            m.d.sync += first.eq(1)
        with m.Elif(take_entry):
            m.d.sync += first.eq(0)

        # Stage 2: previous + field + 1, or for a filler previous + ((field + 1) << delta_bits).
        filler = Signal()
        jump = Signal(18)
        previous = Signal(18, reset_less=True)
        base = Signal(18)
        offset = Signal(18)
        beyond = Signal()
        m.d.comb += [
            filler.eq((s1_weight == 0) & ~s1_empty & ~command.absolute),
            jump.eq(Mux(filler, ((s1_field[:8] + 1) << command.delta_bits)[:18], s1_field)),
            base.eq(Mux(s1_first | command.absolute, Const(-1, 18), previous)),
            offset.eq(base + jump + ~filler),
            beyond.eq(s1_valid & (offset >= command.limit)),
            self.filler.eq(s1_valid & s2_ready & (s1_weight == 0) & ~s1_empty),
        ]
        out = Signal(entry_layout, reset_less=True)
        out_valid = Signal()
        m.d.comb += [
            s2_ready.eq(~out_valid | self.o.ready),
            self.o.valid.eq(out_valid),
            self.o.p.eq(out),
        ]
        with m.If(s2_ready):
            m.d.sync += [
                out_valid.eq(s1_valid & ~beyond & ((s1_weight != 0) | s1_empty)),
                out.offset.eq(offset),
                out.weight.eq(s1_weight),
            ]
            with m.If(s1_valid):
                m.d.sync += previous.eq(offset)
        return beyond & s2_ready
