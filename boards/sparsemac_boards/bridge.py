# SPDX-License-Identifier: Apache-2.0
"""The device's side of the framed serial link: `sparsemac.link` in gateware."""

from functools import reduce
from operator import xor

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.link import (
    CRC_BYTES,
    MAX_DATA_BYTES,
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    REPLY_HEADER_BYTES,
    REQUEST_HEADER_BYTES,
    LinkOp,
    LinkStatus,
)
from sparsemac_hw.bus import AxiLiteSignature

__all__ = ["FrameReceiver", "FrameSender", "LinkBridge", "crc32_step"]

#: What the CRC register holds behind a message and its own CRC (Williams, "A painless guide to CRC
#: error detection algorithms", 1993, section 11; zlib's polynomial, reflected).
CRC_RESIDUE = 0xDEBB_20E3
CRC_POLYNOMIAL = 0xEDB8_8320
CRC_START = 0xFFFF_FFFF
BUFFER_BYTES = 256


def _step(crc: int, byte: int) -> int:
    crc ^= byte
    for _ in range(8):
        crc = crc >> 1 ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    return crc


def crc32_step(crc: Value, byte: Value) -> Value:
    """Returns the CRC register after one more byte.

    The step is linear: each bit of the result is the exclusive or of the bits of ``crc`` and ``byte``
    that reach it alone.
    """
    reach = [(crc[i], _step(1 << i, 0)) for i in range(32)]
    reach += [(byte[i], _step(0, 1 << i)) for i in range(8)]
    return Cat(*(
        reduce(xor, [bit for bit, result in reach if result >> k & 1]) for k in range(32)
    ))


