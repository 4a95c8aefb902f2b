# SPDX-License-Identifier: Apache-2.0
"""From the sums of chunks to those of rows, in one sequence, lane 0 first."""

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_power_of_two
from sparsemac.config import CoreConfig

from .block_memory import BlockMemory
from .layouts import index_shape, partial_width

__all__ = ["RowSum", "SumQueue"]


class RowSum(wiring.Component):
    """Adds up the chunks of rows that come from a bus of `MacLanes`.

    The sums of a chunk come lane by lane, those of the row's chunks before it wait in a memory.

    Latency: `LATENCY_CYCLES` from a sum of a row's last chunk to the row's sum. Throughput: one sum
    per cycle; sums of one lane must be 5 cycles apart.
    Overflow: wraps modulo 2**acc_width.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_valid : In(1), i_last : In(1), i_acc : In(signed(partial_width))    As `MacLanes` has them.
    o_valid : Out(1), o_acc : Out(signed(acc_width))
    """

    LATENCY_CYCLES = 3

    i_valid: Signal
    i_last: Signal
    i_acc: Signal
    o_valid: Signal
    o_acc: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "i_valid": In(1),
            "i_last": In(1),
            "i_acc": In(signed(partial_width(config))),
            "o_valid": Out(1),
            "o_acc": Out(signed(config.acc_width)),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        group, width = self._config.shortest_row_cycles, self._config.acc_width
        m.submodules.kept = kept = BlockMemory(width, max(2, group))
        # Read a cycle ahead. What is to be read has been written by then, for sums of one lane are
        # five cycles apart.
        lane, lane_next = Signal(index_shape(group)), Signal(index_shape(group))
        is_first = Signal(init=1)  # the chunk is its row's first
        m.d.comb += [lane_next.eq(lane), kept.r_addr.eq(lane_next)]
        m.d.sync += lane.eq(lane_next)
        with m.If(self.i_valid):
            m.d.comb += lane_next.eq((lane + 1) & (group - 1))
            with m.If(lane == group - 1):
                m.d.sync += is_first.eq(self.i_last)

        # Stages: the sum before is there; it is 0 for a first chunk; both are added.
        stages = data.StructLayout({"valid": 1, "last": 1, "lane": lane.shape()})
        tags = [Signal(stages, name=f"tag_{k}") for k in range(1, 4)]
        shape = signed(partial_width(self._config))
        partials = [Signal(shape, name=f"partial_{k}", reset_less=True) for k in range(1, 3)]
        starts = Signal()
        before = Signal(signed(width), reset_less=True)
        total = Signal(signed(width), reset_less=True)
        m.d.sync += [
            tags[0].valid.eq(self.i_valid), tags[0].last.eq(self.i_last), tags[0].lane.eq(lane),
            tags[1].eq(tags[0]), tags[2].eq(tags[1]), starts.eq(is_first),
            partials[0].eq(self.i_acc), partials[1].eq(partials[0]),
            before.eq(kept.r_data), total.eq(before + partials[1]),
            self.o_valid.eq(tags[1].valid & tags[1].last),
        ]
        with m.If(starts):  # a synchronous clear, without a LUT
            m.d.sync += before.eq(0)
        m.d.comb += [
            kept.w_addr.eq(tags[2].lane), kept.w_data.eq(total), kept.w_en.eq(tags[2].valid),
            self.o_acc.eq(total),
        ]
        return m


class SumQueue(wiring.Component):
    """Merges the sum buses of `MacLanes`; what comes too fast waits here.

    Each bus brings the sums of its group of lanes, row by row. A row shorter than there are lanes
    thus costs no more than a group's worth of cycles, as long as longer rows give the one result
    per cycle behind this queue time to catch up.

    Latency: 4 cycles, 1 with a single bus. Throughput: one sum per cycle.

    Parameters
    ----------
    config : CoreConfig
    words : int      Rows of sums that may be under way; room for all of them is here. Power of two.

    Members
    -------
    i_valid : In(1).array(sum_buses), i_acc : In(signed(acc_width)).array(sum_buses)
    o_soon : Out(1)                   A sum is on ``o_acc`` in the next cycle.
    o_acc : Out(signed(acc_width))
    """

    i_valid: list[Signal]
    i_acc: list[Signal]
    o_soon: Signal
    o_acc: Signal

    def __init__(self, config: CoreConfig, words: int) -> None:
        self._config = config
        self._words = as_power_of_two("words", words, 1, 1024)
        super().__init__({
            "i_valid": In(1).array(config.sum_buses),
            "i_acc": In(signed(config.acc_width)).array(config.sum_buses),
            "o_soon": Out(1),
            "o_acc": Out(signed(config.acc_width)),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        config = self._config
        buses = config.sum_buses
        if buses == 1:
            m.d.comb += self.o_soon.eq(self.i_valid[0])
            m.d.sync += self.o_acc.eq(self.i_acc[0])
            return m
        # All buses number their sums alike, and the reader goes through them in the same order: one
        # read address serves all memories, and beside it only who may be read must be known.
        group = config.lanes // buses
        bits = (self._words * group - 1).bit_length()
        bus_bits = (buses - 1).bit_length()
        group_bits = group.bit_length() - 1
        # The bus lies between place in the group and row, so that counting on visits all lanes.
        read_count = Signal(bits + 1 + bus_bits)
        bus_idx = read_count[group_bits:][:bus_bits]
        read_ptr = Cat(read_count[:group_bits], read_count[group_bits + bus_bits :])
        bus_read, bus_shown = (Signal(bus_bits, name=name, reset_less=True)
                               for name in ("bus_read", "bus_shown"))  # whose sum that is
        valid_read = Signal()
        write_ptrs, words = [], []
        for b in range(buses):
            m.submodules[f"bus_{b}"] = memory = BlockMemory(config.acc_width, self._words * group)
            write_ptr = Signal(bits + 1, name=f"write_ptr_{b}")
            word = Signal(signed(config.acc_width), name=f"word_{b}", reset_less=True)
            m.d.comb += [
                memory.w_addr.eq(write_ptr[:-1]),
                memory.w_data.eq(self.i_acc[b]),
                memory.w_en.eq(self.i_valid[b]),
                memory.r_addr.eq(read_ptr[:-1]),
            ]
            with m.If(self.i_valid[b]):
                m.d.sync += write_ptr.eq(write_ptr + 1)
            # Cleared where there is nothing, to be merged by OR.
            m.d.sync += word.eq(memory.r_data)
            with m.If(bus_shown != b):
                m.d.sync += word.eq(0)
            write_ptrs.append(write_ptr)
            words.append(word)
        available = Signal()
        m.d.comb += available.eq(Array(write_ptrs)[bus_idx] != read_ptr)
        with m.If(available):
            m.d.sync += read_count.eq(read_count + 1)
        m.d.sync += [
            bus_read.eq(bus_idx), valid_read.eq(available),
            bus_shown.eq(bus_read), self.o_soon.eq(valid_read),
        ]
        m.d.comb += self.o_acc.eq(reduce(or_, words))
        return m
