# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

pytest.importorskip("amaranth_boards", reason="amaranth-boards is missing: sparsemac[ecp5]")

from sparsemac_boards.build import build, read_report  # noqa: E402
from sparsemac_boards.registry import BOARDS  # noqa: E402

BOARD = BOARDS["ulx3s-85f"]


def write(folder: Path, achieved: float, *, placed: bool = True) -> Path:
    report = folder / "report.json"
    cells = {"TRELLIS_COMB": {"used": 9000, "available": 83640},
             "DP16KD": {"used": 52, "available": 208}}
    report.write_text(json.dumps({
        "fmax": {"$glbnet$clk": {"achieved": achieved, "constraint": 37.5}},
        "utilization": cells if placed else {},
    }))
    if placed:
        (folder / "top.bit").write_bytes(b"bits")
    return report


def test_report_tells_cells_and_clock(tmp_path):
    report = read_report(BOARD, write(tmp_path, 48.0), tmp_path / "top.bit")
    assert (report.luts, report.luts_available, report.block_rams) == (9000, 83640, 52)
    assert report.fits and report.meets_clock and report.bitstream == tmp_path / "top.bit"


def test_report_tells_a_missed_clock(tmp_path):
    report = read_report(BOARD, write(tmp_path, 30.0), tmp_path / "top.bit")
    assert report.fits and not report.meets_clock


def test_a_design_that_was_not_placed_does_not_fit(tmp_path):
    report = read_report(BOARD, tmp_path / "report.json", tmp_path / "top.bit")
    assert not report.fits and report.bitstream is None


def test_an_unknown_board_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"^board must be one of ulx3s-85f, not 'de10'$"):
        build("de10", tmp_path)


@pytest.mark.slow
def test_builds_a_bitstream_that_meets_its_clock(tmp_path):
    report = build("ulx3s-85f", tmp_path)
    assert report.fits and report.meets_clock
    assert report.bitstream is not None and report.bitstream.stat().st_size > 100_000