class FrameReceiver(wiring.Component):
    """Decodes COBS, checks the CRC, and keeps one request.

    Members
    -------
    i_valid, i_data : In       Bytes from the line.
    hold : In(1)               The request is being worked on: what comes in is dropped.
    got : Out(1)               Strobe: a sound request is there.
    header : Out(80)           Its first 10 bytes.
    payload_bytes : Out(8)     Bytes behind the header, without the CRC.
    addr : In(8), data : Out(8)     Reads a byte of the request.
    """

    def __init__(self) -> None:
        super().__init__({
            "i_valid": In(1),
            "i_data": In(8),
            "hold": In(1),
            "got": Out(1),
            "header": Out(8 * REQUEST_HEADER_BYTES),
            "payload_bytes": Out(8),
            "addr": In(8),
            "data": Out(8),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = Memory(shape=8, depth=BUFFER_BYTES, init=[])
        write, read = buffer.write_port(), buffer.read_port(domain="comb")
        m.d.comb += [read.addr.eq(self.addr), self.data.eq(read.data)]

        left = Signal(8)  # bytes until the next code
        first = Signal(init=1)  # no code yet
        full_block = Signal()  # the block's code was 255: no zero behind it
        bad = Signal()
        count = Signal(8)
        crc = Signal(32, init=CRC_START)
        emit = Signal()
        byte = Signal(8)
        is_end = Signal()
        m.d.comb += [
            is_end.eq(self.i_valid & (self.i_data == 0)),
            write.addr.eq(count),
            write.data.eq(byte),
            write.en.eq(emit),
            self.payload_bytes.eq(count - REQUEST_HEADER_BYTES - CRC_BYTES),
            self.got.eq(is_end & ~self.hold & ~bad & (left == 0) & (crc == CRC_RESIDUE)
                        & (count >= REQUEST_HEADER_BYTES + CRC_BYTES)),
        ]
        with m.If(self.i_valid & ~is_end & ~self.hold):
            with m.If(left == 0):
                m.d.comb += emit.eq(~first & ~full_block)  # the zero between two blocks
                m.d.sync += [left.eq(self.i_data - 1), full_block.eq(self.i_data == 255),
                             first.eq(0)]
            with m.Else():
                m.d.comb += [emit.eq(1), byte.eq(self.i_data)]
                m.d.sync += left.eq(left - 1)
        with m.If(emit):
            m.d.sync += [count.eq(count + 1), crc.eq(crc32_step(crc, byte))]
            with m.If(count < REQUEST_HEADER_BYTES):
                m.d.sync += self.header.eq(Cat(self.header[8:], byte))
            with m.If(count == MAX_FRAME_BYTES):
                m.d.sync += [bad.eq(1), count.eq(count)]
        with m.If(is_end | self.hold):
            m.d.sync += [left.eq(0), first.eq(1), full_block.eq(0), crc.eq(CRC_START)]
            with m.If(~self.got):
                m.d.sync += count.eq(0)
        with m.If(is_end):
            m.d.sync += bad.eq(0)
        with m.Elif(self.hold & self.i_valid):
            m.d.sync += bad.eq(1)  # a frame that begins now is not taken from its middle on
        return m


class FrameSender(wiring.Component):
    """Keeps one reply, appends its CRC, and sends it COBS-coded as often as it is asked to.

    Members
    -------
    w_en, w_addr, w_data : In      Writes a byte of the reply.
    length : In(8)                 Bytes of the reply, without the CRC.
    start : In(1), seal : In(1)    Strobe: send; with ``seal``, append the CRC first.
    busy : Out(1)
    o : Out(stream of 8 bits)      Bytes for the line.
    """

    def __init__(self) -> None:
        super().__init__({
            "w_en": In(1),
            "w_addr": In(8),
            "w_data": In(8),
            "length": In(8),
            "start": In(1),
            "seal": In(1),
            "busy": Out(1),
            "o": Out(stream.Signature(8)),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = Memory(shape=8, depth=BUFFER_BYTES, init=[])
        write, read = buffer.write_port(), buffer.read_port(domain="comb")
        at = Signal(8)  # byte that is being looked at
        begin = Signal(8)  # first byte of the block
        total = Signal(8)
        crc = Signal(32)
        crc_left = Signal(range(CRC_BYTES + 1))
        m.d.comb += [
            read.addr.eq(at), write.addr.eq(self.w_addr), write.data.eq(self.w_data),
            write.en.eq(self.w_en),
        ]
        with m.FSM(name="send") as fsm:
            with m.State("IDLE"):  # nothing to send
                with m.If(self.start):
                    m.d.sync += [at.eq(0), begin.eq(0), crc.eq(CRC_START), crc_left.eq(CRC_BYTES)]
                    m.next = "SCAN"
                    with m.If(self.seal):
                        m.d.sync += total.eq(self.length)
                        m.next = "SUM"
            with m.State("SUM"):  # the CRC of the reply
                with m.If(at == total):
                    m.d.sync += crc.eq(~crc)
                    m.next = "SEAL"
                with m.Else():
                    m.d.sync += [crc.eq(crc32_step(crc, read.data)), at.eq(at + 1)]
            with m.State("SEAL"):  # append it
                m.d.comb += [write.addr.eq(total), write.data.eq(crc[:8]), write.en.eq(1)]
                m.d.sync += [crc.eq(crc >> 8), total.eq(total + 1), crc_left.eq(crc_left - 1)]
                with m.If(crc_left == 1):
                    m.d.sync += at.eq(0)
                    m.next = "SCAN"
            with m.State("SCAN"):  # how far it is to the next zero, or to the end
                with m.If((at == total) | (read.data == 0)):
                    m.next = "CODE"
                with m.Else():
                    m.d.sync += at.eq(at + 1)
            with m.State("CODE"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(at - begin + 1)]
                with m.If(self.o.ready):
                    m.d.sync += [begin.eq(at), at.eq(begin)]
                    m.next = "BLOCK"
            with m.State("BLOCK"):  # the bytes between; ``begin`` holds the block's end
                with m.If(at != begin):
                    m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(read.data)]
                    with m.If(self.o.ready):
                        m.d.sync += at.eq(at + 1)
                with m.Elif(at == total):
                    m.next = "END"
                with m.Else():
                    m.d.sync += [at.eq(at + 1), begin.eq(at + 1)]
                    m.next = "SCAN"
            with m.State("END"):  # the zero that ends every frame
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "IDLE"
        m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
        return m


class LinkBridge(wiring.Component):
    """Carries out requests: registers over AXI4-Lite, memory through a port of words.

    The last request of the session and its reply are kept: the same request again is answered from
    there. After reset there is no session, so a host notices that the device has restarted.

    Parameters
    ----------
    memory_bytes : int      Length of the memory, from address 0.

    Members
    -------
    i_valid, i_data : In; o : Out(stream of 8 bits)     Bytes of the line.
    bus : Out(AxiLiteSignature)
    irq : In(1)
    mem_en, mem_we : Out(1), mem_addr : Out(32), mem_w_data : Out(32), mem_r_data : In(32)
    """

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
        m = Module()
        m.submodules.receiver = receiver = FrameReceiver()
        m.submodules.sender = sender = FrameSender()
        wiring.connect(m, sender.o, wiring.flipped(self.o))
        m.d.comb += [receiver.i_valid.eq(self.i_valid), receiver.i_data.eq(self.i_data)]

        op, sequence, session = (receiver.header[a:b] for a, b in ((0, 8), (8, 16), (16, 32)))
        address, length = receiver.header[32:64], receiver.header[64:80]
        kept = Signal()  # a reply is kept
        kept_key = Signal(32)
        current_session = Signal(16)
        status = Signal(8)
        offset = Signal(8)  # byte of the data
        word = Signal(32)
        data_bytes = Signal(8)  # of the reply

        writes = Signal()
        is_memory = Signal()
        sound = Signal()
        m.d.comb += [
            writes.eq((op == LinkOp.WRITE_REGISTER) | (op == LinkOp.WRITE_MEMORY)),
            is_memory.eq((op == LinkOp.READ_MEMORY) | (op == LinkOp.WRITE_MEMORY)),
        ]
        with m.Switch(op):
            with m.Case(LinkOp.HELLO):
                m.d.comb += sound.eq(length == 12)
            with m.Case(LinkOp.READ_REGISTER, LinkOp.WRITE_REGISTER, LinkOp.INTERRUPT):
                m.d.comb += sound.eq((length == 4) & (address[12:] == 0) & (address[:2] == 0))
            with m.Case(LinkOp.READ_MEMORY, LinkOp.WRITE_MEMORY):
                m.d.comb += sound.eq(
                    (length != 0) & (length <= MAX_DATA_BYTES) & (length[:2] == 0)
                    & (address[:2] == 0) & (address < self._memory_bytes)
                    & (address + length <= self._memory_bytes))

        hold = Signal()
        m.d.comb += [receiver.hold.eq(hold), hold.eq(1), sender.length.eq(
            data_bytes + REPLY_HEADER_BYTES)]
        payload_sound = receiver.payload_bytes == Mux(writes, length[:8], 0)
        header_idx = Signal(range(REPLY_HEADER_BYTES))
        header = Array([
            Cat(op[:7], Const(1, 1)), sequence, current_session[:8], current_session[8:], status,
            Const(0, 8), data_bytes, Const(0, 8),
        ])
        with m.FSM(name="bridge"):
            with m.State("LISTEN"):  # wait for a request
                m.d.comb += hold.eq(sender.busy)
                with m.If(receiver.got):
                    m.next = "JUDGE"
            with m.State("JUDGE"):  # known, foreign, malformed, or to be carried out
                m.d.sync += [status.eq(LinkStatus.OK), offset.eq(0), data_bytes.eq(0)]
                with m.If(kept & (kept_key == receiver.header[:32])):
                    m.d.comb += sender.start.eq(1)
                    m.next = "LISTEN"
                with m.Else():
                    m.d.sync += [kept.eq(1), kept_key.eq(receiver.header[:32])]
                    with m.If(~sound | ~payload_sound):
                        m.d.sync += status.eq(LinkStatus.BAD_REQUEST)
                        m.next = "ANSWER"
                    with m.Elif(op == LinkOp.HELLO):
                        m.d.sync += current_session.eq(session)
                        m.next = "READ"
                    with m.Elif((session != current_session) | (current_session == 0)):
                        m.d.sync += [status.eq(LinkStatus.BAD_SESSION), kept.eq(0)]
                        m.next = "ANSWER"
                    with m.Elif(writes):
                        m.next = "GATHER"
                    with m.Else():
                        m.next = "READ"
            with m.State("GATHER"):  # a word from the request
                m.d.sync += [word.eq(Cat(word[8:], receiver.data)), offset.eq(offset + 1)]
                with m.If(offset[:2] == 3):
                    m.next = "WRITE"
            with m.State("WRITE"):
                with m.If(is_memory):
                    m.d.comb += [self.mem_en.eq(1), self.mem_we.eq(1)]
                    m.next = "GATHER"
                    with m.If(offset == length[:8]):
                        m.next = "ANSWER"
                with m.Else():
                    m.d.sync += [self.bus.awvalid.eq(1), self.bus.wvalid.eq(1)]
                    m.next = "WRITE_REGISTER"
            with m.State("WRITE_REGISTER"):
                with m.If(self.bus.awready):
                    m.d.sync += self.bus.awvalid.eq(0)
                with m.If(self.bus.wready):
                    m.d.sync += self.bus.wvalid.eq(0)
                m.d.comb += self.bus.bready.eq(1)
                with m.If(self.bus.bvalid):
                    m.d.sync += status.eq(Mux(self.bus.bresp == 0, LinkStatus.OK,
                                              LinkStatus.SLVERR))
                    m.next = "ANSWER"
            with m.State("READ"):  # ask for a word
                m.d.comb += self.mem_en.eq(op == LinkOp.READ_MEMORY)
                m.d.sync += word.eq(Mux(
                    op == LinkOp.INTERRUPT, self.irq, Mux(
                        offset == 0, PROTOCOL_VERSION, Mux(offset == 4, 0, self._memory_bytes))))
                m.next = "SCATTER"
                with m.If(op == LinkOp.READ_MEMORY):
                    m.next = "READ_MEMORY"
                with m.If(op == LinkOp.READ_REGISTER):
                    m.d.sync += self.bus.arvalid.eq(1)
                    m.next = "READ_REGISTER"
            with m.State("READ_MEMORY"):
                m.d.sync += word.eq(self.mem_r_data)
                m.next = "SCATTER"
            with m.State("READ_REGISTER"):
                m.d.comb += self.bus.rready.eq(1)
                with m.If(self.bus.arready):
                    m.d.sync += self.bus.arvalid.eq(0)
                with m.If(self.bus.rvalid):
                    m.d.sync += word.eq(self.bus.rdata)
                    m.next = "SCATTER"
                    with m.If(self.bus.rresp != 0):
                        m.d.sync += status.eq(LinkStatus.SLVERR)
                        m.next = "ANSWER"
            with m.State("SCATTER"):  # the word's bytes into the reply
                m.d.comb += [sender.w_en.eq(1), sender.w_addr.eq(offset + REPLY_HEADER_BYTES),
                             sender.w_data.eq(word[:8])]
                m.d.sync += [word.eq(word >> 8), offset.eq(offset + 1)]
                with m.If(offset[:2] == 3):
                    m.next = "READ"
                    with m.If(offset + 1 == length[:8]):
                        m.d.sync += data_bytes.eq(length[:8])
                        m.next = "ANSWER"
            with m.State("ANSWER"):  # the reply's header
                m.d.comb += [sender.w_en.eq(1), sender.w_addr.eq(header_idx),
                             sender.w_data.eq(header[header_idx])]
                m.d.sync += header_idx.eq(header_idx + 1)
                with m.If(header_idx == REPLY_HEADER_BYTES - 1):
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += [sender.start.eq(1), sender.seal.eq(1)]
                m.next = "LISTEN"
        m.d.comb += [
            receiver.addr.eq(REQUEST_HEADER_BYTES + offset),
            self.mem_addr.eq(address + (offset - Mux(self.mem_we, 4, 0))),
            self.mem_w_data.eq(word),
            self.bus.awaddr.eq(address), self.bus.wdata.eq(word), self.bus.wstrb.eq(0xF),
            self.bus.araddr.eq(address),
        ]
        return m
