# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from sparsemac_sim.options import SimOptions


def test_name_and_keywords_are_read_alike():
    named = SimOptions.parse("?latency=40&bandwidth=4&stall=0.5&seed=0x10&random_power_up=1", {})
    given = SimOptions.parse("", {
        "latency": np.int64(40), "bandwidth": 4, "stall": 0.5, "seed": 16, "random_power_up": True,
    })
    assert named == given
    assert SimOptions.parse("", {}) == SimOptions()


def test_window_of_waves_has_short_names():
    options = SimOptions.parse("?waves=a%20b.fst&from=10&to=20", {})
    assert (options.waves, options.wave_from, options.wave_to) == (Path("a b.fst"), 10, 20)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"memory_bytes": 5000}, ValueError, "memory_bytes must be a multiple of 4096, not 5000"),
        ({"memory_bytes": 1 << 33}, ValueError, "memory_bytes must be 4096 to 4294967296"),
        ({"memory_base": 0xFFFF_F000}, ValueError, "memory_base must be 0 to"),
        ({"latency": 0}, ValueError, "latency must be 1 to 1048576, not 0"),
        ({"latency": 2.0}, TypeError, "latency must be an integer, not 2.0"),
        ({"latency": "fast"}, ValueError, "latency must be an integer, not 'fast'"),
        ({"bandwidth": 0}, ValueError, "bandwidth must be above 0, not 0.0"),
        ({"bandwidth": float("nan")}, ValueError, "bandwidth must be finite, not nan"),
        ({"stall": 1}, ValueError, "stall must be at least 0 and below 1, not 1.0"),
        ({"stall": True}, TypeError, "stall must be a number, not True"),
        ({"seed": -1}, ValueError, "seed must be 0 to"),
        ({"max_cycles": 0}, ValueError, "max_cycles must be 1 to"),
        ({"random_power_up": 1}, TypeError, "random_power_up must be true or false, not 1"),
        ({"wave_from": 5, "wave_to": 5}, ValueError, "wave_to must be above wave_from, 5, not 5"),
    ],
)
def test_wrong_values_are_named(values, error, text):
    with pytest.raises(error) as caught:
        SimOptions(**values)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "options", "text"),
    [
        ("fast", {}, "the device must be sim: or sim:"),
        ("?speed=1", {}, "not 'speed'"),
        ("?latency=1", {"latency": 2}, "option latency must be given once, not twice"),
        ("?latency", {}, "bad query field: 'latency'"),
    ],
)
def test_wrong_names_are_refused(rest, options, text):
    with pytest.raises(ValueError) as caught:
        SimOptions.parse(rest, options)
    assert text in str(caught.value)
