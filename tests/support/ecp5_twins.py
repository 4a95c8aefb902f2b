# SPDX-License-Identifier: Apache-2.0
"""What an ECP5's blocks do, for simulators: yosys knows them as black boxes only.

Written after Lattice's guides (FPGA-TN-02204 for memories, FPGA-TN-02205 for multipliers), not
after the parts that use the blocks. Where those leave something open, a twin does what serves a
design least: a word read while it is written is wrong, and an output register waits for both of
its enables.
"""

from types import SimpleNamespace

from amaranth.hdl import Cat, Const, Elaboratable, Fragment, Instance, Module, Mux, Signal, signed
from amaranth.lib.memory import Memory

__all__ = ["ECP5", "WithTwins"]

#: A platform of that family.
ECP5 = SimpleNamespace(family="ecp5")


class WithTwins(Elaboratable):
    """An elaboratable made for an ECP5, with a twin in place of each block.

    Attributes
    ----------
    replaced : list of str    Types of the blocks, after elaboration.
    """

    def __init__(self, elaboratable):
        self._elaboratable = elaboratable
        self.replaced = []

    def elaborate(self, platform):
        fragment = Fragment.get(self._elaboratable, ECP5)
        self._replace(fragment)
        return fragment

    def _replace(self, fragment):
        for i, (part, name, place) in enumerate(fragment.subfragments):
            if isinstance(part, Instance) and part.type in _TWINS:
                twin = Fragment.get(_TWINS[part.type](part), None)
                fragment.subfragments[i] = (twin, name, place)
                self.replaced.append(part.type)
            else:
                self._replace(part)


class _Twin(Elaboratable):
    """A block's parameters and ports; what it does not model must be left at its default."""

    DEFAULTS = {}
    IGNORED = ("GSR", "ASYNC_RESET_RELEASE")

    def __init__(self, instance):
        unknown = set(instance.parameters) - set(self.DEFAULTS) - set(self.IGNORED)
        assert not unknown, f"{instance.type}: no such parameters: {unknown}"
        self.parameters = {**self.DEFAULTS, **instance.parameters}
        self._ports = {name: value for name, (value, _) in instance.ports.items()}

    def pin(self, name):
        return self._ports.get(name, Const(0, 1))

    def bus(self, name, count):
        return Cat(self.pin(f"{name}{i}") for i in range(count))

    def is_tied(self, *names):
        return all(isinstance(self.pin(n), Const) and self.pin(n).value == 0 for n in names)

    def drive(self, m, name, count, value):
        for i in range(count):
            if f"{name}{i}" in self._ports:
                m.d.comb += self._ports[f"{name}{i}"].eq(value[i])

    def _registered(self, m, stage, value):
        clock = self.parameters[f"REG_{stage}_CLK"]
        assert clock in ("NONE", "CLK0"), clock
        if clock == "NONE":
            return value
        register = Signal(value.shape(), name=stage.lower(), reset_less=True)
        with m.If(self.pin("RST0")):
            m.d.sync += register.eq(0)
        with m.Elif(self.pin("CE0")):
            m.d.sync += register.eq(value)
        return register


class _Memory(_Twin):
    """DP16KD: port A writes, port B reads; both words are of one width.

    Words of 36 bits have the data pins of both ports, the lower half those of A.
    """

    DEFAULTS = {
        "DATA_WIDTH_A": 18, "DATA_WIDTH_B": 18, "REGMODE_A": "NOREG", "REGMODE_B": "NOREG",
        "RESETMODE": "SYNC", "WRITEMODE_A": "NORMAL", "WRITEMODE_B": "NORMAL",
        "CSDECODE_A": "0b000", "CSDECODE_B": "0b000",
    }
    #: By the width of a word, the lowest address bit that counts.
    LOWEST = {1: 0, 2: 1, 4: 2, 9: 3, 18: 4, 36: 5}

    def elaborate(self, platform):
        m = Module()
        width = self.parameters["DATA_WIDTH_A"]
        is_wide = width == 36
        assert width == self.parameters["DATA_WIDTH_B"]
        assert self.parameters["REGMODE_A"] == (
            self.parameters["REGMODE_B"] if is_wide else "NOREG")
        assert self.is_tied("RSTA", "RSTB", "WEB", *(f"CS{p}{i}" for p in "AB" for i in range(3)))
        lowest = self.LOWEST[width]
        written, read = self.bus("ADA", 14)[lowest:], self.bus("ADB", 14)[lowest:]
        m.submodules.memory = memory = Memory(
            shape=width, depth=1 << 14 - lowest, init=[])
        write, word = memory.write_port(), memory.read_port(domain="comb")
        enable_a, enable_b = self.pin("CEA") & self.pin("WEA"), self.pin("CEB")
        # An enable for each byte: this writes all of a word or none.
        for k in range({18: 2, 36: 4}.get(width, 0)):
            enable_a = enable_a & self.pin(f"ADA{k}")
        given = Cat(self.bus("DIA", 18), self.bus("DIB", 18))[:width]
        latch = Signal(width, reset_less=True)
        m.d.comb += [
            write.addr.eq(written), write.data.eq(given), write.en.eq(enable_a),
            word.addr.eq(read),
        ]
        with m.If(enable_b):
            m.d.sync += latch.eq(word.data)
            with m.If(enable_a & (written == read)):
                m.d.sync += latch.eq(~word.data)
        output = latch
        if self.parameters["REGMODE_B"] == "OUTREG":
            output = Signal(width, reset_less=True)
            moves = enable_b & self.pin("OCEB")
            if is_wide:  # whichever enables each half waits for
                moves = moves & self.pin("CEA") & self.pin("OCEA")
            with m.If(moves):
                m.d.sync += output.eq(latch)
        if is_wide:
            self.drive(m, "DOA", 18, output[:18])
        self.drive(m, "DOB", min(width, 18), output[-18:] if is_wide else output)
        return m


