# SPDX-License-Identifier: Apache-2.0
import pytest
from sparsemac.config import CoreConfig
from sparsemac.errors import MissingDependency
from sparsemac_hw.emit import CORE_NAME, emit_verilog
from sparsemac_sim.toolchain import find_compiler, find_verilator
from support.copy_core import CopyCore


@pytest.fixture(scope="session")
def toolchain():
    try:
        return find_verilator(), find_compiler()
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def copy_config():
    return CoreConfig(burst_beats=8)


@pytest.fixture(scope="session")
def copy_verilog(copy_config):
    return emit_verilog(CopyCore(copy_config), CORE_NAME)
