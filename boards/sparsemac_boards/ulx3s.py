# SPDX-License-Identifier: Apache-2.0
"""Top of the ULX3S: PLL, reset, serial line, one lamp."""

from typing import Any

from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    Const,
    Elaboratable,
    Instance,
    Module,
    ResetSignal,
    Signal,
)
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer

from .registry import Board
from .soc import UartSoc

__all__ = ["OSCILLATOR_HZ", "Ulx3sTop", "pll_dividers"]

OSCILLATOR_HZ = 25_000_000
#: EHXPLLL: the VCO runs at 400 to 800 MHz (Lattice FPGA-TN-02200, table 18.1).
VCO_HZ = (400_000_000, 800_000_000)
#: Cycles that the reset is held after the PLL has locked.
RESET_CYCLES = 16


def pll_dividers(clock_hz: int) -> tuple[int, int, int]:
    """Returns (reference, feedback, output) dividers that make ``clock_hz`` of the oscillator.

    Raises
    ------
    ValueError    If none do, naming the nearest clock that some do.
    """
    legal = {
        OSCILLATOR_HZ * feedback // reference: (reference, feedback)
        for reference in (2, 1)  # the phase detector needs 10 MHz
        for feedback in range(1, 17)
    }
    if clock_hz not in legal:
        nearest = min(legal, key=lambda clock: abs(clock - clock_hz))
        raise ValueError(
            f"clock_hz must be one that the PLL makes of {OSCILLATOR_HZ}, not {clock_hz} "
            f"(nearest legal value: {nearest})"
        )
    return (*legal[clock_hz], -(-VCO_HZ[0] // clock_hz))


class Ulx3sTop(Elaboratable):
    """Clock from the PLL, the reset of which also holds the core; RX and TX of the USB bridge."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def elaborate(self, platform: Any) -> Module:
        """Returns the gateware; ``platform`` is the board's."""
        m = Module()
        clk_pin = platform.request("clk25", 0, dir="-")
        line = platform.request("uart", 0, dir="-")
        led = platform.request("led", 0, dir="-")
        m.submodules.clk_buffer = oscillator = io.Buffer(io.Direction.Input, clk_pin)
        m.submodules.rx_buffer = rx = io.Buffer(io.Direction.Input, line.rx)
        m.submodules.tx_buffer = tx = io.Buffer(io.Direction.Output, line.tx)
        m.submodules.lamp_buffer = lamp = io.Buffer(io.Direction.Output, led)
        m.domains.sync = ClockDomain()
        clock = Signal()
        locked = Signal()
        reference, feedback, output = pll_dividers(self._board.clock_hz)
        m.submodules.pll = Instance(
            "EHXPLLL",
            ("a", "FREQUENCY_PIN_CLKI", str(OSCILLATOR_HZ / 1e6)),
            ("a", "FREQUENCY_PIN_CLKOP", str(self._board.clock_hz / 1e6)),
            ("p", "CLKI_DIV", reference), ("p", "CLKFB_DIV", feedback), ("p", "CLKOP_DIV", output),
            ("p", "CLKOP_ENABLE", "ENABLED"), ("p", "CLKOP_CPHASE", output // 2),
            ("p", "FEEDBK_PATH", "CLKOP"), ("p", "PLLRST_ENA", "DISABLED"),
            ("i", "CLKI", oscillator.i), ("i", "CLKFB", clock),
            ("i", "RST", Const(0)), ("i", "STDBY", Const(0)), ("i", "PHASESEL0", Const(0)),
            ("i", "PHASESEL1", Const(0)), ("i", "PHASEDIR", Const(0)), ("i", "PHASESTEP", Const(0)),
            ("i", "PHASELOADREG", Const(0)), ("i", "PLLWAKESYNC", Const(0)),
            ("i", "ENCLKOP", Const(0)),
            ("o", "CLKOP", clock), ("o", "LOCK", locked),
        )
        # Its constraint: nextpnr works it out from the oscillator's and the PLL's dividers.
        m.d.comb += ClockSignal("sync").eq(clock)

        is_stable = Signal()
        m.submodules.locked = FFSynchronizer(locked, is_stable)
        held = Signal(range(RESET_CYCLES + 1), init=RESET_CYCLES, reset_less=True)
        with m.If(~is_stable):
            m.d.sync += held.eq(RESET_CYCLES)
        with m.Elif(held != 0):
            m.d.sync += held.eq(held - 1)
        m.d.comb += ResetSignal("sync").eq(held != 0)

        m.submodules.soc = soc = UartSoc(
            self._board.config, self._board.memory_bytes, self._board.divisor)
        m.d.comb += [soc.rx.eq(rx.i), tx.o.eq(soc.tx), lamp.o.eq(soc.irq)]
        return m
