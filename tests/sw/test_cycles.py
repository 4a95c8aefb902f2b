# SPDX-License-Identifier: Apache-2.0
import time
from dataclasses import replace

import numpy as np
import pytest
from sparsemac.commands import Exec, Load, OutputMode, encode_list
from sparsemac.config import CoreConfig
from sparsemac.conv import Geometry
from sparsemac.cycles import MemoryModel, predict_cycles
from sparsemac.layer import LinearLayer
from sparsemac.machine import Machine
from sparsemac.program import compile_network
from support.layers import random_conv, random_geometry, random_layer

CONFIG = CoreConfig(engines=4, lanes=4, act_depth=1024, entry_depth=128)
CONFIGS = [
    CONFIG,
    CoreConfig(engines=3, lanes=16, bus_width=32, burst_beats=8, act_depth=512),
    CoreConfig(engines=16, lanes=1, bus_width=512, act_depth=4096),
    CoreConfig(engines=1, lanes=64, act_depth=256, psum_depth=1024, fifo_depth=64, burst_beats=1),
    CoreConfig(engines=5, lanes=2, fifo_depth=32, entry_depth=16),
]
EXACT = ("issued", "fillers", "read_beats", "write_beats", "write_bytes")


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def counted(program, config):
    """What the golden model counts for a program."""
    memory = np.zeros(program.end, np.uint8)
    memory[:len(program.image)] = np.frombuffer(program.image, np.uint8)
    machine = Machine(config, memory)
    assert machine.run(0, program.command_count) is None
    return {name.lower(): count for name, count in machine.counters.items()}


def check(program, config, memory=None):
    """Checks what must hold for any program; returns the estimate."""
    estimate = predict_cycles(program, config, memory)
    counters, golden = estimate.counters, counted(program, config)
    assert {n: getattr(counters, n) for n in EXACT} == {n: golden[n] for n in EXACT}
    assert counters.cycles == estimate.cycles == sum(layer.cycles for layer in estimate.layers)
    assert estimate.cycles > max(golden["cycles"], counters.read_beats, counters.write_beats)
    assert min(counters.as_dict().values()) >= 0
    spent = counters.issued / (estimate.cycles * config.engines) + sum(estimate.stalls.values())
    assert spent == pytest.approx(1)
    return estimate


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.engines}x{c.lanes}")
@pytest.mark.parametrize("raw", [False, True], ids=["requantized", "raw"])
def test_counts_what_the_golden_model_counts(rng, config, raw):
    for rows, columns, density in ((1, 1, 1.0), (7, 130, 0.3), (90, 60, 0.02), (60, 200, 0.2)):
        layer = random_layer(rng, rows, columns, density, raw=raw, bias=bool(rows % 2),
                             weight_bits=4 if rows > 50 else 8)
        for samples in (1, 3 * config.lanes):
            check(compile_network([layer], samples, config), config)


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda c: f"{c.engines}x{c.lanes}")
def test_counts_what_the_golden_model_counts_of_convolutions(rng, config):
    pointwise = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
    for given in ({}, {"stride": (1, 1)}, {"groups": 4, "channels": 4}, pointwise):
        layer = random_conv(rng, random_geometry(rng, **given), 3)
        check(compile_network([layer], 5, config), config)


def test_accumulators_as_narrow_as_a_chunk_change_little(rng):
    layer = random_layer(rng, 40, 60, 0.1)
    narrow = CONFIG.replace(acc_width=19)
    program = compile_network([layer], 4, narrow)
    assert abs(check(program, CONFIG).cycles - check(program, narrow).cycles) < 16


def test_partial_sums_are_stored_once(rng):
    layer = random_layer(rng, 12, 3 * CONFIG.act_depth, 0.05)
    estimate = check(compile_network([layer], 8, CONFIG), CONFIG)
    assert estimate.counters.write_beats == 12 * 2


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_rows_without_entries(rows):
    layer = LinearLayer.from_matrix(np.zeros((rows, 20), np.int8))
    check(compile_network([layer], 4, CONFIG), CONFIG)


def test_layers_of_a_network_are_told_apart(rng):
    geometry = Geometry(channels=3, height=8, width=8, kernel=(3, 3), padding=(1, 1, 1, 1))
    conv = random_conv(rng, geometry, 4, name="first")
    inner = Geometry(channels=4, height=8, width=8, kernel=(1, 1), stride=(2, 2))
    convs = [conv, random_conv(rng, inner, 24, name="second")]
    estimate = check(compile_network(convs, 4, CONFIG), CONFIG)
    assert [layer.name for layer in estimate.layers] == ["first", "second"]
    dense = [random_layer(rng, 40, 30, name="a"), random_layer(rng, 50, 40, 0.9, name="b"),
             random_layer(rng, 10, 50, name="c")]
    estimate = check(compile_network(dense, 16, CONFIG), CONFIG)
    alone = [predict_cycles(compile_network([layer], 16, CONFIG), CONFIG).cycles
             for layer in dense]
    assert [layer.name for layer in estimate.layers] == ["a", "b", "c"]
    # A network saves or costs a little between two layers, no more.
    for layer, cycles in zip(estimate.layers, alone, strict=True):
        assert abs(layer.cycles - cycles) < 150


