# SPDX-License-Identifier: Apache-2.0
"""Frames of the serial link in gateware: COBS and CRC-32, in and out."""

from functools import reduce
from operator import xor

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.link import CRC_BYTES, MAX_FRAME_BYTES, REQUEST_HEADER_BYTES

__all__ = ["FrameReceiver", "FrameSender", "crc32_step", "request_layout"]

#: Header of a request, in the order of its bytes; see `sparsemac.link`.
request_layout = data.StructLayout({
    "op": 8, "sequence": 8, "session": 16, "address": 32, "length": 16,
})

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

    The step is linear: each bit of the result is the exclusive or of those bits of ``crc`` and
    ``byte`` that alone would set it.
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
    hold : In(1)               The request is being worked on: what comes in is dropped, and so is
                               the rest of a frame that has begun.
    got : Out(1)               Strobe: a sound request is there.
    header : Out(request_layout)    Its first 10 bytes, from ``got`` until the next byte is taken.
    payload_bytes : Out(8)     Bytes behind the header, without the CRC.
    addr : In(8), data : Out(8)     Reads a byte of the request.
    """

    i_valid: Signal
    i_data: Signal
    hold: Signal
    got: Signal
    header: data.View
    payload_bytes: Signal
    addr: Signal
    data: Signal

    def __init__(self) -> None:
        super().__init__({
            "i_valid": In(1),
            "i_data": In(8),
            "hold": In(1),
            "got": Out(1),
            "header": Out(request_layout),
            "payload_bytes": Out(8),
            "addr": In(8),
            "data": Out(8),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        m.submodules.buffer = buffer = Memory(shape=8, depth=BUFFER_BYTES, init=[])
        write, read = buffer.write_port(), buffer.read_port(domain="comb")
        m.d.comb += [read.addr.eq(self.addr), self.data.eq(read.data)]

        header = Value.cast(self.header)
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
                m.d.sync += header.eq(Cat(header[8:], byte))
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

    w_en: Signal
    w_addr: Signal
    w_data: Signal
    length: Signal
    start: Signal
    seal: Signal
    busy: Signal
    o: stream.Interface

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
        """Returns the gateware."""
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
