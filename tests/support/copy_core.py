# SPDX-License-Identifier: Apache-2.0
"""A small component with the ports of a core, so that the harness is tested apart from the core.

It copies COMMAND_COUNT bursts from COMMAND_ADDRESS to COMMAND_ADDRESS + `COPY_DISTANCE_BYTES`, one
after the other, and ends with what it saw: ERROR 7 for a response that is not OKAY, 8 for a wrong
RLAST or ID. A register that it does not have answers SLVERR.
"""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import register_map
from sparsemac_hw.bus import Axi4Signature, AxiLiteSignature

COPY_DISTANCE_BYTES = 1 << 16


class CopyCore(wiring.Component):
    def __init__(self, config: CoreConfig, *, bad_address: bool = False) -> None:
        self.config = config
        self.bad_address = bad_address  # starts bursts 24 bytes before the end of a page
        super().__init__({
            "s_axil": In(AxiLiteSignature(12)),
            "m_axi": Out(Axi4Signature(config.bus_width)),
            "irq": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        self._registers(m)
        self._copy(m)
        return m

    def _registers(self, m):
        bus, registers = self.s_axil, register_map(self.config)
        self.start, self.done, self.clear = Signal(), Signal(), Signal()
        self.source, self.count, self.enable = Signal(32), Signal(16), Signal()
        self.error, self.seen_error = Signal(8), Signal(8)
        write = Signal()
        m.d.comb += [
            write.eq(bus.awvalid & bus.wvalid & (~bus.bvalid | bus.bready)),
            bus.awready.eq(write),
            bus.wready.eq(write),
            bus.arready.eq(bus.arvalid & (~bus.rvalid | bus.rready)),
            self.irq.eq(self.done & self.enable),
        ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(write):
            m.d.sync += [bus.bvalid.eq(1), bus.bresp.eq(0)]
            with m.Switch(bus.awaddr):
                with m.Case(registers["CTRL"].byte_offset):
                    m.d.comb += self.start.eq(bus.wdata[0])
                with m.Case(registers["STATUS"].byte_offset):
                    m.d.comb += self.clear.eq(bus.wdata[1])
                with m.Case(registers["COMMAND_ADDRESS"].byte_offset):
                    for i in range(4):
                        with m.If(bus.wstrb[i]):
                            m.d.sync += self.source.word_select(i, 8).eq(
                                bus.wdata.word_select(i, 8)
                            )
                with m.Case(registers["COMMAND_COUNT"].byte_offset):
                    m.d.sync += self.count.eq(bus.wdata)
                with m.Case(registers["IRQ_ENABLE"].byte_offset):
                    m.d.sync += self.enable.eq(bus.wdata)
                with m.Default():
                    m.d.sync += bus.bresp.eq(2)
        with m.If(bus.arready):
            m.d.sync += [bus.rvalid.eq(1), bus.rresp.eq(0)]
            with m.Switch(bus.araddr):
                for name in ("MAGIC", "VERSION", "CONFIG_HASH"):
                    with m.Case(registers[name].byte_offset):
                        m.d.sync += bus.rdata.eq(registers[name]["value"].reset)
                with m.Case(registers["STATUS"].byte_offset):
                    m.d.sync += bus.rdata.eq(Cat(self.busy_flag(), self.done))
                with m.Case(registers["ERROR"].byte_offset):
                    m.d.sync += bus.rdata.eq(self.error)
                with m.Case(registers["COMMAND_ADDRESS"].byte_offset):
                    m.d.sync += bus.rdata.eq(self.source)
                with m.Default():
                    m.d.sync += [bus.rresp.eq(2), bus.rdata.eq(0)]

    def busy_flag(self):
        if not hasattr(self, "_busy"):
            self._busy = Signal()
        return self._busy

    def _copy(self, m):
        bus, config = self.m_axi, self.config
        beats = config.burst_beats
        m.submodules.buffer = buffer = Memory(shape=config.bus_width, depth=beats, init=[])
        w, r = buffer.write_port(), buffer.read_port(domain="comb")
        busy, left = self.busy_flag(), Signal(16)
        beat, address = Signal(range(beats + 1)), Signal(32)
        log2 = (config.bus_bytes - 1).bit_length()
        for channel in "ar", "aw":
            m.d.comb += [
                getattr(bus, channel + "len").eq(beats - 1),
                getattr(bus, channel + "size").eq(log2),
                getattr(bus, channel + "burst").eq(1),
                getattr(bus, channel + "id").eq(5),
            ]
        m.d.comb += [
            bus.araddr.eq(address + (4096 - 24 if self.bad_address else 0)),
            bus.awaddr.eq(address + COPY_DISTANCE_BYTES),
            w.addr.eq(beat), w.data.eq(bus.rdata), w.en.eq(bus.rvalid & bus.rready),
            r.addr.eq(beat),
            bus.wdata.eq(r.data), bus.wstrb.eq(-1), bus.wlast.eq(beat == beats - 1),
        ]
        with m.If(self.clear):
            m.d.sync += self.done.eq(0)
        with m.FSM(name="copy"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        address.eq(self.source), left.eq(self.count), busy.eq(1), self.error.eq(0),
                    ]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += bus.arvalid.eq(1)
                m.d.sync += beat.eq(0)
                with m.If(bus.arready):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += bus.rready.eq(1)
                with m.If(bus.rvalid):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If((bus.rlast != (beat == beats - 1)) | (bus.rid != 5)):
                        m.d.sync += self.error.eq(8)
                    with m.Elif(bus.rresp != 0):
                        m.d.sync += self.error.eq(7)
                    with m.If(beat == beats - 1):
                        m.d.sync += beat.eq(0)
                        m.next = "WRITE_ADDRESS"
            with m.State("WRITE_ADDRESS"):
                m.d.comb += bus.awvalid.eq(1)
                with m.If(bus.awready):
                    m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += bus.wvalid.eq(1)
                with m.If(bus.bvalid):
                    m.d.sync += self.error.eq(8)
                with m.If(bus.wready):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(bus.wlast):
                        m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += bus.bready.eq(1)
                with m.If(bus.bvalid):
                    with m.If(bus.bresp != 0):
                        m.d.sync += self.error.eq(7)
                    m.d.sync += [
                        address.eq(address + beats * config.bus_bytes), left.eq(left - 1),
                    ]
                    m.next = "ADDRESS"
                    with m.If(left == 1):
                        m.d.sync += [self.done.eq(1), busy.eq(0)]
                        m.next = "IDLE"
