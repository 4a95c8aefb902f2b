# SPDX-License-Identifier: Apache-2.0
"""Fetches, validates and hands out the commands of a job."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.commands import (
    CHECKSUM,
    COMMAND_BYTES,
    COMMAND_MAGIC,
    COMMAND_WORDS,
    DELTA_BITS_MAX,
    Opcode,
    OutputMode,
)
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .executor import waiting_exec_layout
from .layouts import SPARE_BITS, beat_layout, burst_layout, fault_layout
from .loader import waiting_load_layout

__all__ = ["Dispatcher"]

COMMAND_BITS = 8 * COMMAND_BYTES

#: Offsets in an activation buffer have 16 bits: none reaches a higher limit than 2**16.
LIMIT_BITS = 17


def _above(value: Value, limit: int) -> Value:
    """Whether ``value > limit``, as logic of one term per bit: smaller than a carry chain."""
    above: Value = Const(0, 1)
    for i, bit in enumerate(value):
        above = bit & above if limit >> i & 1 else bit | above
    return above


class Dispatcher(wiring.Component):
    """Reads a list of commands and hands each on, in order, if nothing is wrong with it.

    One command is checked or waits to be taken while the next is fetched: never more is asked for
    than there is room for. A command is handed on with how many of the newest commands of the other
    unit need not be complete; LOADs go to the loader, EXECs to the executor, which do the waiting.

    Faults, the first in this order of those that a command has: DESC, ALIGN, ZERO, SIZE, as
    `sparsemac.commands` sets the limits. ``fault.command`` is the command's place in the list. Then
    nothing more is fetched or handed on until reset. An address of the list that is not a multiple
    of a command is ALIGN, an empty list is ZERO; then nothing is fetched at all.

    Latency: `CHECK_CYCLES` from the last beat of a command to ``valid``; with a number of engines
    that is no power of two, 32 more for an EXEC. It must be reset before each ``start``.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    start : In(1)                 Strobe: begin. The next two stay as they are until the end.
    command_address : In(32)      Byte address of the list, a multiple of 64.
    command_count : In(16)        Commands, 1 or more.
    i : In(stream of beat_layout)                 Beats that were asked for; always ready.
    o_burst : Out(stream of burst_layout)         To the read side.
    loads : Out(stream of waiting_load_layout)
    execs : Out(stream of waiting_exec_layout)
    index : Out(16)               Place in the list of the command that is being fetched.
    loads_issued, execs_issued : Out(16)          Commands handed on.
    finished : Out(1)             All commands have been handed on.
    fault_valid : Out(1), fault : Out(fault_layout)    Strobe, and which fault.
    """

    CHECK_CYCLES = 4

    start: Signal
    command_address: Signal
    command_count: Signal
    i: stream.Interface
    o_burst: stream.Interface
    loads: stream.Interface
    execs: stream.Interface
    index: Signal
    loads_issued: Signal
    execs_issued: Signal
    finished: Signal
    fault_valid: Signal
    fault: data.View

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "start": In(1),
            "command_address": In(32),
            "command_count": In(16),
            "i": In(stream.Signature(beat_layout(config.bus_width), always_ready=True)),
            "o_burst": Out(stream.Signature(burst_layout)),
            "loads": Out(stream.Signature(waiting_load_layout)),
            "execs": Out(stream.Signature(waiting_exec_layout)),
            "index": Out(16),
            "loads_issued": Out(16),
            "execs_issued": Out(16),
            "finished": Out(1),
            "fault_valid": Out(1),
            "fault": Out(fault_layout),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    @property
    def _list_misaligned(self) -> Value:
        return self.command_address[: COMMAND_BYTES.bit_length() - 1].any()

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        arrived = Signal(COMMAND_BITS, reset_less=True)  # the command that is being fetched
        words = Signal(data.ArrayLayout(32, COMMAND_WORDS), reset_less=True)  # the one behind it
        # Which halves of words are not 0, found as they arrive: once for all words, beat by beat.
        arrived_some = Signal(2 * COMMAND_WORDS, reset_less=True)
        some = Signal(data.ArrayLayout(2, COMMAND_WORDS), reset_less=True)
        words_index = Signal(16)
        spare = Signal(SPARE_BITS, reset_less=True)
        checksum = Signal(32, init=CHECKSUM)
        intact = Signal(reset_less=True)
        refused = Signal()  # the job is refused before its first command
        full, take, drained = Signal(), Signal(), Signal()

        m.d.comb += refused.eq(self._list_misaligned | ~self.command_count.any())
        self._fetch(m, refused, full, take, drained)
        self._shift(m, arrived, arrived_some, checksum, take)
        with m.If(take):
            m.d.sync += [
                words.eq(arrived),
                some.eq(arrived_some),
                words_index.eq(self.index),
                self.index.eq(self.index + 1),
                intact.eq(~checksum.any()),
            ]
        self._hand_on(m, words, some, spare, intact, refused, full, take, drained)
        self._connect_outputs(m, words, spare, words_index)
        m.d.comb += self.fault.command.eq(words_index)
        return m

    def _fetch(self, m: Module, refused: Signal, full: Signal, take: Signal,
               drained: Signal) -> None:
        """Asks for one command at a time, in as few bursts as the longest one allows."""
        config = self._config
        burst_bytes = min(COMMAND_BYTES, config.burst_beats * config.bus_bytes)
        bursts = COMMAND_BYTES // burst_bytes
        low_bits = burst_bytes.bit_length() - 1
        # The command's place is a sum: counting an address up would take a multiplexer to load it.
        place = Signal(32 - low_bits - (bursts.bit_length() - 1))
        burst_idx = Signal(range(bursts))
        address = Cat(burst_idx, place)
        beat_idx = Signal(range(COMMAND_BYTES // config.bus_bytes))
        is_last_burst = burst_idx == bursts - 1
        m.d.sync += place.eq((self.command_address >> COMMAND_BYTES.bit_length() - 1) + self.index)
        m.d.comb += [
            self.o_burst.payload.address.eq(Cat(Const(0, low_bits), address)),
            self.o_burst.payload.beats.eq(burst_bytes // config.bus_bytes),
        ]
        with m.If(self.i.valid):
            m.d.sync += beat_idx.eq(beat_idx + 1)

        with m.FSM(name="fetch"):
            with m.State("IDLE"):  # no job
                with m.If(self.start & ~refused):
                    m.next = "ASK"
            with m.State("ASK"):  # the command's bursts go to the read side
                m.d.comb += self.o_burst.valid.eq(1)
                with m.If(self.o_burst.ready):
                    m.d.sync += burst_idx.eq(burst_idx + 1)
                    with m.If(is_last_burst):
                        m.next = "FILL"
            with m.State("FILL"):  # its last beats are on their way
                with m.If(self.i.valid & beat_idx.all()):
                    m.next = "FULL"
            with m.State("FULL"):  # the command before it has not been handed on
                m.d.comb += full.eq(1)
                with m.If(take):
                    m.next = "NEXT"
            with m.State("NEXT"):  # is there another command?
                m.next = "ASK"
                with m.If(self.index == self.command_count):
                    m.next = "DRAINED"
            with m.State("DRAINED"):  # all commands were fetched
                m.d.comb += drained.eq(1)

    def _shift(self, m: Module, arrived: Signal, arrived_some: Signal, checksum: Signal,
               take: Signal) -> None:
        """Gathers beats into a command, and sums them up on the way."""
        beat = self.i.payload.data
        some = Cat(beat[k : k + 16].any() for k in range(0, self._config.bus_width, 16))
        with m.If(self.i.valid):
            folded = beat[:32]
            for k in range(32, self._config.bus_width, 32):
                folded = folded ^ beat[k : k + 32]
            m.d.sync += [
                arrived.eq(Cat(arrived[self._config.bus_width :], beat)),
                arrived_some.eq(Cat(arrived_some[len(some) :], some)),
                checksum.eq(checksum ^ folded),
            ]
        restarts = Signal()  # a cycle late: no beat comes before the next command is asked for
        m.d.sync += restarts.eq(take)
        with m.If(restarts):
            m.d.sync += checksum.eq(CHECKSUM)

    def _hand_on(self, m: Module, words: data.View, some: data.View, spare: Signal,
                 intact: Signal, refused: Signal, full: Signal, take: Signal,
                 drained: Signal) -> None:
        """Checks a command, and waits until it is taken."""
        # Separate registers: the checks are wide, what to do about them comes a cycle later.
        desc, align, zero, size = checks = [
            Signal(name=name) for name in ("bad_desc", "bad_align", "bad_zero", "bad_size")
        ]
        is_load = words[0][0]  # opcodes are 1 and 2
        # Commands of the other unit that were handed on, and need not be complete.
        dispatched = Mux(is_load, self.execs_issued, self.loads_issued)
        not_awaited = Signal(17)  # known in JUDGE
        m.d.sync += not_awaited.eq(dispatched - words[1][:16])
        awaits_more = not_awaited[16] & ~refused  # than there were
        engines = self._config.engines
        serial = engines & (engines - 1) != 0
        with m.FSM(name="command") as fsm:
            with m.State("EMPTY"):  # no command
                m.d.comb += take.eq(full)
                with m.If(take):
                    m.next = "CHECK"
                with m.If(self.start & refused):
                    m.d.sync += [zero.eq(1), align.eq(self._list_misaligned)]
                    m.next = "JUDGE"
            with m.State("CHECK"):  # all rules at once
                m.d.sync += [
                    desc.eq(self._breaks_desc(words, some, is_load) | ~intact),
                    align.eq(self._breaks_align(words, is_load)),
                    zero.eq(self._breaks_zero(some, is_load)),
                    size.eq(self._breaks_size(words, some, is_load)),
                ]
                m.next = "DIVIDE" if serial else "JUDGE"
            if serial:
                self._divide(m, words[3], is_load, align)
            with m.State("JUDGE"):  # one fault, or none
                m.next = "HAND_ON"
                many = not_awaited[SPARE_BITS:].any()
                m.d.sync += [
                    spare.eq(not_awaited | many.replicate(SPARE_BITS)),
                    desc.eq(desc | awaits_more),
                ]
                with m.If(Cat(checks).any() | awaits_more):
                    m.d.sync += self.fault_valid.eq(1)
                    m.next = "HALT"
            with m.State("HAND_ON"):  # the loader or the executor is busy
                m.d.comb += [self.loads.valid.eq(is_load), self.execs.valid.eq(~is_load)]
                with m.If(self.loads.valid & self.loads.ready):
                    m.d.sync += self.loads_issued.eq(self.loads_issued + 1)
                    m.next = "EMPTY"
                with m.If(self.execs.valid & self.execs.ready):
                    m.d.sync += self.execs_issued.eq(self.execs_issued + 1)
                    m.next = "EMPTY"
            with m.State("HALT"):  # a fault is being reported
                m.d.sync += self.fault_valid.eq(0)
        m.d.comb += [
            self.finished.eq(drained & fsm.ongoing("EMPTY")),
            self.fault.code.eq(
                Mux(desc, FaultCode.DESC, Mux(align, FaultCode.ALIGN,
                    Mux(zero, FaultCode.ZERO, FaultCode.SIZE)))
            ),
        ]

    def _divide(self, m: Module, beats: Value, is_load: Value, align: Signal) -> None:
        """Adds a state that finds beats modulo engines, bit by bit from the highest."""
        engines = self._config.engines
        remainder = Signal(range(engines))
        bit_idx = Signal(5, init=31)
        doubled = Signal(range(2 * engines))
        m.d.comb += doubled.eq(Cat(beats.bit_select(bit_idx, 1), remainder))
        with m.State("DIVIDE"):
            reduced = Mux(doubled >= engines, doubled - engines, doubled)
            m.d.sync += [remainder.eq(reduced), bit_idx.eq(bit_idx - 1)]
            with m.If(bit_idx == 0):
                m.d.sync += remainder.eq(0)
                with m.If(~is_load & (reduced != 0)):
                    m.d.sync += align.eq(1)
                m.next = "JUDGE"

    def _breaks_desc(self, words: data.View, some: data.View, is_load: Value) -> Value:
        form = words[11]
        head_load = Opcode.LOAD | COMMAND_MAGIC << 8
        head_exec = Opcode.EXEC | COMMAND_MAGIC << 8
        delta_bits, absolute, rice, mode = form[:4], form[4], form[7], form[8:10]
        return (
            ((words[0][:16] != head_load) & (words[0][:16] != head_exec))
            | some[0][1]
            | some[1][1]
            | Mux(is_load, self._breaks_shift(words, some), (
                (mode == 3) | _above(delta_bits, DELTA_BITS_MAX)
                | (absolute & (delta_bits.any() | rice))))
        )

    def _breaks_shift(self, words: data.View, some: data.View) -> Value:
        """A shift that there is not, or any on a core that has none."""
        shift = words[8][:2]
        if self._config.shifts:
            return shift == 3
        return shift.any() | some[9].any() | some[10].any()

    def _breaks_align(self, words: data.View, is_load: Value) -> Value:
        config = self._config
        beat_bits = config.bus_bytes.bit_length() - 1
        lane_bits = config.lanes.bit_length() - 1
        raw = words[11][8:10] == OutputMode.RAW
        output = words[4]
        load = (
            words[6][:beat_bits].any()
            | words[3][: config.line_words.bit_length() - 1].any()
            | words[7][: config.line_words.bit_length() - 1].any()
            | words[4][: config.word_beats.bit_length() - 1].any()
        )
        run = output[:lane_bits].any() | (raw & output[lane_bits : lane_bits + 2].any())
        if config.engines & (config.engines - 1) == 0:
            run = run | words[3][: config.engines.bit_length() - 1].any()
        # Word 2 is the address to read from in both.
        return words[2][:beat_bits].any() | Mux(is_load, load, run)

    def _breaks_zero(self, some: data.View, is_load: Value) -> Value:
        load = ~some[4].any() | ~some[5].any()
        run = ~(some[3].any() & some[6].any() & some[7].all())
        return Mux(is_load, load, run)

    def _breaks_size(self, words: data.View, some: data.View, is_load: Value) -> Value:
        config = self._config
        bits = config.address_bits
        load = (words[3][bits:16].any() | some[3][1] | some[4][1] | some[5][1]
                | words[7][bits:16].any() | some[7][1])
        run = (
            words[5][bits:16].any()
            | some[5][1]
            | words[6][LIMIT_BITS:].any()
            | (words[6][LIMIT_BITS - 1] & some[6][0])
            | _above(words[7][:16], config.depth)
        )
        if not config.psum_depth:
            run = run | words[11][10:12].any()
        return Mux(is_load, load, run)

    def _connect_outputs(self, m: Module, words: data.View, spare: Signal, index: Signal) -> None:
        load, run, form = self.loads.payload, self.execs.payload, words[11]
        m.d.comb += [
            load.spare.eq(spare),
            load.command.address.eq(words[2]),
            load.command.destination.eq(words[3]),
            load.command.line_beats.eq(words[4]),
            load.command.lines.eq(words[5]),
            load.command.stride.eq(words[6]),
            load.command.gap.eq(words[7]),
            load.command.shift.eq(words[8]),
            load.command.fill.eq(words[8][8:]),
            load.command.mask.eq(Cat(words[9], words[10])),
            load.command.index.eq(index),
            run.spare.eq(spare),
            run.command.weights.eq(words[2]),
            run.command.beats.eq(words[3]),
            run.command.output.eq(words[4]),
            run.command.base.eq(words[5]),
            run.command.limit.eq(words[6]),
            Cat(run.command.positions, run.command.width).eq(words[7]),
            Cat(run.command.step, run.command.wrap_step).eq(words[8]),
            run.command.out_step.eq(words[9]),
            run.command.out_wrap_step.eq(words[10]),
            Cat(
                run.command.delta_bits, run.command.absolute, run.command.int4,
                run.command.has_bias, run.command.rice,
            ).eq(form),
            Cat(
                run.command.mode, run.command.psum_in, run.command.psum_out,
                run.command.count_size, run.command.offset_size,
            ).eq(form[8:]),
            Cat(run.command.zero_point, run.command.low, run.command.high).eq(words[12]),
            run.command.index.eq(index),
        ]
