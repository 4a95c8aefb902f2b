# SPDX-License-Identifier: Apache-2.0
"""Entry buffer of one engine, from which rows are issued once for each position."""

from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .block_memory import BlockMemory
from .layouts import chunk_entries, exec_layout, index_shape, partial_width
from .results import pass_layout
from .unpacker import entry_layout

__all__ = ["RowIssuer"]


class RowIssuer(wiring.Component):
    """Buffers entries and issues each row ``positions`` times, without a cycle between.

    A row stays in the buffer until its last position has begun, so its nonzeros cross the bus once.
    With one position a row may be longer than the buffer: entries are released as they are issued.

    Latency: `LATENCY_CYCLES` from the issue to the address on ``o_addr``. Throughput: one entry per
    cycle. The last entry of a row waits until ``lanes`` cycles have passed since the last one
    before it (sums leave one lane per cycle) and until the store has room for the word.

    Parameters
    ----------
    config : CoreConfig
    out_words : int      Output words that the result path holds: the credits.

    Members
    -------
    i_valid : In(1), i : In(entry_layout)    An entry, for which there must be a place.
    freed : Out(1)                        Strobe: a place is free again, of ``entry_depth``.
    i_count : In(stream of 15 bits)       Entries of each row, 1 or more.
    start : In(1)                         Strobe: an EXEC begins; ``command`` is valid from here on.
    command : In(exec_layout)
    returned : In(2)                      So many credits come back.
    o_valid, o_addr, o_weight : Out       To the lanes.
    o_end, o_last : Out(1)                The entry ends a chunk (`chunk_entries`), or its row.
    o_pass_valid : Out(1), o_pass : Out(pass_layout)    Strobe: the last entry of a row is issued
                                          for a position; see `ResultPath`.
    issued : Out(1)                       An entry is issued in this cycle.
    wait_short, wait_store : Out(1)       Why the last entry of a row is held back.
    quiet : Out(1)                        No row is at work or waiting.
    empty : Out(1)                        The same, and no word is under way.
    overrun : Out(1)                      Strobe: an address beyond the activation buffer.
    """

    i_valid: Signal
    i: Any
    freed: Signal
    i_count: stream.Interface
    start: Signal
    command: Any
    returned: Signal
    o_valid: Signal
    o_addr: Signal
    o_weight: Signal
    o_end: Signal
    o_last: Signal
    o_pass_valid: Signal
    o_pass: Any
    issued: Signal
    wait_short: Signal
    wait_store: Signal
    quiet: Signal
    empty: Signal
    overrun: Signal

    LATENCY_CYCLES = 3

    def __init__(self, config: CoreConfig, out_words: int) -> None:
        self._config = config
        self._out_words = out_words
        super().__init__({
            "i_valid": In(1),
            "i": In(entry_layout),
            "freed": Out(1),
            "i_count": In(stream.Signature(15)),
            "start": In(1),
            "command": In(exec_layout),
            "returned": In(2),
            "o_valid": Out(1),
            "o_addr": Out(config.address_bits),
            "o_weight": Out(signed(8)),
            "o_end": Out(1),
            "o_last": Out(1),
            "o_pass_valid": Out(1),
            "o_pass": Out(pass_layout),
            "issued": Out(1),
            "wait_short": Out(1),
            "wait_store": Out(1),
            "quiet": Out(1),
            "empty": Out(1),
            "overrun": Out(1),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = self._config.entry_depth
        m.submodules.entries = entries = BlockMemory(entry_layout.size, depth)
        bits = (depth - 1).bit_length() + 1  # one more than an address: full differs from empty
        write_ptr = Signal(bits)
        last_ptr = Signal(bits, init=-1 & (1 << bits) - 1)  # the one before
        read_ptr = Signal(bits)
        row_ptr = Signal(bits)

        active = Signal()  # a row is being issued
        left = Signal(15, reset_less=True)
        is_last = Signal(reset_less=True)
        final_pass = Signal()
        issue, ends_pass, ends_row = Signal(), Signal(), Signal()

        # In its row's final pass an entry has been issued for good.
        m.d.sync += self.freed.eq(issue & final_pass)
        m.d.comb += [
            entries.w_en.eq(self.i_valid),
            entries.w_addr.eq(write_ptr[:-1]),
            entries.w_data.eq(self.i),
            entries.r_addr.eq(read_ptr[:-1]),
        ]
        with m.If(self.i_valid):
            m.d.sync += [write_ptr.eq(write_ptr + 1), last_ptr.eq(write_ptr)]

        available = Signal()  # a row is active, and its next entry is here
        following_read = Signal(bits)
        may_end, gap_open, all_returned = self._permissions(m, ends_pass)
        m.d.comb += [
            following_read.eq(read_ptr + 1),
            issue.eq(available & (~is_last | may_end)),
            self.issued.eq(issue),
            self.wait_short.eq(available & is_last & ~gap_open),
            self.wait_store.eq(available & is_last & gap_open & ~may_end),
            ends_pass.eq(available & is_last & may_end),
            ends_row.eq(ends_pass & final_pass),
        ]
        with m.If(issue):
            m.d.sync += read_ptr.eq(following_read)
        with m.If(ends_pass & ~final_pass):
            m.d.sync += read_ptr.eq(row_ptr)
        with m.If(ends_row):
            m.d.sync += row_ptr.eq(following_read)

        waiting = self._count_entries(m, issue, ends_pass, final_pass, active, left, is_last)
        # An entry that arrives is known a cycle late. Those of a pass are here for the next one.
        stored = Mux(issue, read_ptr != last_ptr, read_ptr != write_ptr)
        m.d.sync += available.eq(
            Mux(~active | ends_row, waiting, 1) & (stored | (ends_pass & ~final_pass)))
        pass_addr = self._positions(m, ends_pass, final_pass)
        m.d.comb += [self.o_pass_valid.eq(ends_pass), self.o_pass.last.eq(final_pass)]
        is_end = is_last | self._ends_chunk(m, issue, is_last, left)
        self._address(m, issue, is_end, is_last, pass_addr, entry_layout(entries.r_data))
        m.d.comb += self.empty.eq(self.quiet & all_returned)
        return m

    def _count_entries(self, m: Module, issue: Value, ends_pass: Value, final_pass: Value,
                       active: Signal, left: Signal, is_last: Signal) -> Signal:
        """Entries of the pass that are left. The next row's number waits beside this one's.

        Returns whether one waits.
        """
        row = data.StructLayout({"length": 15, "single": 1})
        this, following = Signal(row, reset_less=True), Signal(row, reset_less=True)
        waiting = Signal()
        load = Signal()
        m.d.comb += [
            load.eq(~active | (ends_pass & final_pass)),
            self.i_count.ready.eq(~waiting),
            self.quiet.eq(~active & ~waiting & ~self.i_count.valid),
        ]
        with m.If(~waiting):
            m.d.sync += [
                following.length.eq(self.i_count.p), following.single.eq(self.i_count.p == 1),
                waiting.eq(self.i_count.valid),
            ]
        with m.Elif(load):
            m.d.sync += waiting.eq(0)
        with m.If(load):
            m.d.sync += [active.eq(waiting), this.eq(following)]
        chosen = row(Mux(~active | final_pass, following, this))
        with m.If(ends_pass | ~active):
            m.d.sync += [left.eq(chosen.length), is_last.eq(chosen.single)]
        with m.Elif(issue):
            m.d.sync += [left.eq(left - 1), is_last.eq(left == 2)]
        return waiting

    def _ends_chunk(self, m: Module, issue: Value, is_last: Value, left: Signal) -> Value:
        """Whether the entry ends a chunk: it is long enough, and so is the rest of the row."""
        if partial_width(self._config) == self._config.acc_width:
            return Const(0, 1)
        chunk = chunk_entries(self._config)
        bits = chunk.bit_length() - 1
        summed = Signal(range(chunk))  # entries before this one, as far as it matters
        ends = Signal()
        m.d.comb += ends.eq(
            summed.all() & (left[bits + 1 :].any() | (left[bits] & left[:bits].any()))
        )
        with m.If(issue & (is_last | ends)):
            m.d.sync += summed.eq(0)
        with m.Elif(issue & ~summed.all()):
            m.d.sync += summed.eq(summed + 1)
        return ends

    def _permissions(self, m: Module, ends: Value) -> tuple[Signal, Signal, Signal]:
        """Distance between last entries, and credits for output words.

        Returns whether a last entry may be issued, whether the distance allows it, and whether all
        credits are back.
        """
        shortest = self._config.shortest_row_cycles
        gap = Signal(index_shape(shortest))  # cycles until the next may come
        with m.If(ends):
            m.d.sync += gap.eq(shortest - 1)
        with m.Elif(gap != 0):
            m.d.sync += gap.eq(gap - 1)

        credits = Signal(range(self._out_words + 1), init=self._out_words)
        all_returned = Signal()
        m.d.comb += all_returned.eq(credits == self._out_words)
        # In flip-flops, for all that an issue sets off depends on it.
        may_end, gap_open = Signal(init=1), Signal(init=1)
        opens = Mux(ends, shortest == 1, gap[1:] == 0)
        m.d.sync += [
            gap_open.eq(opens), may_end.eq(opens & Mux(ends, credits[1:] != 0, credits != 0)),
            credits.eq(credits + self.returned - ends),
        ]
        return may_end, gap_open, all_returned

    def _positions(self, m: Module, ends: Value, final_pass: Signal) -> Signal:
        """Word address of the position that is being issued."""
        command = self.command
        pass_addr = Signal(16, reset_less=True)
        # Counted up, one ahead and from 1, so that loading is a reset and costs no multiplexer.
        # A command has ``depth`` positions at most, and a line that is longer never wraps.
        next_pass = Signal(range(self._config.depth + 2), init=2)
        next_column = Signal.like(next_pass)
        bits = len(next_pass)
        wide = Signal()
        wraps = Signal(reset_less=True)  # one column is left
        single_pass, single_column = Signal(), Signal()
        m.d.sync += [
            single_pass.eq(command.positions[:bits] == 1), single_column.eq(command.width == 1),
            wide.eq(command.width[bits:].any() if bits < 16 else 0),
        ]
        starting = Signal()  # a cycle behind ``start``, long before the first entry
        m.d.sync += starting.eq(self.start)
        with m.If(starting | (ends & final_pass)):
            m.d.sync += [
                pass_addr.eq(command.base), final_pass.eq(single_pass), wraps.eq(single_column),
                next_pass.eq(2),
            ]
        with m.Elif(ends):
            m.d.sync += [
                pass_addr.eq(pass_addr + Mux(wraps, command.wrap_step, command.step)),
                final_pass.eq(next_pass == command.positions[:bits]), next_pass.eq(next_pass + 1),
                wraps.eq(Mux(wraps, single_column, (next_column == command.width[:bits]) & ~wide)),
            ]
        with m.If(ends):
            m.d.sync += next_column.eq(next_column + 1)
        with m.If(starting | (ends & (final_pass | wraps))):
            m.d.sync += next_column.eq(2)
        m.d.comb += self.o_pass.wraps.eq(wraps)
        return pass_addr

    def _address(self, m: Module, issue: Signal, is_end: Value, is_last: Signal,
                 pass_addr: Signal, entry: data.View) -> None:
        """Adds the entry's offset, once it has been read, to the address of its position."""
        # Stages: the memory is read; what it gave is there; so is the address.
        stages = data.StructLayout({"last": 1, "end": 1, "pass_addr": 16})
        tags = [Signal(stages, name=f"tag_{k}", reset_less=True) for k in range(1, 4)]
        valid = [Signal(name=f"valid_{k}") for k in range(1, 4)]
        weight = Signal(signed(8), reset_less=True)
        addr = Signal(17, reset_less=True)
        m.d.sync += [
            tags[0].last.eq(is_last), tags[0].end.eq(is_end), tags[0].pass_addr.eq(pass_addr),
            tags[1].eq(tags[0]), tags[2].eq(tags[1]),
            valid[0].eq(issue), valid[1].eq(valid[0]), valid[2].eq(valid[1]),
            weight.eq(entry.weight),
            addr.eq(tags[1].pass_addr + entry.offset),
        ]
        address_bits = self._config.address_bits
        m.d.comb += [
            self.o_valid.eq(valid[2] & ~self.overrun),
            self.o_end.eq(tags[2].end),
            self.o_last.eq(tags[2].last),
            self.o_weight.eq(weight),
            self.o_addr.eq(addr),
            self.overrun.eq(valid[2] & addr[address_bits:].any()),
        ]
