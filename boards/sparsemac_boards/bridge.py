# SPDX-License-Identifier: Apache-2.0
"""The device's side of the framed serial link: `sparsemac.link` in gateware."""

from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.link import (
    MAX_DATA_BYTES,
    PROTOCOL_VERSION,
    REPLY_HEADER_BYTES,
    REQUEST_HEADER_BYTES,
    LinkOp,
    LinkStatus,
)
from sparsemac_hw.bus import AxiLiteSignature
from sparsemac_hw.streams import connect_stream

from .frames import FrameReceiver, FrameSender

__all__ = ["LinkBridge"]

#: AXI4-Lite (IHI 0022, A3.4.4): the response to an access that succeeded.
OKAY = 0b00


@dataclass(slots=True)
class _Work:
    """Registers of the request that is being worked on."""

    request: Any  # view of `request_layout`
    status: Signal = field(default_factory=lambda: Signal(8))
    word: Signal = field(default_factory=lambda: Signal(32))
    offset: Signal = field(default_factory=lambda: Signal(8))  # next byte of the data
    data_bytes: Signal = field(default_factory=lambda: Signal(8))  # of the reply

    @property
    def writes(self) -> Value:
        """The request carries data."""
        return self.request.op.matches(LinkOp.WRITE_REGISTER, LinkOp.WRITE_MEMORY)

    @property
    def ends_word(self) -> Value:
        """``offset`` is at the last byte of a word."""
        return self.offset[:2] == 3


