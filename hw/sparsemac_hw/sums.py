# SPDX-License-Identifier: Apache-2.0
"""Puts the sums of an engine's lanes into one sequence, lane 0 first."""

from amaranth.hdl import Array, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .streams import Queue

__all__ = ["SumQueue"]


class SumQueue(wiring.Component):
    """Merges the sum buses of `MacLanes`; what comes too fast waits here.

    Each bus brings the sums of its group of lanes, row by row. A row shorter than there are lanes
    thus costs no more than a group's worth of cycles, as long as longer rows give the one result
    per cycle behind this queue time to catch up.

    Latency: 1 cycle, none with a single bus. Throughput: one sum per cycle.

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
