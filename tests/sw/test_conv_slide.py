# SPDX-License-Identifier: Apache-2.0
"""Bands that slide over the buffer: right whenever their LOADs run, and worth it."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.commands import COMMAND_BYTES, Load, decode_list, encode_list
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.conv_tiling import ConvTiling, _Chooser
from sparsemac.csr import as_csr
from sparsemac.cycles import predict_cycles
from sparsemac.golden import run_conv
from sparsemac.layer import LinearLayer
from sparsemac.machine import Machine
from sparsemac.program import compile_network
from support.layers import random_conv, random_geometry, random_matrix

SEED = 61
MEMORY_BYTES = 1 << 20

#: Maps of a pruned layer, as in AlexNet: two bands of all its channels do not fit side by side.
ROOMY_CORE = CoreConfig(bus_width=256, act_depth=16384, psum_depth=4096)
GEOMETRY = Geometry(channels=192, height=13, width=13, kernel=(3, 3), padding=(1, 1, 1, 1))


@pytest.fixture
def slides_if_it_can(monkeypatch):
    """Has the compiler choose among tilings that slide, if there are any."""
    candidates = _Chooser.candidates

    def sliding(self):
        found = list(candidates(self))
        yield from [t for t in found if not t.regions] or found

    monkeypatch.setattr(_Chooser, "candidates", sliding)


def commands_of(program):
    return decode_list(program.image[: program.command_count * COMMAND_BYTES])


def in_order(commands, *, loads_first):
    """Interleaves LOADs and EXECs as early, or as late, as their waits allow."""
    loads = [c for c in commands if isinstance(c, Load)]
    execs = [c for c in commands if not isinstance(c, Load)]
    order, a, b = [], 0, 0
    while a < len(loads) or b < len(execs):
        may_load = a < len(loads) and loads[a].wait <= b
        may_exec = b < len(execs) and execs[b].wait <= a
        assert may_load or may_exec
        if may_load and (loads_first or not may_exec):
            order.append(loads[a])
            a += 1
        else:
            order.append(execs[b])
            b += 1
    return order


def run(program, config, x):
    """Runs a program on maps of (channels, height, width, columns), without windows."""
    memory = np.random.default_rng(1).integers(0, 256, MEMORY_BYTES).astype(np.uint8)
    words = program.input.to_memory(x, program.input_padding[0]).tobytes()
    for address, data in ((program.image_address, program.image), *program.fills,
                          (program.input.address, words)):
        memory[address : address + len(data)] = np.frombuffer(data, np.uint8)
    assert Machine(config, memory).run(program.image_address, program.command_count) is None
    out = program.output
    return out.from_memory(memory[out.address : out.address + out.length].tobytes())


def slid(program):
    return [isinstance(plan.tiling, ConvTiling) and not plan.tiling.regions
            for plan in program.layers]


def check(layers, columns, config, rng):
    """Compares outputs for every order of LOADs; returns the program."""
    g = layers[0].geometry
    x = rng.integers(-128, 128, (g.channels, g.height, g.width, columns)).astype(np.int8)
    program = compile_network(layers, columns, config, memory_bytes=MEMORY_BYTES)
    want = x.transpose(3, 0, 1, 2)
    for layer in layers:
        want = run_conv(replace(layer, channels_last=False), want)
    commands = commands_of(program)
    for loads_first in (True, False):
        order = in_order(commands, loads_first=loads_first)
        image = encode_list(order) + program.image[len(order) * COMMAND_BYTES :]
        got = run(replace(program, image=image), config, x)
        np.testing.assert_array_equal(got.reshape(want.shape[1:] + (columns,)),
                                      want.transpose(1, 2, 3, 0))
    return program


@pytest.mark.parametrize("lanes, bus_width", [(4, 32), (4, 128), (8, 32), (1, 64)])
def test_any_geometry_slides_right(slides_if_it_can, lanes, bus_width):
    rng = np.random.default_rng((SEED, lanes, bus_width))
    print("seed", SEED, lanes, bus_width)
    count = many = 0
    for _ in range(25):
        config = CoreConfig(engines=2, lanes=lanes, act_depth=int(rng.choice([128, 256, 512])),
                            entry_depth=64, bus_width=bus_width, psum_depth=256, fifo_depth=64,
                            depth=int(rng.choice([8, 64])))
        geometry = random_geometry(rng, groups=1, channels=int(rng.integers(1, 7)))
        layer = random_conv(rng, geometry, int(rng.integers(1, 9)), 0.4)
        if geometry.out_height * geometry.out_width == 1:
            continue
        program = check([layer], lanes * int(rng.integers(1, 3)), config, rng)
        count += slid(program)[0]
        loads = sum(isinstance(c, Load) for c in commands_of(program))
        many += slid(program)[0] and loads > 3
    assert count > 8 and many > 3


@pytest.mark.parametrize("act_depth", [1024, 4096])
def test_layers_that_slide_follow_one_another(slides_if_it_can, act_depth):
    """The rows that a band lacks are read when the layer before has written all of them.

    With room for the runs of two layers, nothing but these rows holds up the next layer's LOADs,
    which reach over more of them than the LOADs before have waited for.
    """
    rng = np.random.default_rng(SEED)
    config = CoreConfig(engines=2, lanes=4, act_depth=act_depth, entry_depth=256, bus_width=128,
                        psum_depth=256, fifo_depth=64, depth=32)
    first = Geometry(channels=4, height=15, width=11, kernel=(3, 3), padding=(1, 1, 1, 1))
    second = replace(first, channels=6, kernel=(9, 3), padding=(4, 1, 4, 1))
    third = replace(first, channels=5, stride=(2, 2))
    layers = [random_conv(rng, g, n, 0.5, name=str(n))
              for g, n in ((first, 6), (second, 5), (third, 7))]
    assert all(slid(check(layers, 4, config, rng)))


def test_pruned_channels_stay_together():
    """Rows are not cut into channel tiles, which are short, and each row is loaded about once."""
    rng = np.random.default_rng(SEED)
    csr = as_csr(random_matrix(rng, 192, GEOMETRY.patch, 0.035))
    layer = ConvLayer(linear=LinearLayer.from_matrix(csr, raw=False), geometry=GEOMETRY)
    program = compile_network([layer], 8, ROOMY_CORE)
    assert slid(program) == [True]
    commands = commands_of(program)
    loads = [c for c in commands if isinstance(c, Load)]
    assert len(commands) == 2 * GEOMETRY.out_height
    beats = sum(c.line_beats * c.lines for c in loads)
    assert beats * ROOMY_CORE.bus_bytes <= 1.05 * program.input.length
    # While a band is at work, the next one is loaded.
    assert [c.wait for c in loads] == [max(0, k - 1) for k in range(len(loads))]
    cycles = predict_cycles(program, ROOMY_CORE).cycles
    assert program.macs / (cycles * ROOMY_CORE.macs) >= 0.955


def test_rows_are_ordered_by_the_channel_tile_that_stores():
    """Words leave in the last tile, where a row may be short that is long in all of them."""
    rng = np.random.default_rng(SEED)
    config = ROOMY_CORE.replace(act_depth=8192)
    density = np.repeat(rng.choice([0.01, 0.09], (128, 2)), GEOMETRY.patch // 2, axis=1)
    values = (rng.random(density.shape) < density) * rng.integers(1, 100, density.shape)
    linear = LinearLayer.from_matrix(as_csr(values.astype(np.int8)), raw=False)
    program = compile_network([ConvLayer(linear=linear, geometry=GEOMETRY)], 8, config)
    assert len(program.layers[0].tiling.passes[0].inputs) > 1
    stalls = predict_cycles(program, config).stalls
    assert stalls["stall_store"] + stalls["idle"] < 0.03