def test_column_tiles_do_not_confuse_the_layers(rng):
    layers = [random_layer(rng, 30, 2500, 0.05, name="wide"), random_layer(rng, 8, 30, name="end")]
    wide, end = check(compile_network(layers, 4, CONFIG), CONFIG).layers
    assert (wide.name, end.name) == ("wide", "end")
    assert wide.cycles > 3 * end.cycles


def test_memory_sets_the_pace(rng):
    program = compile_network([random_layer(rng, 80, 90, 0.4)], 4, CONFIG)
    fast, default, slow = (
        check(program, CONFIG, memory).cycles
        for memory in (MemoryModel(latency=1), None, MemoryModel(latency=300)))
    assert fast < default < slow
    assert predict_cycles(program, CONFIG, MemoryModel(latency=20)).cycles == default
    unlimited = MemoryModel(bytes_per_cycle=2 * CONFIG.bus_bytes)
    assert predict_cycles(program, CONFIG, unlimited).cycles == default
    moved = counted(program, CONFIG)
    beats = moved["read_beats"] + moved["write_beats"]
    for rate in (0.5, 3, np.float32(1.5)):
        limited = check(program, CONFIG, MemoryModel(bytes_per_cycle=rate)).cycles
        least = beats * CONFIG.bus_bytes / float(rate)
        assert least * 0.97 < limited < least * 1.03 + 1000


def test_longer_rows_take_longer(rng):
    cycles = [predict_cycles(compile_network([random_layer(rng, 64, 256, d)], 4, CONFIG),
                             CONFIG).cycles for d in (0.01, 0.1, 0.3, 0.9)]
    assert cycles == sorted(cycles)


def test_prediction_is_repeatable_and_leaves_the_program_alone(rng):
    program = compile_network([random_layer(rng, 50, 50)], 8, CONFIG)
    image = program.image
    assert predict_cycles(program, CONFIG) == predict_cycles(program, CONFIG)
    assert program.image == image


def test_a_typical_layer_takes_well_under_a_second(rng):
    config = CoreConfig()
    program = compile_network([random_layer(rng, 512, 512, 0.1)], 64, config)
    begin = time.process_time()
    estimate = predict_cycles(program, config)
    assert time.process_time() - begin < 1.0
    assert estimate.cycles > 10_000


def test_a_wait_that_cannot_be_met_is_refused(rng):
    program = compile_network([random_layer(rng, 4, 4)], 1, CONFIG)
    load = Load(address=0, destination=0, line_beats=1, wait=1)
    bad = replace(program, image=encode_list([load]), command_count=1)
    with pytest.raises(ValueError, match=r"^commands must wait only for what can be complete"):
        predict_cycles(bad, CONFIG)


def test_a_program_of_another_core_is_refused(rng):
    program = compile_network([random_layer(rng, 4, 4)], 1, CONFIG)
    with pytest.raises(ValueError, match=r"^program must be compiled for 8 lanes, not 4$"):
        predict_cycles(program, CONFIG.replace(lanes=8))
    with pytest.raises(ValueError, match=r"^data must be a multiple of 96 bytes|^stream of"):
        predict_cycles(program, CONFIG.replace(engines=12))


def test_a_stream_that_ends_early_is_refused(rng):
    program = compile_network([random_layer(rng, 4, 4)], 1, CONFIG)
    run = Exec(weights=0, beats=4, output=4096, base=0, limit=1, positions=1, width=1, step=0,
               wrap_step=0, out_step=0, out_wrap_step=0, mode=OutputMode.RAW,
               format=program.layers[0].fmt)
    bad = replace(program, image=encode_list([run]), command_count=1)
    with pytest.raises(ValueError, match=r"^stream of engine 0 must go on|must hold"):
        predict_cycles(bad, CONFIG)


@pytest.mark.parametrize(("given", "error", "text"), [
    ({"latency": 0}, ValueError, r"^latency must be 1 to 1048576, not 0 \(nearest legal value: 1"),
    ({"latency": 1.5}, TypeError, r"^latency must be an integer, not 1\.5$"),
    ({"bytes_per_cycle": 0}, ValueError, r"^bytes_per_cycle must be above 0 and finite, not 0$"),
    ({"bytes_per_cycle": float("nan")}, ValueError, r"^bytes_per_cycle must be above 0 and finite"),
    ({"bytes_per_cycle": "8"}, TypeError, r"^bytes_per_cycle must be a number, not '8'$"),
    ({"bytes_per_cycle": True}, TypeError, r"^bytes_per_cycle must be a number, not True$"),
])
def test_timing_of_the_memory_is_checked(given, error, text):
    with pytest.raises(error, match=text):
        MemoryModel(**given)
