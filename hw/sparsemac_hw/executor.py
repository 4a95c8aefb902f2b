# SPDX-License-Identifier: Apache-2.0
"""Runs EXEC commands: prefetches their weights, starts the engines, tells when one is complete."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .layouts import SPARE_BITS, exec_layout, run_layout

__all__ = ["Executor", "waiting_exec_layout"]

#: An EXEC, and how many of the newest LOADs need not be complete before it starts.
waiting_exec_layout = data.StructLayout({"command": exec_layout, "spare": SPARE_BITS})


class Executor(wiring.Component):
    """Holds one EXEC at work and one behind it, whose weights are being fetched already.

    An EXEC starts when the one before it is complete, and so is the LOAD that was under way when it
    came, unless it can spare that. It is complete when every engine is done and the store has every
    word acknowledged.

    Members
    -------
    i : In(stream of waiting_exec_layout)
    run : Out(stream of run_layout)      The streams of the command taken, for the weight fetch.
    load_under_way : In(1)               A LOAD is under way behind this cycle.
    load_done : In(1)                    Strobe: it is complete.
    engines_done : In(engines)
    store_idle : In(1)                   Nothing stored is unacknowledged.
    start : Out(1)                       Strobe to the engines.
    command : Out(exec_layout)           The EXEC at work.
    running : Out(1)                     An EXEC is at work.
    waiting : Out(1)                     An EXEC waits for its activations.
    busy : Out(1)                        An EXEC is at work or waits.
    done : Out(1)                        Strobe: an EXEC is complete.
    under_way : Out(2)                   EXECs that are under way behind this cycle.
    """

    i: stream.Interface
    run: stream.Interface
    load_under_way: Signal
    load_done: Signal
    engines_done: Signal
    store_idle: Signal
    start: Signal
    command: Any
    running: Signal
    waiting: Signal
    busy: Signal
    done: Signal
    under_way: Signal

    def __init__(self, config: CoreConfig) -> None:
        super().__init__({
            "i": In(stream.Signature(waiting_exec_layout)),
            "run": Out(stream.Signature(run_layout)),
            "load_under_way": In(1),
            "load_done": In(1),
            "engines_done": In(config.engines),
            "store_idle": In(1),
            "start": Out(1),
            "command": Out(exec_layout),
            "running": Out(1),
            "waiting": Out(1),
            "busy": Out(1),
            "done": Out(1),
            "under_way": Out(SPARE_BITS),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pending = Signal(waiting_exec_layout, reset_less=True)
        pending_valid = Signal()
        met = Signal()  # the LOAD that it waits for is complete
        settled = Signal()  # the engines have seen the start
        quiet = Signal()  # so were the engines and the store in the last cycle
        complete = Signal()
        m.d.comb += [
            self.run.p.address.eq(self.i.p.command.weights),
            self.run.p.beats.eq(self.i.p.command.beats),
            self.run.valid.eq(self.i.valid & ~pending_valid),
            self.i.ready.eq(self.run.ready & ~pending_valid),
            self.waiting.eq(~self.running & pending_valid & ~met),
            self.busy.eq(self.running | pending_valid),
            complete.eq(self.running & settled & quiet),
            self.done.eq(complete),
            self.under_way.eq(pending_valid + (self.running & ~complete)),
        ]
        with m.If(self.i.ready & self.i.valid):
            m.d.sync += [
                pending.eq(self.i.p), pending_valid.eq(1),
                met.eq(~self.load_under_way | self.i.p.spare.any()),
            ]
        with m.Elif(self.load_done):
            m.d.sync += met.eq(1)
        m.d.sync += quiet.eq(self.engines_done.all() & self.store_idle)
        m.d.sync += [self.start.eq(0), settled.eq(self.running & ~self.start)]
        with m.If((~self.running | complete) & pending_valid & met):
            m.d.sync += [
                self.command.eq(pending.command),
                self.start.eq(1),
                self.running.eq(1),
                settled.eq(0),
                pending_valid.eq(0),
            ]
        with m.Elif(complete):
            m.d.sync += self.running.eq(0)
        return m
