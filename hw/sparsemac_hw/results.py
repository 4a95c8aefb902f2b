# SPDX-License-Identifier: Apache-2.0
"""What happens to a sum behind the lanes: bias, partial sums, requantization, output words."""

from itertools import pairwise
from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.commands import OutputMode
from sparsemac.config import CoreConfig

from .assembler import Assembler
from .block_memory import BlockMemory
from .layouts import (
    exec_layout,
    index_shape,
    out_beat_layout,
    result_layout,
    row_layout,
    words_per_beat,
)
from .requantizer import Requantizer

__all__ = ["ResultPath", "pass_layout"]

#: What the issuer knows of a word: it ends a line of positions (``width``), or its row.
pass_layout = data.StructLayout({"wraps": 1, "last": 1})


def tag_layout(config: CoreConfig) -> data.StructLayout:
    """What travels beside a result through the requantizer; see `layouts.result_layout`."""
    members = dict(result_layout(config))
    del members["value"]
    return data.StructLayout({name: field.shape for name, field in members.items()})


class ResultPath(wiring.Component):
    """Turns the sums of one engine into output words.

    Sums arrive lane by lane, position by position, row by row, and nothing here can stall: room for
    a word was reserved when its row was issued. With ``psum_in`` the partial sum kept for this
    result is added instead of the bias; with ``psum_out`` the sum is kept and nothing is stored.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_soon : In(1)                      A sum is on ``i_acc`` in the next cycle.
    i_acc : In(signed(acc_width))
    i_row : In(stream of row_layout)    The rows, in the order of their sums.
    i_pass_valid, i_pass : In           Strobe: a word has been issued, two cycles or more before
                                        its first sum; at most ``out_words`` are under way.
    start : In(1)                       Strobe: an EXEC begins; ``command`` is valid from here on.
    command : In(exec_layout)
    o : Out(stream of out_beat_layout)  Output words for the store.
    returned : Out(2)                   Room for so many more words.
    overrun : Out(1)                    Strobe: more partial sums than are kept.
    """

    i_soon: Signal
    i_acc: Signal
    i_row: stream.Interface
    i_pass_valid: Signal
    i_pass: Any
    start: Signal
    command: Any
    o: stream.Interface
    returned: Signal
    overrun: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "i_soon": In(1),
            "i_acc": In(signed(config.acc_width)),
            "i_row": In(stream.Signature(row_layout)),
            "i_pass_valid": In(1),
            "i_pass": In(pass_layout),
            "start": In(1),
            "command": In(exec_layout),
            "o": Out(stream.Signature(out_beat_layout(config))),
            "returned": Out(2),
            "overrun": Out(1),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, command = self._config, self.command
        m.submodules.requantizer = requantizer = Requantizer(
            config.acc_width, tag_layout(config))
        m.submodules.assembler = assembler = Assembler(config, words=config.out_words)
        wiring.connect(m, assembler.o, wiring.flipped(self.o))

        self._valid = Signal()  # a sum is here
        m.d.sync += self._valid.eq(self.i_soon)
        tag = self._sequence(m)
        # Stages: the row and the partial sum are read; that stands behind its memory; what to add
        # has been chosen.
        stages = data.StructLayout({
            "acc": signed(config.acc_width), "tag": tag_layout(config), "row": row_layout,
        })
        first, second, third = (
            Signal(stages, name=name, reset_less=True) for name in ("first", "second", "third"))
        valid = [Signal(name=f"valid_{k}") for k in range(1, 4)]
        m.d.sync += [
            first.acc.eq(self.i_acc), first.tag.eq(tag), first.row.eq(self.i_row.p),
            second.eq(first), third.eq(second),
            *(later.eq(now) for now, later in pairwise([self._valid, *valid])),
        ]
        if config.psum_depth:
            psum = self._partial_sums(m, requantizer)
            with m.If(command.psum_in):
                m.d.sync += third.row.bias.eq(psum)
        m.d.comb += [
            requantizer.i_valid.eq(valid[-1]),
            requantizer.i_acc.eq(third.acc),
            requantizer.i_addend.eq(third.row.bias),
            requantizer.i_multiplier.eq(third.row.multiplier),
            requantizer.i_shift.eq(third.row.shift),
            requantizer.i_mode.eq(command.mode),
            requantizer.i_zero_point.eq(command.zero_point),
            requantizer.i_low.eq(command.low),
            requantizer.i_high.eq(command.high),
            requantizer.i_tag.eq(third.tag),
            assembler.i_valid.eq(requantizer.o_valid & ~command.psum_out),
            assembler.i.value.eq(requantizer.o_value),
            assembler.i.raw.eq(requantizer.o_tag.raw),
            assembler.i.out_word.eq(requantizer.o_tag.out_word),
            assembler.i.last_lane.eq(requantizer.o_tag.last_lane),
            assembler.i.place.eq(requantizer.o_tag.place),
            assembler.i.closes.eq(requantizer.o_tag.closes),
            self.returned.eq(Mux(command.psum_out,
                                 requantizer.o_valid & requantizer.o_tag.last_lane,
                                 assembler.popped + assembler.merged)),
        ]
        return m

    def _sequence(self, m: Module) -> data.View:
        """Counts lanes and words; returns the tag of the sum that is arriving."""
        command = self.command
        lanes = self._config.lanes
        tag = Signal(tag_layout(self._config))
        # Of the sum that comes in the next cycle: so what ends with it is known in flip-flops.
        lane = Signal(index_shape(lanes))
        is_last = Signal(init=lanes == 1)
        ends_soon = Signal()
        last_lane, ends_word = Signal(), Signal()
        position_word = Signal(32, reset_less=True)
        # Signals of their own: read back from ``tag`` they look like a loop to a simulator.
        out_word, raw = Signal(32), Signal()
        m.d.comb += [
            ends_soon.eq(self.i_soon & is_last),
            out_word.eq(self.i_row.p.out_offset + position_word),
            raw.eq(command.mode == OutputMode.RAW),
            tag.out_word.eq(out_word),
            tag.raw.eq(raw),
            tag.last_lane.eq(last_lane),
        ]
        next_wraps, next_last = self._passes(m, ends_soon)
        wraps, last_position = Signal(), Signal()
        m.d.sync += [
            last_lane.eq(is_last), ends_word.eq(ends_soon), wraps.eq(next_wraps),
            last_position.eq(next_last), self.i_row.ready.eq(ends_soon & next_last),
        ]
        self._place(m, tag, out_word, raw, wraps, last_position)
        with m.If(self.i_soon):
            m.d.sync += lane.eq((lane + 1) & (lanes - 1))
            if lanes > 1:
                m.d.sync += is_last.eq(lane == lanes - 2)
        with m.If(self.start | self.i_row.ready):
            m.d.sync += position_word.eq(0)
        with m.Elif(ends_word):
            m.d.sync += position_word.eq(
                position_word + Mux(wraps, command.out_wrap_step, command.out_step))
        return tag

    def _passes(self, m: Module, ends_soon: Signal) -> tuple[Signal, Signal]:
        """Keeps what the issuer said of each word until its last sum; returns that of this one."""
        depth = self._config.out_words
        m.submodules.passes = passes = Memory(shape=pass_layout, depth=depth, init=[])
        write, read = passes.write_port(), passes.read_port(domain="comb")
        m.d.comb += [write.en.eq(self.i_pass_valid), write.data.eq(self.i_pass)]
        for port, moves in ((write, self.i_pass_valid), (read, ends_soon)):
            pointer = Signal(range(depth), name="pass_ptr")
            m.d.comb += port.addr.eq(pointer)
            with m.If(moves):
                m.d.sync += pointer.eq(pointer + 1)
        return read.data.wraps, read.data.last

    def _place(self, m: Module, tag: data.View, out_word: Signal, raw: Signal, wraps: Signal,
               last_position: Signal) -> None:
        """Where in its beat a word goes, and whether the next one may join it there."""
        command, count = self.command, words_per_beat(self._config)
        if count == 1:
            m.d.comb += tag.closes.eq(1)
            return
        bits = (count - 1).bit_length()
        word_bits = self._config.lanes.bit_length() - 1
        place, closes = self._next_of(m, "", bits, out_word, wraps, command.output[word_bits:])
        if count > 4:  # words of int32 share beats, too
            wide, wide_closes = self._next_of(
                m, "wide_", bits - 2, out_word, wraps, command.output[word_bits + 2 :])
            place = Mux(raw, wide << 2, place)
            closes = Mux(raw, wide_closes, closes)
        else:
            place = Mux(raw, 0, place)
            closes = closes | raw
        m.d.comb += [tag.place.eq(place), tag.closes.eq(last_position | closes)]

    def _next_of(self, m: Module, prefix: str, bits: int, out_word: Signal, wraps: Signal,
                 first: Value) -> tuple[Value, Value]:
        """Place of a word in its beat of ``2**bits``, and whether the next one is not behind it."""
        place = Signal(bits, name=f"{prefix}place")
        following = Signal(bits + 1, name=f"{prefix}following")
        steps = []
        for name in ("out_step", "out_wrap_step"):
            step = self.command[name]
            near = Signal(name=f"{prefix}{name}_near")  # forward, and by less than a beat
            m.d.sync += near.eq((step[bits:] == 0) & step[:bits].any())
            steps.append((near, step[:bits]))
        m.d.comb += [
            place.eq(out_word[:bits] + first[:bits]),
            following.eq(place + Mux(wraps, steps[1][1], steps[0][1])),
        ]
        return place, ~Mux(wraps, steps[1][0], steps[0][0]) | following[bits]

    def _partial_sums(self, m: Module, requantizer: Requantizer) -> Value:
        """Keeps one sum per result between EXECs, read and written in the order of results."""
        depth = self._config.psum_depth
        m.submodules.psums = psums = BlockMemory(32, depth)
        read_idx = Signal(range(depth + 1))
        write_idx = Signal(range(depth))
        uses = Signal()
        m.d.comb += [
            uses.eq(self.command.psum_in | self.command.psum_out),
            psums.r_addr.eq(read_idx),
            psums.w_addr.eq(write_idx),
            psums.w_data.eq(requantizer.o_sum),
            psums.w_en.eq(requantizer.o_sum_valid & self.command.psum_out),
            self.overrun.eq(self._valid & uses & (read_idx == depth)),
        ]
        with m.If(self.start):
            m.d.sync += [read_idx.eq(0), write_idx.eq(0)]
        with m.Else():
            with m.If(self._valid & (read_idx != depth)):
                m.d.sync += read_idx.eq(read_idx + 1)
            with m.If(psums.w_en):
                m.d.sync += write_idx.eq(write_idx + 1)
        return psums.r_data
