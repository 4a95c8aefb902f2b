# SPDX-License-Identifier: Apache-2.0
"""Parts made of an ECP5's own blocks, with the registers inside those blocks.

What yosys makes of the portable form has them outside: a block memory takes 5.8 ns then, and the
way to a register comes on top; a multiplier takes 3.9 ns, and there is a way at either end. With
the registers inside it is 1 ns behind a memory's, 0.1 ns in front of a multiplier's and less than
1 ns behind it (speed grade 6, Project Trellis' cell timings).

The sums of two lanes are in the adder behind their two multipliers, which no LUT is left for then:
two accumulators of a lane's width are 12 CCU2C each. nextpnr knows no times of that adder.

Two products in one multiplier are not to be had here. The blocks are 18 x 18 bits or twice 9 x 9
(Lattice FPGA-TN-02205, section 2): 27 x 18, on which two int8 lanes could share a weight, is no
mode of theirs; 9 x 9 (MULT9X9D) is unknown to nextpnr, as are cascades. Two int4 products need
activations of int4, for int8 ones times int4 are 12 bits each, and a pair of them more than 18 bits
of operand; the core's activations are int8.

`tests/support/ecp5_twins.py` says what the blocks do, for simulators: yosys has black boxes only.
"""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in

__all__ = ["PairedSums", "Product", "RegisteredMemory", "is_ecp5"]

#: Bits of a word of a DP16KD by the words it has (Lattice FPGA-TN-02204, table 2.2). The widest
#: have an enable for each byte, on address bits that they leave free; the very widest takes the
#: data pins of both ports.
_WORD_BITS = {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}
_BYTE_ENABLES = {36: 4, 18: 2}
_PORT_BITS = 18

#: Address bits of a DP16KD; wider words leave the lowest unused.
_ADDRESS_BITS = 14

#: Operand bits of a MULT18X18D.
_OPERAND_BITS = 18

#: Bits of an ALU54B's result, and how many of them it adds again; those above repeat the last.
_ALU_BITS, _FED_BACK_BITS = 54, 52


def is_ecp5(platform: object) -> bool:
    """Whether what is being elaborated is for an ECP5.

    Amaranth's platforms of Lattice's parts say so, and a `sparsemac_hw.shared.SharedModules` does.
    """
    return getattr(platform, "family", None) == "ecp5"


def _inputs(name: str, count: int, value: Value | None = None) -> dict[str, Value]:
    """One-bit inputs ``<name>0`` ... of a block; those beyond the value are tied to 0."""
    width = 0 if value is None else len(value)
    return {f"i_{name}{i}": value[i] if value is not None and i < width else Const(0)
            for i in range(count)}


def _outputs(name: str, value: Value) -> dict[str, Value]:
    """One-bit outputs ``<name>0`` ... of a block."""
    return {f"o_{name}{i}": value[i] for i in range(len(value))}


