# SPDX-License-Identifier: Apache-2.0
"""Reads rows and entries from the weight stream of one engine."""

from itertools import pairwise
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.commands import COUNT_BITS, OFFSET_BITS, OutputMode
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac.stream import MASK_BITS

from .layouts import exec_layout, row_layout
from .masks import MaskReader
from .window import BitWindow, weight_beat_layout

__all__ = ["Unpacker", "entry_layout"]

#: One nonzero: activation offset and weight.
entry_layout = data.StructLayout({"offset": 16, "weight": signed(8)})


class Item(enum.Enum, shape=3):
    """What the bits of an item mean."""

    COUNT = 0  # end, count
    OFFSET = 1  # out_offset
    BIAS = 2
    MULTIPLIER = 3  # its low 32 bits
    SHIFT = 4  # the multiplier's high 4 bits, shift, 6 reserved bits
    ENTRY = 5
    MASK = 6  # quotients of the entries behind it


class Unpacker(wiring.Component):
    """Reads rows from a stream as `sparsemac.stream` defines it.

    An EXEC begins with ``start``. Each row appears on ``o_row`` (what its output needs) and
    ``o_count`` (its number of entries, at least 1), then its entries on ``o``; an empty row yields
    one entry of weight 0. Beats behind the last row are dropped.

    Items are asked for before it is known what those before them say: a header as soon as the row
    before it is complete, an entry for each that the row still must have. Fillers are found out two
    cycles later, and ask for as many entries more. What a mask says of a Rice-coded entry is known
    before it is asked for.

    Nothing that has been asked for ever waits: a header is asked for when that of the row before
    has been taken, an entry when there is a place for it in the buffer behind.

    Throughput: one entry, filler or header word per cycle; 2 cycles are lost behind a row. Of
    Rice-coded gaps a cycle passes over two zeros of a mask; a mask takes four.

    Members
    -------
    i : In(stream of weight_beat_layout)
    start : In(1)                    Strobe: an EXEC begins; ``command`` is valid until ``done``.
    command : In(exec_layout)
    o_valid : Out(1), o : Out(entry_layout)    An entry; there is a place for it.
    freed : In(1)                    Strobe: one of the ``entry_depth`` places is free again.
    o_row : Out(stream of row_layout)
    o_count : Out(stream of 15 bits)
    done : Out(1)                    The stream of the EXEC has been read to its end.
    filler : Out(1)                  Strobe: a filler was read.
    fault : Out(8)                   Strobe: a FaultCode, 0 if there is none.
    """

    i: stream.Interface
    start: Signal
    command: Any
    o_valid: Signal
    o: Any
    freed: Signal
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
            "o_valid": Out(1),
            "o": Out(entry_layout),
            "freed": In(1),
            "o_row": Out(stream.Signature(row_layout)),
            "o_count": Out(stream.Signature(15)),
            "done": Out(1),
            "filler": Out(1),
            "fault": Out(8),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        m.submodules.window = self._window = window = BitWindow(self._config)
        wiring.connect(m, wiring.flipped(self.i), window.i)
        self._quantized = Signal()
        m.d.comb += window.open.eq(self.start)
        m.d.sync += self._quantized.eq(self.command.mode != OutputMode.RAW)

        # The items under way in the window: what they are.
        self._asked = Signal(Item)
        self._header = Signal()  # a word of a header is asked for
        item_1 = Signal(Item, reset_less=True)
        self._item = Signal(Item, reset_less=True)
        self._valid_1, self._valid = Signal(), Signal()
        self._is_count, self._is_entry = Signal(), Signal()
        self._broken = Signal()  # instead of an item came the end of the stream
        whole = self._valid_1 & ~window.short
        # Of their own, and a cycle late, which is before the first beat.
        self._rice, self._int4, self._absolute = rice, int4, absolute = [
            Signal(name=name, reset_less=True) for name in ("rice", "int4", "absolute")]
        m.d.sync += [
            rice.eq(self.command.rice), int4.eq(self.command.int4),
            absolute.eq(self.command.absolute),
        ]
        # The entry in the window is no filler; found on the way there, where there is time for it.
        self._used = Signal(reset_less=True)
        m.d.sync += [
            self._used.eq(window.coming[:4].any() | (~int4 & window.coming[4:8].any()) | rice),
            item_1.eq(self._asked), self._item.eq(item_1),
            self._valid_1.eq(window.step), self._valid.eq(whole),
            self._broken.eq(self._valid_1 & window.short),
            self._is_count.eq(whole & (item_1 == Item.COUNT)),
            self._is_entry.eq(whole & (item_1 == Item.ENTRY)),
        ]
        self._masks = MaskReader()
        # An entry of weight 0 must be made for a row without any: when its header is complete, as
        # the sum must not be there before it.
        self._empty = Signal()
        self._fills = Signal()  # that entry is made
        self._refill = Signal()  # the entry taken in the last cycle was a filler
        self._find_room(m)
        row_fault = self._judge(m)
        self._ask(m)
        column_fault = Signal()
        m.d.sync += column_fault.eq(self._offsets(m))
        m.d.sync += self.fault.eq(Mux(
            column_fault, FaultCode.COLUMN, Mux(
                row_fault, FaultCode.ROW, Mux(
                    self._broken & ~self._null, FaultCode.STREAM, FaultCode.NONE))))
        return m

    def _find_room(self, m: Module) -> None:
        """Counts the places of the buffer behind that no entry has or is promised."""
        self._room = Signal(init=1)  # there is one
        self._asks_entry = Signal()
        depth = self._config.entry_depth
        free = Signal(range(depth + 1), init=depth)
        gained = Signal(2)  # a cycle late
        takes = Signal()
        m.d.comb += [
            self._fills.eq(self._empty & self._room),
            takes.eq(self._asks_entry | self._fills),
        ]
        m.d.sync += [
            gained.eq(self.freed + self._refill), free.eq(free + gained - takes),
            self._room.eq(Mux(takes, free[1:].any(), free.any())),
        ]

    def _judge(self, m: Module) -> Value:
        """Takes an item from the window: keeps what a header says, counts what a row needs."""
        window, command, bits = self._window, self.command, self._window.bits
        row = Signal(row_layout)
        row_full = Signal()  # the header is complete
        no_entries = Signal()
        self._end = Signal(reset_less=True)  # the row is the stream's last
        self._known = Signal()  # the row's count has been read
        need = Signal(15)  # entries of the row that must still be asked for
        self._needs = needs = Signal()  # whether there are any
        no_row = Signal()
        self._null = Signal()  # so it was in the last cycle
        self._complete = Signal()  # the last entry of the row is being taken
        self._vacant = Signal()  # what a header says can be kept
        refill = self._refill
        # What lies behind a field that is not of full size belongs to the next item.
        count, all_ones = Signal(COUNT_BITS[-1]), Signal(COUNT_BITS[-1])
        offset = Signal(OFFSET_BITS[-1])
        in_count = self._within(m, command.count_size, COUNT_BITS)
        in_offset = self._within(m, command.offset_size, OFFSET_BITS)
        m.d.comb += [
            count.eq(bits[1:] & in_count), all_ones.eq(bits[1:] | ~in_count),
            offset.eq(bits & in_offset),
            no_row.eq(bits[0] & all_ones.all()),
            self._complete.eq(
                self._known & ~needs & ~self._valid_1 & ~refill
                & (~self._valid | (self._is_entry & self._used))),
            self._vacant.eq(~row_full & ~self._empty & ~self.o_count.valid),
        ]
        m.d.sync += self._null.eq(0)
        with m.If(self._is_count):
            m.d.sync += [
                self.o_count.valid.eq(~no_row), self.o_count.p.eq(Mux(count == 0, 1, count)),
            ]
        with m.Elif(self.o_count.ready):
            m.d.sync += self.o_count.valid.eq(0)
        m.d.sync += refill.eq(self._is_entry & ~self._used)
        m.d.comb += self._asks_entry.eq(window.step & ~self._header)
        with m.If(self._asks_entry ^ refill):  # one more or one less, known before whether at all
            m.d.sync += [
                need.eq(need + Cat(1, (~refill).replicate(len(need) - 1))),
                needs.eq(refill | (need != 1)),
            ]
        with m.If(self._fills):
            m.d.sync += self._empty.eq(0)
        with m.If(self._is_count):
            m.d.sync += [
                no_entries.eq(count == 0), need.eq(count), needs.eq((count != 0) & ~no_row),
                self._end.eq(bits[0]),
                self._known.eq(~no_row), self._null.eq(no_row), row.bias.eq(0),
            ]
        with m.Elif(self._valid):
            with m.Switch(self._item):
                with m.Case(Item.OFFSET):
                    m.d.sync += row.out_offset.eq(offset)
                with m.Case(Item.BIAS):
                    m.d.sync += row.bias.eq(bits)
                with m.Case(Item.MULTIPLIER):
                    m.d.sync += row.multiplier[:32].eq(bits)
                with m.Case(Item.SHIFT):
                    m.d.sync += [row.multiplier[32:].eq(bits[:4]), row.shift.eq(bits[4:9])]
        final = Signal(Item)  # of a header
        m.d.sync += final.eq(
            Mux(self._quantized, Item.SHIFT, Mux(command.has_bias, Item.BIAS, Item.OFFSET)))
        with m.If(self.o_row.ready):
            m.d.sync += row_full.eq(0)
        with m.If(self._valid & (self._item == final) & ~self._null):
            m.d.sync += [row_full.eq(1), self._empty.eq(no_entries)]
        m.d.comb += [self.o_row.p.eq(row), self.o_row.valid.eq(row_full)]
        loaded, replays = Signal(), Signal(reset_less=True)
        m.d.sync += [
            loaded.eq(self._is_count & ~window.short), replays.eq(command.positions > 1),
        ]
        return loaded & self._known & replays & (need > self._config.entry_depth)

    @staticmethod
    def _within(m: Module, size: Value, sizes: tuple[int, ...]) -> Value:
        """Ones where a field of that size has bits; known a cycle later."""
        within = [Signal(name=f"within_{bits}", reset_less=True) for bits in sizes[1:]]
        m.d.sync += [on.eq(size >= k) for k, on in enumerate(within, 1)]
        reach = [b - a for a, b in pairwise(sizes)]
        ones = [on.replicate(bits) for on, bits in zip(within, reach, strict=True)]
        return Cat(Const(1).replicate(sizes[0]), *ones)

    def _ask(self, m: Module) -> None:
        """Asks the window for one item after the other."""
        window, command = self._window, self.command
        entry_bits = Signal(6)
        field_bits = Mux(self._absolute, 16, command.delta_bits)
        m.d.sync += entry_bits.eq(field_bits + Mux(self._int4, 4, 8))
        running, asked = Signal(), Signal()
        discards = Signal()  # the state, decoded: the stream's queue waits for it
        wanted = Signal()  # the row needs another entry
        m.submodules.masks = masks = self._masks
        m.d.comb += [
            masks.start.eq(self.start), masks.delta_bits.eq(command.delta_bits),
            masks.wanted.eq(wanted & self._rice), masks.may_ask.eq(window.valid),
            masks.load.eq(self._valid & (self._item == Item.MASK)), masks.mask.eq(window.bits),
        ]
        count_bits, offset_bits = Signal(6, reset_less=True), Signal(6, reset_less=True)
        for field, size, sizes in ((count_bits, command.count_size, [1 + b for b in COUNT_BITS]),
                                   (offset_bits, command.offset_size, OFFSET_BITS)):
            m.d.sync += field.eq(Array(sizes)[size])
        # Known before the state is needed: the window's adder is in the longest path.
        step_bits = Signal(6, reset_less=True)
        m.d.comb += [
            window.discard.eq(discards),
            asked.eq(window.valid & self._header),
            window.step_bits.eq(step_bits),
            wanted.eq(~self._header & self._needs & self._room),
            window.wants.eq(
                self._header | (self._needs & self._room & (masks.found | ~self._rice))),
        ]

        def go(state: str) -> None:
            m.next = state
            if state == "DISCARD":
                m.d.sync += [self._header.eq(0), discards.eq(1)]
            else:
                m.d.sync += [
                    self._asked.eq(getattr(Item, state)),
                    self._header.eq({"COUNT": self._vacant, "ENTRY": 0}.get(state, 1)),
                    step_bits.eq({
                        "COUNT": count_bits, "OFFSET": offset_bits, "BIAS": 32, "MULTIPLIER": 32,
                        "SHIFT": 16, "ENTRY": entry_bits, "MASK": MASK_BITS}[state]),
                ]

        def leave_if_null() -> None:
            with m.If(self._null):
                go("DISCARD")

        with m.FSM(name="ask"):
            with m.State("IDLE"):  # no EXEC, or its stream has been read
                with m.If(self.start):
                    m.d.sync += running.eq(1)
                    go("COUNT")
            with m.State("COUNT"):
                # At the start of an EXEC the size comes a cycle late, but before the first beat.
                m.d.sync += [
                    self._known.eq(0), step_bits.eq(count_bits), self._header.eq(self._vacant),
                ]
                with m.If(asked):
                    go("OFFSET")
            with m.State("OFFSET"):
                with m.If(asked):
                    with m.If(command.has_bias):
                        go("BIAS")
                    with m.Elif(self._quantized):
                        go("MULTIPLIER")
                    with m.Else():
                        go("ENTRY")
                leave_if_null()
            with m.State("BIAS"):
                with m.If(asked):
                    with m.If(self._quantized):
                        go("MULTIPLIER")
                    with m.Else():
                        go("ENTRY")
                leave_if_null()
            with m.State("MULTIPLIER"):
                with m.If(asked):
                    go("SHIFT")
                leave_if_null()
            with m.State("SHIFT"):
                with m.If(asked):
                    go("ENTRY")
                leave_if_null()
            with m.State("ENTRY"):  # as many as the row is known to need
                with m.If(self._complete):
                    with m.If(self._end):
                        go("DISCARD")
                    with m.Else():
                        go("COUNT")
                with m.Elif(masks.wanted & masks.spent):
                    go("MASK")
                leave_if_null()
            with m.State("MASK"):
                with m.If(asked):
                    m.next = "WAIT"
                    m.d.sync += self._header.eq(0)
            with m.State("WAIT"):  # until the mask is there
                with m.If(self._valid & (self._item == Item.MASK)):
                    go("ENTRY")
            with m.State("DISCARD"):  # padding behind the last row
                with m.If(window.ended):
                    m.d.sync += [running.eq(0), discards.eq(0)]
                    m.next = "IDLE"
        with m.If(self._null):  # no row at all: nor is there what was asked for behind it
            m.d.sync += [self._valid_1.eq(0), self._valid.eq(0)]
            m.d.sync += [self._is_count.eq(0), self._is_entry.eq(0), self._broken.eq(0)]
        m.d.comb += self.done.eq(~running)

    def _offsets(self, m: Module) -> Value:
        """Accumulates deltas into offsets.

        Stages: the entry; its columns plus 1; those shifted, if it is a filler; the sum; the check.
        ``previous`` is the last offset used or passed over; it starts a row at -1.
        """
        command, bits = self.command, self._window.bits
        int4, absolute = self._int4, self._absolute
        weight = Signal(signed(8))
        m.d.comb += weight.eq(Mux(int4, bits[:4].as_signed(), bits[:8].as_signed()))
        valid = [Signal(name=f"valid_{k}") for k in range(1, 5)]
        weights = [Signal(signed(8), name=f"weight_{k}", reset_less=True) for k in range(1, 5)]
        is_first = [Signal(name=f"is_first_{k}", reset_less=True) for k in range(1, 3)]
        passes = [Signal(name=f"passes_{k}", reset_less=True) for k in range(1, 5)]
        empty = Signal(reset_less=True)
        field = Signal(16, reset_less=True)
        quotient = Signal(17, reset_less=True)
        following = Signal(17, reset_less=True)  # field + quotient + 1
        jump = Signal(18, reset_less=True)
        filler = Signal(reset_less=True)
        previous, offset = Signal(18, reset_less=True), Signal(18, reset_less=True)
        beyond = Signal()
        m.d.comb += beyond.eq(valid[3] & (offset >= command.limit))
        mask = Signal(16, reset_less=True)
        m.d.sync += mask.eq(Cat(command.delta_bits > k for k in range(8)))
        with m.If(absolute):
            m.d.sync += mask.eq(0xFFFF)
        opening = Signal()  # the next entry is its row's first
        with m.If(self._is_count):
            m.d.sync += opening.eq(1)
        with m.Elif(self._is_entry):
            m.d.sync += opening.eq(0)
        used = weights[0].any()
        m.d.sync += [
            valid[0].eq(self._is_entry | self._fills),
            weights[0].eq(weight), empty.eq(self._fills), is_first[0].eq(opening),
            field.eq(Mux(int4, bits[4:20], bits[8:24]) & mask),
            quotient.eq(self._masks.quotient),
            # A filler's sum is kept, though it goes no further.
            following.eq((Cat(1, field) + Cat(1, quotient))[1:]),
            filler.eq(~used & ~absolute & ~self._rice & ~empty),
            passes[1].eq(used | empty | self._rice),
            jump.eq(Mux(filler, (following[:9] << command.delta_bits)[:18], following)),
            self.o_valid.eq(valid[3] & passes[3] & ~beyond),
            self.o.offset.eq(offset), self.o.weight.eq(weights[3]),
        ]
        for stages in (valid, weights):
            m.d.sync += [stages[k].eq(stages[k - 1]) for k in range(1, 4)]
        m.d.sync += is_first[1].eq(is_first[0])
        m.d.sync += [passes[k].eq(passes[k - 1]) for k in range(2, 4)]
        # Sets and clears come last: flip-flops do them without a LUT.
        with m.If(self._fills):
            m.d.sync += [weights[0].eq(0), field.eq(0), quotient.eq(0)]
        with m.If(valid[2]):
            m.d.sync += [offset.eq(previous + jump), previous.eq(previous + jump)]
        with m.If((valid[1] & is_first[1]) | absolute):
            m.d.sync += previous.eq((1 << len(previous)) - 1)
        m.d.comb += self.filler.eq(valid[0] & ~used & ~empty & ~self._rice)
        return beyond
