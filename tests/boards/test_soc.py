# SPDX-License-Identifier: Apache-2.0
"""The whole of a board at its pins, in Amaranth's simulator: slow, so only a greeting."""

import struct

from sparsemac.config import CoreConfig
from sparsemac.link import LinkOp, LinkStatus, Reply, Request
from sparsemac.registers import MAGIC, register_map
from sparsemac_boards.soc import UartSoc
from sparsemac_hw.testing import simulate

CONFIG = CoreConfig(engines=1, lanes=1, act_depth=64, psum_depth=0, entry_depth=16, windows=1,
                    burst_beats=4, bus_width=32, counters=False)
DIVISOR = 4
MEMORY_BYTES = 4096


def test_answers_over_its_pins():
    soc = UartSoc(CONFIG, MEMORY_BYTES, DIVISOR)
    replies = []

    async def send(ctx, request):
        for byte in request.encode():
            for level in (0, *((byte >> bit) & 1 for bit in range(8)), 1):
                ctx.set(soc.rx, level)
                for _ in range(DIVISOR):
                    await ctx.tick()

    async def receive(ctx):
        line = bytearray()
        while not line or line[-1]:
            while ctx.get(soc.tx):
                await ctx.tick()
            for _ in range(DIVISOR // 2):
                await ctx.tick()
            byte = 0
            for bit in range(8):
                for _ in range(DIVISOR):
                    await ctx.tick()
                byte |= ctx.get(soc.tx) << bit
            for _ in range(DIVISOR):
                await ctx.tick()
            assert ctx.get(soc.tx)
            line.append(byte)
        return Reply.decode(bytes(line[:-1]))

    async def host(ctx):
        magic = register_map(CONFIG)["MAGIC"].byte_offset
        for request in (
            Request(LinkOp.HELLO, 1, 5, 0, 12),
            Request(LinkOp.READ_REGISTER, 2, 5, magic, 4),
            Request(LinkOp.WRITE_MEMORY, 3, 5, MEMORY_BYTES - 8, 8, b"\0sparse\0"),
            Request(LinkOp.READ_MEMORY, 4, 5, MEMORY_BYTES - 8, 8),
            Request(LinkOp.INTERRUPT, 5, 5, 0, 4),
        ):
            await send(ctx, request)
            replies.append(await receive(ctx))

    simulate(soc, host)
    assert [reply.status for reply in replies] == [LinkStatus.OK] * 5
    assert [reply.data for reply in replies] == [
        struct.pack("<III", 1, 0, MEMORY_BYTES), struct.pack("<I", MAGIC), b"", b"\0sparse\0",
        bytes(4),
    ]
