# SPDX-License-Identifier: Apache-2.0
"""A core, its memory and its link: what every board with a serial line holds."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac_hw.core import Core
from sparsemac_hw.streams import connect_stream

from .bridge import LinkBridge
from .memory import OnChipMemory
from .uart import UartReceiver, UartTransmitter

__all__ = ["UartSoc"]


class UartSoc(wiring.Component):
    """A core with on-chip memory, reached over a serial line.

    Parameters
    ----------
    config : CoreConfig
    memory_bytes : int     On-chip memory, a power of two.
    divisor : int          Cycles of a bit on the line.

    Members
    -------
    rx : In(1), tx : Out(1)
    irq : Out(1)           The core's interrupt, for a lamp.
    """

    rx: Signal
    tx: Signal
    irq: Signal

    def __init__(self, config: CoreConfig, memory_bytes: int, divisor: int) -> None:
        self._config = config
        self._memory_bytes = memory_bytes
        self._divisor = divisor
        idle_in = In(1, init=1)  # pyright: ignore[reportCallIssue]
        idle_out = Out(1, init=1)  # pyright: ignore[reportCallIssue]
        super().__init__({"rx": idle_in, "tx": idle_out, "irq": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        m.submodules.core = core = Core(self._config)
        m.submodules.memory = memory = OnChipMemory(self._config.bus_width, self._memory_bytes)
        m.submodules.bridge = bridge = LinkBridge(self._memory_bytes)
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        wiring.connect(m, core.m_axi, memory.bus)
        wiring.connect(m, bridge.bus, core.s_axil)
        connect_stream(m, bridge.o, transmitter.i)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.irq.eq(core.irq),
            bridge.i_valid.eq(receiver.o_valid),
            bridge.i_data.eq(receiver.o_data),
            bridge.irq.eq(core.irq),
            memory.host_en.eq(bridge.mem_en),
            memory.host_we.eq(bridge.mem_we),
            memory.host_addr.eq(bridge.mem_addr),
            memory.host_w_data.eq(bridge.mem_w_data),
            bridge.mem_r_data.eq(memory.host_r_data),
        ]
        return m
