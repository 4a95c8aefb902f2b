# SPDX-License-Identifier: Apache-2.0
"""What tests of all packages share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same cases in every run, however busy the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def heeds_interrupts():
    """A job in the background of a shell ignores SIGINT, and so would all that it starts."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real matrices, networks and images that some tests are run on."""
    named = os.environ.get("SPARSEMAC_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the data folder is missing: {folder} (SPARSEMAC_DATA names another)")
    return folder
