# SPDX-License-Identifier: Apache-2.0
"""Collects the results of the lanes into beats of output words."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in
from sparsemac.config import CoreConfig

from .layouts import index_shape, out_beat_layout, result_layout, words_per_beat
from .streams import Queue

__all__ = ["Assembler"]


class Assembler(wiring.Component):
    """Makes an output word of ``lanes`` results, lane 0 first, which is also lane 0 lowest.

    Results are bytes, or little-endian words of 4 bytes if ``raw``. A word longer than a beat makes
    several beats; a shorter one goes to its ``place``, and the beat leaves with the word that
    ``closes`` it. Nothing here can stall: whoever feeds it holds a credit for each of ``words``
    output words, and gets it back with ``popped``, or with ``merged`` when the word shares its beat
    with the next one.

    Latency: `LATENCY_CYCLES` from the last result of a beat to ``o.valid`` (one more if the queue
    is deep). Throughput: one result, and one beat, per cycle.

    Parameters
    ----------
    config : CoreConfig
    words : int       Output words of any kind that the queue holds.

    Members
    -------
    i_valid : In(1), i : In(result_layout)     Results of one lane; ``raw`` is the same for all
                                               lanes of a word, as is ``out_word``.
    o : Out(stream of out_beat_layout)         Beats.
    popped : Out(1)                            Strobe: a beat leaves with the end of a word.
    merged : Out(1)                            Strobe: a word is in, and its beat waits for more.
    """

    LATENCY_CYCLES = 2

    i_valid: Signal
    i: Any
    o: stream.Interface
    popped: Signal
    merged: Signal

    def __init__(self, config: CoreConfig, words: int = 4) -> None:
        self._config = config
        self._words = as_int_in("words", words, 1, 256)
        super().__init__({
            "i_valid": In(1),
            "i": In(result_layout(config)),
            "o": Out(stream.Signature(out_beat_layout(config))),
            "popped": Out(1),
            "merged": Out(1),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    @property
    def words(self) -> int:
        """Output words that the queue holds."""
        return self._words

    @property
    def _raw_beats(self) -> int:
        return max(1, self._config.out_word_bytes(raw=True) // self._config.bus_bytes)

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        layout = out_beat_layout(self._config)
        m.submodules.beats = beats = Queue(layout, self._words * self._raw_beats)
        beat = Signal(layout, reset_less=True)
        complete = Signal()
        opened = Signal()  # the beat holds words already
        lane = Signal(index_shape(self._config.lanes))
        if words_per_beat(self._config) == 1:
            self._shift_words(m, beat.data, lane)
        else:
            self._shift(m, beat.data)
        first, last = self._count(m, lane)
        m.d.sync += complete.eq(self.i_valid & last & self.i.closes)
        with m.If(self.i_valid):
            m.d.sync += [
                beat.out_word.eq(self.i.out_word),
                beat.raw.eq(self.i.raw),
                beat.first.eq(first),
                beat.last.eq(self.i.last_lane),
                beat.filled.eq(Mux(opened, beat.filled, 0) | Cat(self._slots())),
            ]
            with m.If(self.i.last_lane):
                m.d.sync += opened.eq(~self.i.closes)
        m.d.comb += [
            beats.i.valid.eq(complete),
            beats.i.payload.eq(beat),
            self.popped.eq(self.o.valid & self.o.ready & self.o.payload.last),
            self.merged.eq(self.i_valid & self.i.last_lane & ~self.i.closes),
        ]
        wiring.connect(m, beats.o, wiring.flipped(self.o))
        return m

    def _per_beat(self, raw: bool) -> int:
        """Results in one beat."""
        result_bytes = 4 if raw else 1
        return min(self._config.lanes, self._config.bus_bytes // result_bytes)

    def _slots(self) -> list[Value]:
        """Which places, in words of int8, the word on ``i`` covers."""
        count = words_per_beat(self._config)
        if count == 1:
            return [Const(1)]
        place = self.i.place
        return [Mux(self.i.raw, place[2:] == k >> 2, place == k) for k in range(count)]

    def _shift_words(self, m: Module, beat: Signal, lane: Signal) -> None:
        """Shifts results in from above, four bytes together: so the beat needs no multiplexer."""
        recent = Signal(24, reset_less=True)
        value, raw = self.i.value, self.i.raw
        with m.If(self.i_valid):
            m.d.sync += recent.eq(Cat(recent[8:], value[:8]))
            with m.If(raw | lane[:2].all()):
                together = Mux(raw, value, Cat(recent, value[:8]))
                m.d.sync += beat.eq(Cat(beat, together[:32])[32:])

    def _shift(self, m: Module, beat: Signal) -> None:
        """Shifts each result in from above, by a byte or by four, at the place of its word.

        One register does for both: the multiplexer before each bit is the one that two registers
        would need behind them. Each word's place is a ring of its own.
        """
        shifted = []
        for raw, width in ((False, 8), (True, 32)):
            count = self._per_beat(raw)
            cells = []
            for k in range(len(beat) // width):
                if k % count == count - 1:
                    cells.append(self.i.value[:width])
                else:
                    cells.append(beat.word_select(k + 1, width))
            shifted.append(Cat(cells))
        slots = self._slots()
        size = len(beat) // len(slots)
        for k, slot in enumerate(slots):
            part = slice(k * size, (k + 1) * size)
            with m.If(self.i_valid & slot):
                m.d.sync += beat[part].eq(Mux(self.i.raw, shifted[1][part], shifted[0][part]))

    def _count(self, m: Module, lane: Signal) -> tuple[Any, Any]:
        """Whether the result now on ``i`` is in the first beat of its word, and ends its beat."""
        with m.If(self.i_valid):
            m.d.sync += lane.eq((lane + 1) & (self._config.lanes - 1))
        in_first, ends = {}, {}
        for raw in (False, True):
            count = self._per_beat(raw)
            in_first[raw] = lane < count
            ends[raw] = (lane & (count - 1)) == count - 1
        return (
            Mux(self.i.raw, in_first[True], in_first[False]),
            Mux(self.i.raw, ends[True], ends[False]),
        )
