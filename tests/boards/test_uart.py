# SPDX-License-Identifier: Apache-2.0
"""Both ends of the serial line, against each other and against waveforms."""

import random

import pytest
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


def bits(data, cycles_per_bit):
    """Levels of bytes back to back, with bits of a length that need not be whole cycles."""
    edges, levels = [0.0], []
    for byte in data:
        for level in (0, *((byte >> k) & 1 for k in range(8)), 1):
            edges.append(edges[-1] + cycles_per_bit)
            levels.append((level, round(edges[-1]) - round(edges[-2])))
    return [(1, 20), *levels, (1, 20)]


@pytest.mark.parametrize("skew", [0.97, 0.987, 1.0, 1.013, 1.03])
def test_receiver_takes_bytes_back_to_back_from_a_clock_that_is_off(skew):
    data = [0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x00, 0xFE]
    assert _drive(bits(data, DIVISOR * skew)) == (data, 0)


def test_e1_bytes_behind_a_bad_one_are_received():
    broken = [(1, 20), (0, 10 * DIVISOR), (1, 10)]  # a byte of zeros whose stop bit is low
    assert _drive([*broken, *bits([0x3C, 0xC3], DIVISOR)]) == ([0x3C, 0xC3], 1)


def test_transmitter_sends_a_byte_in_ten_bits():
    dut = UartTransmitter(DIVISOR)
    sent = []

    async def send(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, 0x96)
        for cycle in range(3 * (10 * DIVISOR + 1)):
            *_, ready = await ctx.tick().sample(dut.i.ready)
            if ready:
                sent.append(cycle)

    simulate(dut, send)
    assert sent == [0, 10 * DIVISOR + 1, 2 * (10 * DIVISOR + 1)]


@pytest.mark.parametrize("kind", [UartTransmitter, UartReceiver])
def test_divisor_must_leave_a_middle_to_sample(kind):
    with pytest.raises(ValueError, match="divisor must be 4 to 65535, not 3"):
        kind(3)
