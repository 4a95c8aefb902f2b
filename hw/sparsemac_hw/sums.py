# SPDX-License-Identifier: Apache-2.0
"""From the sums of chunks to those of rows, in one sequence, lane 0 first."""

from amaranth.hdl import Array, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .layouts import index_shape, partial_width
from .streams import Queue

__all__ = ["RowSum", "SumQueue"]


class RowSum(wiring.Component):
    """Adds up the chunks of rows that come from a bus of `MacLanes`.

    The sums of a chunk come lane by lane, those of the row's chunks before it wait in a memory.

    Latency: `LATENCY_CYCLES` from a sum of a row's last chunk to the row's sum. Throughput: one sum
    per cycle; sums of one lane must be 4 cycles apart.
    Overflow: wraps modulo 2**acc_width.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_valid : In(1), i_last : In(1), i_acc : In(signed(partial_width))    As `MacLanes` has them.
    o_valid : Out(1), o_acc : Out(signed(acc_width))
    """

    LATENCY_CYCLES = 2

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
        m.submodules.kept = kept = Memory(shape=signed(width), depth=max(2, group), init=[])
        read, write = kept.read_port(domain="comb"), kept.write_port()
        lane = Signal(index_shape(group))
        is_first = Signal(init=1)  # the chunk is its row's first
        m.d.comb += read.addr.eq(lane)
        with m.If(self.i_valid):
            m.d.sync += lane.eq((lane + 1) & (group - 1))
            with m.If(lane == group - 1):
                m.d.sync += is_first.eq(self.i_last)

        valid_1, last_1, valid_2 = Signal(), Signal(), Signal()
        lane_1, lane_2 = Signal.like(lane), Signal.like(lane)
        before = Signal(signed(width), reset_less=True)
        partial = Signal(signed(partial_width(self._config)), reset_less=True)
        total = Signal(signed(width), reset_less=True)
        m.d.sync += [
            valid_1.eq(self.i_valid), last_1.eq(self.i_last), lane_1.eq(lane),
            partial.eq(self.i_acc), before.eq(read.data),
            valid_2.eq(valid_1), self.o_valid.eq(valid_1 & last_1), lane_2.eq(lane_1),
            total.eq(before + partial),
        ]
        with m.If(is_first):  # a synchronous clear, without a LUT
            m.d.sync += before.eq(0)
        m.d.comb += [
            write.addr.eq(lane_2), write.data.eq(total), write.en.eq(valid_2),
            self.o_acc.eq(total),
        ]
        return m


class SumQueue(wiring.Component):
    """Merges the sum buses of `MacLanes`; what comes too fast waits here.

    Each bus brings the sums of its group of lanes, row by row. A row shorter than there are lanes
    thus costs no more than a group's worth of cycles, as long as longer rows give the one result
    per cycle behind this queue time to catch up.

    Latency: that of its queues, none with a single bus. Throughput: one sum per cycle.

    Parameters
    ----------
    config : CoreConfig
    words : int      Rows of sums that may be under way; room for all of them is here.

    Members
    -------
    i_valid : In(1).array(sum_buses), i_acc : In(signed(acc_width)).array(sum_buses)
    o_valid : Out(1), o_acc : Out(signed(acc_width))
    """

    i_valid: list[Signal]
    i_acc: list[Signal]
    o_valid: Signal
    o_acc: Signal

    def __init__(self, config: CoreConfig, words: int) -> None:
        self._config = config
        self._words = words
        super().__init__({
            "i_valid": In(1).array(config.sum_buses),
            "i_acc": In(signed(config.acc_width)).array(config.sum_buses),
            "o_valid": Out(1),
            "o_acc": Out(signed(config.acc_width)),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        config = self._config
        buses = config.sum_buses
        if buses == 1:
            m.d.comb += [self.o_valid.eq(self.i_valid[0]), self.o_acc.eq(self.i_acc[0])]
            return m
        group = config.lanes // buses
        lane = Signal(range(config.lanes))
        valids, sums = [], []
        bus_bits = (buses - 1).bit_length()
        bus_idx = lane[len(lane) - bus_bits:]
        for b in range(buses):
            queue = Queue(signed(config.acc_width), self._words * group)
            m.submodules[f"bus_{b}"] = queue
            m.d.comb += [
                queue.i.valid.eq(self.i_valid[b]),
                queue.i.payload.eq(self.i_acc[b]),
                queue.o.ready.eq(bus_idx == b),
            ]
            valids.append(queue.o.valid)
            sums.append(queue.o.payload)
        m.d.comb += [self.o_valid.eq(Array(valids)[bus_idx]), self.o_acc.eq(Array(sums)[bus_idx])]
        with m.If(self.o_valid):
            m.d.sync += lane.eq(lane + 1)
        return m
