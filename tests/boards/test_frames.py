# SPDX-License-Identifier: Apache-2.0
"""Frames in gateware against `sparsemac.link`."""

import random
import zlib

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator
from sparsemac.link import (
    CRC_BYTES,
    MAX_DATA_BYTES,
    MAX_FRAME_BYTES,
    LinkOp,
    Reply,
    Request,
    cobs_decode,
    cobs_encode,
)
from sparsemac_boards.frames import FrameReceiver, FrameSender, crc32_step
from sparsemac_hw.testing import simulate, stream_get

SEED = 31


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return random.Random(SEED)


def sealed(body):
    return cobs_encode(body + zlib.crc32(body).to_bytes(4, "little")) + b"\0"


def receive(frames, holds=()):
    """Feeds frames; returns (header, payload length, request's bytes) of each taken."""
    dut, taken = FrameReceiver(), []

    async def host(ctx):
        for number, frame in enumerate(frames):
            ctx.set(dut.hold, number in holds)
            for byte in frame:
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.i_data, byte)
                *_, got = await ctx.tick().sample(dut.got)
                ctx.set(dut.i_valid, 0)
                if got:
                    header = ctx.get(dut.header.as_value()).to_bytes(10, "little")
                    length, payload = ctx.get(dut.payload_bytes), bytearray()
                    ctx.set(dut.hold, 1)  # as the bridge does from the next cycle on
                    for at in range(10 + length):
                        ctx.set(dut.addr, at)
                        *_, value = await ctx.tick().sample(dut.data)
                        payload.append(value)
                    ctx.set(dut.hold, 0)
                    taken.append((header, length, bytes(payload)))

    simulate(dut, host)
    return taken


def send(body, repeats=1, rng=None):
    """Sends a reply; returns what is on the line each time."""
    dut, lines = FrameSender(), []

    async def host(ctx):
        for at, byte in enumerate(body):
            ctx.set(dut.w_en, 1)
            ctx.set(dut.w_addr, at)
            ctx.set(dut.w_data, byte)
            await ctx.tick()
        ctx.set(dut.w_en, 0)
        ctx.set(dut.length, len(body))
        for number in range(repeats):
            ctx.set(dut.start, 1)
            ctx.set(dut.seal, number == 0)
            await ctx.tick()
            ctx.set(dut.start, 0)
            line = bytearray()
            while not line or line[-1]:
                while rng is not None and rng.random() < 0.3:
                    await ctx.tick()
                line.append(await stream_get(ctx, dut.o))
            assert not ctx.get(dut.busy)
            lines.append(bytes(line))

    simulate(dut, host)
    return lines


def test_crc_step_is_that_of_zlib(rng):
    data = rng.randbytes(60)
    crc, byte, after = Signal(32), Signal(8), Signal(32)
    m = Module()
    m.d.comb += after.eq(crc32_step(crc, byte))
    state = [0xFFFF_FFFF]

    async def drive(ctx):
        for value in data:
            ctx.set(crc, state[0])
            ctx.set(byte, value)
            await ctx.delay(1e-9)
            state[0] = ctx.get(after)

    simulator = Simulator(m)
    simulator.add_testbench(drive)
    simulator.run()
    assert state[0] ^ 0xFFFF_FFFF == zlib.crc32(data)


@pytest.mark.parametrize("alphabet", [b"\0", b"\1", b"\0\1", bytes(range(256))],
                         ids=["zeros", "ones", "both", "any"])
def test_receiver_takes_what_the_host_sends(rng, alphabet):
    requests = [
        Request(LinkOp.WRITE_MEMORY, rng.randrange(256), rng.randrange(1 << 16),
                rng.choice([0, 0x100, rng.getrandbits(32)]), length,
                bytes(rng.choices(alphabet, k=length)))
        for length in (0, 4, 128, 12)
    ]
    taken = receive([request.encode() for request in requests])
    bodies = [cobs_decode(request.encode()[:-1])[:-CRC_BYTES] for request in requests]
    assert taken == [(body[:10], len(body) - 10, body) for body in bodies]


def test_e1_receiver_drops_every_damaged_frame(rng):
    sound = Request(LinkOp.WRITE_MEMORY, 1, 2, 3, 4, b"\0\1\2\3").encode()
    frames = []
    for at in range(len(sound) - 1):
        flipped = bytearray(sound)
        flipped[at] ^= 1 << rng.randrange(8)
        frames += [bytes(flipped), sound[:at] + sound[at + 1 :], sound[: at + 1] + sound[at:]]
    assert receive(frames) == []
    assert len(receive([*frames[:9], b"\0", sound])) == 1


def test_e3_receiver_goes_on_behind_noise_of_any_length(rng):
    sound = Request(LinkOp.READ_MEMORY, 1, 2, 3, 4).encode()
    for length in (1, MAX_FRAME_BYTES + 1, 300, 700):
        noise = bytes(rng.choices(range(1, 256), k=length))
        assert len(receive([noise + sound, sound, b"\0\0" + sound])) == 2


def test_frame_longer_than_the_longest_is_dropped():
    body = bytes(MAX_FRAME_BYTES - CRC_BYTES)
    assert len(receive([sealed(body)])) == 1
    assert receive([sealed(body + b"\0")]) == []
    # Even if its length comes round to a legal one in a counter of 8 bits.
    assert receive([sealed(bytes(256 + 20))]) == []


def test_frame_that_begins_while_held_is_not_taken_from_its_middle():
    sound = Request(LinkOp.READ_MEMORY, 1, 2, 3, 4).encode()
    assert receive([sound[:1], sound[1:], sound], holds={0}) == receive([sound])
    assert receive([sound[:5], sound, sound], holds={0}) == receive([sound])
    assert receive([sound, sound], holds={0}) == receive([sound])


@pytest.mark.parametrize("body", [
    bytes(8), b"\1" * (MAX_DATA_BYTES + 8), bytes(MAX_DATA_BYTES + 8), bytes(range(136))])
def test_sender_codes_as_the_host_decodes(rng, body):
    lines = send(body, repeats=3, rng=rng)
    assert lines == [sealed(body)] * 3


def test_sender_sends_replies_that_the_host_reads(rng):
    for length in (0, 4, 12, 128):
        data = bytes(rng.choices(b"\0\1\2", k=length))
        reply = Reply(LinkOp.READ_MEMORY, 7, 0x100, 0, data)
        body = cobs_decode(reply.encode()[:-1])[:-CRC_BYTES]
        assert [Reply.decode(line[:-1]) for line in send(body)] == [reply]
