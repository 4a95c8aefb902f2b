# SPDX-License-Identifier: Apache-2.0
"""Builds: with tools that only pretend, and, slow, with the real ones."""

import json
import subprocess
from dataclasses import replace

import pytest
from sparsemac.config import CoreConfig
from sparsemac.errors import DeviceError, MissingDependency
from sparsemac_hw.core import Core
from sparsemac_hw.emit import CORE_NAME, emit_verilog

pytest.importorskip("amaranth_boards", reason="amaranth-boards is missing: sparsemac[ecp5]")

from sparsemac_boards import build as module  # noqa: E402
from sparsemac_boards.build import (  # noqa: E402
    build,
    find_tools,
    read_report,
    synth_to_luts,
)
from sparsemac_boards.registry import BOARDS  # noqa: E402

BOARD = BOARDS["ulx3s-85f"]
SMALLEST = CoreConfig(engines=1, lanes=1, act_depth=64, psum_depth=0, entry_depth=16, windows=1,
                      burst_beats=4, counters=False)
VARIABLES = ("YOSYS", "NEXTPNR_ECP5", "ECPPACK")
#: As nextpnr-ecp5 logs it.
TABLE = """\
Info: Logic utilisation before packing:
Info:     Total LUT4s:     12756/83640    15%
Info: Device utilisation:
Info: \t          TRELLIS_IO:       6/    365     1%
Info: \t              DP16KD:     {}/    208   125%
Info: \t        TRELLIS_COMB:   13458/  83640    16%
"""


def report_json(achieved):
    return json.dumps({
        "fmax": {"$glbnet$clk": {"achieved": achieved, "constraint": 37.5}},
        "utilization": {"TRELLIS_COMB": {"used": 9000, "available": 83640},
                        "DP16KD": {"used": 52, "available": 208}},
    })


@pytest.fixture(scope="module")
def plan():
    return module._plan(replace(BOARD, config=SMALLEST))


@pytest.fixture
def tools(tmp_path, monkeypatch, plan):
    """Sets what a tool does, as a shell script; the others succeed and leave nothing."""
    monkeypatch.setattr(module, "_plan", lambda board: plan)

    def put(**scripts):
        for variable in VARIABLES:
            path = tmp_path / variable.lower()
            path.write_text(f"#!/bin/sh\n{scripts.get(variable, '')}\n")
            path.chmod(0o755)
            monkeypatch.setenv(variable, str(path))

    put()
    return put


def prints(text, to="report.json"):
    return f"cat >{to} <<'END'\n{text}\nEND\n"


PACKS = "echo bits >top.bit"


def test_report_tells_cells_and_clock(tools, tmp_path):
    tools(NEXTPNR_ECP5=prints(report_json(48.128)), ECPPACK=PACKS)
    report = build("ulx3s-85f", tmp_path / "out")
    assert (report.luts, report.luts_available) == (9000, 83640)
    assert (report.block_rams, report.block_rams_available) == (52, 208)
    assert (report.clock_asked_mhz, report.clock_reached_mhz) == (BOARD.clock_hz / 1e6, 48.13)
    assert report.fits and report.meets_clock
    assert report.bitstream == tmp_path / "out" / "top.bit"


def test_missed_clock_is_told_from_a_design_that_does_not_fit(tools, tmp_path):
    tools(NEXTPNR_ECP5=prints(report_json(30.0)), ECPPACK=PACKS)
    report = build("ulx3s-85f", tmp_path)
    assert report.fits and not report.meets_clock
    tools(NEXTPNR_ECP5=prints(TABLE.format(260), "top.tim") + "exit 1")
    report = build("ulx3s-85f", tmp_path)
    assert not report.fits and not report.meets_clock and report.bitstream is None
    assert (report.block_rams, report.block_rams_available, report.luts) == (260, 208, 13458)


def test_build_ends_when_nextpnr_looks_for_places_that_there_are_not(tools, tmp_path):
    tools(NEXTPNR_ECP5=prints(TABLE.format(209), "top.tim") + "sleep 30; touch ended")
    report = build("ulx3s-85f", tmp_path)
    assert not report.fits and report.block_rams == 209
    assert not (tmp_path / "ended").exists()


def test_report_is_not_read_while_it_is_being_written(tools, tmp_path):
    tools(NEXTPNR_ECP5="printf '{' >report.json; sleep 2; " + prints(report_json(48.128)),
          ECPPACK=PACKS)
    assert build("ulx3s-85f", tmp_path).fits


