# SPDX-License-Identifier: Apache-2.0
"""Streams: connecting, checking and buffering them.

All streams follow Amaranth's four rules (RFC 61). The one that hardware breaks most easily, stated
once here and checked by `StreamChecker`: while ``valid`` is high and ``ready`` is low, ``valid``
stays high and the payload does not change.
"""

from typing import Any

from amaranth.hdl import Assert, Cat, Format, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in

from .block_memory import BlockMemory

__all__ = ["Queue", "StreamChecker", "check_stream", "connect_stream"]

#: Deepest queue whose words stand in distributed memory: one row of DPR16X4 on ECP5. Beyond it
#: come further rows and a read multiplexer, and a block memory is smaller.
DISTRIBUTED_DEPTH = 16

AnyStream = stream.Interface | wiring.FlippedInterface


def connect_stream(m: Module, src: AnyStream, dst: AnyStream) -> None:
    """Connects two streams whose payloads have the same shape, not only the same width."""
    if (s := _shape(src)) != (d := _shape(dst)):
        raise wiring.ConnectionError(f"Stream payload shapes must match, not {s!r} and {d!r}")
    wiring.connect(m, src, dst)


def _shape(interface: AnyStream) -> Any:
    payload = interface.payload
    return payload.shape()


class StreamChecker(wiring.Component):
    """Asserts that a stream keeps its word while stalled; drives nothing.

    The assertion fires in Amaranth's simulator, and in any simulator or proof of the emitted
    netlist. It holds from the first cycle after reset.

    Parameters
    ----------
    payload_shape : ShapeLike    Payload of the stream.
    name : str                   What the message calls the stream.

    Members
    -------
    payload : In(payload_shape)
    valid, ready : In(1)
    """

    payload: Value
    valid: Signal
    ready: Signal

    def __init__(self, payload_shape: Any, name: str = "stream") -> None:
        self._name = name
        super().__init__({"payload": In(payload_shape), "valid": In(1), "ready": In(1)})

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        payload = Value.cast(self.payload)
        held = Signal.like(payload)
        stalled = Signal()
        m.d.sync += [stalled.eq(self.valid & ~self.ready), held.eq(payload)]
        with m.If(stalled):
            m.d.comb += Assert(
                self.valid & (payload == held),
                Format(f"{self._name}: valid dropped or payload changed while stalled"),
            )
        return m


def check_stream(m: Module, name: str, interface: AnyStream) -> None:
    """Adds a `StreamChecker` that watches ``interface``, as submodule ``<name>_checker``."""
    checker = StreamChecker(_shape(interface), name)
    m.submodules[f"{name}_checker"] = checker
    m.d.comb += [
        checker.payload.eq(interface.payload),
        checker.valid.eq(interface.valid),
        checker.ready.eq(interface.ready),
    ]


