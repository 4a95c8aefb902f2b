# SPDX-License-Identifier: Apache-2.0
"""The registers of a core behind AXI4-Lite, derived from `sparsemac.registers`."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS, Field, Register, register_map

from .bus import AxiLiteSignature
from .counters import CounterBank
from .layouts import fault_layout, window_layout

__all__ = ["RegisterBank"]

#: Responses of AXI4-Lite (IHI 0022, A3.4.4).
OKAY, SLVERR = 0b00, 0b10

ADDRESS_BITS = 12

#: First byte offsets of the counters and of the windows. Words of these three parts are told apart
#: by fewer address bits than the whole map has.
COUNTERS_BIT, WINDOWS_BIT = 7, 8
COUNTER_NAMES = {f"{name}_{half}" for name, _ in COUNTERS for half in ("LO", "HI")}

#: Fields of a word whose upper bits are always 0.
NARROW_FIELDS = {
    "FAULT_COMMAND": fault_layout["command"].width,
    "FAULT_DETAIL": fault_layout["detail"].width,
}


def _port(register: Register, field: Field) -> str:
    """Name of the member that is, or feeds, a field."""
    name = register.name.lower()
    return name if field.name == "value" else f"{name}_{field.name}"


def _is_constant(register: Register) -> bool:
    """Whether the register's content is part of the configuration."""
    return register.name in ("MAGIC", "VERSION", "CONFIG_HASH") or register.name.startswith("GEOM")


#: Words by index, each as 32 bits.
Words = dict[int, list[Value]]