def test_design_without_a_place_does_not_fit_though_no_cell_is_used_up(tools, tmp_path):
    tools(NEXTPNR_ECP5=prints(TABLE.format(52), "top.tim")
          + "echo \"ERROR: Unable to place cell 'x', no BELs remaining\" >&2; exit 1")
    assert not build("ulx3s-85f", tmp_path).fits


@pytest.mark.parametrize("tool", VARIABLES)
def test_tool_that_fails_is_an_error_with_its_words(tools, tmp_path, tool):
    scripts = {"NEXTPNR_ECP5": prints(TABLE.format(52), "top.tim") + prints(report_json(48.0)),
               "ECPPACK": PACKS}
    scripts[tool] = "echo 'ERROR: out of paper' >&2; exit 3"
    tools(**scripts)
    with pytest.raises(DeviceError, match=r"failed with exit code 3:\n(.*\n)*ERROR: out of paper"):
        build("ulx3s-85f", tmp_path)
    assert "out of paper" in (tmp_path / "build.log").read_text()


def test_results_of_an_earlier_build_are_never_reported(tools, tmp_path):
    tools(NEXTPNR_ECP5=prints(report_json(48.0)), ECPPACK=PACKS)
    assert build("ulx3s-85f", tmp_path).fits
    tools(NEXTPNR_ECP5="exit 1")
    with pytest.raises(DeviceError, match="failed with exit code 1"):
        build("ulx3s-85f", tmp_path)
    assert not read_report(BOARD, tmp_path).fits


def test_oscillator_is_constrained_and_the_clock_is_the_pll(plan):
    constraints = plan.files["top.lpf"]
    text = constraints if isinstance(constraints, str) else constraints.decode()
    assert 'FREQUENCY PORT "clk25_0__io" 25000000.0 HZ;' in text
    assert "FREQUENCY NET" not in text  # it would name a net that nextpnr does not know


def test_core_is_made_of_the_blocks_of_the_fpga(plan):
    text = plan.files["top.il"]
    text = text if isinstance(text, str) else text.decode()
    assert text.count("cell \\MULT18X18D ") == SMALLEST.macs + 4 * SMALLEST.engines


def test_files_name_no_path_of_the_machine(plan, tmp_path):
    for name, content in plan.files.items():
        text = content if isinstance(content, str) else content.decode()
        assert str(tmp_path.parent) not in text, name
        assert "sparsemac_boards/" not in text or name in ("top.il", "top.debug.v"), name


def test_unknown_board_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"^board must be one of ulx3s-85f, not 'de10'$"):
        build("de10", tmp_path)


def test_missing_tool_names_the_extra(monkeypatch, tmp_path):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingDependency, match=r"needs yosys, .*pip install 'sparsemac\[ecp5\]'"):
        find_tools()


def test_native_tools_go_before_those_from_pypi(monkeypatch, tmp_path):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    names = ("yosys", "nextpnr-ecp5", "ecppack")
    for name in (*names, *(f"yowasp-{name}" for name in names)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert list(find_tools().values()) == [str(tmp_path / name) for name in names]


@pytest.mark.slow
def test_names_like_bits_of_wires_do_not_stop_synthesis(tmp_path):
    """The wires ``windows[7]`` and ``windows`` of this core are not one and the same."""
    config = SMALLEST.replace(lanes=8, windows=8, act_depth=2048, burst_beats=16, fifo_depth=32)
    verilog = emit_verilog(Core(config), CORE_NAME)
    assert "wire [41:0] \\windows[7] ;" in verilog
    (tmp_path / "core.v").write_text(verilog)
    script = f"read_verilog core.v; {synth_to_luts(CORE_NAME)}; select -assert-min 2000 t:$lut"
    subprocess.run([find_tools()["YOSYS"], "-q", "-p", script], cwd=tmp_path, check=True)


@pytest.mark.bitstream
def test_builds_a_bitstream_that_meets_its_clock(tmp_path):
    report = build("ulx3s-85f", tmp_path)
    assert report.fits and report.meets_clock
    assert report.bitstream is not None and report.bitstream.stat().st_size > 100_000
    # The clock that nextpnr worked for is the PLL's, not the oscillator's.
    clocks = json.loads((tmp_path / "report.json").read_text())["fmax"].values()
    asked = report.clock_asked_mhz
    assert [clock["constraint"] for clock in clocks] == [pytest.approx(asked, rel=0.01)]


@pytest.mark.bitstream
def test_core_that_is_too_large_does_not_fit(tmp_path):
    too_much = SMALLEST.replace(act_depth=65536, lanes=16, bus_width=128, burst_beats=4)
    report = build("ulx3s-85f", tmp_path, too_much)
    assert not report.fits and report.block_rams > report.block_rams_available
