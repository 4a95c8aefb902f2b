# SPDX-License-Identifier: Apache-2.0
"""Memories that are read into a register."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_int_in

from .ecp5 import RegisteredMemory, is_ecp5

__all__ = ["BlockMemory"]


class BlockMemory(wiring.Component):
    """A block memory of one write port and one read port, the latter with a register behind it.

    Reading a block memory takes most of a cycle, so there is time for nothing else in it. FPGAs
    whose blocks have such a register have it inside.

    It starts with zeros. What a word reads as in the cycle in which it is written is not defined.

    Latency: `LATENCY_CYCLES` from ``r_addr`` to ``r_data``. Throughput: one read and one write per
    cycle.

    Where a word waits, ``r_en`` and ``r_moves`` hold it: what is read, and what stands in the
    register. ``r_en`` must be low only where ``r_moves`` is, too: so it need not be known whether
    a block's registers wait for one of their enables or for both.

    Parameters
    ----------
    width : int    Bits of a word.
    depth : int    Words, from 2.

    Members
    -------
    r_addr : In, r_data : Out(width)
    r_en : In(1, init=1)       The memory is read; else what was read last stays.
    r_moves : In(1, init=1)    The register takes what was read last.
    w_en, w_addr, w_data : In
    """

    LATENCY_CYCLES = 2

    r_addr: Signal
    r_data: Signal
    r_en: Signal
    r_moves: Signal
    w_en: Signal
    w_addr: Signal
    w_data: Signal

    def __init__(self, width: int, depth: int) -> None:
        self._width = as_int_in("width", width, 1, 1024)
        self._depth = as_int_in("depth", depth, 2, 65536)
        super().__init__({
            "r_addr": In(range(self._depth)),
            "r_data": Out(self._width),
            "r_en": In(1, init=1),  # pyright: ignore[reportCallIssue]
            "r_moves": In(1, init=1),  # pyright: ignore[reportCallIssue]
            "w_en": In(1),
            "w_addr": In(range(self._depth)),
            "w_data": In(self._width),
        })

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        if is_ecp5(platform) and self._depth <= RegisteredMemory.MAX_DEPTH:
            m.submodules.blocks = blocks = RegisteredMemory(self._width, self._depth)
            m.d.comb += [
                blocks.r_en.eq(self.r_en), blocks.r_moves.eq(self.r_moves),
                blocks.r_addr.eq(self.r_addr), self.r_data.eq(blocks.r_data),
                blocks.w_en.eq(self.w_en), blocks.w_addr.eq(self.w_addr),
                blocks.w_data.eq(self.w_data),
            ]
            return m
        # Left to itself, yosys makes distributed memory of some hundred words.
        m.submodules.memory = memory = Memory(
            shape=self._width, depth=self._depth, init=[], attrs={"ram_style": "block"})
        read, write = memory.read_port(), memory.write_port()
        # Without reset, as registers inside of blocks are.
        word = Signal(self._width, reset_less=True)
        m.d.comb += [
            read.en.eq(self.r_en), read.addr.eq(self.r_addr), self.r_data.eq(word),
            write.en.eq(self.w_en), write.addr.eq(self.w_addr), write.data.eq(self.w_data),
        ]
        with m.If(self.r_moves):
            m.d.sync += word.eq(read.data)
        return m