class RegisterBank(wiring.Component):
    """AXI4-Lite slave that holds, or passes on, every field of the register map.

    Takes one write and one read at a time, side by side. The two low address bits are ignored, as
    AXI4-Lite lets a slave do; byte strobes are honoured. A write to a register without writable
    field, a write to a locked register while ``locked``, a start while ``start_refused`` and any
    access to an offset without register change nothing, answer SLVERR, and count in REJECTED. A
    start together with a soft reset or an abort is dropped without complaint.

    Windows are closed after reset.

    Latency: a write takes effect `WRITE_CYCLES` after both address and data were taken, and its
    response is up in the next cycle; read data are up `READ_CYCLES` after the address was taken.
    Throughput: one write every 3 cycles, one read every 11.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    bus : In(AxiLiteSignature(12))
    <register>_<field> : In, Out   Each field of the map, lower case, without ``_value``: an input
                                   if it is read-only, a strobe for W1S, an output else. Constants,
                                   REJECTED, STATUS.done and the windows have none.
    counter_stb, counter_idx : Out Strobe: read the counter at this place in
                                   `sparsemac.registers.COUNTERS`. Only if there are counters.
    counter : In(64)               Its value, `CounterBank.READ_CYCLES` later.
    windows : Out(array of window_layout)
    locked : In(1)                 Refuse writes to registers that the map marks as locked.
    start_refused : In(1)          Refuse CTRL.start.
    done_set : In(1)               Strobe: set STATUS.done, also if it is being cleared.
    irq : Out(1)                   STATUS.done and IRQ_ENABLE.done.
    """

    WRITE_CYCLES = 2
    READ_CYCLES = 10

    bus: Any
    locked: Signal
    start_refused: Signal
    done_set: Signal
    irq: Signal
    windows: data.View
    ctrl_start: Signal
    ctrl_soft_reset: Signal
    ctrl_abort: Signal
    status_busy: Signal
    status_fault: Signal
    status_draining: Signal
    status_wedged: Signal
    error_code: Signal
    fault_command: Signal
    fault_address: Signal
    fault_detail: Signal
    fault_count: Signal
    irq_enable_done: Signal
    command_address: Signal
    command_count: Signal
    watchdog: Signal
    stale_count: Signal
    counter_stb: Signal
    counter_idx: Signal
    counter: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._map = register_map(config)
        members: dict[str, wiring.Member] = {
            "bus": In(AxiLiteSignature(ADDRESS_BITS)),
            "locked": In(1),
            "start_refused": In(1),
            "done_set": In(1),
            "irq": Out(1),
            "windows": Out(data.ArrayLayout(window_layout, config.windows)),
        }
        for register in self._map:
            inside = _is_constant(register) or register.name == "REJECTED"
            if inside or register.name in COUNTER_NAMES or register.name.startswith("WINDOW"):
                continue
            for field in register.fields:
                if field.access == "R":
                    width = NARROW_FIELDS.get(register.name, field.width)
                    members[_port(register, field)] = In(width)
                elif field.access == "RW":
                    port = Out(field.width, init=field.reset)  # pyright: ignore[reportCallIssue]
                    members[_port(register, field)] = port
                elif field.access == "W1S":
                    members[_port(register, field)] = Out(1)
        if config.counters:
            members |= {"counter_stb": Out(1), "counter_idx": Out(4), "counter": In(64)}
        super().__init__(members)

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        done = Signal()
        rejected = Signal(16)
        write_failed = self._take_writes(m, done)
        read_failed = self._answer_reads(m, done, rejected)
        failed = Signal(2)  # what was refused in the last cycle
        m.d.sync += [failed.eq(write_failed + read_failed), rejected.eq(rejected + failed)]
        m.d.comb += self.irq.eq(done & self.irq_enable_done)
        return m

    # -- writes ---------------------------------------------------------------------------------

    def _take_writes(self, m: Module, done: Signal) -> Value:
        """Returns a strobe for each write that is refused."""
        bus = self.bus
        address = Signal(ADDRESS_BITS, reset_less=True)
        word = Signal(32, reset_less=True)
        strobe = Signal(4, reset_less=True)
        have_address, have_word = Signal(), Signal()
        do_write = Signal()  # a cycle late, in which the address is decoded
        starts, accepted = Signal(), Signal()
        m.d.comb += [bus.awready.eq(~have_address), bus.wready.eq(~have_word)]
        # A write waits until the last one's response has left, so none can be lost.
        m.d.sync += do_write.eq(have_address & have_word & ~bus.bvalid & ~do_write)
        with m.If(~have_address):
            m.d.sync += [address.eq(bus.awaddr), have_address.eq(bus.awvalid)]
        with m.If(~have_word):
            m.d.sync += [word.eq(bus.wdata), strobe.eq(bus.wstrb), have_word.eq(bus.wvalid)]
        with m.If(do_write):
            m.d.sync += [have_address.eq(0), have_word.eq(0), bus.bvalid.eq(1)]
            m.d.sync += bus.bresp.eq(Mux(accepted, OKAY, SLVERR))
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)

        known, lockable = [], []
        for register in self._map:
            if register.writable:
                chosen = Signal(name=f"chosen_{register.name.lower()}")
                m.d.sync += chosen.eq(address[2:] == register.byte_offset >> 2)
                known.append(chosen)
                if register.locked:
                    lockable.append(chosen)
                with m.If(chosen):
                    for field in register.fields:
                        self._write(m, register, field, do_write, word, strobe, done, starts)
        m.d.comb += accepted.eq(
            Cat(known).any() & ~(Cat(lockable).any() & self.locked)
            & ~(starts & self.start_refused))
        with m.If(self.done_set):  # last, so that it wins over a write that clears
            m.d.sync += done.eq(1)
        return do_write & ~accepted

    def _write(
        self, m: Module, register: Register, field: Field, do_write: Value, word: Value,
        strobe: Value, done: Signal, starts: Signal,
    ) -> None:  # fmt: skip
        """Carries out what a write does to one field."""
        lsb, end = field.lsb, field.lsb + field.width
        one = word[lsb] & strobe[lsb // 8]
        if field.access == "RW1C":
            with m.If(do_write & one):
                m.d.sync += done.eq(0)
        elif field.name == "start" and field.access == "W1S":
            override = Cat(
                word[f.lsb] & strobe[f.lsb // 8] for f in register.fields if f is not field
            ).any()
            m.d.comb += [
                starts.eq(one & ~override),
                self._member(register, field).eq(do_write & starts & ~self.start_refused),
            ]
        elif field.access == "W1S":
            m.d.comb += self._member(register, field).eq(do_write & one)
        elif field.access == "RW":
            target = self._member(register, field)
            allowed = do_write & ~self.locked if register.locked else do_write
            for low in range(lsb - lsb % 8, end, 8):  # byte by byte: the strobe is a clock enable
                first, last = max(low, lsb), min(low + 8, end)
                with m.If(allowed & strobe[low // 8]):
                    m.d.sync += target[first - lsb : last - lsb].eq(word[first:last])

    def _member(self, register: Register, field: Field) -> Any:
        """Returns the member that is, or feeds, a field."""
        if register.name.startswith("WINDOW"):
            index, _, kind = register.name.removeprefix("WINDOW").partition("_")
            name = field.name if kind == "PERM" else kind.lower()
            return self.windows[int(index)][name]
        return getattr(self, _port(register, field))

    # -- reads ----------------------------------------------------------------------------------

    def _answer_reads(self, m: Module, done: Signal, rejected: Signal) -> Value:
        """Returns a strobe for each read that is refused."""
        bus = self.bus
        address = Signal(ADDRESS_BITS, reset_less=True)
        # One bit moves through: the address is there, the counter is looked up, the counter is
        # there, all words stand in their registers, the answer is up.
        looking = Signal(CounterBank.READ_CYCLES)
        addressed, fetched, shown = looking[0], Signal(), Signal()
        known = Signal()
        m.d.comb += bus.arready.eq(~(looking.any() | fetched | shown | bus.rvalid))
        with m.If(bus.arready):
            m.d.sync += address.eq(bus.araddr)
        m.d.sync += [
            Cat(looking, fetched).eq(Cat(bus.arvalid & bus.arready, looking)), shown.eq(fetched),
        ]
        with m.Switch(address[2:]):
            with m.Case(*(register.byte_offset >> 2 for register in self._map)):
                m.d.sync += known.eq(1)
            with m.Default():
                m.d.sync += known.eq(0)

        in_windows = address[WINDOWS_BIT]
        in_counters = address[COUNTERS_BIT] & ~in_windows
        constants, general, windows = self._words(done, rejected)
        outside = in_counters | in_windows
        select = Cat(address[2:COUNTERS_BIT], outside)
        word = self._constant(m, constants, select)
        for index, bits in general.items():
            word = word | self._shown(m, f"word_{index}", bits, select == index)
        select = Cat(address[2:WINDOWS_BIT], ~in_windows)
        for index, bits in windows.items():
            word = word | self._shown(m, f"window_word_{index}", bits, select == index)
        if self._config.counters:
            word = word | self._read_counter(m, address, addressed, fetched, in_counters)
        with m.If(shown):
            m.d.sync += [bus.rvalid.eq(1), bus.rresp.eq(Mux(known, OKAY, SLVERR))]
            m.d.sync += bus.rdata.eq(word)
            with m.If(~known):
                m.d.sync += bus.rdata.eq(0)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        return shown & ~known

    @staticmethod
    def _shown(m: Module, name: str, bits: list[Value], selected: Value) -> Signal:
        """Returns a register of a word, 0 if it is not selected.

        The flip-flops' own reset does that, so that a multiplexer of words is no more than an OR:
        half the LUTs.
        """
        register = Signal(32, name=name, reset_less=True)
        for k, bit in enumerate(bits):
            if not isinstance(bit, Const):
                m.d.sync += register[k].eq(bit)
        with m.If(~selected):
            m.d.sync += register.eq(0)
        return register

    @staticmethod
    def _constant(m: Module, words: Words, select: Value) -> Signal:
        """Returns a register of the constant word at ``select``, 0 if there is none."""
        register = Signal(32, name="constant_word", reset_less=True)
        with m.Switch(select):
            for index, bits in words.items():
                with m.Case(index):
                    m.d.sync += register.eq(Cat(bits))
            with m.Default():
                m.d.sync += register.eq(0)
        return register

    def _words(self, done: Signal, rejected: Signal) -> tuple[Words, Words, Words]:
        """Returns the bits of all words but the counters, by index.

        Constants and others below the windows apart, then the windows.
        """
        constants: Words = {}
        general: Words = {}
        windows: Words = {}
        for register in self._map:
            if register.name in COUNTER_NAMES:
                continue
            bits: list[Value] = [Const(0, 1)] * 32
            for field in register.fields:
                if _is_constant(register):
                    source: Any = [Const(field.reset >> k & 1, 1) for k in range(field.width)]
                elif register.name == "REJECTED":
                    source = rejected
                elif field.access == "RW1C":
                    source = done
                elif field.access == "W1S":
                    continue
                else:
                    source = self._member(register, field)
                bits[field.lsb : field.lsb + len(source)] = list(source)
            index = register.byte_offset >> 2
            if register.name.startswith("WINDOW"):
                windows[index - (1 << WINDOWS_BIT - 2)] = bits
            else:
                (constants if _is_constant(register) else general)[index] = bits
        return constants, general, windows

    def _read_counter(
        self, m: Module, address: Signal, addressed: Value, fetched: Signal, inside: Value
    ) -> Value:  # fmt: skip
        """Returns the half at ``address``, 0 if none is; the high one is latched with the low."""
        is_low = ~address[2]
        latched = Signal(32)
        low, high = Signal(32, name="counter_low"), Signal(32, name="counter_high")
        m.d.comb += [
            self.counter_stb.eq(addressed & inside & is_low),
            self.counter_idx.eq(address[3:COUNTERS_BIT]),
        ]
        with m.If(fetched & inside & is_low):
            m.d.sync += latched.eq(self.counter[32:])
        m.d.sync += [low.eq(self.counter[:32]), high.eq(latched)]
        with m.If(~(inside & is_low)):
            m.d.sync += low.eq(0)
        with m.If(~(inside & ~is_low)):
            m.d.sync += high.eq(0)
        return low | high
