# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests of boards."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Tests of refused parameters and of plans make components that are never simulated.
    config.addinivalue_line("filterwarnings", "ignore::amaranth.hdl.UnusedElaboratable")
