# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from sparsemac.config import CoreConfig
from sparsemac_sim import emission
from sparsemac_sim.emission import core_files, generator_sources

SMALL = CoreConfig(engines=2, lanes=2, act_depth=64, entry_depth=16, psum_depth=16)


def test_sources_are_the_gateware_and_what_it_imports():
    names = {f"{path.parent.name}/{path.name}" for path in generator_sources()}
    assert {"sparsemac_hw/emit.py", "sparsemac_hw/bus.py"} <= names
    assert {"sparsemac/config.py", "sparsemac/registers.py", "sparsemac/_checks.py"} <= names
    # A change there must not cost a new core.
    assert "sparsemac_hw/testing.py" not in names
    assert "sparsemac/driver.py" not in names


def test_verilog_is_generated_once_for_each_state_of_the_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEMAC_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "generator.py"
    source.write_text("a")
    monkeypatch.setattr(emission, "generator_sources", lambda: [source])
    made = []

    def emit(config, folder):
        made.append(config)
        (folder / "core.v").write_text("module")

    monkeypatch.setattr("sparsemac_hw.emit.emit", emit)
    first = core_files(SMALL)
    assert first == core_files(SMALL)
    assert core_files(SMALL.replace(lanes=4)) != first
    source.write_text("b")
    assert core_files(SMALL) != first
    assert len(made) == 3


def test_missing_amaranth_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "amaranth", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsemac\[hw\]'"):
        core_files(SMALL)
