# SPDX-License-Identifier: Apache-2.0
"""Takes the quotients of Rice-coded entries from their masks."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.commands import DELTA_BITS_MAX
from sparsemac.stream import MASK_BITS

__all__ = ["MaskReader"]


class MaskReader(wiring.Component):
    """Passes over the bits of masks, and sums up what they say as columns.

    `sparsemac.stream` defines masks: as many zeros as an entry's quotient, and a one, from the
    lowest bit up. A cycle passes over two zeros, or over a one and a zero in front of it.

    Latency: ``quotient`` belongs to the entry that was asked for two cycles ago: passed zeros are
    summed up while their entry is in the window, and stand beside it then.

    Members
    -------
    start : In(1)             Strobe: no mask is left from before.
    delta_bits : In(4)        Bits of a remainder; steady from ``start`` on.
    wanted : In(1)            An entry is due.
    may_ask : In(1)           It can be asked for in this cycle, if it is ``found``.
    load : In(1)              Strobe: ``mask`` is the next one; the one before is spent.
    mask : In(16)
    found : Out(1)            The next one, or a zero and the one behind it, is at hand.
    spent : Out(1)            No other one is left.
    quotient : Out(17)        Times ``2**delta_bits`` [columns]; bit 16 stays, for that is too far.
    """

    start: Signal
    delta_bits: Signal
    wanted: Signal
    may_ask: Signal
    load: Signal
    mask: Signal
    found: Signal
    spent: Signal
    quotient: Signal

    def __init__(self) -> None:
        super().__init__({
            "start": In(1),
            "delta_bits": In(range(DELTA_BITS_MAX + 1)),
            "wanted": In(1),
            "may_ask": In(1),
            "load": In(1),
            "mask": In(MASK_BITS),
            "found": Out(1),
            "spent": Out(1),
            "quotient": Out(DELTA_BITS_MAX + 9),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        # What is left of the mask, and a one behind its last bit; whether any is beyond bit 1.
        left = Signal(MASK_BITS + 1, init=1, reset_less=True)
        more = Signal(reset_less=True)
        passed, passes = Signal(2, reset_less=True), Signal(2)
        closes = Signal(reset_less=True)  # the entry behind these zeros is asked for
        m.d.comb += [
            self.spent.eq(~more & ~left[:2].all()),
            self.found.eq(left[:2].any() & ~self.spent),
        ]
        with m.If(self.wanted):
            with m.If(self.spent):
                m.d.comb += passes.eq(left[1])
                m.d.sync += [left.eq(1), more.eq(0)]
            with m.Elif(~self.found):
                m.d.comb += passes.eq(2)
                m.d.sync += [left.eq(left[2:]), more.eq(left[4:].any())]
            with m.Elif(self.may_ask):
                m.d.comb += passes.eq(~left[0])
                m.d.sync += [
                    left.eq(Mux(left[0], left[1:], left[2:])),
                    more.eq(Mux(left[0], left[3:].any(), left[4:].any())),
                ]
        with m.If(self.load):
            m.d.sync += [left.eq(Cat(self.mask, 1)), more.eq(1)]

        # Columns of a zero, and those of the zeros passed so far.
        column = Signal(DELTA_BITS_MAX + 1, reset_less=True)
        m.d.sync += column.eq(Cat(self.delta_bits == k for k in range(len(column))))
        columns, total = Signal.like(self.quotient, reset_less=True), Signal.like(self.quotient)
        step = Mux(passed[1], column << 1, Mux(passed[0], column, 0))
        m.d.comb += total.eq(columns + Mux(columns[-1], 0, step))
        m.d.sync += [
            passed.eq(passes),
            closes.eq(self.start | (self.wanted & self.found & self.may_ask)),
            self.quotient.eq(total), columns.eq(Mux(closes, 0, total)),
        ]
        with m.If(self.start):
            m.d.sync += [left.eq(1), more.eq(0), passed.eq(0)]
        return m
