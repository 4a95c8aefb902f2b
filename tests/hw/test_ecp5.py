# SPDX-License-Identifier: Apache-2.0
import random
import re
from itertools import product

import pytest
from amaranth.hdl import Instance, Module, Signal, signed
from sparsemac.config import CoreConfig
from sparsemac_boards.area import predict_area
from sparsemac_hw.block_memory import BlockMemory
from sparsemac_hw.core import Core
from sparsemac_hw.ecp5 import PairedSums, Product, RegisteredMemory, is_ecp5
from sparsemac_hw.emit import CORE_NAME, emit_verilog
from sparsemac_hw.shared import SharedModules
from sparsemac_hw.testing import simulate
from support.ecp5_twins import ECP5, WithTwins


@pytest.mark.parametrize(("width", "depth", "blocks"), [
    (8, 256, 1), (8, 2048, 1), (32, 2048, 4), (8, 2049, 2), (8, 4096, 2), (5, 8192, 3),
    (2, 16384, 2), (18, 1024, 1), (65, 16, 2), (3, 2, 1),
    (36, 512, 1), (40, 513, 3),
])
def test_memory_reads_what_was_written_two_cycles_later(width, depth, blocks):
    seed = width * depth
    print("seed", seed)
    rng = random.Random(seed)
    dut = RegisteredMemory(width, depth)
    twins = WithTwins(dut)
    places = [0, 1, depth // 2, depth - 1, *(rng.randrange(depth) for _ in range(20))]

    async def bench(ctx):
        words = dict.fromkeys(places, 0)
        word, shown = 0, None  # what was read in the last cycle; what the register holds
        for _ in range(400):
            r_addr, w_addr = rng.choice(places), rng.choice(places)
            w_en = rng.random() < 0.5 and r_addr != w_addr
            w_data = rng.randrange(1 << width)
            ctx.set(dut.r_addr, r_addr)
            ctx.set(dut.w_addr, w_addr)
            ctx.set(dut.w_en, w_en)
            ctx.set(dut.w_data, w_data)
            r_en = rng.random() < 0.7
            r_moves = r_en and rng.random() < 0.7
            ctx.set(dut.r_en, r_en)
            ctx.set(dut.r_moves, r_moves)
            if r_moves:
                shown = word
            if r_en:
                word = words[r_addr]
            if w_en:
                words[w_addr] = w_data
            await ctx.tick()
            if shown is not None:
                assert ctx.get(dut.r_data) == shown

    simulate(twins, bench)
    assert twins.replaced == ["DP16KD"] * blocks


@pytest.mark.parametrize("family", ["portable", "ecp5"])
@pytest.mark.parametrize(("width", "depth"), [(8, 16), (48, 16), (24, 512), (32, 1024)])
def test_block_memory_reads_two_cycles_later_in_any_family(family, width, depth):
    rng = random.Random(width + depth)
    dut = BlockMemory(width, depth)
    words, expected = [0] * depth, []

    async def bench(ctx):
        for _ in range(300):
            r_addr, w_addr = rng.sample(range(8), 2)
            w_data = rng.randrange(1 << width)
            for name, value in (("r_addr", r_addr), ("w_addr", w_addr), ("w_data", w_data)):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.w_en, 1)
            expected.append(words[r_addr])
            words[w_addr] = w_data
            await ctx.tick()
            if len(expected) >= BlockMemory.LATENCY_CYCLES:
                assert ctx.get(dut.r_data) == expected[-BlockMemory.LATENCY_CYCLES]

    simulate(WithTwins(dut) if family == "ecp5" else dut, bench)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(("a_width", "b_width"), [(8, 8), (18, 18), (14, 18), (1, 5)])