class _Multiplier(_Twin):
    """MULT18X18D with registers on CLK0 or without; operands from its own pins."""

    DEFAULTS = {
        "REG_INPUTA_CLK": "NONE", "REG_INPUTB_CLK": "NONE", "REG_INPUTC_CLK": "NONE",
        "REG_PIPELINE_CLK": "NONE", "REG_OUTPUT_CLK": "NONE", "RESETMODE": "SYNC",
        **{f"REG_{stage}_{pin}": f"{pin}0" for stage in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT")
           for pin in ("CE", "RST")},
    }

    def elaborate(self, platform):
        m = Module()
        assert self.is_tied(*(f"C{i}" for i in range(18)))
        if "SIGNEDP" in self._ports:
            m.d.comb += self.pin("SIGNEDP").eq(self.pin("SIGNEDA") | self.pin("SIGNEDB"))
        a = self._registered(m, "INPUTA", self._operand(m, "A"))
        b = self._registered(m, "INPUTB", self._operand(m, "B"))
        product = self._registered(m, "PIPELINE", a * b)
        self.drive(m, "P", 36, self._registered(m, "OUTPUT", product))
        return m

    def _operand(self, m, name):
        """The operand, signed in any case: an unsigned one has a zero above it."""
        pins = self.bus(name, 18)
        pins = Mux(self.pin(f"SOURCE{name}"), ~pins, pins)  # of the multiplier beside this one
        operand = Signal(signed(19), name=name.lower())
        m.d.comb += operand.eq(Cat(pins, pins[17] & self.pin(f"SIGNED{name}")))
        return operand


class _Adder(_Twin):
    """ALU54B that adds up to three numbers, with registers on CLK0 or without.

    Operation codes, which the guide has in a table for each of the adder's operands: 0 and 1 choose
    A, 2 and 3 choose B, 4 to 6 choose C, 7 to 10 what is done. What is added again is the lower 52
    bits of the result, signed. Its register begins with what no design may count on.
    """

    DEFAULTS = {
        **{f"REG_{stage}_{pin}": default
           for stage in ("OPCODEIN_0", "OPCODEIN_1", "OUTPUT0", "OUTPUT1")
           for pin, default in (("CLK", "NONE"), ("CE", "CE0"), ("RST", "RST0"))},
        "RNDPAT": "0x00000000000000", "RESETMODE": "SYNC",
    }
    ADD = 0b0100
    A_IS_PRODUCT, B_IS_SHIFTED, C_IS_RESULT, C_IS_ROUNDING = 0b01, 0b00, 0b101, 0b111

    def elaborate(self, platform):
        m = Module()
        codes = self.bus("OP", 11)
        for stage in ("OPCODEIN_0", "OPCODEIN_1"):
            codes = self._registered(m, stage, codes)
        assert self.parameters["REG_OUTPUT0_CLK"] == self.parameters["REG_OUTPUT1_CLK"] != "NONE"
        first, second = (self._product(m, name) for name in "AB")
        result = Signal(signed(54), reset_less=True, init=0x15555555555555)
        third = Signal(signed(54))
        with m.Switch(codes[4:7]):
            with m.Case(self.C_IS_RESULT):
                m.d.comb += third.eq(result[:52].as_signed())
            with m.Case(self.C_IS_ROUNDING):
                m.d.comb += third.eq(Const(int(self.parameters["RNDPAT"], 16) - 1, 54))
        total = first + (second << 18) + third
        is_known = ((codes[:2] == self.A_IS_PRODUCT) & (codes[2:4] == self.B_IS_SHIFTED)
                    & codes[4] & codes[6] & (self.bus("OP", 11)[7:] == self.ADD))
        with m.If(self.pin("RST0")):
            m.d.sync += result.eq(0)
        with m.Elif(self.pin("CE0")):
            m.d.sync += result.eq(Mux(is_known, total, ~total))
        self.drive(m, "R", 54, result)
        return m

    def _product(self, m, name):
        pins = self.bus(f"M{name}", 36)
        value = Signal(signed(37), name=f"m{name.lower()}")
        m.d.comb += value.eq(Cat(pins, pins[35] & self.pin(f"SIGNEDI{name}")))
        return value


class _Table(_Twin):
    """LUT4 without inputs, for a constant."""

    DEFAULTS = {"INIT": 0}
    IGNORED = ("keep",)

    def elaborate(self, platform):
        m = Module()
        init = Const.cast(self.parameters["INIT"]).value
        assert init in (0, 0xFFFF) and set(self._ports) == {"Z"}, (init, self._ports)
        m.d.comb += self.pin("Z").eq(init & 1)
        return m


_TWINS = {"ALU54B": _Adder, "LUT4": _Table, "DP16KD": _Memory, "MULT18X18D": _Multiplier}
