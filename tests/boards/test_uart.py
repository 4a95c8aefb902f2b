# SPDX-License-Identifier: Apache-2.0
import random

from amaranth.hdl import Module
from amaranth.lib import wiring
from sparsemac_boards.uart import UartReceiver, UartTransmitter
from sparsemac_hw.testing import simulate, stream_put_all

DIVISOR = 8


def test_a_byte_sent_is_the_byte_received():
    seed = 1
    print("seed", seed)
    rng = random.Random(seed)
    data = [0x00, 0xFF, 0x55, *(rng.randrange(256) for _ in range(20))]
    m = Module()
    m.submodules.transmitter = transmitter = UartTransmitter(DIVISOR)
    m.submodules.receiver = receiver = UartReceiver(DIVISOR)
    m.d.comb += receiver.rx.eq(transmitter.tx)
    got = []

    async def send(ctx):
        await stream_put_all(ctx, transmitter.i, data, rng, 0.5)
        await ctx.tick().repeat(12 * DIVISOR)

    async def receive(ctx):
        async for *_, valid, byte in ctx.tick().sample(receiver.o_valid, receiver.o_data):
            if valid:
                got.append(byte)

    simulate(m, send, background=[receive])
    assert got == data
    assert isinstance(transmitter, wiring.Component)


def _drive(levels):
    """Puts levels on the line, ``DIVISOR`` cycles each; returns bytes and framing errors."""
    dut = UartReceiver(DIVISOR)
    got, errors = [], [0]

    async def line(ctx):
        for level, cycles in levels:
            ctx.set(dut.rx, level)
            for _ in range(cycles):
                *_, valid, byte, error = await ctx.tick().sample(
                    dut.o_valid, dut.o_data, dut.framing_error)
                if valid:
                    got.append(byte)
                errors[0] += error

    simulate(dut, line)
    return got, errors[0]


def test_a_glitch_is_no_start_bit():
    assert _drive([(1, 20), (0, 2), (1, 100)]) == ([], 0)


def test_e1_a_byte_without_a_stop_bit_is_dropped():
    assert _drive([(1, 20), (0, 12 * DIVISOR), (1, 40)]) == ([], 1)