class LinkBridge(wiring.Component):
    """Carries out requests: registers over AXI4-Lite, memory through a port of words.

    The last request of the session and its reply are kept: the same request again is answered from
    there. After reset there is no session, so a host notices that the device has restarted.

    Parameters
    ----------
    memory_bytes : int      Length of the memory, from address 0.

    Members
    -------
    i_valid, i_data : In               Bytes from the line.
    o : Out(stream of 8 bits)          Bytes for the line.
    bus : Out(AxiLiteSignature)        Registers.
    irq : In(1)                        What INTERRUPT reads.
    mem_en, mem_we : Out(1)            Strobes: read, or with ``mem_we`` write.
    mem_addr, mem_w_data : Out(32)     A word of 4 bytes.
    mem_r_data : In(32)                The word, one cycle after ``mem_en``.
    """

    i_valid: Signal
    i_data: Signal
    o: stream.Interface
    bus: Any
    irq: Signal
    mem_en: Signal
    mem_we: Signal
    mem_addr: Signal
    mem_w_data: Signal
    mem_r_data: Signal

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        super().__init__({
            "i_valid": In(1),
            "i_data": In(8),
            "o": Out(stream.Signature(8)),
            "bus": Out(AxiLiteSignature(12)),
            "irq": In(1),
            "mem_en": Out(1),
            "mem_we": Out(1),
            "mem_addr": Out(32),
            "mem_w_data": Out(32),
            "mem_r_data": In(32),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        m.submodules.receiver = receiver = FrameReceiver()
        m.submodules.sender = sender = FrameSender()
        connect_stream(m, sender.o, wiring.flipped(self.o))
        work = _Work(receiver.header)
        address = work.request.address
        session = Signal(16)  # 0: none
        m.d.comb += [
            receiver.i_valid.eq(self.i_valid),
            receiver.i_data.eq(self.i_data),
            receiver.hold.eq(1),
            receiver.addr.eq(REQUEST_HEADER_BYTES + work.offset),
            sender.length.eq(work.data_bytes + REPLY_HEADER_BYTES),
            # A write has taken its word from the request before it is carried out.
            self.mem_addr.eq(address + (work.offset - Mux(self.mem_we, 4, 0))),
            self.mem_w_data.eq(work.word),
            self.bus.awaddr.eq(address),
            self.bus.araddr.eq(address),
            self.bus.wdata.eq(work.word),
            self.bus.wstrb.eq(0xF),
        ]
        sound = self._is_sound(m, work, receiver.payload_bytes)
        with m.FSM(name="bridge"):
            with m.State("LISTEN"):  # wait for a request
                m.d.comb += receiver.hold.eq(sender.busy)
                with m.If(receiver.got):
                    m.next = "JUDGE"
            self._judge(m, work, session, sound, sender)
            self._write(m, work, receiver)
            self._read(m, work, sender)
            self._answer(m, work, session, sender)
        return m

    def _is_sound(self, m: Module, work: _Work, payload_bytes: Signal) -> Signal:
        """Operation, length, alignment and address are legal."""
        request, sound = work.request, Signal()
        address, length = request.address, request.length
        fits = Signal()
        m.d.comb += fits.eq(payload_bytes == Mux(work.writes, length[:8], 0))
        with m.Switch(request.op):
            with m.Case(LinkOp.HELLO):
                m.d.comb += sound.eq(fits & (length == 12))
            with m.Case(LinkOp.READ_REGISTER, LinkOp.WRITE_REGISTER, LinkOp.INTERRUPT):
                m.d.comb += sound.eq(
                    fits & (length == 4) & (address[12:] == 0) & (address[:2] == 0))
            with m.Case(LinkOp.READ_MEMORY, LinkOp.WRITE_MEMORY):
                m.d.comb += sound.eq(
                    fits & (length != 0) & (length <= MAX_DATA_BYTES) & (length[:2] == 0)
                    & (address[:2] == 0) & (address + length <= self._memory_bytes))
        return sound

    def _judge(
        self, m: Module, work: _Work, session: Signal, sound: Signal, sender: FrameSender
    ) -> None:
        """Repeated, malformed, foreign, or to be carried out."""
        request = work.request
        kept = Signal()  # the sender holds the reply to the request of `kept_key`
        kept_key = Signal(32)
        key = Cat(request.op, request.sequence, request.session)
        with m.State("JUDGE"):
            m.d.sync += [
                work.status.eq(LinkStatus.OK), work.offset.eq(0), work.data_bytes.eq(0),
            ]
            with m.If(kept & (kept_key == key)):
                m.d.comb += sender.start.eq(1)
                m.next = "LISTEN"
            with m.Else():
                m.d.sync += [kept.eq(1), kept_key.eq(key)]
                with m.If(~sound):
                    m.d.sync += work.status.eq(LinkStatus.BAD_REQUEST)
                    m.next = "ANSWER"
                with m.Elif(request.op == LinkOp.HELLO):
                    m.d.sync += session.eq(request.session)
                    m.next = "READ"
                with m.Elif((request.session != session) | (session == 0)):
                    m.d.sync += [work.status.eq(LinkStatus.BAD_SESSION), kept.eq(0)]
                    m.next = "ANSWER"
                with m.Elif(work.writes):
                    m.next = "GATHER"
                with m.Else():
                    m.next = "READ"

    def _write(self, m: Module, work: _Work, receiver: FrameReceiver) -> None:
        """Words from the request to memory, or one to a register."""
        bus = self.bus
        with m.State("GATHER"):  # a word from the request
            m.d.sync += [
                work.word.eq(Cat(work.word[8:], receiver.data)), work.offset.eq(work.offset + 1),
            ]
            with m.If(work.ends_word):
                m.next = "WRITE"
        with m.State("WRITE"):
            with m.If(work.request.op == LinkOp.WRITE_MEMORY):
                m.d.comb += [self.mem_en.eq(1), self.mem_we.eq(1)]
                m.next = "GATHER"
                with m.If(work.offset == work.request.length[:8]):
                    m.next = "ANSWER"
            with m.Else():
                m.d.sync += [bus.awvalid.eq(1), bus.wvalid.eq(1)]
                m.next = "WRITE_REGISTER"
        with m.State("WRITE_REGISTER"):
            with m.If(bus.awready):
                m.d.sync += bus.awvalid.eq(0)
            with m.If(bus.wready):
                m.d.sync += bus.wvalid.eq(0)
            m.d.comb += bus.bready.eq(1)
            with m.If(bus.bvalid):
                with m.If(bus.bresp != OKAY):
                    m.d.sync += work.status.eq(LinkStatus.SLVERR)
                m.next = "ANSWER"

    def _read(self, m: Module, work: _Work, sender: FrameSender) -> None:
        """Words of memory, of a register, or of the device itself into the reply."""
        bus, op, offset = self.bus, work.request.op, work.offset
        hello = Mux(offset == 0, PROTOCOL_VERSION, Mux(offset == 4, 0, self._memory_bytes))
        with m.State("READ"):  # ask for a word
            m.d.comb += self.mem_en.eq(op == LinkOp.READ_MEMORY)
            m.d.sync += work.word.eq(Mux(op == LinkOp.INTERRUPT, self.irq, hello))
            m.next = "SCATTER"
            with m.If(op == LinkOp.READ_MEMORY):
                m.next = "READ_MEMORY"
            with m.If(op == LinkOp.READ_REGISTER):
                m.d.sync += bus.arvalid.eq(1)
                m.next = "READ_REGISTER"
        with m.State("READ_MEMORY"):
            m.d.sync += work.word.eq(self.mem_r_data)
            m.next = "SCATTER"
        with m.State("READ_REGISTER"):
            m.d.comb += bus.rready.eq(1)
            with m.If(bus.arready):
                m.d.sync += bus.arvalid.eq(0)
            with m.If(bus.rvalid):
                m.d.sync += work.word.eq(bus.rdata)
                m.next = "SCATTER"
                with m.If(bus.rresp != OKAY):
                    m.d.sync += work.status.eq(LinkStatus.SLVERR)
                    m.next = "ANSWER"
        with m.State("SCATTER"):  # the word's bytes into the reply
            m.d.comb += [
                sender.w_en.eq(1),
                sender.w_addr.eq(offset + REPLY_HEADER_BYTES),
                sender.w_data.eq(work.word[:8]),
            ]
            m.d.sync += [work.word.eq(work.word >> 8), offset.eq(offset + 1)]
            with m.If(work.ends_word):
                m.next = "READ"
                with m.If(offset + 1 == work.request.length[:8]):
                    m.d.sync += work.data_bytes.eq(work.request.length[:8])
                    m.next = "ANSWER"

    def _answer(self, m: Module, work: _Work, session: Signal, sender: FrameSender) -> None:
        """The reply's header, in front of data that is there already."""
        header = Array([
            Cat(work.request.op[:7], Const(1, 1)), work.request.sequence, session[:8], session[8:],
            work.status, Const(0, 8), work.data_bytes, Const(0, 8),
        ])
        at = Signal(range(REPLY_HEADER_BYTES))
        with m.State("ANSWER"):
            m.d.comb += [sender.w_en.eq(1), sender.w_addr.eq(at), sender.w_data.eq(header[at])]
            m.d.sync += at.eq(at + 1)
            with m.If(at == REPLY_HEADER_BYTES - 1):
                m.next = "SEND"
        with m.State("SEND"):
            m.d.comb += [sender.start.eq(1), sender.seal.eq(1)]
            m.next = "LISTEN"
