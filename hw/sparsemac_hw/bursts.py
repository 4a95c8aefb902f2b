# SPDX-License-Identifier: Apache-2.0
"""Cuts linear reads into AXI bursts."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in
from sparsemac.config import CoreConfig

from .layouts import burst_layout, index_shape, run_layout, weight_burst_layout

__all__ = ["BurstSplitter"]


class BurstSplitter(wiring.Component):
    """Turns a run of beats into bursts that cover it in order.

    A burst ends where the run ends or at the next multiple of ``burst_beats * bus_bytes`` bytes,
    whichever comes first. So it has 1 to ``burst_beats`` beats and never crosses 4096 bytes.
    Addresses go on modulo 2**32: a run that wraps is for the guard to judge, burst by burst.

    Latency: `LATENCY_CYCLES` from a transfer on ``i`` to the first ``o.valid``. Throughput: one
    burst per 2 cycles, as the read side takes them: so nothing here waits for ``o.ready``.

    Parameters
    ----------
    config : CoreConfig
    run_bits : int      Bits of ``beats`` that count; the others must be 0.  1 to 32.
    closing : bool      Tell of each burst how many of its beats are the last of an engine.

    Members
    -------
    i : In(stream of run_layout)        ``address`` a multiple of a beat, ``beats`` 1 or more.
    o : Out(stream of burst_layout, or of weight_burst_layout with ``closing``)
    """

    LATENCY_CYCLES = 2

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: CoreConfig, run_bits: int = 32, closing: bool = False) -> None:
        self._config = config
        self._closing = closing
        self._run_bits = as_int_in("run_bits", run_bits, 1, 32)
        super().__init__({
            "i": In(stream.Signature(run_layout)),
            "o": Out(stream.Signature(weight_burst_layout(config) if closing else burst_layout)),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    @property
    def run_bits(self) -> int:
        """Bits of ``beats`` that count."""
        return self._run_bits

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        beat_bits = self._config.bus_bytes.bit_length() - 1
        block_beats = self._config.burst_beats
        offset_bits = block_beats.bit_length() - 1
        left_bits = max(self._run_bits, offset_bits + 1)

        active = Signal()
        is_first = Signal()
        # Beats from the block's beginning, 0 but for the first burst; and those to its end.
        offset = Signal(index_shape(block_beats))
        room = Signal(offset_bits + 1)
        # A block's number is loaded by adding it to 0, which takes no multiplexer as loading would.
        block = Signal(32 - beat_bits - offset_bits)
        first_block = Signal.like(block)  # 0 but for the first burst
        this_block = Signal(len(block) + 2)  # below the sum, a bit for the carry
        # Beats left, negated, so that one adder both counts them and tells the last burst by its
        # carry. Complementing is free where negating is not: the first addition makes up for it.
        minus_left = Signal(left_bits)
        total = Signal(left_bits + 2)  # below the sum, a bit that turns ``is_first`` into a carry
        is_last = Signal()
        m.d.comb += [
            total.eq(Cat(1, minus_left) + Cat(is_first, room)),
            is_last.eq(total[-1]),
            this_block.eq(Cat(1, block) + Cat(~is_first, first_block)),
            self.i.ready.eq(~active),
        ]

        address = self.i.payload.address
        step = Signal()
        m.d.comb += step.eq(active & ~self.o.valid)
        with m.If(step):
            m.d.sync += [
                is_first.eq(0),
                offset.eq(0),
                room.eq(block_beats),
                block.eq(this_block[1:]),
                first_block.eq(0),
                minus_left.eq(total[1:]),
                active.eq(~is_last),
                self.o.payload.address.eq(
                    Cat(Const(0, beat_bits), offset[:offset_bits], this_block[1 : 1 + len(block)])
                ),
                self.o.payload.beats.eq(Mux(is_last, ~minus_left + ~is_first, room)),
            ]
            if self._closing:
                m.d.sync += self.o.payload.closing.eq(self._count_closing(total[1:-1], is_last))
        with m.Elif(~active):
            m.d.sync += [
                is_first.eq(1),
                offset.eq(address[beat_bits:][:offset_bits]),
                room.eq(block_beats - address[beat_bits:][:offset_bits]),
                first_block.eq(address[beat_bits + offset_bits :]),
                minus_left.eq(~self.i.payload.beats),
                active.eq(self.i.valid),
            ]
        with m.If(~active):  # outermost, for yosys to see a reset in it
            m.d.sync += block.eq(0)
        with m.If(step | self.o.ready):
            m.d.sync += self.o.valid.eq(step)
        return m

    def _count_closing(self, minus_left: Value, is_last: Value) -> Value:
        """Engines, less the beats that are left behind this burst; 0 if those are more."""
        engines = self._config.engines
        bits = (engines - 1).bit_length()
        spare = (1 << bits) - engines
        low = minus_left[:bits]
        few = minus_left[bits:].all() & (low > spare)
        return Mux(is_last, engines, Mux(few, low - spare, 0))
