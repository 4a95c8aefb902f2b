# SPDX-License-Identifier: Apache-2.0
"""One engine: a weight stream in, output words out."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .issuer import RowIssuer
from .lanes import MacLanes
from .layouts import exec_layout, index_shape, out_beat_layout, partial_width, row_layout
from .results import ResultPath
from .streams import Queue, connect_stream
from .sums import RowSum, SumQueue
from .unpacker import Unpacker
from .window import weight_beat_layout

__all__ = ["Engine"]


class Engine(wiring.Component):
    """Runs the rows of its own stream at its own pace: unpack, issue, multiply, requantize.

    Rows under way between unpacker and results wait in two small queues: their lengths for the
    issuer, the rest for the result path.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i : In(stream of weight_beat_layout)   Beats of the engine's stream.
    start : In(1)                          Strobe: an EXEC begins.
    command : In(exec_layout)              Valid from ``start`` to ``done``.
    o : Out(stream of out_beat_layout)     Output words for the store.
    clear : In(1)                          Strobe: all parts are being reset; so are the sums.
    w_en, w_line, w_sub, w_data : In       Activations from the loader.
    done : Out(1)                          All words of the EXEC have been taken by the store.
    issued, filler : Out(1)                For the counters.
    wait_short, wait_store, wait_weights : Out(1)   Why nothing is issued.
    fault : Out(8)                         Strobe: a FaultCode, 0 if there is none.
    """

    i: stream.Interface
    start: Signal
    command: Any
    clear: Signal
    o: stream.Interface
    w_en: Signal
    w_line: Signal
    w_sub: Signal
    w_data: Signal
    done: Signal
    issued: Signal
    filler: Signal
    wait_short: Signal
    wait_store: Signal
    wait_weights: Signal
    fault: Signal

    ROWS_UNDER_WAY = 8

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        lines = config.act_depth // config.line_words
        super().__init__({
            "i": In(stream.Signature(weight_beat_layout(config.bus_width))),
            "start": In(1),
            "command": In(exec_layout),
            "o": Out(stream.Signature(out_beat_layout(config))),
            "clear": In(1),
            "w_en": In(1),
            "w_line": In(range(lines)),
            "w_sub": In(index_shape(config.word_beats)),
            "w_data": In(config.bus_width),
            "done": Out(1),
            "issued": Out(1),
            "filler": Out(1),
            "wait_short": Out(1),
            "wait_store": Out(1),
            "wait_weights": Out(1),
            "fault": Out(8),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.unpacker = unpacker = Unpacker(config)
        m.submodules.counts = counts = Queue(15, self.ROWS_UNDER_WAY, block=True)
        m.submodules.rows = rows = Queue(row_layout, self.ROWS_UNDER_WAY, block=True)
        m.submodules.issuer = issuer = RowIssuer(config, config.out_words)
        m.submodules.lanes = lanes = MacLanes(config)
        m.submodules.sums = sums = SumQueue(config, config.out_words)
        m.submodules.results = results = ResultPath(config)
        connect_stream(m, wiring.flipped(self.i), unpacker.i)
        connect_stream(m, unpacker.o_count, counts.i)
        connect_stream(m, counts.o, issuer.i_count)
        connect_stream(m, unpacker.o_row, rows.i)
        connect_stream(m, rows.o, results.i_row)
        connect_stream(m, results.o, wiring.flipped(self.o))
        self._connect_sums(m, lanes, sums)
        for part in (unpacker, issuer, results):
            m.d.comb += [part.start.eq(self.start), part.command.eq(self.command)]
        m.d.comb += [
            issuer.i_valid.eq(unpacker.o_valid),
            issuer.i.eq(unpacker.o),
            unpacker.freed.eq(issuer.freed),
            issuer.returned.eq(results.returned),
            lanes.i_valid.eq(issuer.o_valid),
            lanes.i_addr.eq(issuer.o_addr),
            lanes.i_weight.eq(issuer.o_weight),
            lanes.i_end.eq(issuer.o_end),
            lanes.i_last.eq(issuer.o_last),
            lanes.i_flush.eq(self.clear),
            results.i_pass_valid.eq(issuer.o_pass_valid),
            results.i_pass.eq(issuer.o_pass),
            results.i_soon.eq(sums.o_soon),
            results.i_acc.eq(sums.o_acc),
            lanes.w_en.eq(self.w_en),
            lanes.w_line.eq(self.w_line),
            lanes.w_sub.eq(self.w_sub),
            lanes.w_data.eq(self.w_data),
        ]
        all_issued = Signal()
        m.d.comb += [
            all_issued.eq(unpacker.done & issuer.quiet),
            self.done.eq(unpacker.done & issuer.empty & ~self.start),
            self.issued.eq(issuer.issued),
            self.filler.eq(unpacker.filler),
            self.wait_short.eq(issuer.wait_short),
            self.wait_store.eq(issuer.wait_store),
            self.wait_weights.eq(~issuer.issued & ~issuer.wait_short & ~issuer.wait_store
                                 & ~all_issued),
        ]
        m.d.sync += self.fault.eq(Mux(unpacker.fault != 0, unpacker.fault, Mux(
            issuer.overrun, FaultCode.COLUMN, Mux(
                results.overrun, FaultCode.PSUM, FaultCode.NONE))))
        return m

    def _connect_sums(self, m: Module, lanes: MacLanes, sums: SumQueue) -> None:
        """Adds up chunks between the lanes and the queue, if rows are cut at all."""
        config = self._config
        for b in range(config.sum_buses):
            source = {"valid": lanes.o_valid[b], "acc": lanes.o_acc[b]}
            if partial_width(config) != config.acc_width:
                m.submodules[f"row_sum_{b}"] = row_sum = RowSum(config)
                m.d.comb += [
                    row_sum.i_valid.eq(lanes.o_valid[b]),
                    row_sum.i_last.eq(lanes.o_last[b]),
                    row_sum.i_acc.eq(lanes.o_acc[b]),
                ]
                source = {"valid": row_sum.o_valid, "acc": row_sum.o_acc}
            m.d.comb += [sums.i_valid[b].eq(source["valid"]), sums.i_acc[b].eq(source["acc"])]
