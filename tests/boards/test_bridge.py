# SPDX-License-Identifier: Apache-2.0
"""The bridge behind raw bytes, between registers and a memory."""

import random
import struct

from sparsemac.link import LinkOp, LinkStatus, Reply, Request
from sparsemac_boards.bridge import LinkBridge
from sparsemac_hw.testing import simulate

MEMORY_BYTES = 4096
SESSION = 0x1234
BAD_WRITE, BAD_READ = 0x40, 0x44  # register offsets that answer SLVERR


class Bench:
    """A bridge between a host's bytes, registers and a memory."""

    def __init__(self, seed):
        print("seed", seed)
        self.rng = random.Random(seed)
        self.dut = LinkBridge(MEMORY_BYTES)
        self.memory = bytearray(MEMORY_BYTES)
        self.registers = {}
        self.writes = 0
        self.out = bytearray()

    async def memory_port(self, ctx):
        dut, word = self.dut, 0
        while True:
            ctx.set(dut.mem_r_data, word)
            *_, en, we, address, data = await ctx.tick().sample(
                dut.mem_en, dut.mem_we, dut.mem_addr, dut.mem_w_data)
            if en and we:
                self.writes += 1
                self.memory[address : address + 4] = data.to_bytes(4, "little")
            elif en:
                word = int.from_bytes(self.memory[address : address + 4], "little")

    async def registers_port(self, ctx):
        bus = self.dut.bus
        ctx.set(bus.awready, 1)
        ctx.set(bus.wready, 1)
        ctx.set(bus.arready, 1)
        address = value = None
        while True:
            *_, awvalid, awaddr, wvalid, wdata, arvalid, araddr = await ctx.tick().sample(
                bus.awvalid, bus.awaddr, bus.wvalid, bus.wdata, bus.arvalid, bus.araddr)
            ctx.set(bus.bvalid, 0)
            ctx.set(bus.rvalid, 0)
            address = awaddr if awvalid else address
            value = wdata if wvalid else value
            if address is not None and value is not None:
                self.writes += 1
                self.registers[address] = value
                ctx.set(bus.bvalid, 1)
                ctx.set(bus.bresp, 2 if address == BAD_WRITE else 0)
                address = value = None
            if arvalid:
                ctx.set(bus.rvalid, 1)
                ctx.set(bus.rdata, self.registers.get(araddr, 0))
                ctx.set(bus.rresp, 2 if araddr == BAD_READ else 0)

    async def line(self, ctx):
        ctx.set(self.dut.o.ready, 1)
        while True:
            *_, valid, byte = await ctx.tick().sample(self.dut.o.valid, self.dut.o.payload)
            if valid:
                self.out.append(byte)

    async def send(self, ctx, raw, patience=1200):
        """Sends bytes; returns the reply, or None if none comes."""
        self.out.clear()
        for byte in raw:
            ctx.set(self.dut.i_valid, 1)
            ctx.set(self.dut.i_data, byte)
            await ctx.tick()
            ctx.set(self.dut.i_valid, 0)
            for _ in range(self.rng.randrange(3)):
                await ctx.tick()
        for _ in range(patience):
            await ctx.tick()
            if self.out and self.out[-1] == 0:
                for _ in range(3):
                    await ctx.tick()
                return Reply.decode(bytes(self.out[:-1]))
        return None

    async def hello(self, ctx):
        reply = await self.send(ctx, Request(LinkOp.HELLO, 0, SESSION, 0, 12).encode())
        assert struct.unpack("<III", reply.data) == (1, 0, MEMORY_BYTES)

    def run(self, host):
        simulate(self.dut, host, background=[self.memory_port, self.registers_port, self.line],
                 max_cycles=200_000)


