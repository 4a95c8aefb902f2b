# SPDX-License-Identifier: Apache-2.0
"""Requantization: from a sum to int8, bit by bit as gemmlowp and TOSA define it."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in
from sparsemac.commands import OutputMode

from .ecp5 import Product, is_ecp5

__all__ = ["Requantizer"]

#: The product is shifted right by this many bits before ``i_shift`` counts: multipliers are Q31.
FRACTION_BITS = 31

#: The multiplier blocks of an FPGA are 18 x 18 bits: low operand halves are that wide.
HALF_BITS = 18

#: Bits of a quotient that the zero point may bring into the range of int8; others saturate.
NEAR_BITS = 9

#: Bits that the fine shift, of at most 7, makes into a quotient; and the last one shifted out.
NARROW_BITS = NEAR_BITS + 1 + 7

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
        product, shift = self._multiply(m, total, multiplier, shift, platform)
        self._scale(m, product, shift, raw, double)
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
        self, m: Module, total: Signal, multiplier: Signal, shift: Signal, platform: object
    ) -> tuple[Signal, Signal]:
        """Stages 2 to 5: operands, four products, two sums of them, their sum from bit 30 up."""
        early = Cat(total[:31], ~total[31]), multiplier  # total + 2**31, unsigned
        offset = self._at(m, 2, "offset", early[0])
        multiplier = self._at(m, 2, "multiplier", early[1])
        shift = self._at(m, 2, "shift", shift)

        def product_of(name: str, a: slice, b: slice) -> Value:
            """Of operands that have registers of their own: a product alone takes most of a cycle.

            They are in the multiplier or, to lie beside it, stage 2.
            """
            if not is_ecp5(platform):
                return self._at(m, 3, f"product_{name}", offset[a] * multiplier[b])
            i_a, i_b = early[0][a], early[1][b]
            m.submodules[f"product_{name}"] = block = Product(len(i_a), len(i_b), is_signed=False)
            m.d.comb += [block.i_a.eq(i_a), block.i_b.eq(i_b)]
            return block.o

        low_half, high_half = slice(HALF_BITS), slice(HALF_BITS, None)
        low = product_of("low", low_half, low_half)
        cross_0 = product_of("cross_0", low_half, high_half)
        cross_1 = product_of("cross_1", high_half, low_half)
        high = product_of("high", high_half, high_half)
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

    def _scale(
        self, m: Module, product: Signal, shift: Signal, raw: Signal, double: Signal
    ) -> None:
        """Stages 6 to 11: shift by multiples of 8, by the rest, add the zero point, clamp.

        h is never made: the product is shifted, with its bit 30 below it, and the two roundings
        become one. Say that b is the last bit shifted out, and *lost* are those below it. Then the
        result is 1 more if b; in DOUBLE with a shift also if all lost bits are 1 and the product is
        not negative, but not if all are 0 and it is negative. ``decided`` is that one lost bit is
        neither.

        Only the bits that an int8 can come from are shifted. Whether the others are mere signs, so
        that the result ``fits``, is seen on the way.
        """
        negative = product[-1]
        # Of groups of 8 bits: whether all above are signs; whether one below decides the rounding.
        signs = [product[low:high] == negative.replicate(high - low)
                 for low, high in ((17, 25), (25, 33), (33, 37))]
        deciding = [(product[low : low + 8] ^ (~negative).replicate(8)).any()
                    for low in (0, 8, 16)]
        signs = self._at(m, 6, "signs", Cat(signs))
        deciding = self._at(m, 6, "deciding", Cat(deciding))
        wide = product.as_signed()
        halfway = self._at(m, 6, "halfway", Mux(shift[4], wide >> 16, wide)[: NARROW_BITS + 8])
        rounds = self._at(m, 6, "rounds_twice", double & shift.any())
        shift = self._at(m, 6, "shift", shift)
        negative = self._at(m, 6, "negative", negative)
        # Raw sums are not shifted: bits above those that are shifted go straight on.
        rest = self._at(m, 6, "rest", product[1 + NEAR_BITS : 33])

        coarse = shift[3:]
        fits, decided = Signal(), Signal()
        with m.Switch(coarse):
            for k in range(4):
                with m.Case(k):
                    m.d.comb += [
                        fits.eq(signs[k:].all() if k < 3 else 1),
                        decided.eq(deciding[:k].any() if k else 0),
                    ]
        narrow = self._at(m, 7, "narrow", Mux(shift[3], halfway[8:], halfway[:NARROW_BITS]))
        fits = self._at(m, 7, "fits", fits)
        decided = self._at(m, 7, "decided", decided | ~rounds)
        fine = self._at(m, 7, "fine", shift[:3])
        negative = self._at(m, 7, "negative", negative)
        rest = self._at(m, 7, "rest", rest)

        bits = narrow
        for k in (2, 1, 0):
            left = len(bits) - (1 << k)
            fits = fits & (fine[k] | (bits[left:] == negative.replicate(1 << k)))
            bits = Mux(fine[k], bits[1 << k :], bits[:left])
        fits = fits & (bits[-1] == negative)
        lost = (narrow ^ (~negative).replicate(NARROW_BITS)) & _ones_below(fine)
        decided = decided | lost.any()
        quotient = self._at(m, 8, "quotient", bits[1:].as_signed())
        up = self._at(m, 8, "up", Mux(negative, bits[0] & decided, bits[0] | ~decided))
        above = self._at(m, 8, "above", ~fits & ~negative)
        below = self._at(m, 8, "below", ~fits & negative)
        rest = self._at(m, 8, "rest", rest)

        zero_point = Signal(signed(8), reset_less=True)
        m.d.sync += zero_point.eq(self.i_zero_point)
        with m.If(raw):
            m.d.sync += zero_point.eq(0)
        moved = (quotient + zero_point + up)[: NEAR_BITS + 1].as_signed()
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
        inside = self._at(m, 10, "inside", Cat(moved[:NEAR_BITS], rest))
        clamped = Signal(signed(8))
        with m.If(is_high):
            m.d.comb += clamped.eq(self.i_high)
        with m.Elif(is_low):
            m.d.comb += clamped.eq(self.i_low)
        with m.Else():
            m.d.comb += clamped.eq(inside[:8])
        value = self._at(m, 11, "value", Cat(clamped[:8], inside[8:]))
        with m.If(~raw):
            m.d.sync += value[8:].eq(0)
        m.d.comb += self.o_value.eq(value)


def _ones_below(count: Value) -> Value:
    """As many ones as ``count``, a 3-bit number, from bit 0 upwards."""
    return Cat(count > i for i in range(7))
