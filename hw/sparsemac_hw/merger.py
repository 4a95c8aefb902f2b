# SPDX-License-Identifier: Apache-2.0
"""Merges the output words of all engines into one sequence of beats."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .layouts import out_beat_layout

__all__ = ["WordMerger"]


class WordMerger(wiring.Component):
    """Takes whole words from the engines in turn, and gives their beats out one after another.

    The engine of the next word is chosen while the last beat of this one leaves, among the others
    that have a word; with none, this engine keeps its turn. So the choice is a register, and words
    of one beat follow one another without a gap when two engines have them.

    Latency: 1 cycle from a transfer on ``i`` to ``o_valid``, 2 if the engine has yet to be chosen.

    Members
    -------
    i : In(stream of out_beat_layout).array(engines)
    o : Out(out_beat_layout), o_valid : Out(1)     A beat, for one cycle.
    room : In(1)                                   A beat may be taken in this cycle.
    """

    i: Any
    o: Any
    o_valid: Signal
    room: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._layout = out_beat_layout(config.bus_width)
        self._engines = config.engines
        super().__init__({
            "i": In(stream.Signature(self._layout)).array(config.engines),
            "o": Out(self._layout),
            "o_valid": Out(1),
            "room": In(1),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        turn = Signal(self._engines, init=1)  # one-hot
        valids = Cat(stream_in.valid for stream_in in self.i)
        merged = Signal(self._layout)
        offered = Signal()
        take = Signal()
        inside = Signal()  # between two beats of a word
        masked = [
            Value.cast(self.i[e].payload) & turn[e].replicate(self._layout.size)
            for e in range(self._engines)
        ]
        for e in range(self._engines):
            m.d.comb += self.i[e].ready.eq(turn[e] & self.room)
        m.d.comb += [
            Value.cast(merged).eq(_any_of(masked)),
            offered.eq((valids & turn).any()),
            take.eq(offered & self.room),
        ]
        value = Signal(self._layout, reset_less=True)
        m.d.sync += [value.eq(merged), self.o_valid.eq(take)]
        m.d.comb += self.o.eq(value)
        with m.If(take):
            m.d.sync += inside.eq(~merged.last)
        others = valids & ~turn
        with m.If(others.any() & Mux(offered, take & merged.last, ~inside)):
            m.d.sync += turn.eq(self._next(m, turn, others))
        return m

    def _next(self, m: Module, turn: Signal, others: Value) -> Value:
        """The first of ``others`` behind the engine whose turn it is; then from engine 0 on."""
        behind = Signal(self._engines)
        chosen = Signal(self._engines)
        m.d.comb += [
            behind.eq(others & ~(turn | (turn - 1))),
            chosen.eq(Mux(behind.any(), behind & -behind, others & -others)),
        ]
        return chosen


def _any_of(values: list[Value]) -> Value:
    result = values[0]
    for value in values[1:]:
        result = result | value
    return result
