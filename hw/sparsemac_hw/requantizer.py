# SPDX-License-Identifier: Apache-2.0
"""Requantization: from a sum to int8, bit by bit as gemmlowp and TOSA define it."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in
from sparsemac.commands import OutputMode

__all__ = ["Requantizer"]

#: The product is shifted right by this many bits before ``i_shift`` counts: multipliers are Q31.
FRACTION_BITS = 31

#: The multiplier blocks of an FPGA are 18 x 18 bits: low operand halves are that wide.
HALF_BITS = 18

#: Bits that hold every scaled sum before the fine shift that need not saturate: the fine shift is
#: at most 7, so what does not fit is still beyond 511 after it, and no zero point brings it back.
NARROW_BITS = 17

#: ``s * 2**31 >> 31``: how raw sums go through the multiplier unchanged.
UNIT = 1 << FRACTION_BITS


class Requantizer(wiring.Component):
    """Adds, scales, rounds, shifts, adds the zero point and clamps; one result per cycle.

    With s = acc + addend modulo 2**32, the output is s itself in mode RAW, else::

        P   = s * multiplier
        h   = (P >> 31) + (bit 30 of P, if mode is DOUBLE or shift is 0)
        y   = (h + nudge) >> shift
        out = clamp(y + zero_point, low, high)

    nudge is 0 if shift is 0, else ``2**(shift - 1)``, less 1 if mode is DOUBLE and h < 0. There is
    no stall: whoever feeds it makes sure that there is room behind it.

    The product is that of ``s + 2**31``, which is never negative, so four unsigned products of 18
    bits do; ``2**31 * multiplier`` is taken off again where the products are summed.

    Latency: `LATENCY_CYCLES` from ``i_valid`` to ``o_valid``, `SUM_LATENCY_CYCLES` to
    ``o_sum_valid``. Throughput: one result per cycle.
    Exact for: every acc, addend, shift and 36-bit multiplier, and low <= high. Overflow: the first
    sum wraps modulo 2**32, nothing else does.

    Parameters
    ----------
    acc_width : int          Width of the accumulator, 1 to 32 [bits].
    tag_shape : ShapeLike    What travels beside each result.

    Members
    -------
    i_valid, i_acc, i_addend : In                A sum, and what to add: bias or partial sum.
    i_multiplier : In(36), i_shift : In(5)       Scale: multiplier / 2**(31 + shift).
    i_tag : In(tag_shape)
    i_mode : In(2)                               OutputMode; this and the rest are constant while
    i_zero_point, i_low, i_high : In(signed(8))  results are under way.
    o_valid : Out(1), o_value : Out(signed(32)), o_tag : Out(tag_shape)   int8 has zeros above it.
    o_sum_valid : Out(1), o_sum : Out(signed(32))   s, in the order of the inputs.

    Source: TOSA 1.0, section 1.9 (apply_scale_32); gemmlowp fixedpoint.h
    (SaturatingRoundingDoublingHighMul, RoundingDivideByPOT).
    """

    LATENCY_CYCLES = 11
    SUM_LATENCY_CYCLES = 1

    i_valid: Signal
    i_acc: Signal
    i_addend: Signal
    i_multiplier: Signal
    i_shift: Signal
    i_tag: Any
    i_mode: Signal
    i_zero_point: Signal
    i_low: Signal
    i_high: Signal
    o_valid: Signal
    o_value: Signal
    o_tag: Any
    o_sum_valid: Signal
    o_sum: Signal

    def __init__(self, acc_width: int, tag_shape: Any = 0) -> None:
        self._acc_width = as_int_in("acc_width", acc_width, 1, 32)
        self._tag_shape = tag_shape
        super().__init__({
            "i_valid": In(1),
            "i_acc": In(signed(self._acc_width)),
            "i_addend": In(signed(32)),
            "i_multiplier": In(36),
            "i_shift": In(5),
            "i_tag": In(tag_shape),
            "i_mode": In(2),
            "i_zero_point": In(signed(8)),
            "i_low": In(signed(8)),
            "i_high": In(signed(8)),
            "o_valid": Out(1),
            "o_value": Out(signed(32)),
            "o_tag": Out(tag_shape),
            "o_sum_valid": Out(1),
            "o_sum": Out(signed(32)),
        })

    @property
    def acc_width(self) -> int:
        """Width of the accumulator [bits]."""
        return self._acc_width

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        raw = Signal()
        double = Signal()
        m.d.comb += [
            raw.eq(self.i_mode == OutputMode.RAW),
            double.eq(self.i_mode == OutputMode.DOUBLE),
        ]
        self._accompany(m)
        total, multiplier, shift = self._add(m, raw)
        product, shift = self._multiply(m, total, multiplier, shift)
        high_part, shift = self._round(m, product, shift, double)
        self._scale(m, high_part, shift, raw, double)
        return m

    def _accompany(self, m: Module) -> None:
        """The valid bits and the tag, all the way."""
        valid, tag = self.i_valid, self.i_tag
        for stage in range(1, self.LATENCY_CYCLES + 1):
            later_valid = Signal(name=f"valid_{stage}")
            m.d.sync += later_valid.eq(valid)
            valid, tag = later_valid, self._at(m, stage, "tag", tag)
            if stage == self.SUM_LATENCY_CYCLES:
                m.d.comb += self.o_sum_valid.eq(valid)
        m.d.comb += [self.o_valid.eq(valid), self.o_tag.eq(tag)]

    @staticmethod
    def _at(m: Module, stage: int, name: str, value: Any) -> Any:
        """The register of a value behind a stage."""
        later = Signal(value.shape(), name=f"{name}_{stage}", reset_less=True)
        m.d.sync += later.eq(value)
        return later

    def _add(self, m: Module, raw: Signal) -> tuple[Signal, Signal, Signal]:
        """Stage 1: the sum, and its scale."""
        total = Signal(signed(32), reset_less=True)
        multiplier = Signal(36, reset_less=True)
        shift = Signal(5, name="shift_1", reset_less=True)
        m.d.sync += [
            total.eq(self.i_acc + self.i_addend),
            multiplier.eq(self.i_multiplier),
            shift.eq(self.i_shift),
        ]
        # A constant instead of the input is a synchronous set or reset: it costs no LUT, and the
        # multiplier then stands in for registers of 32 bits all the way beside it.
        with m.If(raw):
            m.d.sync += [multiplier.eq(UNIT), shift.eq(0)]
        m.d.comb += self.o_sum.eq(total)
        return total, multiplier, shift

    def _multiply(
        self, m: Module, total: Signal, multiplier: Signal, shift: Signal
    ) -> tuple[Signal, Signal]:
        """Stages 2 to 5: operands, four products, two sums of them, their sum from bit 30 up.

        Operands have registers of their own, to lie beside the multipliers: a product alone takes
        most of a cycle.
        """
        offset = self._at(m, 2, "offset", Cat(total[:31], ~total[31]))  # total + 2**31, unsigned
        multiplier = self._at(m, 2, "multiplier", multiplier)
        shift = self._at(m, 2, "shift", shift)
        a0, a1 = offset[:HALF_BITS], offset[HALF_BITS:]
        b0, b1 = multiplier[:HALF_BITS], multiplier[HALF_BITS:]
        low = self._at(m, 3, "product_low", a0 * b0)
        cross_0 = self._at(m, 3, "product_cross_0", a0 * b1)
        cross_1 = self._at(m, 3, "product_cross_1", a1 * b0)
        high = self._at(m, 3, "product_high", a1 * b1)
        excess = self._at(m, 3, "excess", multiplier)
        shift = self._at(m, 3, "shift", shift)

        outer = Cat(low, high)  # the two do not overlap: their sum costs nothing
        middle = self._at(m, 4, "middle", cross_0 + cross_1)
        outer_low = self._at(m, 4, "outer_low", outer[HALF_BITS:FRACTION_BITS])
        outer_high = self._at(m, 4, "outer_high", (outer[FRACTION_BITS:] - excess)[:37])
        shift = self._at(m, 4, "shift", shift)

        product = Signal(68 - HALF_BITS)
        m.d.comb += product.eq(Cat(outer_low, outer_high) + middle)
        return (
            self._at(m, 5, "product", product[FRACTION_BITS - 1 - HALF_BITS :]),
            self._at(m, 5, "shift", shift),
        )

    def _round(
        self, m: Module, product: Signal, shift: Signal, double: Signal
    ) -> tuple[Signal, Signal]:
        """Stage 6: the high part of the product, the formula's h."""
        up = product[0] & (double | (shift == 0))
        high_part = self._at(m, 6, "high_part", (product[1:].as_signed() + up)[:37].as_signed())
        return high_part, self._at(m, 6, "shift", shift)

    def _scale(
        self, m: Module, high_part: Signal, shift: Signal, raw: Signal, double: Signal
    ) -> None:
        """Stages 7 to 11: shift by multiples of 8, by the rest, add the zero point, clamp.

        Bit 0 of what is shifted is the last bit shifted out; ``sticky`` is whether any before it
        was set. Both are what rounding needs to know: no nudge is added before the shift.
        """
        coarse, fine = shift[3:], self._at(m, 7, "fine", shift[:3])
        wide = Cat(Const(0, 1), high_part)
        lost = Signal()
        with m.Switch(coarse):
            for k in range(1, 4):
                with m.Case(k):
                    m.d.comb += lost.eq(wide[: 8 * k].any())
        scaled = self._at(m, 7, "scaled", wide.as_signed() >> (coarse << 3))
        sticky = self._at(m, 7, "sticky", lost)

        negative = scaled[37]
        narrow = scaled[: 1 + NARROW_BITS]
        shifted = Signal(signed(1 + NARROW_BITS))
        tie = Signal()  # exactly half way
        m.d.comb += [
            shifted.eq(narrow.as_signed() >> fine),
            tie.eq(~sticky & ((narrow & _ones_below(fine)) == 0)),
        ]
        quotient = self._at(m, 8, "quotient", shifted[1:].as_signed())
        rest = self._at(m, 8, "rest", scaled[1 + NARROW_BITS : 33])
        up = self._at(m, 8, "up", shifted[0] & ~(double & negative & tie))
        fits = Signal()
        m.d.comb += fits.eq(scaled[NARROW_BITS:] == negative.replicate(38 - NARROW_BITS))
        above = self._at(m, 8, "above", ~fits & ~negative)
        below = self._at(m, 8, "below", ~fits & negative)

        zero_point = Signal(signed(8), reset_less=True)
        m.d.sync += zero_point.eq(self.i_zero_point)
        with m.If(raw):
            m.d.sync += zero_point.eq(0)
        moved = (quotient + zero_point + up)[: NARROW_BITS + 1].as_signed()
        moved, rest = self._at(m, 9, "moved", moved), self._at(m, 9, "rest", rest)
        above, below = self._at(m, 9, "above", above), self._at(m, 9, "below", below)
        self._clamp(m, moved, rest, above, below, raw)

    def _clamp(
        self, m: Module, moved: Signal, rest: Signal, above: Signal, below: Signal, raw: Signal
    ) -> None:
        """Stages 10 and 11: on which side of the limits the value lies; the value or a limit."""
        is_high = ~raw & (above | (~below & (moved > self.i_high)))
        is_low = ~raw & (below | (~above & (moved < self.i_low)))
        is_high, is_low = self._at(m, 10, "is_high", is_high), self._at(m, 10, "is_low", is_low)
        inside = self._at(m, 10, "inside", Cat(moved[:NARROW_BITS], rest))
        clamped = Signal(signed(8))
        with m.If(is_high):
            m.d.comb += clamped.eq(self.i_high)
        with m.Elif(is_low):
            m.d.comb += clamped.eq(self.i_low)
        with m.Else():
            m.d.comb += clamped.eq(inside[:8])
        value = self._at(m, 11, "value", Cat(Mux(raw, inside[:8], clamped)[:8], inside[8:]))
        with m.If(~raw):
            m.d.sync += value[8:].eq(0)
        m.d.comb += self.o_value.eq(value)



def _ones_below(count: Value) -> Value:
    """As many ones as ``count``, a 3-bit number, from bit 0 upwards."""
    return Cat(count > i for i in range(7))