class Queue(wiring.Component):
    """First-in, first-out buffer of a stream.

    Up to `DISTRIBUTED_DEPTH` words stand in a memory that is read without a clock (distributed
    memory); deeper queues, and those with ``block``, in a `BlockMemory`, whose register is ``o``.
    None has a path from ``o.ready`` to ``i.ready`` or from ``i.valid`` to ``o.valid``. To empty a
    queue at once, wrap it in `ResetInserter`.

    Latency: `latency_cycles` from the transfer on ``i`` to ``o.valid``: 1, 3 in block memory.
    Throughput: one word per cycle if ``depth`` is more than the latency.

    Parameters
    ----------
    shape : ShapeLike     Payload of both streams.
    depth : int           Words that it holds, 1 to 65536.
    block : bool          Use block memory at any depth from 2: for wide words that can take their
                          time on the way, and are wanted early in a cycle.

    Members
    -------
    i : In(stream of shape)
    o : Out(stream of shape)
    level : Out(range(depth + 1))     Words inside.

    Raises
    ------
    TypeError, ValueError             If ``depth`` is not an integer in that range.
    """

    i: stream.Interface
    o: stream.Interface
    level: Signal

    def __init__(self, shape: Any, depth: int, block: bool = False) -> None:
        self._shape = shape
        self._depth = as_int_in("depth", depth, 1, 65536)
        self._block = (block and self._depth > 1) or self._depth > DISTRIBUTED_DEPTH
        super().__init__({
            "i": In(stream.Signature(shape)),
            "o": Out(stream.Signature(shape)),
            "level": Out(range(self._depth + 1)),
        })

    @property
    def depth(self) -> int:
        """Words that the queue holds."""
        return self._depth

    @property
    def latency_cycles(self) -> int:
        """Cycles from a transfer on ``i`` to the word on ``o``."""
        return 3 if self._block else 1

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        put = Signal()
        take = Signal()
        # The level is never more than the depth: of a power of two only the highest bit is new.
        is_power = self._depth & (self._depth - 1) == 0
        full = self.level[-1] if is_power else self.level == self._depth
        m.d.comb += [
            self.i.ready.eq(~full),
            put.eq(self.i.valid & self.i.ready),
            take.eq(self.o.valid & self.o.ready),
        ]
        # One more, one less or the same with a single adder.
        step = Cat(put ^ take, (take & ~put).replicate(len(self.level) - 1))
        m.d.sync += self.level.eq(self.level + step)
        if self._block:
            self._read_block(m, put, take)
        else:
            m.submodules.memory = memory = Memory(shape=self._shape, depth=self._depth, init=[])
            write, read = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.data.eq(self.i.payload), write.en.eq(put),
                self.o.valid.eq(self.level != 0), self.o.payload.eq(read.data),
            ]
            self._step(m, write.addr, put)
            self._step(m, read.addr, take)
        return m

    def _read_block(self, m: Module, put: Signal, take: Signal) -> None:
        """Drives ``o`` from a block memory's register; the memory shows the word behind it."""
        payload = Value.cast(self.o.payload)
        m.submodules.memory = memory = BlockMemory(len(payload), self._depth)
        shows_next = Signal()
        vacant, leaves = self._advance(m, take, shows_next)
        m.d.comb += [
            memory.w_data.eq(self.i.payload), memory.w_en.eq(put),
            memory.r_en.eq(leaves), memory.r_moves.eq(vacant), payload.eq(memory.r_data),
        ]
        self._step(m, memory.w_addr, put)
        self._step(m, memory.r_addr, shows_next)

    def _advance(self, m: Module, take: Signal, shows_next: Signal) -> tuple[Value, Value]:
        """Moves words from the memory to ``o``, by way of what the memory shows.

        Returns whether a word can come onto ``o``, and whether what the memory shows may change;
        ``shows_next``: it will be the next word.
        """
        vacant = Signal()
        waiting = Signal()  # a word stands in the memory, and has not been read
        shown, leaves = Signal(), Signal()
        read_count = Cat(self.o.valid ^ shown, self.o.valid & shown)
        m.d.comb += [
            vacant.eq(take | ~self.o.valid),
            leaves.eq(vacant | ~shown),
            waiting.eq(self.level != read_count),
            shows_next.eq(waiting & leaves),
        ]
        with m.If(vacant):
            m.d.sync += self.o.valid.eq(shown)
        with m.If(leaves):
            m.d.sync += shown.eq(waiting)
        return vacant, leaves

    def _step(self, m: Module, port_address: Value, enable: Value) -> None:
        """Drives the address of a memory port from a pointer that moves on with ``enable``."""
        if self._depth == 1:
            return
        pointer = Signal(range(self._depth), name="pointer")
        m.d.comb += port_address.eq(pointer)
        with m.If(enable):
            if self._depth & (self._depth - 1):
                m.d.sync += pointer.eq(pointer + 1)
                with m.If(pointer == self._depth - 1):
                    m.d.sync += pointer.eq(0)
            else:
                m.d.sync += pointer.eq(pointer + 1)
