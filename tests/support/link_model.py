# SPDX-License-Identifier: Apache-2.0
"""The device's side of the serial link in plain Python, and a line that damages bytes."""

import random
import struct
from dataclasses import dataclass, field

from sparsemac.link import MAX_DATA_BYTES, PROTOCOL_VERSION, LinkOp, LinkStatus, Reply, Request

WRITES = (LinkOp.WRITE_REGISTER, LinkOp.WRITE_MEMORY)


@dataclass
class LinkModel:
    """Answers requests; keeps the last one with its reply, and a list of what it carried out."""

    memory: bytearray = field(default_factory=lambda: bytearray(4096))
    registers: dict[int, int] = field(default_factory=dict)
    read_only: frozenset[int] = frozenset()
    interrupt: bool = False
    version: int = PROTOCOL_VERSION
    executed: list[Request] = field(default_factory=list)
    session: int = 0
    _pending: bytearray = field(default_factory=bytearray)
    _kept: tuple[tuple[int, int, int], bytes] | None = None

    def restart(self):
        """As after a loss of power: registers, session and the kept reply are gone."""
        self.registers.clear()
        self._pending.clear()
        self.session, self._kept = 0, None

    def feed(self, data):
        """Takes bytes from the line; returns what it sends."""
        self._pending += data
        out = b""
        while (end := self._pending.find(0)) >= 0:
            coded = bytes(self._pending[:end])
            del self._pending[: end + 1]
            request = Request.decode(coded)
            if request is not None:
                out += self._answer(request)
        return out

    def _answer(self, request):
        key = request.op, request.sequence, request.session
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        status, data = self._execute(request)
        reply = Reply(request.op, request.sequence, self.session, status, data).encode()
        self._kept = None if status == LinkStatus.BAD_SESSION else (key, reply)
        return reply

    def _is_sound(self, request):
        length = request.length
        if len(request.data) != (length if request.op in WRITES else 0):
            return False
        if request.op == LinkOp.HELLO:
            return length == 12
        if request.op in (LinkOp.READ_MEMORY, LinkOp.WRITE_MEMORY):
            return (0 < length <= MAX_DATA_BYTES and length % 4 == request.address % 4 == 0
                    and request.address + length <= len(self.memory))
        return length == 4 and request.address % 4 == 0

    def _execute(self, request):
        if not self._is_sound(request):
            return LinkStatus.BAD_REQUEST, b""
        if request.op == LinkOp.HELLO:
            self.session = request.session
            return LinkStatus.OK, struct.pack("<III", self.version, 0, len(self.memory))
        if request.session != self.session or not self.session:
            return LinkStatus.BAD_SESSION, b""
        self.executed.append(request)
        at, length = request.address, request.length
        if request.op == LinkOp.WRITE_MEMORY:
            self.memory[at : at + length] = request.data
        elif request.op == LinkOp.READ_MEMORY:
            return LinkStatus.OK, bytes(self.memory[at : at + length])
        elif request.op == LinkOp.WRITE_REGISTER:
            if at in self.read_only:
                return LinkStatus.SLVERR, b""
            self.registers[at] = struct.unpack("<I", request.data)[0]
        elif request.op == LinkOp.READ_REGISTER:
            return LinkStatus.OK, struct.pack("<I", self.registers.get(at, 0))
        else:
            return LinkStatus.OK, struct.pack("<I", self.interrupt)
        return LinkStatus.OK, b""

    def writes(self):
        """(address, data) of every write carried out, in order."""
        return [(r.address, r.data) for r in self.executed if r.op in WRITES]


@dataclass(frozen=True)
class Rates:
    """How often a byte is lost, flipped, sent twice, or follows one that nobody sent."""

    lost: float = 0.0
    flipped: float = 0.0
    doubled: float = 0.0
    inserted: float = 0.0


class FaultyLine:
    """A `Transport` to a `LinkModel`. Silence takes no time: a read returns at once.

    Attributes
    ----------
    damage : callable    What becomes of bytes on their way: (bytes, "out" or "back") -> bytes.
    """

    def __init__(self, model, rates=None, seed=0):
        self.model = model
        self.damage = lambda data, way: data
        self.closed = False
        self.silences = 0
        self._rng = random.Random(seed)
        self._back = bytearray()
        if rates is not None:
            self.damage = lambda data, way: self._spoil(data, rates)

    def _spoil(self, data, rates):
        draw, out = self._rng.random, bytearray()
        for byte in data:
            if draw() < rates.lost:
                continue
            if draw() < rates.flipped:
                byte ^= 1 << self._rng.randrange(8)
            out.append(byte)
            if draw() < rates.doubled:
                out.append(byte)
            if draw() < rates.inserted:
                out.append(self._rng.randrange(256))
        return bytes(out)

    def write(self, data):
        self._back += self.damage(self.model.feed(self.damage(data, "out")), "back")

    def read(self, timeout):
        # As serial ports do: in pieces, whatever the frames are.
        count = self._rng.randint(1, 64)
        chunk = bytes(self._back[:count])
        del self._back[:count]
        self.silences += not chunk
        return chunk

    def close(self):
        self.closed = True
