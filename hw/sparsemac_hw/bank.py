# SPDX-License-Identifier: Apache-2.0
"""The registers of a core behind AXI4-Lite, derived from `sparsemac.registers`."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS, Field, Register, register_map

from .bus import AxiLiteSignature
from .layouts import window_layout

__all__ = ["RegisterBank"]

OKAY, SLVERR = 0, 2


def _port(register: Register, field: Field) -> str:
    name = register.name.lower()
    return name if field.name == "value" else f"{name}_{field.name}"


class RegisterBank(wiring.Component):
    """AXI4-Lite slave: one write and one read at a time, each answered after a fixed latency."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._map = register_map(config)
        members: dict[str, wiring.Member] = {
            "bus": In(AxiLiteSignature(12)),
            "locked": In(1),
            "start_refused": In(1),
            "done_set": In(1),
            "irq": Out(1),
            "windows": Out(data.ArrayLayout(window_layout, config.windows)),
        }
        self._constant = {"MAGIC", "VERSION", "CONFIG_HASH", "GEOMETRY0", "GEOMETRY1", "GEOMETRY2",
                          "REJECTED"}
        self._counters = {f"{name}_{half}" for name, _ in COUNTERS for half in ("LO", "HI")}
        for register in self._map:
            if register.name in self._constant | self._counters or "WINDOW" in register.name:
                continue
            for field in register.fields:
                if field.access == "RW1C":
                    continue
                direction = In if field.access == "R" else Out
                members[_port(register, field)] = direction(field.width)
        if config.counters:
            for name, _ in COUNTERS:
                members[name.lower()] = In(64)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus = self.bus
        self._rejected = Signal(16)
        write_fail, read_fail = Signal(), Signal()
        m.d.sync += self._rejected.eq(self._rejected + write_fail + read_fail)

        # Write: address and data are kept until both are there.
        address, word, strobe = Signal(12), Signal(32), Signal(4)
        have_address, have_word = Signal(), Signal()
        m.d.comb += [bus.awready.eq(~have_address), bus.wready.eq(~have_word)]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr), have_address.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [word.eq(bus.wdata), strobe.eq(bus.wstrb), have_word.eq(1)]
        do_write = Signal()
        m.d.comb += do_write.eq(have_address & have_word & (~bus.bvalid | bus.bready))
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        accepted = Signal()
        with m.If(do_write):
            m.d.sync += [have_address.eq(0), have_word.eq(0), bus.bvalid.eq(1),
                         bus.bresp.eq(Mux(accepted, OKAY, SLVERR))]
            m.d.comb += write_fail.eq(~accepted)
        self._write(m, do_write, address, word, strobe, accepted)

        # Read.
        read_address, reading = Signal(12), Signal()
        m.d.comb += bus.arready.eq(~reading & ~bus.rvalid)
        m.d.sync += reading.eq(bus.arvalid & bus.arready)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += read_address.eq(bus.araddr)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        known, value = Signal(), Signal(32)
        with m.If(reading):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(value),
                         bus.rresp.eq(Mux(known, OKAY, SLVERR))]
            m.d.comb += read_fail.eq(~known)
        self._read(m, reading, read_address, known, value)
        return m

    def _write(self, m, do_write, address, word, strobe, accepted):
        mask = Cat(bit.replicate(8) for bit in strobe)
        for register in self._map:
            if not register.writable:
                continue
            allowed = ~self.locked if register.locked else 1
            with m.If(address == register.byte_offset):
                if register.name == "CTRL":
                    hit = [word[f.lsb] & strobe[0] for f in register.fields]
                    override = hit[1] | hit[2]
                    m.d.comb += accepted.eq(~(hit[0] & ~override & self.start_refused))
                    with m.If(do_write & accepted):
                        m.d.comb += [self.ctrl_start.eq(hit[0] & ~override),
                                     self.ctrl_soft_reset.eq(hit[1]), self.ctrl_abort.eq(hit[2])]
                    continue
                m.d.comb += accepted.eq(allowed)
                for field in register.fields:
                    if field.access != "RW":
                        continue
                    part = slice(field.lsb, field.lsb + field.width)
                    target = self._target(register, field)
                    with m.If(do_write & accepted):
                        m.d.sync += target.eq((target & ~mask[part]) | (word[part] & mask[part]))
        done = self._done = Signal()
        clear = (address == self._map["STATUS"].byte_offset) & word[1] & strobe[0]
        with m.If(do_write & clear):
            m.d.sync += done.eq(0)
        with m.If(self.done_set):
            m.d.sync += done.eq(1)
        m.d.comb += self.irq.eq(done & self.irq_enable_done)

    def _target(self, register, field):
        if register.name.startswith("WINDOW"):
            index, _, kind = register.name[6:].partition("_")
            window = self.windows[int(index)]
            return {"FIRST": window.first, "LAST": window.last}.get(kind) if kind != "PERM" \
                else getattr(window, field.name)
        return getattr(self, _port(register, field))

    def _read(self, m, reading, address, known, value):
        high = Signal(32)
        for register in self._map:
            with m.If(address == register.byte_offset):
                m.d.comb += known.eq(1)
                if register.name in self._counters:
                    name, _, half = register.name.rpartition("_")
                    source = getattr(self, name.lower())
                    m.d.comb += value.eq(source[:32] if half == "LO" else high)
                    if half == "LO":
                        with m.If(reading):
                            m.d.sync += high.eq(source[32:])
                    continue
                for field in register.fields:
                    part = value[field.lsb : field.lsb + field.width]
                    if register.name == "REJECTED":
                        m.d.comb += part.eq(self._rejected)
                    elif register.name in self._constant:
                        m.d.comb += part.eq(field.reset)
                    elif field.access == "RW1C":
                        m.d.comb += part.eq(self._done)
                    elif field.access != "W1S":
                        m.d.comb += part.eq(self._target(register, field))
