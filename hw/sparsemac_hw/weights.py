# SPDX-License-Identifier: Apache-2.0
"""Fetches the interleaved weight streams and deals their beats out to the engines."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .bursts import BurstSplitter
from .layouts import index_shape, run_layout, weight_burst_layout
from .streams import Queue, connect_stream
from .window import weight_beat_layout

__all__ = ["WeightFetch"]


class WeightFetch(wiring.Component):
    """Reads runs of interleaved streams; beat ``i`` of a run goes to engine ``i % engines``.

    A burst is asked for only when every engine has room for its share: what is asked for and not
    yet taken by the slowest engine never exceeds ``fifo_depth`` beats per engine. So the read data
    channel never stalls. Runs follow one another without waiting: the next EXEC's weights arrive
    behind those of the EXEC at work.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    run : In(stream of run_layout)          Streams of one EXEC; ``beats`` a multiple of engines.
    o_burst : Out(stream of weight_burst_layout)   To the read side.
    i : In(stream of weight_beat_layout)    Beats from the read side, always ready.
    o : Out(stream of weight_beat_layout).array(engines)
    """

    run: stream.Interface
    o_burst: stream.Interface
    i: stream.Interface
    o: Any

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        beat = weight_beat_layout(config.bus_width)
        super().__init__({
            "run": In(stream.Signature(run_layout)),
            "o_burst": Out(stream.Signature(weight_burst_layout(config))),
            "i": In(stream.Signature(beat, always_ready=True)),
            "o": Out(stream.Signature(beat)).array(config.engines),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.splitter = splitter = BurstSplitter(self._config, closing=True)
        connect_stream(m, wiring.flipped(self.run), splitter.i)
        self._gate(m, splitter)
        self._deal(m)
        return m

    def _gate(self, m: Module, splitter: BurstSplitter) -> None:
        """Lets a burst pass when there is room for it behind the slowest engine."""
        config = self._config
        capacity = config.fifo_depth * config.engines
        space = Signal(range(capacity + 1), init=capacity)
        # A burst waits beside the splitter, until it is known that there is room for it.
        burst: Any = Signal(weight_burst_layout(config), reset_less=True)
        held = Signal()
        room = Signal()
        granted = Signal()
        m.d.comb += [
            self.o_burst.p.eq(burst),
            self.o_burst.valid.eq(room),
            granted.eq(room & self.o_burst.ready),
            splitter.o.ready.eq(~held),
        ]
        with m.If(~held):
            m.d.sync += [burst.eq(splitter.o.p), held.eq(splitter.o.valid)]
        with m.Elif(granted):
            m.d.sync += held.eq(0)
        enough = space >= Mux(held, burst.beats, splitter.o.p.beats)
        m.d.sync += room.eq((held | splitter.o.valid) & ~granted & enough)
        # ahead[e]: beats that engine e has taken beyond the rounds that all engines have taken.
        ahead = [Signal(range(config.fifo_depth + 1), name=f"ahead_{e}")
                 for e in range(config.engines)]
        round_done = Signal()
        m.d.comb += round_done.eq(Cat(a != 0 for a in ahead).all())
        for e, count in enumerate(ahead):
            taken = self.o[e].valid & self.o[e].ready
            m.d.sync += count.eq(count + taken - round_done)
        # One adder, below its sum a bit that makes a carry: what is given waits while a burst is
        # granted, of which none follows another at once.
        given = Signal(range(2 * config.engines + 1))
        step = Signal.like(space)
        m.d.comb += step.eq(Mux(granted, ~Cat(burst.beats, Const(0, len(space))), given))
        m.d.sync += [
            space.eq((Cat(granted, space) + Cat(granted, step))[1:]),
            given.eq(Mux(granted, given, 0) + Mux(round_done, config.engines, 0)),
        ]

    def _deal(self, m: Module) -> None:
        """Writes each beat into its engine's FIFO."""
        config = self._config
        engine_idx = Signal(index_shape(config.engines))
        write = Signal(config.engines)
        m.d.comb += write.eq(self.i.valid << engine_idx)
        with m.If(self.i.valid):
            m.d.sync += engine_idx.eq(engine_idx + 1)
            with m.If(engine_idx == config.engines - 1):
                m.d.sync += engine_idx.eq(0)
        for e in range(config.engines):
            fifo = Queue(weight_beat_layout(config.bus_width), config.fifo_depth)
            m.submodules[f"fifo_{e}"] = fifo
            m.d.comb += [fifo.i.p.eq(self.i.p), fifo.i.valid.eq(write[e])]
            connect_stream(m, fifo.o, wiring.flipped(self.o[e]))
