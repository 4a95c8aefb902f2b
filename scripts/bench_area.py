# SPDX-License-Identifier: Apache-2.0
"""Measures area and clock of cores on an ECP5-85F (speed grade 6), out of context.

    python scripts/bench_area.py [ENGINESxLANES ...] [--set NAME=VALUE ...] [--seeds N]

A cell counts in LUT4-equivalents: 1 for a LUT4, 2 for a CCU2C (two bits of a carry chain), 4 for
a TRELLIS_DPR16X4 (16 words of 4 bits). The total is that of the flat core. ``--modules`` keeps the
hierarchy, which costs some LUTs more, and tells where the area goes. With ``--seeds`` the flat core
is placed and routed so many times; the clock is the median of those.

Figures go to stdout, as Markdown or with ``--json``; progress goes to stderr.
"""

import argparse
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sparsemac.config import CoreConfig
from sparsemac_boards.build import find_tools
from sparsemac_hw.core import Core
from sparsemac_hw.emit import CORE_NAME, emit_verilog

log = logging.getLogger("bench_area")

#: Cells that are counted, and LUT4-equivalents of one.
WEIGHTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4}
CELLS = (*WEIGHTS, "TRELLIS_FF", "MULT18X18D", "DP16KD")

#: The delay that abc9 aims at [ps]; without one it does not trade area for speed at all.
TARGET_PS = 6667

#: What fits on the device at each size; block memories are the limit.
SHAPES = ("1x32", "2x32", "2x64")
SETTINGS = {"act_depth": 2048}


