# SPDX-License-Identifier: Apache-2.0
"""Asynchronous serial line, 8 data bits, no parity, 1 stop bit."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in

__all__ = ["UartReceiver", "UartTransmitter"]

_FRAME_BITS = 10  # start, 8 data, stop


class UartTransmitter(wiring.Component):
    """Sends bytes.

    Throughput: one byte in ``10 * divisor + 1`` cycles.

    Parameters
    ----------
    divisor : int      Cycles of a bit, 4 to 65535.

    Members
    -------
    i : In(stream of 8 bits)
    tx : Out(1)        The line, high when idle.
    """

    i: stream.Interface
    tx: Signal

    def __init__(self, divisor: int) -> None:
        self._divisor = as_int_in("divisor", divisor, 4, 65535)
        line = Out(1, init=1)  # pyright: ignore[reportCallIssue]
        super().__init__({"i": In(stream.Signature(8)), "tx": line})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shift = Signal(_FRAME_BITS, init=(1 << _FRAME_BITS) - 1)
        bits_left = Signal(range(_FRAME_BITS + 1))
        timer = Signal(range(self._divisor))
        m.d.comb += self.i.ready.eq(bits_left == 0)
        m.d.sync += self.tx.eq(shift[0])
        with m.If(self.i.ready):
            with m.If(self.i.valid):
                m.d.sync += [
                    shift.eq(Cat(Const(0, 1), self.i.payload, Const(1, 1))),
                    bits_left.eq(_FRAME_BITS),
                    timer.eq(self._divisor - 1),
                ]
        with m.Elif(timer == 0):
            m.d.sync += [
                shift.eq(Cat(shift[1:], Const(1, 1))),
                bits_left.eq(bits_left - 1),
                timer.eq(self._divisor - 1),
            ]
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
        return m


class UartReceiver(wiring.Component):
    """Receives bytes; samples each bit in its middle.

    A start bit that is gone by its middle is noise and ignored; a byte whose stop bit is low
    (framing error) is dropped, and the line must go high before the next.

    Parameters
    ----------
    divisor : int      Cycles of a bit, 4 to 65535.

    Members
    -------
    rx : In(1)         The line; from another clock, or none.
    o_valid : Out(1), o_data : Out(8)     Strobe, and the byte. There is no back-pressure on a wire.
    framing_error : Out(1)                Strobe: a byte was dropped.
    """

    rx: Signal
    o_valid: Signal
    o_data: Signal
    framing_error: Signal

    def __init__(self, divisor: int) -> None:
        self._divisor = as_int_in("divisor", divisor, 4, 65535)
        line = In(1, init=1)  # pyright: ignore[reportCallIssue]
        super().__init__({
            "rx": line,
            "o_valid": Out(1),
            "o_data": Out(8),
            "framing_error": Out(1),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        timer = Signal(range(self._divisor))
        bits_left = Signal(range(_FRAME_BITS))
        m.d.sync += timer.eq(timer - 1)
        m.d.sync += [self.o_valid.eq(0), self.framing_error.eq(0)]
        with m.FSM(name="receive"):
            with m.State("IDLE"):  # wait for a start bit
                m.d.sync += timer.eq(self._divisor // 2 - 1)
                with m.If(~line):
                    m.next = "START"
            with m.State("START"):  # its middle
                with m.If(timer == 0):
                    m.d.sync += [timer.eq(self._divisor - 1), bits_left.eq(8)]
                    m.next = "DATA"
                    with m.If(line):
                        m.next = "IDLE"
            with m.State("DATA"):  # the middle of each bit, then of the stop bit
                with m.If(timer == 0):
                    m.d.sync += [timer.eq(self._divisor - 1), bits_left.eq(bits_left - 1)]
                    with m.If(bits_left != 0):
                        m.d.sync += self.o_data.eq(Cat(self.o_data[1:], line))
                    with m.Else():
                        m.d.sync += [self.o_valid.eq(line), self.framing_error.eq(~line)]
                        m.next = "IDLE"
                        with m.If(~line):
                            m.next = "RECOVER"
            with m.State("RECOVER"):  # wait for the line to be idle
                with m.If(line):
                    m.next = "IDLE"
        return m
