# SPDX-License-Identifier: Apache-2.0
"""Settings of all gateware tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Tests of refused parameters and of connections make components that they never simulate.
    config.addinivalue_line("filterwarnings", "ignore::amaranth.hdl.UnusedElaboratable")
