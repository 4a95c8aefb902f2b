# SPDX-License-Identifier: Apache-2.0
"""Runs LOAD commands: copies activations from memory into the buffers of all engines."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.commands import Shift
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .bursts import BurstSplitter
from .layouts import (
    SPARE_BITS,
    beat_layout,
    burst_layout,
    fault_layout,
    index_shape,
    load_layout,
)
from .streams import connect_stream

__all__ = ["Loader", "waiting_load_layout"]

#: A LOAD, and how many of the newest EXECs need not be complete before it starts.
waiting_load_layout = data.StructLayout({"command": load_layout, "spare": SPARE_BITS})


class Loader(wiring.Component):
    """Reads the lines of a LOAD, one LOAD at a time, and numbers their beats for the buffers.

    A LOAD starts when no more EXECs before it are under way than it can spare. Its lines stand in
    the buffer with ``gap`` words between them, and may be shifted by a lane; see
    `sparsemac.commands`. If one would end beyond the buffer, the loader stops with fault SIZE
    before it asks for any beat of that line, and stays so until reset.

    A beat goes to line ``w_line`` of the buffer. Where a word is longer than a beat, lines are
    words and ``w_sub`` tells which beat of the word it is; else a line is a beat of words.

    Latency: 1 cycle from a beat on ``i_beats`` to the write. Throughput: one beat per cycle; a line
    takes at least 2 cycles.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i : In(stream of waiting_load_layout)     Commands that the dispatcher has validated.
    i_beats : In(stream of beat_layout)       Beats that were asked for, in order; always ready.
    o_burst : Out(stream of burst_layout)     To the read side.
    execs_under_way : In(2)                   EXECs that are under way behind this cycle.
    exec_done : In(1)                         Strobe: one is complete, the oldest.
    w_en : Out(1)                             Strobe: write ``w_data`` to the buffers.
    w_line : Out(range(act_depth / line_words))
    w_sub : Out(index_shape(word_beats))
    w_data : Out(bus_width)
    busy : Out(1)                             A LOAD is at work or waits.
    done : Out(1)                             Strobe: the buffers hold all of a LOAD.
    under_way : Out(1)                        A LOAD is under way behind this cycle.
    index : Out(16)                           Place in the list of the LOAD at work.
    fault_valid : Out(1), fault : Out(fault_layout)    Strobe, and the fault: the line's address.
    """

    i: stream.Interface
    i_beats: stream.Interface
    o_burst: stream.Interface
    execs_under_way: Signal
    exec_done: Signal
    w_en: Signal
    w_line: Signal
    w_sub: Signal
    w_data: Signal
    busy: Signal
    done: Signal
    under_way: Signal
    index: Signal
    fault_valid: Signal
    fault: data.View

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "i": In(stream.Signature(waiting_load_layout)),
            "i_beats": In(stream.Signature(beat_layout(config.bus_width), always_ready=True)),
            "o_burst": Out(stream.Signature(burst_layout)),
            "execs_under_way": In(SPARE_BITS),
            "exec_done": In(1),
            "w_en": Out(1),
            "w_line": Out(range(config.act_depth // config.line_words)),
            "w_sub": Out(index_shape(config.word_beats)),
            "w_data": Out(config.bus_width),
            "busy": Out(1),
            "done": Out(1),
            "under_way": Out(1),
            "index": Out(16),
            "fault_valid": Out(1),
            "fault": Out(fault_layout),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        config = self._config
        beat_bits = config.bus_bytes.bit_length() - 1
        # Places in the buffers are counted in beats: 2**place_bits of them.
        sub_bits = config.word_beats.bit_length() - 1
        skip_bits = config.line_words.bit_length() - 1
        place_bits = config.address_bits + sub_bits - skip_bits
        line_bits = load_layout["line_beats"].width
        # A line that fits has no more beats than the buffer has places; no other is asked for.
        used_bits = min(line_bits, place_bits + 1)
        m.submodules.splitter = splitter = BurstSplitter(config, used_bits)
        connect_stream(m, splitter.o, wiring.flipped(self.o_burst))

        pending = Signal(waiting_load_layout, reset_less=True)
        command = pending.command
        address = Signal(32 - beat_bits, reset_less=True)  # in beats
        lines_asked = Signal(load_layout["lines"].width)
        place = Signal(place_bits + 1)  # of the next beat
        end = Signal(place_bits + 1)  # behind the last beat that was asked for
        # What follows from ``end`` and ``lines_asked`` is known a cycle behind them.
        line_end = Signal(place_bits + 2)
        is_long = Signal()  # a line has more beats than ``line_end`` counts
        all_asked = Signal()
        settled = Signal()
        beyond = Signal()
        m.d.sync += [
            line_end.eq(end + command.line_beats[: place_bits + 1]),
            is_long.eq(command.line_beats[place_bits + 1 :].any()),
            all_asked.eq(lines_asked == command.lines), settled.eq(1),
        ]
        m.d.comb += [
            beyond.eq(
                is_long | line_end[-1] | (line_end[place_bits] & line_end[:place_bits].any())),
            splitter.i.payload.address.eq(address << beat_bits),
            splitter.i.payload.beats.eq(command.line_beats[:used_bits]),
            self.index.eq(command.index),
        ]
        first_place = self.i.payload.command.destination[skip_bits:] << sub_bits
        gap = Signal(place_bits)
        m.d.comb += gap.eq(command.gap[skip_bits:] << sub_bits)
        starting = Signal()  # a cycle or more behind the command, long before its first beat

        # EXECs that must still be complete. They are so in order: those that come later, later.
        awaited = Signal(SPARE_BITS)
        with m.If(self.i.ready):
            m.d.sync += awaited.eq(
                Mux(self.execs_under_way > self.i.payload.spare,
                    self.execs_under_way - self.i.payload.spare, 0))
        with m.Elif(self.exec_done & awaited.any()):
            m.d.sync += awaited.eq(awaited - 1)
        m.d.sync += starting.eq(0)
        with m.FSM(name="load") as fsm:
            with m.State("IDLE"):  # no command
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [
                    pending.eq(self.i.payload),
                    address.eq(self.i.payload.command.address[beat_bits:]),
                    place.eq(first_place),
                    end.eq(first_place),
                ]
                with m.If(self.i.valid):
                    m.next = "WAIT"
            with m.State("WAIT"):  # the buffer is in use by EXECs before
                m.d.sync += starting.eq(1)
                with m.If(awaited == 0):
                    m.next = "ASK"
            with m.State("ASK"):  # one line after the other goes to the splitter
                m.d.comb += splitter.i.valid.eq(settled & ~all_asked & ~beyond)
                with m.If(settled & all_asked):
                    m.next = "DRAIN"
                with m.Elif(settled & beyond):
                    m.d.sync += self.fault_valid.eq(1)
                    m.next = "HALT"
                with m.Elif(splitter.i.valid & splitter.i.ready):
                    m.d.sync += [
                        address.eq(address + command.stride[beat_bits:]),
                        lines_asked.eq(lines_asked + 1),
                        end.eq(line_end + gap),
                        settled.eq(0),
                    ]
            with m.State("DRAIN"):  # the last beats are on their way
                with m.If(place == end):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
            with m.State("HALT"):  # a fault is being reported
                m.d.sync += self.fault_valid.eq(0)

        with m.If(fsm.ongoing("IDLE")):  # outermost, for yosys to see a reset in it
            m.d.sync += lines_asked.eq(0)

        beat = self.i_beats.payload.data
        skip = self._lines(m, command.line_beats[:used_bits], gap, starting)
        with m.If(self.i_beats.valid):
            # Below the sum, a bit that makes a carry: one more than is skipped.
            m.d.sync += place.eq((Cat(1, place) + Cat(1, skip))[1:])
        m.d.sync += [
            self.w_en.eq(self.i_beats.valid),
            self.w_line.eq(place[sub_bits:]),
            self.w_sub.eq(place[:sub_bits]),
        ]
        if config.shifts:
            self._shift(m, command, beat)
        else:
            m.d.sync += self.w_data.eq(beat)
        m.d.comb += [
            self.busy.eq(~fsm.ongoing("IDLE")),
            self.under_way.eq(self.busy & ~self.done),
            self.fault.code.eq(FaultCode.SIZE),
            self.fault.address.eq(address << beat_bits),
            self.fault.command.eq(command.index),
        ]
        return m

    def _lines(self, m: Module, line_beats: Value, gap: Value, starting: Signal) -> Signal:
        """Counts the beats of a line; returns what is left out behind the beat that comes next."""
        # Counted one ahead and from 1, so that a line begins with a reset and no multiplexer.
        ahead = Signal(len(line_beats), init=2)
        single = Signal()  # lines of one beat
        ends, ends_next = Signal(), Signal()  # the beat that comes next ends a line
        skip = Signal(len(gap))
        begins = Signal()
        m.d.comb += [
            begins.eq(starting | (self.i_beats.valid & ends)),
            ends_next.eq(
                Mux(begins, single, Mux(self.i_beats.valid, ahead == line_beats, ends))),
        ]
        m.d.sync += [single.eq(line_beats == 1), ends.eq(ends_next), skip.eq(gap)]
        with m.If(~ends_next):
            m.d.sync += skip.eq(0)
        with m.If(self.i_beats.valid):
            m.d.sync += ahead.eq(ahead + 1)
        with m.If(begins):
            m.d.sync += ahead.eq(2)
        return skip

    def _shift(self, m: Module, command: data.View, beat: Signal) -> None:
        """The elements of a beat's words, each a lane further up or down, or ``fill``.

        A register for each source, which its own reset keeps at 0 unless the lane takes that: so a
        multiplexer of four is no more than an OR. What a lane takes is constant during a LOAD.
        """
        config = self._config
        steps = {Shift.NONE: 0, Shift.UP: -1, Shift.DOWN: 1}  # to where an element comes from
        sources = [Signal(config.bus_width, name=f"moved_{shift.name.lower()}", reset_less=True)
                   for shift in steps]
        for source, (shift, step) in zip(sources, steps.items(), strict=True):
            takes = Signal(config.lanes, name=f"takes_{shift.name.lower()}", reset_less=True)
            chosen = Mux(command.shift == shift, (1 << config.lanes) - 1, 0)
            m.d.sync += takes.eq(chosen & ~command.mask)
            for k in range(config.bus_bytes):
                word, lane = k - k % config.lanes, k % config.lanes
                element = source.word_select(k, 8)
                m.d.sync += element.eq(beat.word_select(word + (lane + step) % config.lanes, 8))
                with m.If(~takes[lane]):
                    m.d.sync += element.eq(0)
        filled = Signal(8 * config.lanes, reset_less=True)
        for lane in range(config.lanes):
            m.d.sync += filled.word_select(lane, 8).eq(command.fill)
            with m.If(~command.mask[lane]):
                m.d.sync += filled.word_select(lane, 8).eq(0)
        words = config.bus_bytes // config.lanes
        m.d.comb += self.w_data.eq(reduce(or_, sources) | filled.replicate(words))
