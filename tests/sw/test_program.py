# SPDX-License-Identifier: Apache-2.0
"""The compiler, checked by running its programs on the command-wise golden model."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.commands import COMMAND_BYTES, Exec, Load, decode_list
from sparsemac.config import CoreConfig
from sparsemac.csr import as_csr
from sparsemac.errors import UnsupportedLayer
from sparsemac.golden import run_network
from sparsemac.layer import LinearLayer
from sparsemac.machine import Machine, Window
from sparsemac.program import TooManyColumns, compile_network
from support.layers import random_activations, random_layer

MEMORY_BYTES = 1 << 20
SEED = 11


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def simulate(program, config, x, base=0):
    """Runs a program; its windows are all that it may touch."""
    memory = np.random.default_rng(1).integers(0, 256, MEMORY_BYTES).astype(np.uint8)
    for address, data in ((program.image_address, program.image), *program.fills):
        at = address - base
        memory[at : at + len(data)] = np.frombuffer(data, np.uint8)
    words = np.frombuffer(program.input.to_memory(x).tobytes(), np.uint8)
    at = program.input.address - base
    memory[at : at + len(words)] = words
    windows = [
        Window(a.address >> 12, a.last_page >> 12, True, a.writable) for a in program.areas]
    machine = Machine(config, memory, base, windows)
    assert machine.run(program.image_address, program.command_count) is None
    at = program.output.address - base
    outputs = program.output.from_memory(memory[at : at + program.output.length].tobytes())
    return outputs, machine.counters


def check(layers, x, config, **options):
    program = compile_network(layers, x.shape[1], config, memory_bytes=MEMORY_BYTES, **options)
    outputs, counters = simulate(program, config, x, options.get("memory_base", 0))
    np.testing.assert_array_equal(outputs, run_network(layers, x))
    return program, counters


def commands_of(program):
    return decode_list(program.image[: program.command_count * COMMAND_BYTES])


def random_config(rng):
    return CoreConfig(
        engines=int(rng.integers(1, 7)), lanes=int(rng.choice([1, 2, 4, 8, 16])),
        depth=int(rng.choice([1, 3, 256])), act_depth=int(rng.choice([64, 128, 1024])),
        entry_depth=int(rng.choice([16, 64])), psum_depth=int(rng.choice([0, 16, 64, 256])),
        bus_width=int(rng.choice([32, 64, 128, 256])), fifo_depth=64)


def test_rows_without_weights_are_constants_that_the_core_never_writes(rng):
    layers = []
    for cols in (30, 20):
        layer = random_layer(rng, 20, cols)
        dense = layer.weights.to_dense()
        dense[[0, 7, 8, 19]] = 0
        layers.append(replace(layer, weights=as_csr(dense)))
    x = random_activations(rng, 30, 9)
    program, counters = check(layers, x, CONFIG)
    words = 2 * 16 * program.output.groups
    assert counters["WRITE_BYTES"] == words * program.output.word_bytes
    assert [address for address, _ in program.fills][-1] == program.output.address



def test_random_networks_on_random_cores(rng):
    compiled = 0
    for _ in range(40):
        config = random_config(rng)
        if rng.random() < 0.4:  # wide, so that columns have to be tiled
            sizes = [int(rng.integers(100, 400)), int(rng.integers(1, 60))]
        else:
            sizes = [int(n) for n in rng.integers(1, 90, rng.integers(2, 5))]
        layers = [
            random_layer(rng, rows, cols, float(rng.choice([0.05, 0.3, 0.9])),
                         raw=i == len(sizes) - 2 and rng.random() < 0.5,
                         weight_bits=int(rng.choice([4, 8])), bias=bool(rng.integers(2)))
            for i, (cols, rows) in enumerate(zip(sizes, sizes[1:], strict=False))
        ]
        x = random_activations(rng, sizes[0], int(rng.integers(1, 70)))
        try:
            check(layers, x, config)
        except UnsupportedLayer as error:
            assert "psum_depth" in str(error)  # too wide, without room for partial sums
        else:
            compiled += 1
    assert compiled > 25


CONFIG = CoreConfig(engines=2, lanes=4, act_depth=64, entry_depth=16, psum_depth=64, depth=8)


def test_figures_are_those_of_the_machine(rng):
    layer = random_layer(rng, 30, 40, 0.2)
    program, counters = check([layer], random_activations(rng, 40, 4), CONFIG)
    nnz = layer.weights.without_zeros().nnz
    assert (program.entries, program.macs) == (nnz, 4 * nnz)
    assert counters["FILLERS"] == program.fillers
    bits = program.format_bits + program.parameter_bits
    streams = sum(c.beats for c in commands_of(program) if isinstance(c, Exec))
    assert bits == streams * CONFIG.bus_width


def test_weights_are_packed_once_for_all_positions(rng):
    layer = random_layer(rng, 30, 40, 0.2)
    program, _ = check([layer], random_activations(rng, 40, 64), CONFIG)
    execs = [c for c in commands_of(program) if isinstance(c, Exec)]
    assert len(execs) > 1
    assert len({c.weights for c in execs}) == 1


def test_next_tile_is_loaded_while_one_computes(rng):
    layer = random_layer(rng, 40, 64, 0.2)
    config = CONFIG.replace(act_depth=1024, entry_depth=64, bus_width=32, fifo_depth=16)
    program, _ = check([layer], random_activations(rng, 64, 200), config)
    regions = program.layers[0].tiling.regions
    waits = [c.wait for c in commands_of(program) if isinstance(c, Load)]
    assert regions > 1
    assert waits == [max(0, k - regions + 1) for k in range(len(waits))]


def test_layer_waits_for_the_one_before(rng):
    layers = [random_layer(rng, 20, 30), random_layer(rng, 10, 20)]
    program, _ = check(layers, random_activations(rng, 30, 4), CONFIG)
    load, run, next_load, next_run = commands_of(program)
    assert isinstance(next_load, Load) and isinstance(next_run, Exec)
    assert (load.wait, run.wait, next_load.wait, next_run.wait) == (0, 1, 1, 2)
    assert next_load.address == run.output


def test_layer_begins_with_what_is_written_of_its_input(rng):
    config = CONFIG.replace(act_depth=128, depth=2)
    layers = [random_layer(rng, 20, 30), random_layer(rng, 10, 20)]
    program, _ = check(layers, random_activations(rng, 30, 40), config)
    commands = commands_of(program)
    second = [c for c in commands if isinstance(c, Load)
              and c.address >= min(e.output for e in commands if isinstance(e, Exec))]
    execs = sum(isinstance(c, Exec) for c in commands[: commands.index(second[0])])
    assert execs > 1 and second[0].wait < execs


def test_biases_of_zero_are_left_out(rng):
    bare = random_layer(rng, 20, 30, bias=False)
    zeros = replace(bare, bias=np.zeros(20, np.int32))
    x = random_activations(rng, 30, 4)
    images = [check([layer], x, CONFIG)[0].image for layer in (bare, zeros)]
    assert images[0] == images[1]


def test_long_rows_do_not_hold_up_the_others(rng):
    dense = np.zeros((40, 60), np.int8)
    dense[:, ::7] = rng.integers(1, 100, (40, 9))
    dense[5] = dense[17] = rng.integers(1, 100, 60)
    layer = LinearLayer.from_matrix(dense)
    program, _ = check([layer], random_activations(rng, 60, 40), CONFIG.replace(act_depth=1024))
    short, long = program.layers[0].tiling.row_tiles
    assert long.rows.tolist() == [5, 17] and short.replayed and not long.replayed
    positions = {(c.beats, c.positions) for c in commands_of(program) if isinstance(c, Exec)}
    assert min(p for _, p in positions) == 1 < max(p for _, p in positions)


def test_bias_comes_first_and_scale_last_in_partial_sums(rng):
    layer = random_layer(rng, 20, 500, 0.05)
    program, _ = check([layer], random_activations(rng, 500, 9), CONFIG)
    execs = [c for c in commands_of(program) if isinstance(c, Exec)]
    assert len(execs) > 2
    for command in execs:
        assert command.has_bias == (not command.psum_in)
        assert (command.mode != 0) == (not command.psum_out)


def test_rows_beyond_the_reach_of_offsets_are_cut(rng):
    weights = as_csr((np.ones(3, np.int8), [0, 1, 2],
                      np.searchsorted([2, 66_000, 69_998], np.arange(70_001)), (70_000, 3)))
    layer = LinearLayer(weights=weights, bias=np.arange(70_000, dtype=np.int32))
    program = compile_network([layer], 2, CONFIG, memory_bytes=1 << 23)
    assert len(program.layers[0].tiling.row_tiles) == 2
    assert max(len(t.rows) for t in program.layers[0].tiling.row_tiles) == 65536


def test_memory_may_begin_anywhere(rng):
    layers = [random_layer(rng, 20, 200, 0.1), random_layer(rng, 10, 20)]
    x = random_activations(rng, 200, 20)
    there, _ = check(layers, x, CONFIG, memory_base=0x4000_0000)
    assert there.image_address == 0x4000_0000
    assert all(area.address >= 0x4000_0000 for area in there.areas)


def test_areas_are_pages_that_do_not_overlap(rng):
    program, _ = check([random_layer(rng, 20, 30)], random_activations(rng, 30, 9), CONFIG)
    inputs, outputs = program.areas
    assert (inputs.writable, outputs.writable) == (False, True)
    for area in program.areas:
        assert area.address % 4096 == 0 and area.length % 4096 == 0
    assert inputs.address + inputs.length == outputs.address
    assert inputs.address <= program.input.address < outputs.address <= program.output.address


def test_same_layers_make_the_same_image(rng):
    layers = [random_layer(rng, 20, 30)]
    images = {compile_network(layers, 9, CONFIG).image for _ in range(2)}
    assert len(images) == 1


def test_streams_are_reused_for_other_columns(rng):
    layers, packed = [random_layer(rng, 20, 30)], {}
    first = compile_network(layers, 8, CONFIG, packed=packed)
    count = len(packed)
    second = compile_network(layers, 40, CONFIG, packed=packed)
    assert len(packed) == count
    assert first.format_bits == second.format_bits


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_a5_empty_and_smallest_shapes(shape):
    layer = LinearLayer.from_matrix(np.ones(shape, np.int8))
    program, _ = check([layer], np.full((shape[1], 3), 2, np.int8), CONFIG)
    assert program.command_count > 0


def test_too_many_columns_say_how_many_would_fit(rng):
    layers = [random_layer(rng, 20, 30)]
    with pytest.raises(TooManyColumns, match="65536.*run fewer columns") as caught:
        compile_network(layers, 5000, CONFIG, memory_bytes=65536)
    fewer = caught.value.columns
    assert 0 < fewer < 5000 and fewer % CONFIG.lanes == 0
    with pytest.raises(TooManyColumns) as caught:
        compile_network(layers, 1, CONFIG, memory_bytes=4096)
    assert caught.value.columns == 0


@pytest.mark.parametrize("columns", [0, -1])
def test_no_columns_are_refused(rng, columns):
    with pytest.raises(ValueError, match="columns must be 1 to"):
        compile_network([random_layer(rng, 20, 30)], columns, CONFIG)


def test_a7_sums_beyond_the_accumulator_are_refused():
    layer = LinearLayer.from_matrix(np.full((2, 40), 127, np.int8))
    with pytest.raises(UnsupportedLayer, match="must fit 16 bits, but row 0"):
        compile_network([layer], 4, CONFIG.replace(acc_width=16))


def test_f5_untileable_layers_name_the_limits(rng):
    with pytest.raises(UnsupportedLayer, match="act_depth is 64.*psum_depth is 0"):
        compile_network([random_layer(rng, 20, 65)], 4, CONFIG.replace(psum_depth=0))
