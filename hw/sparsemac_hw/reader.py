# SPDX-License-Identifier: Apache-2.0
"""The read side of the AXI4 master: three requesters, one channel of beats in order."""

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode

from .bus import ID_BITS
from .layouts import beat_layout, burst_layout, fault_layout, index_shape, weight_burst_layout
from .streams import Queue
from .window import weight_beat_layout

__all__ = ["ReadClient", "Reader"]

#: AXI4 (IHI 0022, A3.4.4): ``RRESP`` of a normal access that succeeded.
RESP_OKAY = 0b00


class ReadClient(enum.Enum, shape=2):
    """Who asked for a burst."""

    COMMANDS = 0
    LOAD = 1
    WEIGHTS = 2


class Reader(wiring.Component):
    """Merges read requests, and hands each beat to the requester it belongs to.

    Commands go first, then loads and weights take turns. All bursts carry one AXI ID, the epoch, so
    beats come back in the order of the requests. The read data channel is never stalled: who asks
    for a beat has room for it.

    Each beat is checked before it is handed on:

    - of another epoch: dropped, strobe ``stale``;
    - of this epoch, though nothing is outstanding: dropped, fault PROTO (address 0);
    - a response other than OKAY: fault BUS, the response as its detail;
    - RLAST where the burst does not end, or none where it does: fault PROTO.

    The beat at fault and all beats after it are swallowed until ``clear``.

    Latency: `LATENCY_CYCLES` from a beat on the pins to the client, and to ``fault_valid``.
    Throughput: one beat per cycle; one burst per 2 cycles (which cuts the path from ARREADY,
    through the guard, to the requesters).

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    commands, load : In(stream of burst_layout)            Requests, beat-aligned, 1 to
    weights : In(stream of weight_burst_layout)            ``burst_beats`` beats, that do not cross
                                                           a block of as many.
    o_burst : Out(stream of burst_layout)                  Requests in order, to the read guard.
    o_commands, o_load : Out(stream of beat_layout)        Beats; always ready.
    o_weights : Out(stream of weight_beat_layout)          The same; each is ``last`` if its burst
                                                           says so.
    epoch : In(4)                     ID of the bursts that are issued now.
    issued : In(1), issued_beats : In(9)    Strobe: a burst of this epoch has left on AR, at least
                                      two cycles after it was taken (`Guard.LATENCY_CYCLES`).
    clear : In(1)                     Forget all requests. What is outstanding becomes stale; if
                                      anything is, ``epoch`` must change with the next cycle.
    rid, rdata, rresp, rlast, rvalid : In; rready : Out    The pins of R.
    fault_valid : Out(1), fault : Out(fault_layout)        Strobe, and which fault.
    culprit : Out(ReadClient)         With ``fault_valid``, whose burst it was; else, who made the
                                      newest request that the guard has taken.
    outstanding : Out(16)             Beats of this epoch still to come; in the cycle behind
                                      ``clear``, of the one before.
    stale_outstanding : Out(16)       Beats of earlier epochs still to come, those of ``clear`` two
                                      cycles behind it.
    owes_stale : Out(1)               There are any of them.
    stale : Out(1)                    Strobe: a beat of another epoch was dropped.
    beat : Out(1)                     Strobe: a beat of this epoch has come.
    """

    LATENCY_CYCLES = 2
    BURSTS_UNDER_WAY = 16

    commands: stream.Interface
    load: stream.Interface
    weights: stream.Interface
    o_burst: stream.Interface
    o_commands: stream.Interface
    o_load: stream.Interface
    o_weights: stream.Interface
    epoch: Signal
    issued: Signal
    issued_beats: Signal
    clear: Signal
    rid: Signal
    rdata: Signal
    rresp: Signal
    rlast: Signal
    rvalid: Signal
    rready: Signal
    fault_valid: Signal
    fault: data.View
    culprit: enum.EnumView
    outstanding: Signal
    stale_outstanding: Signal
    owes_stale: Signal
    stale: Signal
    beat: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        beats = stream.Signature(beat_layout(config.bus_width), always_ready=True)
        super().__init__({
            "commands": In(stream.Signature(burst_layout)),
            "load": In(stream.Signature(burst_layout)),
            "weights": In(stream.Signature(weight_burst_layout(config))),
            "o_burst": Out(stream.Signature(burst_layout)),
            "o_commands": Out(beats),
            "o_load": Out(beats),
            "o_weights": Out(stream.Signature(
                weight_beat_layout(config.bus_width), always_ready=True)),
            "epoch": In(ID_BITS),
            "issued": In(1),
            "issued_beats": In(9),
            "clear": In(1),
            "rid": In(ID_BITS),
            "rdata": In(config.bus_width),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
            "fault_valid": Out(1),
            "fault": Out(fault_layout),
            "culprit": Out(ReadClient),
            "outstanding": Out(16),
            "stale_outstanding": Out(16),
            "owes_stale": Out(1),
            "stale": Out(1),
            "beat": Out(1),
        })
        self._beat_bits = config.bus_bytes.bit_length() - 1
        self._index_bits = index_shape(config.burst_beats).width
        # As narrow as it gets on the way: address in beats, and the beats of a burst less one.
        self._track_layout = data.StructLayout({
            "client": ReadClient,
            "address": 32 - self._beat_bits,
            "last_idx": self._index_bits,
            "single": 1,  # it is 0
            "closing": range(config.engines + 1),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        self._owed = Signal()  # beats of this epoch are outstanding
        self._newest = Signal(ReadClient)  # who made the newest request
        self._tracking = tracking = Queue(self._track_layout, self.BURSTS_UNDER_WAY, block=True)
        m.submodules.tracking = ResetInserter(self.clear)(tracking)
        self._arbitrate(m, tracking.i)
        self._check(m, tracking.o)
        return m

    def _arbitrate(self, m: Module, track: stream.Interface) -> None:
        """Picks a request, notes whose it is, and holds it until the guard takes it."""
        held = Signal()  # a request stands in its client's register
        asked = self.o_burst.valid  # one stands before the guard
        request_layout = data.StructLayout({
            name: field.shape for name, field in self._track_layout
            if name not in ("client", "single")})
        client, asking = Signal(ReadClient), Signal(ReadClient)
        vacant = Signal()
        taken = Signal()
        weights_turn = Signal()
        choice = Signal(ReadClient)
        requests = {
            ReadClient.COMMANDS: self.commands,
            ReadClient.LOAD: self.load,
            ReadClient.WEIGHTS: self.weights,
        }
        with m.If(self.commands.valid):
            m.d.comb += choice.eq(ReadClient.COMMANDS)
        with m.Elif(self.weights.valid & (weights_turn | ~self.load.valid)):
            m.d.comb += choice.eq(ReadClient.WEIGHTS)
        with m.Else():
            m.d.comb += choice.eq(ReadClient.LOAD)

        # A register for each client, which its own reset keeps at 0 unless that is chosen: so a
        # multiplexer of requests is no more than an OR.
        # A burst is noted in the cycle after the guard has taken it, so from flip-flops: still
        # before it is on the pins, so no beat of it can be here before the note.
        noted = Signal()
        level = self._tracking.level
        full = level[-1] | (level[:-1].all() & (noted | asked))
        m.d.comb += [vacant.eq(~held & ~full), taken.eq(0)]
        m.d.sync += noted.eq(asked & self.o_burst.ready & ~self.clear)
        merged: Value = Const(0, request_layout.size)
        for source, request in requests.items():
            kept = Signal(request_layout, name=f"kept_{source.name.lower()}", reset_less=True)
            chosen = choice == source
            m.d.comb += request.ready.eq(vacant & chosen)
            with m.If(~held):
                m.d.sync += [
                    kept.address.eq(request.payload.address[self._beat_bits :]),
                    kept.last_idx.eq(request.payload.beats - 1),
                ]
                if source == ReadClient.WEIGHTS:
                    m.d.sync += kept.closing.eq(request.payload.closing)
            with m.If(~held & ~chosen):
                m.d.sync += kept.eq(0)
            with m.If(request.valid & request.ready):
                m.d.comb += taken.eq(1)
            merged = merged | Value.cast(kept)
        request = Signal(request_layout, reset_less=True)
        with m.If(~held):
            m.d.sync += [client.eq(choice), held.eq(taken)]
        with m.Elif(~asked):
            m.d.sync += held.eq(0)
        with m.If(~asked):
            m.d.sync += [asked.eq(held), asking.eq(client), Value.cast(request).eq(merged)]
        with m.Elif(self.o_burst.ready):
            m.d.sync += [asked.eq(0), self._newest.eq(asking)]
        with m.If(self.clear):
            m.d.sync += [held.eq(0), asked.eq(0)]
        with m.If(taken & (choice != ReadClient.COMMANDS)):
            m.d.sync += weights_turn.eq(choice == ReadClient.LOAD)
        m.d.comb += [
            self.o_burst.payload.address.eq(Cat(Const(0, self._beat_bits), request.address)),
            self.o_burst.payload.beats.eq(request.last_idx + 1),
            track.valid.eq(noted),
            track.payload.client.eq(asking),
            track.payload.address.eq(request.address),
            track.payload.last_idx.eq(request.last_idx),
            track.payload.single.eq(request.last_idx == 0),
            track.payload.closing.eq(request.closing),
        ]

    def _check(self, m: Module, track: stream.Interface) -> None:
        """Checks each beat against the oldest burst, and hands it on if nothing is wrong."""
        halt = Signal()
        valid, current, last, refused = Signal(), Signal(), Signal(), Signal()
        beat = Signal(beat_layout(self._config.bus_width), reset_less=True)
        resp = Signal(2, reset_less=True)
        # The epoch may change under a beat that is in this stage: it is judged on its way in.
        m.d.sync += [
            valid.eq(self.rvalid),
            current.eq((self.rid == self.epoch) & ~self.clear),
            last.eq(self.rlast),
            resp.eq(self.rresp),
            refused.eq(self.rresp != RESP_OKAY),
            beat.data.eq(self.rdata),
        ]

        beat_idx = Signal(self._index_bits)  # beats of the oldest burst that have come
        # Whether the next one is its last, but for its first: known before, for the memory behind
        # ``track`` is slow.
        starts, nears = Signal(init=1), Signal()
        following_idx = Signal.like(beat_idx)
        expected, ends, good, failing = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.rready.eq(1),
            self.beat.eq(valid & current),
            self.stale.eq(valid & ~current),
            expected.eq(self.beat & self._owed),
            ends.eq(Mux(starts, track.payload.single, nears)),
            following_idx.eq(beat_idx + 1),
            good.eq(expected & ~refused & (last == ends) & ~halt),
            failing.eq(self.beat & ~good & ~halt),
            track.ready.eq(expected & ends),
        ]
        with m.If(expected):
            m.d.sync += [
                beat_idx.eq(Mux(ends, 0, following_idx)), starts.eq(ends),
                nears.eq(following_idx == track.payload.last_idx),
            ]
        with m.If(failing):
            m.d.sync += halt.eq(1)
        with m.If(self.clear):
            m.d.sync += [beat_idx.eq(0), starts.eq(1), halt.eq(0)]

        outputs = {
            ReadClient.COMMANDS: self.o_commands,
            ReadClient.LOAD: self.o_load,
            ReadClient.WEIGHTS: self.o_weights,
        }
        checked = Signal.like(beat)
        m.d.sync += checked.eq(beat)
        for client, output in outputs.items():
            m.d.comb += output.payload.data.eq(checked.data)
            m.d.sync += output.valid.eq(good & (track.payload.client == client) & ~self.clear)
        m.d.sync += self.o_weights.payload.last.eq(
            ends & track.payload.closing if self._config.engines == 1
            else track.payload.last_idx - beat_idx < track.payload.closing)
        self._report(m, track.payload, failing, expected, refused & expected, resp, beat_idx)
        self._count(m, expected)

    def _report(self, m: Module, burst: data.View, failing: Value, expected: Value,
                refused: Value, resp: Value, beat_idx: Value) -> None:
        """Describes the fault, and whose burst it met."""
        # A burst stays inside its block, so only the low bits of its address can have moved.
        index = burst.address[: self._index_bits] + beat_idx
        address = Cat(index[: self._index_bits], burst.address[self._index_bits :])
        met, met_any = Signal.like(address, reset_less=True), Signal()
        m.d.sync += [
            self.fault_valid.eq(failing & ~self.clear),
            self.fault.code.eq(Mux(refused, FaultCode.BUS, FaultCode.PROTO)),
            self.fault.detail.eq(Mux(refused, resp, 0)),
            met.eq(address), met_any.eq(expected),
        ]
        # Whether a burst was met is known late, and would have to clear the whole address then.
        with m.If(met_any):
            m.d.comb += self.fault.address.eq(Cat(Const(0, self._beat_bits), met))
        met_client = Signal(ReadClient, reset_less=True)
        m.d.sync += met_client.eq(burst.client)
        m.d.comb += self.culprit.eq(self._newest)
        with m.If(self.fault_valid & met_any):
            m.d.comb += self.culprit.eq(met_client)

    def _count(self, m: Module, expected: Signal) -> None:
        """Counts what the bus owes. No burst leaves untracked, so a narrow counter will do."""
        bits = (self.BURSTS_UNDER_WAY * self._config.burst_beats).bit_length()
        count = Signal(bits)
        owed = self._owed
        lost = Signal()  # behind ``clear``: what is outstanding becomes stale
        m.d.sync += lost.eq(self.clear)
        m.d.comb += self.outstanding.eq(count)
        # Below the sum a bit that makes a carry: beats, less one, plus one or nothing. Of an epoch
        # that begins no beat has come yet.
        before = Mux(lost, 0, count)
        m.d.sync += [
            count.eq((Cat(1, before) + Cat(~expected, self._issued_less_one(bits)))[1:]),
            owed.eq(self.issued | (owed & ~(expected & (count == 1)))),
        ]
        with m.If(self.clear):
            m.d.sync += owed.eq(0)

        # Stale beats wait to be counted while what became stale is being added: one adder for both.
        waiting = Signal(range(3))
        takes = Signal()
        counts = Signal()
        m.d.comb += [takes.eq(waiting.any() & ~lost), counts.eq(takes & self.owes_stale)]
        m.d.sync += waiting.eq(waiting + self.stale - takes)
        step = Mux(lost, count, counts.replicate(16))
        m.d.sync += [
            self.stale_outstanding.eq(self.stale_outstanding + step),
            self.owes_stale.eq((lost & count.any())
                               | (self.owes_stale & ~(counts & (self.stale_outstanding == 1)))),
        ]

    def _issued_less_one(self, bits: int) -> Value:
        """Beats that have been issued in this cycle, less one, in two's complement."""
        less_one = (self.issued_beats - 1)[: self._index_bits]
        return Mux(self.issued, less_one, Const((1 << bits) - 1, bits))