def parse_config(shape: str, settings: list[str]) -> CoreConfig:
    """Returns the configuration of a shape like ``2x64``, with the shortest FIFOs it allows."""
    match = re.fullmatch(r"(\d+)x(\d+)", shape)
    if match is None:
        raise ValueError(f"shape must be ENGINESxLANES, not {shape!r}")
    engines, lanes = map(int, match.groups())
    values: dict[str, int] = {**SETTINGS, "fifo_depth": max(16, 32 // engines)}
    for setting in settings:
        name, _, value = setting.partition("=")
        values[name] = int(value)
    return CoreConfig.from_dict({"engines": engines, "lanes": lanes, **values})


def synthesize(tools: dict[str, str], directory: Path, keep_hierarchy: bool) -> dict[str, Any]:
    """Runs yosys on ``core.v``; returns its statistics of all modules."""
    # Relative names only: the tools from PyPI see no other folder.
    option = "-noflatten" if keep_hierarchy else ""
    script = (
        f"read_verilog core.v; scratchpad -set abc9.D {TARGET_PS}; "
        f"synth_ecp5 -top {CORE_NAME} -abc9 -no-rw-check {option}; "
        f"tee -q -o stat.json stat -json; write_json core.json"
    )
    run([tools["YOSYS"], "-q", "-l", "yosys.log", "-p", script], directory)
    return json.loads((directory / "stat.json").read_text(encoding="utf-8"))["modules"]


def run(command: list[str], directory: Path) -> None:
    """Runs a tool; if it fails, raises with its last words."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"{command[0]} failed with exit code {done.returncode}:\n{last}")


def equivalents(cells: Counter[str]) -> int:
    """Returns LUT4-equivalents."""
    return sum(weight * cells[name] for name, weight in WEIGHTS.items())


def count_modules(modules: dict[str, Any]) -> dict[str, Counter[str]]:
    """Returns the cells of each kind of module, in all its instances together.

    Each instance is a module of its own, named after its place in the hierarchy; places that differ
    by a number only are one kind.
    """
    found: dict[str, Counter[str]] = {}
    for name, statistics_ in modules.items():
        kind = re.sub(r"_\d+(?=\.|$)", "", name.removeprefix("\\"))
        counts = found.setdefault(kind, Counter())
        counts["instances"] += 1
        counts.update({c: n for c, n in statistics_["num_cells_by_type"].items() if c in CELLS})
    return found


def measure_clock(tools: dict[str, str], directory: Path, seed: int) -> tuple[float, str]:
    """Places and routes; returns the clock [MHz] and the start and end of the longest path."""
    run(
        [tools["NEXTPNR_ECP5"], "--85k", "--speed", "6", "--package", "CABGA756", "--json",
         "core.json", "--out-of-context", "--router", "router2", "--freq", "150", "--seed",
         str(seed), "--timing-allow-fail", "--report", "report.json", "-q", "--log", "pnr.log"],
        directory,
    )
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    clock = min(c["achieved"] for c in report["fmax"].values())
    steps = next(p["path"] for p in report["critical_paths"] if p["from"] == p["to"])
    return clock, f"{steps[0]['from']['cell']} to {steps[-1]['to']['cell']}"


def measure(shape: str, options: argparse.Namespace, tools: dict[str, str]) -> dict[str, Any]:
    """Returns all figures of one shape."""
    config = parse_config(shape, options.set)
    result: dict[str, Any] = {"shape": shape, "config": config.as_dict(), "macs": config.macs}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(options.directory or name) / shape
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "core.v").write_text(emit_verilog(Core(config), CORE_NAME), encoding="utf-8")
        if options.modules:
            start = time.monotonic()
            modules = count_modules(synthesize(tools, directory, keep_hierarchy=True))
            log.info("%s by module: %.0f s", shape, time.monotonic() - start)
            result["modules"] = {
                kind: {"equivalents": equivalents(cells), **cells}
                for kind, cells in sorted(modules.items(), key=lambda m: -equivalents(m[1]))
            }
        if not options.modules or options.seeds:
            start = time.monotonic()
            (top,) = count_modules(synthesize(tools, directory, keep_hierarchy=False)).values()
            log.info("%s flat: %.0f s", shape, time.monotonic() - start)
            result |= {"cells": dict(top), "equivalents": equivalents(top)}
            result["equivalents_per_mac"] = round(equivalents(top) / config.macs, 1)
        result["clocks_mhz"], result["paths"] = [], []
        for seed in range(1, options.seeds + 1):
            clock, path = measure_clock(tools, directory, seed)
            log.info("%s seed %d: %.1f MHz, %s", shape, seed, clock, path)
            result["clocks_mhz"].append(round(clock, 1))
            result["paths"].append(path)
    if result["clocks_mhz"]:
        result["clock_mhz"] = statistics.median(result["clocks_mhz"])
    return result


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def markdown(results: list[dict[str, Any]]) -> str:
    """Returns the figures as tables: all cores, then the modules of each."""
    parts = []
    if flat := [r for r in results if "cells" in r]:
        parts.append(table(
            ["core", "MACs", "LUT4-eq", "per MAC", *CELLS, "MHz"],
            [[r["shape"], r["macs"], r["equivalents"], r["equivalents_per_mac"],
              *(r["cells"].get(cell, 0) for cell in CELLS), r.get("clock_mhz", "")] for r in flat],
        ))
    for r in results:
        if "modules" in r:
            parts.append(table(
                [r["shape"], "instances", "LUT4-eq", *CELLS],
                [[kind, cells["instances"], cells["equivalents"],
                  *(cells.get(cell, 0) for cell in CELLS)] for kind, cells in r["modules"].items()],
            ))
    return "\n\n".join(parts)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="ENGINESxLANES")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="another parameter of the configuration")
    parser.add_argument("--modules", action="store_true", help="tell where the area goes")
    parser.add_argument("--seeds", type=int, default=0, metavar="N",
                        help="place and route so many times")
    parser.add_argument("--directory", metavar="DIR", help="keep the tools' files here")
    parser.add_argument("--json", action="store_true", help="figures for machines")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tools = find_tools()
    results = [measure(shape, options, tools) for shape in options.shapes]
    print(json.dumps(results, indent=2) if options.json else markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
