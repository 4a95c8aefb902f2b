# SPDX-License-Identifier: Apache-2.0
"""The framed serial link: its frames, for both sides, and the host's client.

A frame is COBS-coded (Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM
Transactions on Networking 7(2), 1999) and ends with a zero byte, so noise never hides where the
next frame begins. Inside, all little-endian:

Request::

    op 1, sequence 1, session 2, address 4, length 2, data, CRC-32 4

Reply::

    op | 0x80 1, sequence 1, session 2, status 1, zero 1, length 2, data, CRC-32 4

``length`` counts the data of a write, or what a read asks for; the CRC is that of zlib over all
bytes before it. A side drops a frame that is damaged or empty, and the host asks again, with a zero
byte in front that ends whatever the line has left in the device.

The device keeps the sequence number of the last request of the session and its reply: the same
request again is answered from there and not carried out twice. HELLO opens a session with a number
the host draws; a request of another session is refused, so a device that has restarted is noticed.
"""

import logging
import secrets
import struct
import time
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from .errors import DeviceError, DeviceRestarted, LinkError, OutcomeUnknown

__all__ = [
    "CRC_BYTES",
    "MAX_DATA_BYTES",
    "MAX_FRAME_BYTES",
    "PROTOCOL_VERSION",
    "REPLY_HEADER_BYTES",
    "REQUEST_HEADER_BYTES",
    "LinkClient",
    "LinkOp",
    "LinkStatus",
    "Reply",
    "Request",
    "Transport",
    "cobs_decode",
    "cobs_encode",
]

PROTOCOL_VERSION = 1
REQUEST_HEADER_BYTES = 10
REPLY_HEADER_BYTES = 8
CRC_BYTES = 4
MAX_DATA_BYTES = 128
#: Below 255: a frame is then at most one byte longer when coded, whatever it holds.
MAX_FRAME_BYTES = REQUEST_HEADER_BYTES + MAX_DATA_BYTES + CRC_BYTES

#: A line that never falls silent ends a try too: after so many bytes, or so many time-outs.
NOISE_BYTES = 64 * MAX_FRAME_BYTES
NOISE_TIMEOUTS = 8

log = logging.getLogger(__name__)


class LinkOp(IntEnum):
    """What a request asks for."""

    HELLO = 1  # open a session; data: protocol version, memory base, memory bytes
    READ_REGISTER = 2  # 4 bytes at a register offset
    WRITE_REGISTER = 3
    READ_MEMORY = 4  # whole words of 4 bytes
    WRITE_MEMORY = 5
    INTERRUPT = 6  # 4 bytes: 1 while the interrupt is raised


class LinkStatus(IntEnum):
    """How a request ended."""

    OK = 0
    SLVERR = 1  # the core refused the access
    BAD_REQUEST = 2  # unknown operation, length or alignment
    BAD_SESSION = 3  # the request belongs to another session


def cobs_encode(frame: bytes) -> bytes:
    """Returns the coded frame without its final zero byte."""
    out = bytearray()
    for block in bytes(frame).split(b"\0"):
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out += bytes([len(block) + 1]) + block
    return bytes(out)


def cobs_decode(coded: bytes) -> bytes | None:
    """Returns the frame, or None if ``coded`` is no COBS block."""
    out = bytearray()
    at = 0
    while at < len(coded):
        code = coded[at]
        block = coded[at + 1 : at + code]
        if code == 0 or len(block) != code - 1 or 0 in block:
            return None
        out += block
        at += code
        if code < 255 and at < len(coded):
            out.append(0)
    return bytes(out)


def _seal(body: bytes) -> bytes:
    return cobs_encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def _unseal(coded: bytes, header_bytes: int) -> bytes | None:
    frame = cobs_decode(coded)
    if frame is None or len(frame) < header_bytes + CRC_BYTES:
        return None
    body = frame[:-CRC_BYTES]
    return body if struct.pack("<I", zlib.crc32(body)) == frame[-CRC_BYTES:] else None


