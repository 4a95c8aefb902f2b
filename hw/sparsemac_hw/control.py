# SPDX-License-Identifier: Apache-2.0
"""The life of a job: start, run, stop on a fault, drain, tell the end."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .bus import ID_BITS
from .layouts import fault_layout
from .reader import ReadClient

__all__ = ["FAULT_SOURCES", "FaultOwner", "JobControl"]

#: Where faults come from, by priority: what comes first is the cause of what comes later.
FAULT_SOURCES = ("dispatcher", "loader", "reader", "writer", "read_guard", "write_guard")


class FaultOwner(enum.Enum, shape=2):
    """Which command a fault is of; for reads the same numbers as in `ReadClient`."""

    FETCHED = ReadClient.COMMANDS.value
    LOAD = ReadClient.LOAD.value
    EXEC = ReadClient.WEIGHTS.value
    CHECKED = 3


#: What a source says of its fault: like `fault_layout`, but for whose command it is.
recorded_layout = data.StructLayout({"code": 8, "address": 32, "detail": 8})
source_layout = data.StructLayout({
    **{name: field.shape for name, field in recorded_layout}, "owner": FaultOwner})
sources_layout = data.StructLayout(dict.fromkeys(FAULT_SOURCES, source_layout))


class JobControl(wiring.Component):
    """Starts jobs, records the first fault, and ends each job exactly once.

    A fault stops the guards at once; bursts on the bus are waited for; then the job is done, with
    the fault. If the bus makes no progress for ``watchdog`` cycles the job ends all the same, with
    TIMEOUT (or the fault it had); what the bus still owes is *draining*, and a VALID or write data
    that AXI does not allow to be withdrawn is *wedged*. A new job must wait until both are over.

    Beats are told apart by the epoch in their ID: it advances when the core is cleared with bursts
    outstanding, and on a hard reset, so that late beats of a dropped burst are recognized.

    Members
    -------
    start_job, soft_reset, abort : In(1)     Strobes from the registers.
    watchdog : In(32)                        Cycles without progress; 0: never.
    finished : In(1)                         All commands are complete.
    progress : In(1)                         Something moved: a handshake, or an entry issued.
    reads_outstanding, writes_outstanding, stale_outstanding, held : In(1)   What the bus owes.
    sources, strobes : In                    Faults, and a strobe for each source.
    engine_faults : In(8).array(engines)     FaultCode of each engine, a strobe.
    commands : In(16).array(4)               Places in the list of the commands of each owner.
    start : Out(1)                           Strobe to the dispatcher.
    clear : Out(1, init=1)                   Strobe: all parts return to reset; in reset, too.
    stop : Out(1)                            The guards let nothing pass.
    busy, done, draining, wedged : Out(1)
    fault : Out(fault_layout)                First fault of the job.
    fault_count : Out(32)                    Faults since reset.
    epoch : Out(4)
    """

    start_job: Signal
    soft_reset: Signal
    abort: Signal
    watchdog: Signal
    finished: Signal
    progress: Signal
    reads_outstanding: Signal
    writes_outstanding: Signal
    stale_outstanding: Signal
    held: Signal
    sources: Any
    strobes: Signal
    engine_faults: Any
    commands: Any
    start: Signal
    clear: Signal
    stop: Signal
    busy: Signal
    done: Signal
    draining: Signal
    wedged: Signal
    fault: Any
    fault_count: Signal
    epoch: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._engines = config.engines
        super().__init__({
            "start_job": In(1),
            "soft_reset": In(1),
            "abort": In(1),
            "watchdog": In(32),
            "finished": In(1),
            "progress": In(1),
            "reads_outstanding": In(1),
            "writes_outstanding": In(1),
            "stale_outstanding": In(1),
            "held": In(1),
            "sources": In(sources_layout),
            "strobes": In(len(FAULT_SOURCES)),
            "engine_faults": In(8).array(config.engines),
            "commands": In(16).array(len(FaultOwner)),
            "start": Out(1),
            "clear": Out(1, init=1),  # pyright: ignore[reportCallIssue]
            "stop": Out(1),
            "busy": Out(1),
            "done": Out(1),
            "draining": Out(1),
            "wedged": Out(1),
            "fault": Out(fault_layout),
            "fault_count": Out(32),
            "epoch": Out(ID_BITS),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        outstanding = Signal()
        failing = Signal()
        failed = Signal()  # a job has, a cycle ago
        stop = Signal(init=1)
        quiet = Signal()  # the bus owes nothing
        timed_out = Signal()  # the job ends with TIMEOUT
        expired = Signal()
        m.d.comb += outstanding.eq(self.reads_outstanding | self.writes_outstanding)
        self._watch(m, expired)
        m.d.comb += failing.eq(self.strobes.any() | Cat(f.any() for f in self.engine_faults).any())

        # From a flip-flop: it goes to every part of the core.
        m.d.sync += [self.clear.eq(0), failed.eq(0)]
        with m.If(failed):
            m.d.sync += self.fault_count.eq(self.fault_count + 1)
        with m.FSM(name="job") as fsm:
            with m.State("IDLE"):  # no job
                with m.If(self.start_job & ~self.soft_reset):
                    m.d.sync += self.clear.eq(1)
                    m.next = "START"
            with m.State("START"):  # all parts are being cleared, and are clear in the next cycle
                with m.If(~self.clear):
                    m.d.comb += self.start.eq(~self.soft_reset)
                    m.d.sync += stop.eq(self.soft_reset)
                    m.next = "RUN"
                with m.If(self.soft_reset):
                    m.next = "IDLE"
            with m.State("RUN"):  # commands are at work
                m.d.sync += stop.eq(
                    self.abort | failing | expired | self.finished | self.soft_reset)
                with m.If(self.abort | failing | expired):
                    m.d.sync += failed.eq(1)
                    m.d.sync += timed_out.eq(~self.abort & ~failing)
                    m.next = "STOP"
                with m.Elif(self.finished):
                    m.d.comb += self.done.eq(~self.soft_reset)
                    m.next = "IDLE"
                with m.If(self.soft_reset):
                    m.next = "IDLE"
            with m.State("STOP"):  # a fault: no more bursts, wait for those under way
                # Not before the guards have seen ``stop``.
                m.d.sync += quiet.eq(~outstanding & ~self.held)
                with m.If(quiet | expired | timed_out):
                    m.d.comb += self.done.eq(~self.soft_reset)
                    m.next = "IDLE"
                with m.If(self.soft_reset):
                    m.next = "IDLE"

        with m.If(self.soft_reset):
            m.d.sync += self.clear.eq(1)
        with m.If(self.clear):
            m.d.sync += timed_out.eq(0)
        self._record(m, fsm.ongoing("RUN"), timed_out)
        with m.If(~fsm.ongoing("STOP")):
            m.d.sync += quiet.eq(0)
        m.d.comb += [self.busy.eq(~fsm.ongoing("IDLE")), self.stop.eq(stop)]
        self._drain(m, outstanding, expired)
        self._count_epochs(m, outstanding)
        return m

    def _watch(self, m: Module, expired: Signal) -> None:
        """Counts cycles without progress while something is expected."""
        idle_cycles = Signal(32, init=1)
        expecting = Signal()
        restarts = Signal()  # known a cycle late, hence counted from 1
        m.d.sync += [
            expecting.eq(self.busy | self.draining),
            restarts.eq(~expecting | self.progress | self.start | expired | self.clear),
            expired.eq(self.watchdog.any() & (idle_cycles >= self.watchdog)
                       & ~expired & ~restarts & ~self.clear),
        ]
        with m.If(restarts):
            m.d.sync += idle_cycles.eq(1)
        with m.Else():
            m.d.sync += idle_cycles.eq(idle_cycles + 1)

    def _record(self, m: Module, running: Value, timed_out: Signal) -> None:
        """Keeps the fault of highest priority; engines come last, the first of them first.

        All of it happens two cycles late, for what the sources say comes from all over the core.

        Each source has a register of its own, that the flip-flops' reset keeps at 0 unless the
        fault is this one's: so strobes, which come late, pass no multiplexer, and what is kept is
        the OR of all.
        """
        engines = Signal(source_layout)
        for e in reversed(range(self._engines)):
            with m.If(self.engine_faults[e].any()):
                m.d.comb += [engines.code.eq(self.engine_faults[e]), engines.detail.eq(e)]
        m.d.comb += engines.owner.eq(FaultOwner.EXEC)

        # What was said in the last cycle of the job stays: it is this that a fault ends.
        strobes = Signal(len(FAULT_SOURCES) + 1)
        aborting, aborted = Signal(), Signal()
        with m.If(running):
            m.d.sync += [
                strobes.eq(Cat(self.strobes, engines.code.any())), aborting.eq(self.abort)]
        with m.If(self.clear):
            m.d.sync += [strobes.eq(0), aborting.eq(0)]
        m.d.sync += aborted.eq(aborting)
        own_code = Mux(aborted, FaultCode.ABORTED, Mux(timed_out, FaultCode.TIMEOUT, 0))

        record: Value = own_code  # the code lies lowest
        none_before: Value = Const(1)
        all_said, all_first = [], []
        sources = {name: getattr(self.sources, name) for name in FAULT_SOURCES}
        for strobe, (name, source) in zip(
                strobes, {**sources, "engines": engines}.items(), strict=True):
            said = Signal(source_layout, name=f"said_{name}", reset_less=True)
            kept = Signal(recorded_layout, name=f"kept_{name}")
            chosen = Signal(name=f"chosen_{name}")
            first = strobe & none_before
            none_before = none_before & ~strobe
            with m.If(running):
                m.d.sync += said.eq(source)
            m.d.sync += [
                chosen.eq(first), kept.eq(Value.cast(said)[: recorded_layout.size])]
            with m.If(~chosen):
                m.d.sync += kept.eq(0)
            with m.If(aborting):
                m.d.sync += kept.code.eq(0)
            record = record | Value.cast(kept)
            all_said.append(said)
            all_first.append(first)

        command: Value = Const(0, 16)
        for owner, place in zip(FaultOwner, self.commands, strict=True):
            name = owner.name.lower()
            said = Signal(16, name=f"said_command_{name}", reset_less=True)
            kept = Signal(16, name=f"kept_command_{name}")
            chosen = Signal(name=f"chosen_command_{name}")
            with m.If(running):
                m.d.sync += said.eq(place)
            m.d.sync += [
                chosen.eq(Cat(first & (source.owner == owner) for first, source
                              in zip(all_first, all_said, strict=True)).any()),
                kept.eq(said),
            ]
            with m.If(~chosen):
                m.d.sync += kept.eq(0)
            command = command | kept
        m.d.comb += Value.cast(self.fault).eq(Cat(record, command))

    def _drain(self, m: Module, outstanding: Signal, expired: Signal) -> None:
        """What is still owed between jobs; reads that never come are given up by the watchdog."""
        given_up = Signal()
        m.d.comb += self.draining.eq(
            ~self.busy & (self.held | ((outstanding | self.stale_outstanding) & ~given_up))
        )
        with m.If(self.clear):
            m.d.sync += given_up.eq(0)
        with m.Elif(self.draining & expired):
            m.d.sync += given_up.eq(1)
        with m.If(expired & self.held):
            m.d.sync += self.wedged.eq(1)
        with m.Elif(~self.held):
            m.d.sync += self.wedged.eq(0)

    def _count_epochs(self, m: Module, outstanding: Signal) -> None:
        # Without reset: a beat that was on its way through a hard reset must not look current.
        epoch = Signal(ID_BITS, reset_less=True)
        in_reset = Signal(reset_less=True)
        m.d.sync += in_reset.eq(ResetSignal())
        with m.If((self.clear & (outstanding | self.held)) | (ResetSignal() & ~in_reset)):
            m.d.sync += epoch.eq(epoch + 1)
        m.d.comb += self.epoch.eq(epoch)
