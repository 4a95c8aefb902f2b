# SPDX-License-Identifier: Apache-2.0
"""The store: takes output words from the engines and writes them to memory."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .bus import ID_BITS
from .layouts import burst_layout, fault_layout, out_beat_layout, words_per_beat
from .merger import WordMerger
from .streams import Queue

__all__ = ["Writer"]

#: AXI4 (IHI 0022, A3.4.4): ``BRESP`` of a write that succeeded.
OKAY = 0b00

#: ``detail`` of a fault on the write side: this for PROTO, beside the response for BUS.
WRITE_BIT_PROTO = 1
WRITE_BIT_BUS = 1 << 2


class Writer(wiring.Component):
    """Writes each output word as one burst, engines in turn; the only driver of the W pins.

    The address of a word is ``output + (out_word << log2(bytes of a word))`` modulo 2**32. A word
    of a beat or more is ``bytes / bus_bytes`` full beats; shorter ones come together in a beat,
    with strobes at those that are ``filled``. A burst is asked for on ``o_burst`` when all its
    beats are here, and its beats go out only after the guard's ``granted``: so W never waits for
    an engine, and never carries what the guard has not let out. After ``denied`` nothing more is
    asked for: the job has failed, and the guard has been stopped before it could answer again.

    ``clear`` (a soft reset) forgets all words, and which responses are outstanding: responses of
    another ``epoch`` are *stale*, and counted no more. Beats of bursts that have been granted are
    *owed*, since AXI cannot withdraw a burst; they still go out, with all strobes 0 (but a beat
    that is on the pins already stays as it is, A3.2.1). Until the last of them is on the pins no
    beat is taken from the engines.

    Latency: `LATENCY_CYCLES` from the last beat of a word on ``i`` to ``o_burst.valid``, for an
    idle writer. Throughput: one beat per cycle, so a word per cycle if it has one beat and the
    guard keeps up; see `WordMerger` for a lone engine.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i : In(stream of out_beat_layout).array(engines)   Output words; beats of a word in a row.
    output : In(32)                Byte address of output word 0; constant until ``idle``.
    o_burst : Out(stream of burst_layout)              Requests to the guard.
    granted, denied : In(1)        Its answer to the oldest request, a strobe, in a later cycle.
    wdata, wstrb, wlast, wvalid, bready : Out; wready, bvalid, bresp, bid : In     The pins.
    epoch : In(4)                  ID of the bursts that are let out now.
    clear : In(1)                  Strobe: soft reset. The guard answers no request of before.
    outstanding : Out(16)          Bursts of this epoch that were granted and await their response.
    owed : Out(1)                  Beats of granted bursts have still to go.
    idle : Out(1)                  No word is here, and no response outstanding; a fault of the last
                                   one shows in the first such cycle.
    fault : Out(fault_layout), fault_valid : Out(1)    Strobe, with BUS or PROTO and the address of
                                   the oldest outstanding burst (0 if there is none); no command.
    stale : Out(1)                 Strobe: a response of another epoch.
    beat : Out(1), beat_bytes : Out(8)                 A beat leaves, with so many bytes strobed.
    """

    LATENCY_CYCLES = 5

    #: Bursts that may await their response.
    MAX_OUTSTANDING = 16

    i: Any
    output: Signal
    o_burst: stream.Interface
    granted: Signal
    denied: Signal
    wdata: Signal
    wstrb: Signal
    wlast: Signal
    wvalid: Signal
    wready: Signal
    bid: Signal
    bresp: Signal
    bvalid: Signal
    bready: Signal
    epoch: Signal
    clear: Signal
    outstanding: Signal
    owed: Signal
    idle: Signal
    fault: Any
    fault_valid: Signal
    stale: Signal
    beat: Signal
    beat_bytes: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__({
            "i": In(stream.Signature(out_beat_layout(config))).array(config.engines),
            "output": In(32),
            "o_burst": Out(stream.Signature(burst_layout)),
            "granted": In(1),
            "denied": In(1),
            "wdata": Out(config.bus_width),
            "wstrb": Out(config.bus_bytes),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bid": In(ID_BITS),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "epoch": In(ID_BITS),
            "clear": In(1),
            "outstanding": Out(16),
            "owed": Out(1),
            "idle": Out(1),
            "fault": Out(fault_layout),
            "fault_valid": Out(1),
            "stale": Out(1),
            "beat": Out(1),
            "beat_bytes": Out(8),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    # -- geometry of a word ---------------------------------------------------------------------

    @property
    def _beat_bits(self) -> int:
        return self._config.bus_bytes.bit_length() - 1

    def _word_bits(self, raw: bool) -> int:
        return self._config.out_word_bytes(raw).bit_length() - 1

    def _word_beats(self, raw: bool) -> int:
        return max(1, self._config.out_word_bytes(raw) // self._config.bus_bytes)

    @property
    def _depth(self) -> int:
        """Beats that wait here: two of the longest words, so that one comes while one goes."""
        return max(16, 2 * self._word_beats(raw=True))

    # -- gateware -------------------------------------------------------------------------------

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        reset = ResetInserter(self.clear)
        m.submodules.merger = merger = reset(WordMerger(self._config))
        # Words: their beats on one side, on the other what the address of their burst follows from.
        flush = Signal()
        queued_layout = self._queued_layout()
        m.submodules.beats = self._beats = ResetInserter(flush)(Queue(queued_layout, self._depth))
        m.submodules.bursts = self._bursts = reset(
            Queue(1 + 32, self._depth // self._word_beats(raw=False), block=True)
        )
        # Addresses of bursts that await their response, for the fault record.
        m.submodules.awaited = self._awaited = reset(
            Queue(32 - self._beat_bits, self.MAX_OUTSTANDING, block=True)
        )
        for e in range(self._config.engines):
            wiring.connect(m, wiring.flipped(self.i[e]), merger.i[e])
        # The guard's answer goes far: from flip-flops. A burst granted as ``clear`` came is still
        # owed, but of another epoch.
        self._owes, self._granted = Signal(), Signal()
        m.d.sync += [self._owes.eq(self.granted), self._granted.eq(self.granted & ~self.clear)]
        purge = Signal()  # after ``clear``, until all that is owed is gone
        answered = Signal()  # a response of this epoch, to a burst whose data is complete
        self._enqueue(m, merger, purge)
        self._request(m, answered)
        left = self._send(m, purge, flush)
        self._respond(m, answered, left)
        m.d.comb += self.idle.eq(
            ~(merger.o_valid | self._beats.level.any() | self.wvalid | self.outstanding.any()
              | purge)
        )
        return m

    def _queued_layout(self) -> data.StructLayout:
        return data.StructLayout({
            "data": self._config.bus_width,
            "filled": words_per_beat(self._config),
            "last": 1,
        })

    def _enqueue(self, m: Module, merger: WordMerger, purge: Signal) -> None:
        """Queues the beat that the merger gives out."""
        beats, bursts, beat = self._beats, self._bursts, merger.o
        room = Signal()
        m.d.comb += [
            beats.i.payload.data.eq(beat.data),
            beats.i.payload.filled.eq(beat.filled),
            beats.i.payload.last.eq(beat.last),
            beats.i.valid.eq(merger.o_valid),
            bursts.i.payload.eq(Cat(beat.raw, beat.out_word)),
            bursts.i.valid.eq(merger.o_valid & beat.last),
            merger.room.eq(room),
        ]
        # Seen a cycle late, with one beat on its way through the merger and one behind it.
        m.d.sync += room.eq((beats.level <= self._depth - 3) & ~purge & ~self.clear)

    def _request(self, m: Module, answered: Signal) -> None:
        """Asks for bursts, and keeps the address of the one that waits for its answer."""
        bursts, ask = self._bursts, self.o_burst
        # The guard may take the next request with its answer to this one.
        asked = Signal.like(self._awaited.i.payload, reset_less=True)
        granted_address = Signal.like(asked)
        # Asked for, or outstanding; what was taken in the last cycle is still to be counted.
        committed = Signal(range(self.MAX_OUTSTANDING + 1))
        taken_before = Signal()
        full = Signal()
        halted = Signal()
        taken = Signal()
        # A request stands in flip-flops: the windows are looked up on its way out. It comes from
        # an address that no next EXEC has changed: none begins before all words are written.
        burst = Signal(1 + 32 - self._beat_bits, reset_less=True)
        is_raw, out_word = bursts.o.payload[0], bursts.o.payload[1:]
        scaled = [(out_word << self._word_bits(raw))[:32] for raw in (False, True)]
        address = (self.output + Mux(is_raw, scaled[1], scaled[0]))[self._beat_bits : 32]
        m.d.comb += [
            ask.payload.address.eq(burst[1:] << self._beat_bits),
            ask.payload.beats.eq(Mux(burst[0], self._word_beats(True), self._word_beats(False))),
            bursts.o.ready.eq((~ask.valid | ask.ready) & ~halted & ~full),
            taken.eq(bursts.o.valid & bursts.o.ready),
            full.eq(committed[-1] | (committed[:-1].all() & taken_before)),
            self._awaited.i.payload.eq(granted_address),
            self._awaited.i.valid.eq(self._granted),
        ]
        m.d.sync += granted_address.eq(asked)
        with m.If(~ask.valid | ask.ready):
            m.d.sync += [burst.eq(Cat(is_raw, address)), ask.valid.eq(taken)]
        with m.If(ask.valid & ask.ready):
            m.d.sync += asked.eq(burst[1:])
        with m.If(self.denied):
            m.d.sync += [halted.eq(1), ask.valid.eq(0)]
        m.d.sync += [
            taken_before.eq(taken),
            committed.eq(committed + _step(committed, taken_before, answered)),
        ]
        with m.If(self.clear):
            m.d.sync += [
                halted.eq(0), committed.eq(0), taken_before.eq(0), ask.valid.eq(0),
            ]
        m.d.comb += self.outstanding.eq(self._awaited.level)

    def _send(self, m: Module, purge: Signal, flush: Signal) -> Signal:
        """Moves beats of granted words to the pins; returns the strobe of a burst's last beat."""
        beats = self._beats
        # Granted, not all on the pins yet; and whether there are any.
        owed_words = Signal(range(self.MAX_OUTSTANDING + 1))
        owes_words = Signal()
        ends_word = Signal()
        free = Signal()
        current = Signal()  # the beat on the pins is of this epoch
        take = Signal()
        idle_strobes = Signal()
        m.d.comb += [
            free.eq(~self.wvalid | self.wready),
            beats.o.ready.eq(free & owes_words),
            take.eq(beats.o.valid & beats.o.ready),
            ends_word.eq(take & beats.o.payload.last),
            idle_strobes.eq(purge | self.clear),
            flush.eq(purge & ~owes_words & ~self._owes),
            self.owed.eq(self.wvalid | owes_words | self._owes),
            self.beat.eq(self.wvalid & self.wready),
        ]
        strobes, count = self._strobes(beats.o.payload)
        m.d.sync += [
            owed_words.eq(owed_words + _step(owed_words, self._owes, ends_word)),
            owes_words.eq(self._owes | (owes_words & ~(ends_word & (owed_words == 1)))),
        ]
        with m.If(free):
            m.d.sync += [
                self.wvalid.eq(take),
                self.wdata.eq(beats.o.payload.data),
                self.wlast.eq(beats.o.payload.last),
                self.wstrb.eq(Mux(idle_strobes, 0, strobes)),
                self.beat_bytes.eq(Mux(idle_strobes, 0, count)),
                current.eq(~idle_strobes),
            ]
        with m.If(self.clear):
            m.d.sync += [purge.eq(1), current.eq(0)]
        with m.Elif(flush):
            m.d.sync += purge.eq(0)
        left = Signal()
        m.d.comb += left.eq(self.beat & self.wlast & current)
        return left

    def _strobes(self, beat: data.View) -> tuple[Value, Value]:
        """Which bytes of a queued beat belong to its words, and how many."""
        size = self._config.bus_bytes // len(beat.filled)
        strobes = Cat(filled.replicate(size) for filled in beat.filled)
        return strobes, _count_ones(list(beat.filled)) * size

    def _respond(self, m: Module, answered: Signal, left: Signal) -> None:
        """Judges responses, a cycle after they came."""
        arrived = Signal()
        response = Signal(2, reset_less=True)
        # Bursts that left and await theirs; and whether there are any.
        complete = Signal(range(self.MAX_OUTSTANDING + 1))
        any_complete = Signal()
        mine = Signal()
        # The epoch may change under a response that is in this stage: it is judged on its way in.
        m.d.sync += [
            arrived.eq(self.bvalid), response.eq(self.bresp),
            mine.eq(self.bvalid & (self.bid == self.epoch) & ~self.clear),
        ]
        m.d.comb += [
            self.stale.eq(arrived & ~mine),
            # A stray response is swallowed and never counted: the burst's own is still to come.
            answered.eq(mine & any_complete),  # what counts them is cleared itself
            self._awaited.o.ready.eq(answered),
        ]
        m.d.sync += [
            complete.eq(complete + _step(complete, left, answered)),
            any_complete.eq(left | (any_complete & ~(answered & (complete == 1)))),
        ]
        with m.If(self.clear):
            m.d.sync += [complete.eq(0), any_complete.eq(0)]
        m.d.comb += self.bready.eq(1)
        # Registers, whose own reset makes the 0 where no burst is outstanding.
        m.d.sync += [
            self.fault_valid.eq(
                mine & (~any_complete | (response != OKAY)) & ~self.clear),
            self.fault.address.eq(self._awaited.o.payload << self._beat_bits),
            self.fault.code.eq(Mux(any_complete, FaultCode.BUS, FaultCode.PROTO)),
            self.fault.detail.eq(
                Mux(any_complete, response | WRITE_BIT_BUS, WRITE_BIT_PROTO)),
        ]
        with m.If(~self._awaited.o.valid):
            m.d.sync += self.fault.address.eq(0)


def _step(count: Signal, up: Value, down: Value) -> Value:
    """One more, one less or nothing, to add to ``count`` with a single adder."""
    return Cat(up ^ down, (down & ~up).replicate(len(count) - 1))


def _count_ones(bits: list[Value]) -> Value:
    """Adds bits up in a balanced tree."""
    if len(bits) == 1:
        return bits[0]
    half = len(bits) // 2
    return _count_ones(bits[:half]) + _count_ones(bits[half:])