@dataclass(frozen=True, slots=True)
class Request:
    """A request; ``length`` is that of ``data`` for writes."""

    op: int
    sequence: int
    session: int
    address: int = 0
    length: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """Returns the bytes on the wire."""
        return _seal(struct.pack("<BBHIH", self.op, self.sequence, self.session, self.address,
                                 self.length) + self.data)

    @classmethod
    def decode(cls, coded: bytes) -> "Request | None":
        """Returns the request in a frame without its zero byte, or None if it is damaged."""
        body = _unseal(coded, REQUEST_HEADER_BYTES)
        if body is None:
            return None
        return cls(*struct.unpack_from("<BBHIH", body), body[REQUEST_HEADER_BYTES:])


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply."""

    op: int
    sequence: int
    session: int
    status: int
    data: bytes = b""

    def encode(self) -> bytes:
        """Returns the bytes on the wire."""
        return _seal(struct.pack("<BBHBBH", self.op | 0x80, self.sequence, self.session,
                                 self.status, 0, len(self.data)) + self.data)

    @classmethod
    def decode(cls, coded: bytes) -> "Reply | None":
        """Returns the reply in a frame without its zero byte, or None if it is damaged."""
        body = _unseal(coded, REPLY_HEADER_BYTES)
        if body is None:
            return None
        op, sequence, session, status, _, length = struct.unpack_from("<BBHBBH", body)
        data = body[REPLY_HEADER_BYTES:]
        if not op & 0x80 or len(data) != length:
            return None
        return cls(op & 0x7F, sequence, session, status, data)


class Transport(Protocol):
    """Bytes in both directions."""

    def write(self, data: bytes) -> None:
        """Sends all of ``data``; `OSError` if the line is dead."""

    def read(self, timeout: float) -> bytes:
        """Returns what has come, at least one byte, or nothing after ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Releases the line."""


class LinkClient:
    """The host's side: one request at a time, repeated until a sound reply comes.

    Parameters
    ----------
    transport : Transport
    timeout : float    Seconds that a reply may take.
    retries : int      How often a request is sent again.

    Attributes
    ----------
    damaged, repeated : int           Frames dropped, requests sent again.
    memory_base, memory_bytes : int   As the device said in its HELLO.
    """

    def __init__(self, transport: Transport, *, timeout: float = 0.25, retries: int = 12) -> None:
        self._transport = transport
        self._timeout = timeout
        self._retries = retries
        self._sequence = 0
        self._session = 0
        self._pending = bytearray()
        self.damaged = 0
        self.repeated = 0
        self.memory_base = 0
        self.memory_bytes = 0

    def hello(self) -> None:
        """Opens a session; `LinkError` if nobody answers, or in another protocol version."""
        self._session = secrets.randbelow(0xFFFF) + 1
        reply = self._exchange(LinkOp.HELLO, 0, 12, b"", changes=False)
        version, self.memory_base, self.memory_bytes = struct.unpack("<III", reply)
        if version != PROTOCOL_VERSION:
            raise LinkError(
                f"protocol version of the link must be {PROTOCOL_VERSION}, not {version}")

    def read_register(self, offset: int) -> int:
        """Returns a register."""
        return struct.unpack("<I", self._exchange(LinkOp.READ_REGISTER, offset, 4))[0]

    def write_register(self, offset: int, value: int) -> None:
        """Writes a register."""
        self._exchange(LinkOp.WRITE_REGISTER, offset, 4, struct.pack("<I", value), changes=True)

    def interrupt(self) -> bool:
        """Tells whether the interrupt is raised."""
        return self._exchange(LinkOp.INTERRUPT, 0, 4) != bytes(4)

    def read_memory(self, address: int, length: int) -> bytes:
        """Returns ``length`` bytes; whole words are read around them."""
        first, last = address & ~3, (address + length + 3) & ~3
        parts = [
            self._exchange(LinkOp.READ_MEMORY, at, min(MAX_DATA_BYTES, last - at))
            for at in range(first, last, MAX_DATA_BYTES)
        ]
        return b"".join(parts)[address - first : address - first + length]

    def write_memory(self, address: int, data: bytes) -> None:
        """Writes bytes; words that they cover in part are read first."""
        head = address & 3
        tail = -(address + len(data)) & 3
        if head:
            data = self.read_memory(address - head, head) + data
        if tail:
            data = data + self.read_memory(address - head + len(data), tail)
        for at in range(0, len(data), MAX_DATA_BYTES):
            part = data[at : at + MAX_DATA_BYTES]
            self._exchange(LinkOp.WRITE_MEMORY, address - head + at, len(part), part, changes=True)

    def close(self) -> None:
        """Releases the line."""
        self._transport.close()

    # -- one exchange ---------------------------------------------------------------------------

    def _exchange(
        self, op: LinkOp, address: int, length: int, data: bytes = b"", changes: bool = False
    ) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFF
        request = Request(op, self._sequence, self._session, address, length, data)
        what = f"{op.name} at {address:#x}"
        frame = request.encode()
        sent = False
        for attempt in range(self._retries + 1):
            again = attempt > 0
            self.repeated += again
            # What the device has of a frame whose end was lost must not swallow this one.
            flush = b"\0" if again or op == LinkOp.HELLO else b""
            try:
                self._transport.write(flush + frame)
                sent = True
                reply = self._await(request)
            except OSError as error:
                raise self._gave_up(what, changes and sent, f"the line is dead: {error}") from error
            if reply is not None:
                return self._accept(what, request, reply)
        tries = self._retries + 1
        raise self._gave_up(what, changes, f"no sound reply to {tries} tries of {self._timeout} s")

    def _gave_up(self, what: str, changes: bool, why: str) -> LinkError:
        counts = f"{self.damaged} damaged frames, {self.repeated} requests repeated so far"
        if changes:
            return OutcomeUnknown(f"{what} may or may not have been carried out: {why} ({counts})")
        return LinkError(f"{what} failed: {why} ({counts})")

    def _await(self, request: Request) -> Reply | None:
        """Returns the reply to a request, or None after a silence or too much noise."""
        deadline = time.monotonic() + NOISE_TIMEOUTS * self._timeout
        room = NOISE_BYTES
        while room > 0 and time.monotonic() <= deadline:
            chunk = self._transport.read(self._timeout)
            if not chunk:
                break
            room -= len(chunk)
            self._pending += chunk
            while (end := self._pending.find(0)) >= 0:
                coded = bytes(self._pending[:end])
                del self._pending[: end + 1]
                if coded and (reply := self._sift(request, coded)) is not None:
                    return reply
        # What is left is no frame, or the end of one was lost.
        self.damaged += bool(self._pending)
        self._pending.clear()
        return None

    def _sift(self, request: Request, coded: bytes) -> Reply | None:
        """Returns the reply in a frame if it belongs to the request."""
        reply = Reply.decode(coded)
        if reply is None:
            self.damaged += 1
        elif reply.sequence == request.sequence and reply.op == request.op:
            if reply.session == request.session or reply.status == LinkStatus.BAD_SESSION:
                return reply
        else:
            log.debug("dropped a late reply, sequence %d", reply.sequence)
        return None

    def _accept(self, what: str, request: Request, reply: Reply) -> bytes:
        if reply.status == LinkStatus.BAD_SESSION:
            raise DeviceRestarted(
                f"{what} was refused: the device is in session {reply.session}, not "
                f"{request.session}; it has restarted, and its state is lost"
            )
        if reply.status == LinkStatus.SLVERR:
            raise DeviceError(f"{what} answered SLVERR")
        if reply.status != LinkStatus.OK:
            raise LinkError(f"{what} was refused with status {reply.status}")
        reads = request.op not in (LinkOp.WRITE_REGISTER, LinkOp.WRITE_MEMORY)
        if len(reply.data) != (request.length if reads else 0):
            raise LinkError(f"{what} must return {request.length} bytes, not {len(reply.data)}")
        return reply.data