def test_product_is_exact_two_cycles_later(a_width, b_width, is_signed):
    rng = random.Random(a_width + b_width)
    dut = Product(a_width, b_width, is_signed)
    twins = WithTwins(dut)

    def operands(width):
        low, high = (-1 << width - 1, (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)
        return [low, high, 0, *(rng.randint(low, high) for _ in range(5))]

    async def bench(ctx):
        expected = []
        for a, b in product(operands(a_width), operands(b_width)):
            ctx.set(dut.i_a, a)
            ctx.set(dut.i_b, b)
            expected.append(a * b)
            await ctx.tick()
            if len(expected) >= Product.LATENCY_CYCLES:
                assert ctx.get(dut.o) == expected[-Product.LATENCY_CYCLES]

    simulate(twins, bench)
    assert twins.replaced == ["MULT18X18D"]


@pytest.mark.parametrize("width", [16, 19, PairedSums.MAX_WIDTH])
def test_paired_sums_are_exact_three_cycles_later(width):
    print("seed", width)
    rng = random.Random(width)
    dut = PairedSums(width)
    twins = WithTwins(dut)
    room = 1 << width - 1
    extremes = [0, 0]

    async def bench(ctx):
        sums, expected = [0, 0], []
        for k in range(2400):
            # One falls for long, as far as it can, then rises; the other one does so against it.
            way = (-1, 1, 0)[k // 600 % 3]
            b = rng.choice([-128, 127, rng.randrange(-128, 128)])
            a = [127 * way if b > 0 else -128 * way, -127 * way if b > 0 else 127 * way]
            a = [min(value, 127) if way else rng.randrange(-128, 128) for value in a]
            products = [value * b for value in a]
            starts = k == 0 or rng.random() < (0.001 if way else 0.05) or not all(
                -room <= total + product < room
                for total, product in zip(sums, products, strict=True))
            sums = [product + (0 if starts else total)
                    for total, product in zip(sums, products, strict=True)]
            extremes[:] = min(extremes[0], *sums), max(extremes[1], *sums)
            for name, value in zip(dut.i_a, a, strict=True):
                ctx.set(name, value)
            ctx.set(dut.i_b, b)
            ctx.set(dut.i_starts, starts)
            expected.append(sums)
            await ctx.tick()
            if k + 1 >= PairedSums.LATENCY_CYCLES:
                assert [ctx.get(o) for o in dut.o] == expected[-PairedSums.LATENCY_CYCLES], k

    simulate(twins, bench)
    assert sorted(twins.replaced) == ["ALU54B", "LUT4", "LUT4", "MULT18X18D", "MULT18X18D"]
    assert extremes[0] < -0.5 * room and extremes[1] > 0.5 * room


@pytest.mark.parametrize("width", [15, PairedSums.MAX_WIDTH + 1])
def test_paired_sums_refuse_a_width_that_does_not_fit(width):
    with pytest.raises(ValueError, match=rf"^width must be .*, not {width} "):
        PairedSums(width)


@pytest.mark.parametrize("name", ["width", "depth"])
def test_memory_refuses_what_blocks_cannot_hold(name):
    wrong = {"width": 0, "depth": RegisteredMemory.MAX_DEPTH + 1}[name]
    arguments = {"width": 8, "depth": 256, name: wrong}
    with pytest.raises(ValueError, match=rf"^{name} must be .*, not {wrong} "):
        RegisteredMemory(**arguments)


def test_product_refuses_operands_beyond_18_bits():
    with pytest.raises(ValueError, match=r"^b_width must be .*, not 19 "):
        Product(8, 19, is_signed=True)


def test_family_is_asked_of_the_platform():
    assert is_ecp5(SharedModules("ecp5")) and is_ecp5(ECP5)
    assert not is_ecp5(SharedModules()) and not is_ecp5(None)
    with pytest.raises(ValueError, match=r"^family must be one of portable, ecp5, not 'ice40'$"):
        SharedModules("ice40")


def test_portable_core_has_no_block_and_the_other_one_a_product_per_lane_and_four_to_scale():
    config = CoreConfig(engines=1, lanes=8, act_depth=256, fifo_depth=64)
    blocks = re.compile(r"^  (ALU54B|DP16KD|MULT18X18D) #", re.M)
    portable = emit_verilog(Core(config), CORE_NAME)
    assert not blocks.search(portable) and "ram_style" in portable
    special = emit_verilog(Core(config), CORE_NAME, "ecp5")
    found = blocks.findall(special)
    assert found.count("MULT18X18D") == config.lanes + 4
    assert found.count("ALU54B") == config.lanes // 2
    # Every block memory has its register inside; engines and shared parts have one instance each.
    assert found.count("DP16KD") == predict_area(config).block_rams
    assert "ram_style" not in special


def test_twin_of_an_unregistered_product_follows_at_once():
    a, b, p = Signal(signed(18)), Signal(18), Signal(signed(36))
    m = Module()
    pins = {f"i_A{i}": a[i] for i in range(18)} | {f"i_B{i}": b[i] for i in range(18)}
    m.submodules.block = Instance("MULT18X18D", i_SIGNEDA=1, i_SIGNEDB=0, **pins,
                                  **{f"o_P{i}": p[i] for i in range(36)})
    top = Module()
    top.submodules.dut = WithTwins(m)
    clocked = Signal()
    top.d.sync += clocked.eq(1)

    async def bench(ctx):
        ctx.set(a, -5)
        ctx.set(b, 0x3FFFF)
        await ctx.delay(1e-9)
        assert ctx.get(p) == -5 * 0x3FFFF

    simulate(top, bench)
