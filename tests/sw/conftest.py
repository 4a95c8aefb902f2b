# SPDX-License-Identifier: Apache-2.0
"""Devices that the driver's tests run on: the same tests, the same integers."""

import importlib.util

import pytest
import sparsemac
from sparsemac.config import CoreConfig
from sparsemac.errors import MissingDependency

#: Small, so that it builds quickly and every layer has to be tiled.
SMALL = CoreConfig(
    engines=2, lanes=4, depth=8, act_depth=128, entry_depth=16, psum_depth=64, bus_width=64,
    fifo_depth=16, burst_beats=8,
)

MEMORY_BYTES = 1 << 20


@pytest.fixture(scope="session", params=["reference:", "sim:"])
def device_uri(request):
    if request.param == "sim:" and importlib.util.find_spec("sparsemac_hw.core") is None:
        pytest.skip("sim: needs the gateware: pip install 'sparsemac[sim]'")
    return request.param


@pytest.fixture(scope="session")
def small_config():
    return SMALL


@pytest.fixture
def core(device_uri):
    try:
        opened = sparsemac.open(device_uri, SMALL, memory_bytes=MEMORY_BYTES)
    except MissingDependency as error:
        pytest.skip(str(error))
    with opened:
        yield opened
