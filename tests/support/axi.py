# SPDX-License-Identifier: Apache-2.0
"""AXI4 memory and AXI4-Lite master for Amaranth's simulator, with random stalls."""

import random
from collections import deque


class AxiMemory:
    """In-order AXI4 memory slave: call `run` as a background testbench.

    ``stall`` is the probability that a channel pauses for a cycle. ``hang`` stops all answers.
    ``read_error`` and ``write_error`` map a byte address to a response.
    """

    def __init__(self, axi, data_width, size, rng=None, stall=0.0):
        self.axi, self.bytes, self.data = axi, data_width // 8, bytearray(size)
        self.rng, self.stall = rng or random.Random(0), stall
        self.hang = False
        self.read_error, self.write_error = {}, {}
        self.reads, self.writes, self.beats, self.responses = deque(), deque(), deque(), deque()
        self.read_bursts, self.write_bursts = [], []

    def _go(self):
        return not self.hang and self.rng.random() >= self.stall

    async def run(self, ctx):
        a, n = self.axi, self.bytes
        current, r_up, b_up = None, False, False
        while True:
            arready, awready, wready = self._go(), self._go(), self._go()
            ctx.set(a.arready, arready)
            ctx.set(a.awready, awready)
            ctx.set(a.wready, wready)
            if not r_up and self.reads and self._go():
                ident, address, left = self.reads[0]
                r_up = True
                ctx.set(a.rid, ident)
                ctx.set(a.rdata, int.from_bytes(self.data[address : address + n], "little"))
                ctx.set(a.rresp, self.read_error.get(address, 0))
                ctx.set(a.rlast, left == 1)
            ctx.set(a.rvalid, r_up)
            if not b_up and self.responses and self._go():
                ident, response = self.responses[0]
                b_up = True
                ctx.set(a.bid, ident)
                ctx.set(a.bresp, response)
            ctx.set(a.bvalid, b_up)
            (_, _, arv, ar, arl, ari, awv, aw, awl, awi, wv, wd, ws, wl, rr, br) = (
                await ctx.tick().sample(
                    a.arvalid, a.araddr, a.arlen, a.arid, a.awvalid, a.awaddr, a.awlen, a.awid,
                    a.wvalid, a.wdata, a.wstrb, a.wlast, a.rready, a.bready))
            if arv and arready:
                self.reads.append([ari, ar, arl + 1])
                self.read_bursts.append((ar, arl + 1))
            if awv and awready:
                self.writes.append([awi, aw, awl + 1])
                self.write_bursts.append((aw, awl + 1))
            if wv and wready:
                self.beats.append((wd, ws, wl))
            if r_up and rr:
                r_up = False
                self.reads[0][1] += n
                self.reads[0][2] -= 1
                if not self.reads[0][2]:
                    self.reads.popleft()
            if b_up and br:
                b_up = False
                self.responses.popleft()
            while self.beats and (current or self.writes):
                current = current or [*self.writes.popleft(), 0]
                current = self._write_beat(current)

    def _write_beat(self, current):
        ident, address, left, response = current
        data, strobe, last = self.beats.popleft()
        assert last == (left == 1)
        for k in range(self.bytes):
            if strobe >> k & 1:
                self.data[address + k] = data >> 8 * k & 0xFF
        response = response or self.write_error.get(address, 0)
        if left > 1:
            return [ident, address + self.bytes, left - 1, response]
        self.responses.append((ident, response))
        return None


async def lite_write(ctx, bus, address, value, strobe=0xF):
    """Writes one register; returns the response."""
    ctx.set(bus.awaddr, address)
    ctx.set(bus.awvalid, 1)
    ctx.set(bus.wdata, value)
    ctx.set(bus.wstrb, strobe)
    ctx.set(bus.wvalid, 1)
    ctx.set(bus.bready, 1)
    while True:
        *_, awready, wready, bvalid, bresp = await ctx.tick().sample(
            bus.awready, bus.wready, bus.bvalid, bus.bresp)
        if awready:
            ctx.set(bus.awvalid, 0)
        if wready:
            ctx.set(bus.wvalid, 0)
        if bvalid:
            ctx.set(bus.bready, 0)
            return bresp


async def lite_read(ctx, bus, address):
    """Reads one register; returns (value, response)."""
    ctx.set(bus.araddr, address)
    ctx.set(bus.arvalid, 1)
    ctx.set(bus.rready, 1)
    while True:
        *_, arready, rvalid, rdata, rresp = await ctx.tick().sample(
            bus.arready, bus.rvalid, bus.rdata, bus.rresp)
        if arready:
            ctx.set(bus.arvalid, 0)
        if rvalid:
            ctx.set(bus.rready, 0)
            return rdata, rresp
