# SPDX-License-Identifier: Apache-2.0
"""The board at its pins, through the driver's own serial transport and a pseudo-terminal."""

import threading
import time

import numpy as np
import pytest
import sparsemac
from sparsemac.devices import uart
from sparsemac.errors import (
    DeviceMismatch,
    DeviceRestarted,
    LinkError,
    MissingDependency,
    OutcomeUnknown,
)
from sparsemac.golden import run_layer
from sparsemac.registers import register_map
from sparsemac_sim.board import SimulatedBoard, WireFaults
from sparsemac_sim.toolchain import find_compiler, find_verilator

CONFIG = sparsemac.CoreConfig(engines=2, lanes=4, act_depth=256, psum_depth=64)


@pytest.fixture(scope="module", autouse=True)
def _tools():
    try:
        find_verilator()
        find_compiler()
    except MissingDependency as error:
        pytest.skip(str(error))


def layer_and_input(seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    matrix = (rng.random((20, 30)) < 0.3) * rng.integers(-128, 128, (20, 30))
    layer = sparsemac.LinearLayer.from_matrix(matrix, raw=False)
    return layer, rng.integers(-128, 128, (30, 10)).astype(np.int8)


def open_board(board, **options):
    return sparsemac.open(f"uart:{board.port}", CONFIG, **options)


def test_runs_a_layer_bit_exactly():
    layer, x = layer_and_input(1)
    with SimulatedBoard(CONFIG) as board, open_board(board) as core:
        result = core.run(core.load(layer), x)
        assert (result.outputs == run_layer(layer, x)).all()
        assert result.cycles > 0
        assert core.device.link.repeated == 0


def test_e1_runs_a_layer_bit_exactly_with_bytes_lost_flipped_and_doubled():
    layer, x = layer_and_input(2)
    faults = WireFaults(lost=0.002, flipped=0.002, doubled=0.002, seed=2)
    with SimulatedBoard(CONFIG, faults=faults) as board:
        with open_board(board, timeout=0.1, retries=25) as core:
            result = core.run(core.load(layer), x)
            assert (result.outputs == run_layer(layer, x)).all()
            assert core.device.link.repeated > 0


def test_e5_a_line_that_dies_is_an_error_and_works_again_when_it_is_back():
    layer, x = layer_and_input(3)
    with SimulatedBoard(CONFIG) as board:
        with open_board(board, timeout=0.05, retries=2) as core:
            network = core.load(layer)
            board.unplug()
            with pytest.raises(LinkError):
                core.run(network, x)
        board.plug()
        with open_board(board) as core:
            result = core.run(core.load(layer), x)
            assert (result.outputs == run_layer(layer, x)).all()


def test_e5_a_line_that_dies_in_a_transfer_ends_it_in_time_and_harms_nothing():
    data = np.random.default_rng(5).integers(0, 256, 60_000).astype(np.uint8).tobytes()
    with SimulatedBoard(CONFIG) as board:
        with uart.open_device(board.port, CONFIG, timeout=0.25, retries=3) as device:
            puller = threading.Timer(0.3, board.unplug)
            puller.start()
            with pytest.raises(OutcomeUnknown, match="WRITE_MEMORY at 0x"):
                device.write_memory(0, data)
            died = time.monotonic()
            with pytest.raises(LinkError):
                device.read_register(0)
            assert time.monotonic() - died < 5
            puller.join()
            board.plug()
            device.write_memory(0, data[:1000])  # the session goes on
            assert device.read_memory(0, 1000) == data[:1000]


def test_memory_and_registers_come_back_as_written_over_a_faulty_line():
    faults = WireFaults(lost=0.001, flipped=0.001, doubled=0.001, seed=6)
    print("seed", faults.seed)
    data = np.random.default_rng(faults.seed).integers(0, 256, 1001).astype(np.uint8).tobytes()
    offset = register_map(CONFIG)["COMMAND_ADDRESS"].byte_offset
    with SimulatedBoard(CONFIG, faults=faults) as board:
        with uart.open_device(board.port, CONFIG, timeout=0.1, retries=50) as device:
            device.write_memory(3, data)
            for value in (0, 0xFFFF_FFC0, 0x0012_3440):
                device.write_register(offset, value)
                assert device.read_register(offset) == value
            assert device.read_memory(3, len(data)) == data
            assert device.link.repeated > 0


def test_e5_a_board_that_restarts_is_noticed():
    layer, x = layer_and_input(4)
    with SimulatedBoard(CONFIG) as board:
        with open_board(board) as core:
            network = core.load(layer)
            core.run(network, x)
            board.restart()
            with pytest.raises(DeviceRestarted):
                core.run(network, x)
        with open_board(board) as core:
            assert (core.run(core.load(layer), x).outputs == run_layer(layer, x)).all()


def test_d6_a_core_of_another_shape_is_refused():
    with SimulatedBoard(CONFIG) as board:
        with pytest.raises(DeviceMismatch, match=r"^CONFIG_HASH of uart:"):
            sparsemac.open(f"uart:{board.port}", CONFIG.replace(engines=4))
