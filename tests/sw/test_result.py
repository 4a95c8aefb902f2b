# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS
from sparsemac.result import Counters, Result

CONFIG = CoreConfig(engines=2, lanes=4, bus_width=64)


def result(counters, macs=100):
    return Result(all_outputs=(np.zeros((1, 1), np.int8),), counters=counters, macs=macs, jobs=1,
                  estimated_cycles=10, bytes_to_device=0, bytes_from_device=0, program=None,
                  config=CONFIG)


def test_counters_are_those_of_the_register_map():
    values = {name: i for i, (name, _) in enumerate(COUNTERS)}
    counters = Counters.from_registers(values)
    assert counters.as_dict() == {name.lower(): i for name, i in values.items()}


def test_counters_add_up():
    total = Counters(cycles=1 << 40, idle=3) + Counters(cycles=1, idle=4)
    assert (total.cycles, total.idle, total.issued) == ((1 << 40) + 1, 7, 0)


def test_shares_are_of_all_engine_cycles():
    got = result(Counters(cycles=50, issued=60, stall_weights=30, idle=10, read_beats=20,
                          write_beats=5, write_bytes=33))
    assert got.utilization == pytest.approx(100 / (50 * 8))
    assert got.stalls["stall_weights"] == pytest.approx(0.3)
    assert got.stalls["idle"] == pytest.approx(0.1)
    assert (got.bytes_read, got.bytes_written) == (160, 33)
    assert got.bus_utilization == pytest.approx(0.25)


@pytest.mark.parametrize("counters", [None, Counters()])
def test_nothing_counted_is_zero(counters):
    got = result(counters)
    assert (got.cycles, got.utilization, got.bus_utilization) == (0, 0.0, 0.0)
    assert set(got.stalls.values()) == {0.0}