class RegisteredMemory(wiring.Component):
    """A memory of one write port and one read port, the latter with a register behind it.

    It starts with zeros. What a word reads as in the cycle in which it is written is not defined.

    Latency: `LATENCY_CYCLES` from ``r_addr`` to ``r_data``. Throughput: one read and one write per
    cycle.

    `block_memory.BlockMemory` says when ``r_en`` may be low.

    Parameters
    ----------
    width : int    Bits of a word.
    depth : int    Words, 2 to `MAX_DEPTH`.

    Members
    -------
    r_addr : In, r_data : Out(width)
    r_en : In(1)       The memory is read; else what was read last stays.
    r_moves : In(1)    The register takes what was read last.
    w_en, w_addr, w_data : In
    """

    LATENCY_CYCLES = 2
    MAX_DEPTH = max(_WORD_BITS)

    r_addr: Signal
    r_data: Signal
    r_en: Signal
    r_moves: Signal
    w_en: Signal
    w_addr: Signal
    w_data: Signal

    def __init__(self, width: int, depth: int) -> None:
        self._width = as_int_in("width", width, 1, 1024)
        self._depth = as_int_in("depth", depth, 2, self.MAX_DEPTH)
        address = range(self._depth)
        super().__init__({
            "r_addr": In(address),
            "r_data": Out(self._width),
            "r_en": In(1),
            "r_moves": In(1),
            "w_en": In(1),
            "w_addr": In(address),
            "w_data": In(self._width),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        words, bits = next(mode for mode in _WORD_BITS.items() if mode[0] >= self._depth)
        lowest = _ADDRESS_BITS - (words - 1).bit_length()
        enables = _BYTE_ENABLES.get(bits, 0)
        # Written by the bytes' enables where there are some, with the port enabled all the time: so
        # it need not be known either whether its half of a wide word's register waits for that.
        written = Cat(self.w_en.replicate(enables), Const(0, lowest - enables), self.w_addr)
        for k, first in enumerate(range(0, self._width, bits)):
            data = self.w_data[first : first + bits]
            output = Signal(bits, name=f"output_{k}")
            # The lower half of a wide word is on the pins of port A.
            is_wide = bits > _PORT_BITS
            on_a, on_b = output[: bits - _PORT_BITS if is_wide else 0], output[-_PORT_BITS:]
            m.submodules[f"block_{k}"] = Instance(
                "DP16KD",
                p_DATA_WIDTH_A=bits, p_DATA_WIDTH_B=bits,
                p_REGMODE_A="OUTREG" if is_wide else "NOREG",
                p_REGMODE_B="OUTREG", p_RESETMODE="SYNC", p_ASYNC_RESET_RELEASE="SYNC",
                p_WRITEMODE_A="NORMAL", p_WRITEMODE_B="NORMAL", p_CSDECODE_A="0b000",
                p_CSDECODE_B="0b000", p_GSR="DISABLED",
                i_CLKA=ClockSignal(), i_CEA=Const(1), i_OCEA=self.r_moves, i_RSTA=Const(0),
                i_WEA=Const(1) if enables else self.w_en,
                i_CLKB=ClockSignal(), i_CEB=self.r_en, i_OCEB=self.r_moves, i_RSTB=Const(0),
                i_WEB=Const(0),
                **_inputs("CSA", 3), **_inputs("CSB", 3),
                **_inputs("ADA", _ADDRESS_BITS, written),
                **_inputs("ADB", _ADDRESS_BITS, Cat(Const(0, lowest), self.r_addr)),
                **_inputs("DIA", min(bits, _PORT_BITS), data[:_PORT_BITS]),
                **_inputs("DIB", bits - min(bits, _PORT_BITS), data[_PORT_BITS:]),
                **_outputs("DOA", on_a), **_outputs("DOB", on_b),
            )
            m.d.comb += self.r_data[first : first + bits].eq(output[: len(data)])
        return m


class Product(wiring.Component):
    """The product of two numbers, with a multiplier's registers in front of it and behind it.

    Latency: `LATENCY_CYCLES`. Throughput: one product per cycle.
    Exact for: all operands.

    Parameters
    ----------
    a_width, b_width : int    Bits of the operands, 1 to 18.
    is_signed : bool          Operands and product are signed.

    Members
    -------
    i_a : In(a_width), i_b : In(b_width)
    o : Out(a_width + b_width)
    """

    LATENCY_CYCLES = 2

    i_a: Signal
    i_b: Signal
    o: Signal

    def __init__(self, a_width: int, b_width: int, is_signed: bool) -> None:
        self._is_signed = is_signed
        widths = (as_int_in("a_width", a_width, 1, _OPERAND_BITS),
                  as_int_in("b_width", b_width, 1, _OPERAND_BITS))
        a, b, product = (
            signed(width) if is_signed else width for width in (*widths, sum(widths)))
        super().__init__({"i_a": In(a), "i_b": In(b), "o": Out(product)})

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        # The operands stand at the upper end: a sign would have to be routed to every pin above.
        below = [_OPERAND_BITS - len(operand) for operand in (self.i_a, self.i_b)]
        a, b = (Cat(Const(0, zeros), operand)
                for zeros, operand in zip(below, (self.i_a, self.i_b), strict=True))
        product = Signal(2 * _OPERAND_BITS)
        m.d.comb += self.o.eq(product[sum(below) :])
        m.submodules.block = _multiplier(a, b, Const(self._is_signed), "OUTPUT", Const(0), Const(1),
                                         **_outputs("P", product))
        return m


def _multiplier(a: Value, b: Value, sign: Value, stage: str, zero: Value, one: Value,
                **outputs: Value) -> Instance:
    """A MULT18X18D with registers for its operands and, at ``stage``, for the product."""
    clocks = {f"p_REG_{unused}_CLK": "NONE"
              for unused in {"INPUTC", "PIPELINE", "OUTPUT"} - {stage}}
    registers = {f"p_REG_{used}_{pin}": f"{pin}0"
                 for used in ("INPUTA", "INPUTB", stage) for pin in ("CLK", "CE", "RST")}
    return Instance(
        "MULT18X18D", **clocks, **registers,
        p_RESETMODE="SYNC", p_GSR="DISABLED",
        i_CLK0=ClockSignal(), i_CE0=one, i_RST0=zero,
        i_SIGNEDA=sign, i_SIGNEDB=sign, i_SOURCEA=zero, i_SOURCEB=zero,
        **_inputs("A", _OPERAND_BITS, a), **_inputs("B", _OPERAND_BITS, b),
        **_inputs("C", _OPERAND_BITS), **outputs,
    )


class PairedSums(wiring.Component):
    """Two running sums of products, ``sum[k] += a[k] * b``, in the adder of one DSP slice.

    A slice has two multipliers and one adder of their products. The second product goes in 28 bits
    above the first, so that the result is both sums side by side; and they start not from zero but
    from half of the lower one's room, so that this one never is negative and borrows nothing from
    the upper one.

    Latency: `LATENCY_CYCLES`. Throughput: a product for each sum per cycle.
    Exact for: sums that fit their width.

    Parameters
    ----------
    width : int    Bits of a sum, 16 to `MAX_WIDTH`.

    Members
    -------
    i_a : In(signed(8)).array(2), i_b : In(signed(8))
    i_starts : In(1)                        The sums start with these products.
    o : Out(signed(width)).array(2)

    Source
    ------
    Lattice FPGA-TN-02205, for the slice, its registers and operation codes. Two sums in one adder:
    Xilinx WP486, "Deep Learning with INT8 Optimization on Xilinx Devices", 2017.
    """

    LATENCY_CYCLES = 3
    MAX_WIDTH = 24

    i_a: list[Signal]
    i_b: Signal
    i_starts: Signal
    o: list[Signal]

    #: Lowest bits of the second sum, and where the adder takes the second product for.
    _UPPER, _SHIFT = _FED_BACK_BITS - MAX_WIDTH, _OPERAND_BITS

    def __init__(self, width: int) -> None:
        self._width = as_int_in("width", width, 16, self.MAX_WIDTH)
        super().__init__({
            "i_a": In(signed(8)).array(2),
            "i_b": In(signed(8)),
            "i_starts": In(1),
            "o": Out(signed(self._width)).array(2),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        ports: dict[str, Value] = {}
        # Constants of its own: all slices' pins on two nets from one place are more than nextpnr
        # finds routes for in any reasonable time.
        zero, one = Signal(), Signal()
        for output, name in ((zero, "zero"), (one, "one")):
            m.submodules[name] = Instance(
                "LUT4", p_INIT=Const(0xFFFF * (name == "one"), 16), a_keep=1, o_Z=output)
        for k, lowest in enumerate((0, self._UPPER - self._SHIFT)):
            product, sign = Signal(2 * _OPERAND_BITS, name=f"p_{k}"), Signal(name=f"signed_{k}")
            # The adder has no other source than its slice's multipliers, and nextpnr wants to see
            # it so, also for what is not added here: the operands.
            operands = Signal(2 * _OPERAND_BITS, name=f"operands_{k}")
            m.submodules[f"multiplier_{k}"] = _multiplier(
                self._operand(self.i_a[k], lowest), self._operand(self.i_b), one, "PIPELINE",
                zero, one, **_outputs("P", product), **_outputs("ROA", operands[:_OPERAND_BITS]),
                **_outputs("ROB", operands[_OPERAND_BITS:]), o_SIGNEDP=sign)
            name = "AB"[k]
            ports |= {**_inputs(f"M{name}", len(product), product), f"i_SIGNEDI{name}": sign,
                      **_inputs(name, len(operands), operands)}
        start = 1 << self._UPPER - 1
        # The result is the sum of three. Which ones: bits 0 and 1, the first product; 2 and 3, the
        # second, 18 bits up; 4 to 6, the result before (0b101) or, if bit 5 is set, RNDPAT less 1.
        operation = Cat(one, zero, zero, zero, one, self.i_starts, one, zero, zero, one, zero)
        result = Signal(_ALU_BITS)
        m.submodules.adder = Instance(
            "ALU54B",
            **{f"p_REG_{stage}_{pin}": f"{pin}0"
               for stage in ("OPCODEIN_0", "OPCODEIN_1", "OUTPUT0", "OUTPUT1")
               for pin in ("CLK", "CE", "RST")},
            p_RNDPAT=f"0x{start + 1:014X}", p_RESETMODE="SYNC", p_GSR="DISABLED",
            i_CLK0=ClockSignal(), i_CE0=one, i_RST0=zero,
            **ports, **_inputs("OP", len(operation), operation), **_outputs("R", result),
        )
        m.d.comb += [self.o[0].eq(result), self.o[1].eq(result[self._UPPER :])]
        return m

    @staticmethod
    def _operand(value: Value, lowest: int = 0) -> Value:
        """A signed number at some bit of an operand, its sign on all pins above."""
        above = _OPERAND_BITS - lowest - len(value)
        return Cat(Const(0, lowest), value, value[-1].replicate(above))
