# SPDX-License-Identifier: Apache-2.0
"""The core: one AXI4 master, one AXI4-Lite slave, one interrupt."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .bank import RegisterBank
from .bus import Axi4Signature, AxiLiteSignature
from .control import FaultOwner, JobControl
from .counters import CounterBank
from .dispatcher import Dispatcher
from .engine import Engine
from .executor import Executor
from .guard import Guard, WindowLookup
from .loader import Loader
from .reader import Reader
from .shared import instance_of
from .streams import connect_stream
from .weights import WeightFetch
from .writer import Writer

__all__ = ["Core"]


class Core(wiring.Component):
    """A sparse multiply-accumulate core.

    A doorbell starts a list of commands; LOADs and EXECs run side by side, every burst passes one
    of two guards, the interrupt tells the end. All parts but the bus side (guards, reader, writer,
    registers) return to their reset state before each job and on soft reset.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    s_axil : In(AxiLiteSignature)     Registers: `sparsemac.registers`.
    m_axi : Out(Axi4Signature)        Memory.
    irq : Out(1)                      High while STATUS.done and IRQ_ENABLE.done.
    """

    s_axil: Any
    m_axi: Any
    irq: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "s_axil": In(AxiLiteSignature(12)),
            "m_axi": Out(Axi4Signature(config.bus_width)),
            "irq": Out(1),
        })

    @property
    def config(self) -> CoreConfig:
        """The configuration."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.bank = self._bank = RegisterBank(config)
        m.submodules.control = self._control = control = JobControl(config)
        self._connect_registers(m)

        def part(kind: Callable[[CoreConfig], wiring.Component], name: str) -> Any:
            members, m.submodules[name] = instance_of(
                f"sparsemac_{kind.__name__.lower()}", lambda: kind(config), control.clear, platform)
            return members

        self._dispatcher = part(Dispatcher, "dispatcher")
        self._loader = part(Loader, "loader")
        self._executor = part(Executor, "executor")
        self._weights = part(WeightFetch, "weights")
        self._engines = [part(Engine, f"engine_{e}") for e in range(config.engines)]

        self._connect_read_side(m)
        self._connect_write_side(m)
        self._connect_lookup(m)
        self._connect_commands(m)
        self._connect_engines(m)
        self._connect_control(m)
        if config.counters:
            self._connect_counters(m)
        return m

    def _connect_registers(self, m: Module) -> None:
        port, bus = self.s_axil, self._bank.bus
        for name, member in self.s_axil.signature.members.items():
            if name in ("bvalid", "rvalid"):  # low in reset (A3.1.2), also before the first clock
                m.d.comb += getattr(port, name).eq(getattr(bus, name) & ~ResetSignal())
            elif member.flow is Out:
                m.d.comb += getattr(port, name).eq(getattr(bus, name))
            else:
                m.d.comb += getattr(bus, name).eq(getattr(port, name))
        m.d.comb += self.irq.eq(self._bank.irq)

    def _connect_read_side(self, m: Module) -> None:
        control, axi = self._control, self.m_axi
        m.submodules.reader = self._reader = reader = Reader(self._config)
        m.submodules.read_guard = self._read_guard = guard = Guard(self._config, "read")
        connect_stream(m, self._dispatcher.o_burst, reader.commands)
        connect_stream(m, self._loader.o_burst, reader.load)
        connect_stream(m, self._weights.o_burst, reader.weights)
        connect_stream(m, reader.o_burst, guard.i)
        connect_stream(m, reader.o_commands, self._dispatcher.i)
        connect_stream(m, reader.o_load, self._loader.i_beats)
        connect_stream(m, reader.o_weights, self._weights.i)
        m.d.comb += [
            axi.arid.eq(guard.id), axi.araddr.eq(guard.addr), axi.arlen.eq(guard.len),
            axi.arsize.eq(guard.size), axi.arburst.eq(guard.burst), axi.arprot.eq(guard.prot),
            # A VALID must be low in reset (A3.1.2), also before the first clock.
            axi.arvalid.eq(guard.valid & ~ResetSignal()),
            guard.ready.eq(axi.arready),
            guard.epoch.eq(control.epoch), guard.stop.eq(control.stop),
            guard.windows.eq(self._bank.windows),
            reader.rid.eq(axi.rid), reader.rdata.eq(axi.rdata), reader.rresp.eq(axi.rresp),
            reader.rlast.eq(axi.rlast), reader.rvalid.eq(axi.rvalid), axi.rready.eq(reader.rready),
            reader.epoch.eq(control.epoch), reader.clear.eq(control.clear),
            # A burst that waited on the pins through a soft reset belongs to its old epoch.
            reader.issued.eq(guard.issued & (guard.id == control.epoch)),
            reader.issued_beats.eq(guard.len + 1),
        ]

    def _connect_write_side(self, m: Module) -> None:
        control, axi = self._control, self.m_axi
        m.submodules.writer = self._writer = writer = Writer(self._config)
        m.submodules.write_guard = self._write_guard = guard = Guard(self._config, "write")
        connect_stream(m, writer.o_burst, guard.i)
        m.d.comb += [
            axi.awid.eq(guard.id), axi.awaddr.eq(guard.addr), axi.awlen.eq(guard.len),
            axi.awsize.eq(guard.size), axi.awburst.eq(guard.burst), axi.awprot.eq(guard.prot),
            axi.awvalid.eq(guard.valid & ~ResetSignal()),
            guard.ready.eq(axi.awready),
            guard.epoch.eq(control.epoch), guard.stop.eq(control.stop),
            guard.windows.eq(self._bank.windows),
            axi.wdata.eq(writer.wdata), axi.wstrb.eq(writer.wstrb), axi.wlast.eq(writer.wlast),
            axi.wvalid.eq(writer.wvalid & ~ResetSignal()), writer.wready.eq(axi.wready),
            writer.bvalid.eq(axi.bvalid), writer.bresp.eq(axi.bresp), writer.bid.eq(axi.bid),
            axi.bready.eq(writer.bready),
            writer.epoch.eq(control.epoch), writer.clear.eq(control.clear),
            writer.granted.eq(guard.granted), writer.denied.eq(guard.denied),
            writer.output.eq(self._executor.command.output),
        ]
        for e, engine in enumerate(self._engines):
            connect_stream(m, engine.o, writer.i[e])

    def _connect_lookup(self, m: Module) -> None:
        m.submodules.lookup = lookup = WindowLookup(self._config)
        m.d.comb += lookup.windows.eq(self._bank.windows)
        for k, guard in enumerate((self._read_guard, self._write_guard)):
            m.d.comb += [
                lookup.asks[k].eq(guard.i.valid),
                lookup.pages[k].eq(guard.page),
                guard.turn.eq(lookup.turns[k]),
                guard.covering.eq(lookup.covering),
            ]

    def _connect_commands(self, m: Module) -> None:
        dispatcher, loader, executor = self._dispatcher, self._loader, self._executor
        connect_stream(m, dispatcher.loads, loader.i)
        connect_stream(m, dispatcher.execs, executor.i)
        connect_stream(m, executor.run, self._weights.run)
        m.d.comb += [
            dispatcher.start.eq(self._control.start),
            dispatcher.command_address.eq(self._bank.command_address),
            dispatcher.command_count.eq(self._bank.command_count),
            loader.execs_under_way.eq(executor.under_way),
            loader.exec_done.eq(executor.done),
            executor.load_under_way.eq(loader.under_way),
            executor.load_done.eq(loader.done),
            executor.store_idle.eq(self._writer.idle),
        ]

    def _connect_engines(self, m: Module) -> None:
        loader, executor = self._loader, self._executor
        for e, engine in enumerate(self._engines):
            connect_stream(m, self._weights.o[e], engine.i)
            m.d.comb += [
                engine.start.eq(executor.start),
                engine.command.eq(executor.command),
                engine.clear.eq(self._control.clear),
                engine.w_en.eq(loader.w_en),
                engine.w_line.eq(loader.w_line),
                engine.w_sub.eq(loader.w_sub),
                engine.w_data.eq(loader.w_data),
                executor.engines_done[e].eq(engine.done),
            ]

    def _connect_control(self, m: Module) -> None:
        """Faults, progress and the end of the job."""
        bank, control, axi = self._bank, self._control, self.m_axi
        reader, writer = self._reader, self._writer
        m.d.comb += [
            control.watchdog.eq(bank.watchdog),
            control.reads_outstanding.eq(reader.outstanding.any()),
            control.stale_outstanding.eq(reader.owes_stale),
            control.writes_outstanding.eq(writer.outstanding.any()),
            control.held.eq(self._read_guard.pending | self._write_guard.pending | writer.owed),
            bank.status_busy.eq(control.busy),
            bank.status_fault.eq(control.fault.code.any()),
            bank.status_draining.eq(control.draining),
            bank.status_wedged.eq(control.wedged),
            bank.done_set.eq(control.done),
            bank.error_code.eq(control.fault.code),
            bank.fault_command.eq(control.fault.command),
            bank.fault_address.eq(control.fault.address),
            bank.fault_detail.eq(control.fault.detail),
            bank.fault_count.eq(control.fault_count),
        ]
        # What may come a cycle late does so, for it comes from all over the core. The guards let no
        # burst out for longer than that behind the start of a job.
        busy = control.busy | control.start_job
        m.d.sync += [
            control.start_job.eq(bank.ctrl_start),
            control.soft_reset.eq(bank.ctrl_soft_reset),
            control.abort.eq(bank.ctrl_abort),
            # A burst on the pins was checked against the windows: they stay until it is taken.
            bank.locked.eq(busy | self._read_guard.pending | self._write_guard.pending),
            bank.start_refused.eq(busy | control.draining),
            control.finished.eq(
                self._dispatcher.finished & ~self._loader.busy & ~self._executor.busy
            ),
            control.progress.eq(
                Cat(
                    axi.arvalid & axi.arready, axi.awvalid & axi.awready,
                    axi.wvalid & axi.wready, axi.rvalid & axi.rready, axi.bvalid & axi.bready,
                    *(engine.issued for engine in self._engines),
                ).any()
            ),
        ]
        stale, stale_now = Signal(16), Signal(2)
        m.d.sync += [stale_now.eq(reader.stale + writer.stale), stale.eq(stale + stale_now)]
        m.d.comb += bank.stale_count.eq(stale)
        self._connect_faults(m)

    def _connect_faults(self, m: Module) -> None:
        control, sources = self._control, self._control.sources
        read_guard, write_guard = self._read_guard, self._write_guard
        faults = {
            "dispatcher": (self._dispatcher.fault, FaultOwner.CHECKED),
            "loader": (self._loader.fault, FaultOwner.LOAD),
            # The newest read is one of these.
            "reader": (self._reader.fault, self._reader.culprit),
            "writer": (self._writer.fault, FaultOwner.EXEC),
        }
        for name, (fault, owner) in faults.items():
            source = sources[name]
            m.d.comb += [
                source.code.eq(fault.code), source.address.eq(fault.address),
                source.detail.eq(fault.detail), Value.cast(source.owner).eq(Value.cast(owner)),
            ]
        m.d.comb += [
            sources.write_guard.code.eq(write_guard.denied_code),
            sources.write_guard.address.eq(write_guard.denied_address),
            sources.write_guard.detail.eq(1),
            sources.write_guard.owner.eq(FaultOwner.EXEC),
            sources.read_guard.code.eq(read_guard.denied_code),
            sources.read_guard.address.eq(read_guard.denied_address),
            Value.cast(sources.read_guard.owner).eq(Value.cast(self._reader.culprit)),
            control.strobes.eq(Cat(
                self._dispatcher.fault_valid, self._loader.fault_valid, self._reader.fault_valid,
                self._writer.fault_valid, read_guard.denied, write_guard.denied,
            )),
        ]
        places = {
            FaultOwner.FETCHED: self._dispatcher.index,
            FaultOwner.LOAD: self._loader.index,
            FaultOwner.EXEC: self._executor.command.index,
            FaultOwner.CHECKED: self._dispatcher.fault.command,
        }
        for owner, place in places.items():
            m.d.comb += control.commands[owner.value].eq(place)
        for e, engine in enumerate(self._engines):
            m.d.comb += control.engine_faults[e].eq(engine.fault)

    def _connect_counters(self, m: Module) -> None:
        bank, control, executor = self._bank, self._control, self._executor
        m.submodules.counters = counters = CounterBank(self._config)
        m.d.comb += [
            counters.clear.eq(control.clear),
            counters.busy.eq(control.busy),
            counters.cycles_now.eq(1),
            counters.read_beats_now.eq(self._reader.beat),
            counters.write_beats_now.eq(self._writer.beat),
        ]
        with m.If(self._writer.beat):
            m.d.comb += counters.write_bytes_now.eq(self._writer.beat_bytes)
        for e, engine in enumerate(self._engines):
            running = executor.running
            stalls = engine.wait_weights | engine.wait_store | engine.wait_short
            m.d.comb += [
                counters.issued_now[e].eq(engine.issued),
                counters.fillers_now[e].eq(engine.filler),
                counters.stall_weights_now[e].eq(running & engine.wait_weights),
                counters.stall_store_now[e].eq(running & engine.wait_store),
                counters.stall_short_now[e].eq(running & engine.wait_short),
                counters.idle_now[e].eq(running & ~engine.issued & ~stalls),
                counters.stall_activations_now[e].eq(executor.waiting),
                counters.stall_command_now[e].eq(~running & ~executor.waiting),
            ]
        m.d.comb += [
            counters.r_stb.eq(bank.counter_stb),
            counters.r_idx.eq(bank.counter_idx),
            bank.counter.eq(counters.r_data),
        ]