def test_e1_carries_out_sound_requests_and_drops_damaged_ones():
    bench = Bench(1)
    rng = bench.rng

    async def host(ctx):
        await bench.hello(ctx)
        for sequence in range(1, 60):
            op = rng.choice([LinkOp.READ_REGISTER, LinkOp.WRITE_REGISTER, LinkOp.READ_MEMORY,
                             LinkOp.WRITE_MEMORY, LinkOp.INTERRUPT])
            length = 4 * rng.randrange(1, 33)
            address = 4 * rng.randrange((MEMORY_BYTES - length) // 4 + 1)
            data = b""
            if op in (LinkOp.READ_REGISTER, LinkOp.WRITE_REGISTER, LinkOp.INTERRUPT):
                length, address = 4, 4 * rng.randrange(20)
            if op in (LinkOp.WRITE_REGISTER, LinkOp.WRITE_MEMORY):
                data = bytes(rng.choice([0, rng.randrange(256)]) for _ in range(length))
            request = Request(op, sequence, SESSION, address, length, data)
            if rng.random() < 0.2:
                raw = bytearray(request.encode())
                raw[rng.randrange(len(raw) - 1)] ^= 1 << rng.randrange(8)
                before = bench.writes
                assert await bench.send(ctx, raw, 300) is None or 0 in raw[:-1]
                assert bench.writes == before
            reply = await bench.send(ctx, request.encode())
            assert reply.sequence == sequence and reply.op == op
            refused = {LinkOp.WRITE_REGISTER: BAD_WRITE, LinkOp.READ_REGISTER: BAD_READ}.get(op)
            assert reply.status == (
                LinkStatus.SLVERR if address == refused else LinkStatus.OK)
            if op == LinkOp.WRITE_MEMORY:
                assert bench.memory[address : address + length] == data
            elif op == LinkOp.READ_MEMORY:
                assert reply.data == bytes(bench.memory[address : address + length])
            elif op == LinkOp.WRITE_REGISTER:
                assert bench.registers[address] == int.from_bytes(data, "little")
            elif op == LinkOp.READ_REGISTER and address != BAD_READ:
                assert reply.data == struct.pack("<I", bench.registers.get(address, 0))

    bench.run(host)


def test_e2_a_repeated_request_gets_the_kept_reply_and_is_not_carried_out_again():
    bench = Bench(2)

    async def host(ctx):
        await bench.hello(ctx)
        request = Request(LinkOp.WRITE_MEMORY, 1, SESSION, 8, 8, b"abcdefgh").encode()
        first = await bench.send(ctx, request)
        writes = bench.writes
        bench.memory[8:16] = b"changed!"
        for _ in range(3):
            assert await bench.send(ctx, request) == first
        assert bench.writes == writes and bench.memory[8:16] == b"changed!"

    bench.run(host)


def test_e3_noise_longer_than_a_frame_is_survived():
    bench = Bench(3)

    async def host(ctx):
        await bench.hello(ctx)
        noise = bytes(bench.rng.randrange(1, 256) for _ in range(600)) + b"\0"
        assert await bench.send(ctx, noise, 300) is None
        request = Request(LinkOp.READ_MEMORY, 1, SESSION, 0, 4)
        assert (await bench.send(ctx, request.encode())).status == LinkStatus.OK

    bench.run(host)


def test_e5_a_request_of_another_session_is_refused():
    bench = Bench(4)

    async def host(ctx):
        request = Request(LinkOp.WRITE_MEMORY, 1, 77, 0, 4, b"abcd").encode()
        assert (await bench.send(ctx, request)).status == LinkStatus.BAD_SESSION
        assert bench.writes == 0

    bench.run(host)


def test_a_malformed_request_is_refused_by_name():
    bench = Bench(5)
    bad = [
        Request(LinkOp.READ_MEMORY, 1, SESSION, 2, 4),
        Request(LinkOp.READ_MEMORY, 2, SESSION, 0, 0),
        Request(LinkOp.READ_MEMORY, 3, SESSION, 0, 132),
        Request(LinkOp.READ_MEMORY, 4, SESSION, MEMORY_BYTES - 4, 8),
        Request(LinkOp.READ_MEMORY, 5, SESSION, 0xFFFF_FFFC, 8),
        Request(LinkOp.WRITE_MEMORY, 6, SESSION, 0, 8, b"abcd"),
        Request(LinkOp.READ_REGISTER, 7, SESSION, 0x1000, 4),
        Request(99, 8, SESSION, 0, 4),
    ]

    async def host(ctx):
        await bench.hello(ctx)
        for request in bad:
            reply = await bench.send(ctx, request.encode())
            assert reply.status == LinkStatus.BAD_REQUEST, request
        assert bench.writes == 0

    bench.run(host)
