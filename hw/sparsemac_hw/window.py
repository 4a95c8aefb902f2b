# SPDX-License-Identifier: Apache-2.0
"""Cuts items of any number of bits out of a stream of beats."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .layouts import index_shape

__all__ = ["BitWindow", "weight_beat_layout"]

#: Bits that the widest item of a stream takes: a header word.
WINDOW_BITS = 32

#: The lower bits of a position, by which the second stage shifts; the first one by the others.
FINE_BITS = 2


def weight_beat_layout(bus_width: int) -> data.StructLayout:
    """One beat of an engine's stream; ``last``: the final one that this EXEC has for the engine."""
    return data.StructLayout({"data": bus_width, "last": 1})


class BitWindow(wiring.Component):
    """Steps over a stream item by item, and shows the bits of each behind a pipeline.

    Where the next item begins depends on how many bits this one has, not on what they say: so the
    shifter that aligns them has registers inside.

    Behind the last beat come zeros, so that whether there is an item does not depend on how long it
    is; that it was cut short is told beside it.

    Latency: an item that is stepped over stands on ``bits`` after `LATENCY_CYCLES` cycles, for one
    cycle. Throughput: one item per cycle.

    Members
    -------
    i : In(stream of weight_beat_layout)
    open : In(1)        Strobe: start with a fresh beat.
    discard : In(1)     Drop beats up to the last one.
    wants : In(1)       Step over the next item as soon as it is ``valid``.
    step_bits : In(6)   How many bits it has, 1 to 32.
    step : Out(1)       It is stepped over in this cycle.
    bits : Out(32)      An item, and what follows it.
    coming : Out(32)    What comes onto ``bits`` in the next cycle.
    short : Out(1)      The item that comes onto ``bits`` in the next cycle is not complete.
    valid : Out(1)      There is a next item.
    ended : Out(1)      The last beat has been taken.
    """

    LATENCY_CYCLES = 2

    i: stream.Interface
    open: Signal
    discard: Signal
    wants: Signal
    step_bits: Signal
    step: Signal
    bits: Signal
    coming: Signal
    valid: Signal
    short: Signal
    ended: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._bus_width = config.bus_width
        super().__init__({
            "i": In(stream.Signature(weight_beat_layout(config.bus_width))),
            "open": In(1),
            "discard": In(1),
            "wants": In(1),
            "step_bits": In(6),
            "step": Out(1),
            "bits": Out(32),
            "coming": Out(32),
            "valid": Out(1),
            "short": Out(1),
            "ended": Out(1, init=1),  # pyright: ignore[reportCallIssue]
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        current = Signal(WINDOW_BITS, reset_less=True)
        following = Signal(WINDOW_BITS, reset_less=True)
        current_valid, following_valid = Signal(), Signal()
        current_real, following_real = Signal(), Signal()  # no zeros behind the stream
        position = Signal(5)

        # Widest step first, and of each step only the bits that the next ones can still reach: half
        # of what a shift of all bits takes.
        coarse = self._shifted(m, Cat(current, following), position, len(position), FINE_BITS)
        aligned = Signal(len(coarse), reset_less=True)
        fine = Signal(FINE_BITS, reset_less=True)
        end = Signal(6)
        m.d.comb += self.coming.eq(self._shifted(m, aligned, fine, FINE_BITS, 0))
        m.d.sync += [
            self.short.eq(~current_real | (~following_real & (end > WINDOW_BITS))),
            aligned.eq(coarse), fine.eq(position),
            self.bits.eq(self.coming),
        ]

        leaves = Signal()  # the item is the last that begins in ``current``
        m.d.comb += [
            end.eq(position + self.step_bits),
            self.valid.eq(current_valid & following_valid),
            self.step.eq(self.wants & self.valid),
            leaves.eq(self.step & end[5]),
        ]
        with m.If(self.step):
            m.d.sync += position.eq(end[:5])

        # A beat waits in a register, its words go to ``following`` and from there to ``current``.
        words = self._bus_width // WINDOW_BITS
        beat = Signal(self._bus_width, reset_less=True)
        beat_valid = Signal()
        word_idx = Signal(index_shape(words))
        moves, refill, take, beat_leaves = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            moves.eq(leaves | ~current_valid),
            refill.eq(moves | ~following_valid),
            take.eq(beat_valid & refill),
            beat_leaves.eq(take & (word_idx == words - 1)),
            # Whether there is room is known from flip-flops, at the cost of a cycle for each beat;
            # beats of a single word could not afford that.
            self.i.ready.eq(
                ~self.ended & (~beat_valid | self.discard | (beat_leaves if words == 1 else 0))),
        ]
        with m.If(moves):
            m.d.sync += [
                current.eq(following), current_valid.eq(following_valid),
                current_real.eq(following_real),
            ]
        with m.If(refill):
            m.d.sync += [
                following.eq(beat.word_select(word_idx, WINDOW_BITS)),
                following_valid.eq(beat_valid | self.ended), following_real.eq(beat_valid),
            ]
        with m.If(take):
            m.d.sync += word_idx.eq((word_idx + 1) & (words - 1))
        with m.If(beat_leaves):
            m.d.sync += beat_valid.eq(0)
        with m.If(~beat_valid | (beat_leaves if words == 1 else 0)):
            m.d.sync += beat.eq(self.i.p.data)
        with m.If(self.i.ready & self.i.valid):
            m.d.sync += [beat_valid.eq(1), self.ended.eq(self.i.p.last)]
        dropped = Signal()  # a cycle late: nothing is stepped over by then
        m.d.sync += dropped.eq(self.discard)
        with m.If(self.open | dropped):
            m.d.sync += [
                current_valid.eq(0), following_valid.eq(0), beat_valid.eq(0), position.eq(0),
                word_idx.eq(0),
            ]
        with m.If(self.open):
            m.d.sync += self.ended.eq(0)
        return m

    @staticmethod
    def _shifted(m: Module, value: Value, amount: Signal, top: int, bottom: int) -> Value:
        """``value`` shifted right by the bits ``bottom`` to ``top - 1`` of ``amount``."""
        shifted = value
        for k in reversed(range(bottom, top)):
            reach = WINDOW_BITS + (1 << k) - 1
            stage = Signal(reach, name=f"shifted_{k}")
            m.d.comb += stage.eq(Mux(amount[k], shifted[1 << k :], shifted[:reach]))
            shifted = stage
        return shifted
