# SPDX-License-Identifier: Apache-2.0
"""On-chip memory against a bytearray."""

import random

import pytest
from sparsemac_boards.memory import OnChipMemory
from sparsemac_hw.testing import simulate

LENGTH = 4096


@pytest.mark.parametrize("width", [32, 64, 128])
def test_serves_bursts_and_the_host_like_one_memory(width):
    seed = width
    print("seed", seed)
    rng = random.Random(seed)
    dut = OnChipMemory(width, LENGTH)
    bus, step = dut.bus, width // 8
    twin = bytearray(LENGTH)

    async def until(ctx, signal, *sampled):
        while True:
            *_, up, a, b, c, d = await ctx.tick().sample(
                signal, *(sampled + (signal,) * (4 - len(sampled))))
            if up:
                return a, b, c, d

    async def write(ctx, address, beats):
        ctx.set(bus.awaddr, address)
        ctx.set(bus.awlen, len(beats) - 1)
        ctx.set(bus.awid, 5)
        ctx.set(bus.awvalid, 1)
        await until(ctx, bus.awready)
        ctx.set(bus.awvalid, 0)
        for k, (data, strobe) in enumerate(beats):
            ctx.set(bus.wdata, int.from_bytes(data, "little"))
            ctx.set(bus.wstrb, strobe)
            ctx.set(bus.wlast, k == len(beats) - 1)
            ctx.set(bus.wvalid, 1)
            await until(ctx, bus.wready)
            ctx.set(bus.wvalid, 0)
        ctx.set(bus.bready, 1)
        ident, response, *_ = await until(ctx, bus.bvalid, bus.bid, bus.bresp)
        ctx.set(bus.bready, 0)
        assert ident == 5
        return response

    async def read(ctx, address, count):
        ctx.set(bus.araddr, address)
        ctx.set(bus.arlen, count - 1)
        ctx.set(bus.arid, 9)
        ctx.set(bus.arvalid, 1)
        await until(ctx, bus.arready)
        ctx.set(bus.arvalid, 0)
        data, responses = b"", []
        for k in range(count):
            ctx.set(bus.rready, 1)
            word, ident, last, response = await until(
                ctx, bus.rvalid, bus.rdata, bus.rid, bus.rlast, bus.rresp)
            ctx.set(bus.rready, 0)
            assert ident == 9 and last == (k == count - 1)
            data += word.to_bytes(step, "little")
            responses.append(response)
        return data, responses

    async def drive(ctx):
        for _ in range(60):
            count = rng.randrange(1, 9)
            address = step * rng.randrange(LENGTH // step - count + 1)
            kind = rng.choice(["read", "write", "host read", "host write"])
            if kind == "write":
                beats = [(rng.randbytes(step), rng.getrandbits(step)) for _ in range(count)]
                assert await write(ctx, address, beats) == 0
                for k, (data, strobe) in enumerate(beats):
                    for b in range(step):
                        if strobe >> b & 1:
                            twin[address + k * step + b] = data[b]
            elif kind == "read":
                data, responses = await read(ctx, address, count)
                assert data == bytes(twin[address : address + count * step])
                assert set(responses) == {0}
            else:
                place = 4 * rng.randrange(LENGTH // 4)
                word = rng.randbytes(4)
                ctx.set(dut.host_en, 1)
                ctx.set(dut.host_we, kind == "host write")
                ctx.set(dut.host_addr, place)
                ctx.set(dut.host_w_data, int.from_bytes(word, "little"))
                await ctx.tick()
                ctx.set(dut.host_en, 0)
                ctx.set(dut.host_we, 0)
                if kind == "host write":
                    twin[place : place + 4] = word
                else:
                    got = ctx.get(dut.host_r_data).to_bytes(4, "little")
                    assert got == bytes(twin[place : place + 4])

        _, responses = await read(ctx, LENGTH - step, 2)
        assert responses == [0, 3]
        assert await write(ctx, LENGTH, [(bytes(step), (1 << step) - 1)]) == 3

    simulate(dut, drive)


async def _read_burst(ctx, bus, beats, words):
    """Reads from address 0 with RREADY high; returns the cycles from AR to the last beat."""
    ctx.set(bus.rready, 1)
    ctx.set(bus.arlen, beats - 1)
    ctx.set(bus.arvalid, 1)
    cycles = 0
    while len(words) < beats:
        *_, taken, valid, data = await ctx.tick().sample(bus.arready, bus.rvalid, bus.rdata)
        if taken:
            ctx.set(bus.arvalid, 0)
        if valid:
            words.append(data)
        cycles += 1
    return cycles


@pytest.mark.parametrize("host_every", [0, 2, 3])
def test_one_beat_per_cycle_and_the_host_costs_one_cycle_each(host_every):
    dut, beats = OnChipMemory(32, LENGTH), 64
    bus, words, cycles, uses = dut.bus, [], [], [0]

    async def fill(ctx):
        ctx.set(dut.host_en, 1)
        ctx.set(dut.host_we, 1)
        for k in range(beats):
            ctx.set(dut.host_addr, 4 * k)
            ctx.set(dut.host_w_data, 1000 + k)
            await ctx.tick()
        ctx.set(dut.host_en, 0)
        ctx.set(dut.host_we, 0)
        cycles.append(await _read_burst(ctx, bus, beats, words))

    async def host(ctx):
        await ctx.tick().repeat(beats + 1)
        while host_every:
            for phase in range(host_every):
                ctx.set(dut.host_en, phase == 0)
                ctx.set(dut.host_addr, 4 * (uses[0] % beats))
                await ctx.tick()
                if phase == 0:
                    assert ctx.get(dut.host_r_data) == 1000 + uses[0] % beats
                    uses[0] += 1

    simulate(dut, fill, background=[host])
    assert words == [1000 + k for k in range(beats)]
    assert cycles[0] <= beats + 4 + uses[0]


@pytest.mark.parametrize("length", [0, 2048, 5000, 1 << 21])
def test_length_out_of_range_is_refused(length):
    with pytest.raises(ValueError, match=r"^length must be a power of two from 4096 to 1048576"):
        OnChipMemory(64, length)
