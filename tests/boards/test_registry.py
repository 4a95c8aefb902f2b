# SPDX-License-Identifier: Apache-2.0
"""The boards that are listed."""

import importlib

import pytest
from sparsemac.devices.uart import DEFAULT_BAUD
from sparsemac_boards.memory import OnChipMemory
from sparsemac_boards.registry import BOARDS


@pytest.fixture(params=sorted(BOARDS))
def board(request):
    return BOARDS[request.param]


def test_name_is_its_key(board):
    assert BOARDS[board.name] is board


def test_serial_line_is_within_two_percent_of_its_rate_and_the_driver_expects_it(board):
    assert abs(board.clock_hz / board.divisor / board.baud - 1) < 0.02
    assert board.baud == DEFAULT_BAUD


def test_memory_can_be_built(board):
    memory = OnChipMemory(board.config.bus_width, board.memory_bytes)
    assert memory.length == board.memory_bytes


def test_platform_is_there(board):
    pytest.importorskip("amaranth_boards", reason="amaranth-boards is missing: sparsemac[ecp5]")
    module, _, name = board.platform.partition(":")
    assert hasattr(importlib.import_module(module), name)
