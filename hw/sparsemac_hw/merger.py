# SPDX-License-Identifier: Apache-2.0
"""Merges the output words of all engines into one sequence of beats."""

from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .layouts import out_beat_layout

__all__ = ["WordMerger"]


class WordMerger(wiring.Component):
    """Takes whole words from the engines in turn, and gives their beats out one after another.

    The turn passes on after a word, or after a cycle without one. An engine thus waits at most for
    one word of each other engine, and while all have words there is no gap; a lone engine gets a
    word into every turn of ``engines`` cycles. Nothing looks ahead for the next engine that has a
    word: that would be the longest path of the store, and an engine makes no word more often than
    every ``lanes`` cycles.

    Latency: 1 cycle from a transfer on ``i`` to ``o_valid``.

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
        self._layout = out_beat_layout(config)
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
        merged = Signal(self._layout)
        offered = Signal()
        inside = Signal()  # between two beats of a word
        value = Signal(self._layout, reset_less=True)
        masked = [
            Value.cast(self.i[e].payload) & turn[e].replicate(self._layout.size)
            for e in range(self._engines)
        ]
        m.d.comb += [
            Value.cast(merged).eq(reduce(or_, masked)),
            offered.eq(Cat(self.i[e].valid & turn[e] for e in range(self._engines)).any()),
            self.o.eq(value),
        ]
        for e in range(self._engines):
            m.d.comb += self.i[e].ready.eq(turn[e] & self.room)
        m.d.sync += [value.eq(merged), self.o_valid.eq(offered & self.room)]
        with m.If(offered & self.room):
            m.d.sync += inside.eq(~merged.last)
        with m.If(Mux(offered, self.room & merged.last, ~inside)):
            m.d.sync += turn.eq(turn.rotate_left(1))
        return m
