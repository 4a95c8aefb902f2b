# SPDX-License-Identifier: Apache-2.0
"""Measures area and clock of cores on an ECP5-85F (speed grade 6), out of context.

    python scripts/bench_area.py [ENGINESxLANES ...] [--set NAME=VALUE ...]
                                 [--family FAMILY ...] [--seeds N] [--readme]
    python scripts/bench_area.py --fit [--readme]

A cell counts in LUT4-equivalents: 1 for a LUT4, 2 for a CCU2C (two bits of a carry chain), 4 for
a TRELLIS_DPR16X4 (16 words of 4 bits). The total is that of the flat core. ``--modules`` keeps the
hierarchy, which costs some LUTs more, and tells where the area goes. With ``--seeds`` the flat core
is placed and routed so many times; the clock is the median of those. ``--family ecp5`` makes
parts of the core of the FPGA's own blocks, as a board's build does. ``--readme`` puts the figures
into README.md's table, in place of those of the same core and blocks.

``--fit`` renews the area model, `sparsemac_boards.area`: it synthesizes and packs the cores of
`PLAN` whose Verilog has changed since they were measured, fits the coefficients by least squares of
relative errors, none of them negative, and says how far the model is off; exit code 1 if counts
that must be equal are not. It goes on where it was interrupted.

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
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsemac.config import CoreConfig
from sparsemac_boards import area
from sparsemac_boards.build import PLACE_AND_ROUTE, SYNTH_REST, find_tools, synth_to_luts
from sparsemac_boards.floorplan import place_sums
from sparsemac_boards.soc import UartSoc
from sparsemac_hw.core import Core
from sparsemac_hw.emit import CORE_NAME, emit_verilog
from sparsemac_hw.shared import FAMILIES

log = logging.getLogger("bench_area")

#: Cells that are counted, and LUT4-equivalents of one.
WEIGHTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4}
CELLS = (*WEIGHTS, "TRELLIS_FF", "MULT18X18D", "DP16KD")
#: Those that only cores of an ECP5's own blocks have, too.
ALL_CELLS = (*CELLS, "ALU54B")

#: The device that all is measured on, and nextpnr's options for it.
DEVICE, DEVICE_OPTIONS = "LFE5U-85F", ("--85k", "--speed", "6", "--package", "CABGA756")

#: What fits on the device at each size; block memories are the limit.
SHAPES = ("1x32", "2x64", "1x128")
SETTINGS = {"act_depth": 2048}

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MEASUREMENTS = ROOT / "boards" / "sparsemac_boards" / area.MEASUREMENTS


@dataclass(frozen=True)
class Planned:
    """A core that the area model is fitted to, or held against."""

    shape: str
    settings: tuple[str, ...] = ()
    soc_memory_bytes: int = 0
    held_out: bool = False

    @property
    def config(self) -> CoreConfig:
        """The configuration."""
        return parse_config(self.shape, list(self.settings))


SMALLEST = ("act_depth=64", "psum_depth=0", "entry_depth=16", "windows=1", "counters=false")

#: Few, and the smallest first; each parameter at several values, not always with the same others.
PLAN = (
    Planned("1x1", SMALLEST),
    Planned("1x8", (*SMALLEST, "windows=8", "act_depth=2048")),
    Planned("1x16", (*SMALLEST, "act_depth=2048", "acc_width=24")),
    Planned("1x1", (*SMALLEST, "bus_width=256")),
    Planned("1x1", SMALLEST, soc_memory_bytes=1 << 16),
    Planned("1x32"),
    Planned("2x4", (*SMALLEST, "counters=true", "psum_depth=512")),
    Planned("2x4", ("bus_width=128", "act_depth=512", "psum_depth=256", "windows=2"),
            held_out=True),
    Planned("2x16", held_out=True),
    Planned("3x1", SMALLEST),
    Planned("2x1", (*SMALLEST, "bus_width=128")),
    Planned("1x8", (*SMALLEST, "bus_width=256", "counters=true", "psum_depth=512")),
    Planned("1x64", SMALLEST),
)


def parse_config(shape: str, settings: list[str]) -> CoreConfig:
    """Returns the configuration of a shape like ``2x64``, with the shortest FIFOs it allows."""
    match = re.fullmatch(r"(\d+)x(\d+)", shape)
    if match is None:
        raise ValueError(f"shape must be ENGINESxLANES, not {shape!r}")
    engines, lanes = map(int, match.groups())
    values: dict[str, int] = {**SETTINGS, "fifo_depth": max(16, 32 // engines)}
    for setting in settings:
        name, _, value = setting.partition("=")
        values[name] = value == "true" if value in ("true", "false") else int(value)
    return CoreConfig.from_dict({"engines": engines, "lanes": lanes, **values})


def synthesize(tools: dict[str, str], directory: Path, keep_hierarchy: bool = False,
               last: str = "") -> dict[str, Any]:
    """Runs yosys on ``core.v``, ``last`` at the end; returns its statistics of all modules."""
    # Relative names only: the tools from PyPI see no other folder.
    option = "-noflatten" if keep_hierarchy else ""
    script = "; ".join(filter(None, (
        "read_verilog core.v", synth_to_luts(CORE_NAME, option),
        f"synth_ecp5 -top {CORE_NAME} {SYNTH_REST}", "tee -q -o stat.json stat -json", last,
        "write_json core.json")))
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
        found_here = statistics_["num_cells_by_type"].items()
        counts.update({cell: n for cell, n in found_here if cell in ALL_CELLS})
    return found


#: A wire between flip-flops and the adder of `ecp5.PairedSums`, with its longest delay [ps].
ADDER_WIRE = re.compile(
    r"\(INTERCONNECT (?:\S+\.adder/R\d+ \S+|\S+/Q \S+\.adder/\S+) \(\d+:\d+:(\d+)\)")


def nextpnr(tools: dict[str, str], directory: Path, *options: str) -> None:
    """Runs nextpnr on what `synthesize` left."""
    run([tools["NEXTPNR_ECP5"], *DEVICE_OPTIONS, "--json", "core.json", "--out-of-context", "-q",
         *options], directory)


def measure_clock(tools: dict[str, str], directory: Path, seed: int) -> tuple[float, str, int]:
    """Places and routes.

    Returns
    -------
    tuple of float, str and int
        The clock [MHz], the start and end of the longest path, and the longest wire that begins or
        ends at an ALU54B [ps]: nextpnr knows no times of these, so no clock counts such a path.
    """
    nextpnr(tools, directory, *PLACE_AND_ROUTE, "--freq", "150", "--seed", str(seed),
            "--timing-allow-fail", "--report", "report.json", "--sdf", "wires.sdf",
            "--log", "pnr.log")
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    clock = min(c["achieved"] for c in report["fmax"].values())
    steps = next(p["path"] for p in report["critical_paths"] if p["from"] == p["to"])
    delays = (directory / "wires.sdf").read_text(encoding="utf-8")
    untimed = max(map(int, ADDER_WIRE.findall(delays)), default=0)
    return clock, f"{steps[0]['from']['cell']} to {steps[-1]['to']['cell']}", untimed


def measure(shape: str, family: str, options: argparse.Namespace, tools: dict[str, str]
            ) -> dict[str, Any]:
    """Returns all figures of one shape, made of a family's blocks."""
    config = parse_config(shape, options.set)
    result: dict[str, Any] = {"shape": shape, "family": family,
                              "config": config.as_dict(), "macs": config.macs}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(options.directory or name) / f"{shape}-{family}"
        directory.mkdir(parents=True, exist_ok=True)
        verilog = emit_verilog(Core(config), CORE_NAME, family)
        (directory / "core.v").write_text(verilog, encoding="utf-8")
        if options.modules:
            start = time.monotonic()
            modules = count_modules(synthesize(tools, directory, keep_hierarchy=True))
            log.info("%s %s by module: %.0f s", shape, family, time.monotonic() - start)
            result["modules"] = {
                kind: {"equivalents": equivalents(cells), **cells}
                for kind, cells in sorted(modules.items(), key=lambda m: -equivalents(m[1]))
            }
        if not options.modules or options.seeds:
            start = time.monotonic()
            places = place_sums(config, DEVICE) if family == "ecp5" else ""
            (top,) = count_modules(synthesize(tools, directory, last=places)).values()
            log.info("%s %s flat: %.0f s", shape, family, time.monotonic() - start)
            result |= {"cells": dict(top), "equivalents": equivalents(top)}
            result["equivalents_per_mac"] = round(equivalents(top) / config.macs, 1)
        result["clocks_mhz"], result["paths"], result["adder_wires_ps"] = [], [], []
        for seed in range(1, options.seeds + 1):
            clock, path, untimed = measure_clock(tools, directory, seed)
            log.info("%s %s seed %d: %.1f MHz, %s; wires of adders up to %d ps",
                     shape, family, seed, clock, path, untimed)
            result["clocks_mhz"].append(round(clock, 1))
            result["paths"].append(path)
            result["adder_wires_ps"].append(untimed)
    if result["clocks_mhz"]:
        result["clock_mhz"] = statistics.median(result["clocks_mhz"])
    return result


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


HEADER = ["core", "blocks", "MACs", "LUT4-eq", "per MAC", *ALL_CELLS, "MHz"]


def row(result: dict[str, Any]) -> list[Any]:
    """Returns a core's figures as a line of the table, its clock with the range of all seeds."""
    clock = ""
    if clocks := result["clocks_mhz"]:
        clock = f"{result['clock_mhz']:.1f} ({min(clocks):.1f} to {max(clocks):.1f})"
    return [result["shape"], result["family"], result["macs"], result["equivalents"],
            result["equivalents_per_mac"], *(result["cells"].get(cell, 0) for cell in ALL_CELLS),
            clock]


def markdown(results: list[dict[str, Any]]) -> str:
    """Returns the figures as tables: all cores, then the modules of each."""
    parts = []
    if flat := [r for r in results if "cells" in r]:
        parts.append(table(HEADER, [row(r) for r in flat]))
    for r in results:
        if "modules" in r:
            parts.append(table(
                [f"{r['shape']} {r['family']}", "instances", "LUT4-eq", *ALL_CELLS],
                [[kind, cells["instances"], cells["equivalents"],
                  *(cells.get(cell, 0) for cell in ALL_CELLS)]
                 for kind, cells in r["modules"].items()],
            ))
    return "\n\n".join(parts)


def update_readme(result: dict[str, Any]) -> None:
    """Puts a core's figures into the README's table; those of other cores stay."""
    _, before, _ = split_readme("bench_area.py")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in before.splitlines()]
    rows = {tuple(cells[:2]): cells for cells in lines[2:] if len(cells) == len(HEADER)}
    rows[result["shape"], result["family"]] = row(result)

    def place(key: tuple[str, ...]) -> tuple[list[int], int]:
        return [int(n) for n in key[0].split("x")], FAMILIES.index(key[1])

    write_readme(table(HEADER, [rows[key] for key in sorted(rows, key=place)]), "bench_area.py")


def split_readme(name: str) -> tuple[str, str, str]:
    """Returns README.md up to a table's first mark, what is between its marks, and the rest."""
    first, last = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    head, found, rest = README.read_text(encoding="utf-8").partition(first)
    text, end, tail = rest.partition(last)
    if not found or not end:
        raise ValueError(f"{README} must have the lines {first.strip()!r} and {last.strip()!r}")
    return head + first, text, last + tail


def write_readme(text: str, name: str) -> None:
    """Puts a table between its marks in README.md."""
    head, _, tail = split_readme(name)
    README.write_text(head + text + tail, encoding="utf-8")


# -- the area model -----------------------------------------------------------------------------


def measure_cells(planned: Planned, tools: dict[str, str], known: dict[int, dict[str, Any]]
                  ) -> dict[str, Any]:
    """Returns a measurement as `area.measurements` describes it; ``known`` are those by Verilog."""
    config, memory_bytes = planned.config, planned.soc_memory_bytes
    top = UartSoc(config, memory_bytes, 37) if memory_bytes else Core(config)
    verilog = emit_verilog(top, CORE_NAME, "ecp5").encode()
    crc = zlib.crc32(verilog)
    start = time.monotonic()
    if crc not in known:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "core.v").write_bytes(verilog)
            (top_cells,) = count_modules(synthesize(tools, directory)).values()
            nextpnr(tools, directory, "--pack-only", "--log", "pack.log")
            log_text = (directory / "pack.log").read_text(encoding="utf-8")
        cells = {cell: top_cells[cell] for cell in CELLS}
        for cell in ("TRELLIS_COMB", "TRELLIS_RAMW"):
            found = re.search(rf"{cell}:\s*(\d+)/", log_text)
            if found is None:
                raise RuntimeError(f"nextpnr's log must tell how many {cell} there are")
            cells[cell] = int(found[1])
        known[crc] = {"cells": cells}
    log.info("%s %s: %.0f s", planned.shape, " ".join(planned.settings), time.monotonic() - start)
    return {"config": config.as_dict(), "soc_memory_bytes": memory_bytes,
            "held_out": planned.held_out, "verilog_crc": crc, "cells": known[crc]["cells"]}


def counts_of(cells: dict[str, int]) -> dict[str, int]:
    """Returns what the model predicts: the cells of `area.FITTED`."""
    return {**cells, "PACKED": cells["TRELLIS_COMB"] - equivalents(Counter(cells))}


def least_squares(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves for nonnegative coefficients, one after another until none changes.

    Parameters
    ----------
    matrix : (measurements, features) float64
    wanted : (measurements,) float64

    Source
    ------
    Franc, Hlavac, Navara, "Sequential coordinate-wise algorithm for the non-negative least squares
    problem", CAIP 2005.
    """
    gram, solution = matrix.T @ matrix, np.zeros(matrix.shape[1])
    slope = -(matrix.T @ wanted)
    for _ in range(200_000):
        before = solution.copy()
        for k in range(len(solution)):
            step = max(-solution[k], -slope[k] / gram[k, k]) if gram[k, k] else 0.0
            solution[k] += step
            slope += step * gram[:, k]
        if np.abs(solution - before).max() <= 1e-9 * np.abs(solution).max():
            break
    return solution


def fit(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns the coefficients of each cell, by feature."""
    used = [m for m in measured if not m["held_out"]]
    rows = [area.features(CoreConfig.from_dict(m["config"]), m["soc_memory_bytes"]) for m in used]
    names = list(rows[0])
    matrix = np.array([[row[name] for name in names] for row in rows], float)
    scale = np.maximum(matrix.max(axis=0), 1)
    coefficients = {}
    for cell in area.FITTED:
        counts = np.array([counts_of(m["cells"])[cell] for m in used], float)
        # What the packer adds counts as much as the same LUTs elsewhere.
        whole = counts if cell != "PACKED" else np.array([m["cells"]["TRELLIS_COMB"] for m in used])
        solution = least_squares(matrix / scale / whole[:, None], counts / whole) / scale
        coefficients[cell] = {name: round(float(c), 4)
                              for name, c in zip(names, solution, strict=True) if c > 5e-5}
    return coefficients


def renew(tools: dict[str, str]) -> None:
    """Measures what has changed, fits and writes the file."""
    old = json.loads(MEASUREMENTS.read_text(encoding="utf-8")) if MEASUREMENTS.exists() else {}
    known = {m["verilog_crc"]: m for m in old.get("measurements", [])}
    measured = []
    for planned in PLAN:
        measured.append(measure_cells(planned, tools, known))
        # What was measured before stays until the end: an interrupted run loses nothing.
        kept = [m for m in old.get("measurements", [])
                if m["verilog_crc"] not in {n["verilog_crc"] for n in measured}]
        write({**old, "measurements": [*measured, *kept]})
    write({"coefficients": fit(measured), "measurements": measured})


def write(content: dict[str, Any]) -> None:
    """Writes measurements and coefficients, a line for each."""
    parts = [
        f'"{name}": {{\n' + ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in value.items()) + "\n}"
        if isinstance(value, dict) else
        f'"{name}": [\n' + ",\n".join(f" {json.dumps(v)}" for v in value) + "\n]"
        for name, value in content.items()
    ]
    MEASUREMENTS.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def compare() -> tuple[str, bool]:
    """Returns measured and predicted counts as a table, and whether the exact ones are equal."""
    area.forget()
    rows, equal = [], True
    for m in area.measurements():
        config, cells = m["config"], m["cells"]
        found = area.predict_area(config, m["soc_memory_bytes"])
        exact = {"MULT18X18D": found.multipliers, "DP16KD": found.block_rams,
                 "TRELLIS_DPR16X4": found.slices}
        for cell, count in exact.items():
            if count != cells[cell]:
                equal = False
                log.error("%s: %d %s predicted, %d made", config, count, cell, cells[cell])
        around = " with a board's system" if m["soc_memory_bytes"] else ""
        rows.append([
            f"{config.engines} x {config.lanes}{around}", config.bus_width,
            "no" if m["held_out"] else "yes", equivalents(Counter(cells)),
            cells["TRELLIS_COMB"], f"{found.luts / cells['TRELLIS_COMB'] - 1:+.1%}",
            cells["TRELLIS_FF"], f"{found.flip_flops / cells['TRELLIS_FF'] - 1:+.1%}",
            cells["MULT18X18D"], cells["DP16KD"],
        ])
    return table(["core", "bus", "fitted to", "LUT4-eq", "LUTs", "predicted", "flip-flops",
                  "predicted", "MULT18X18D", "DP16KD"], rows), equal


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="ENGINESxLANES")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="another parameter of the configuration")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=FAMILIES[:1],
                        help="whose blocks parts are made of, one core after the other")
    parser.add_argument("--modules", action="store_true", help="tell where the area goes")
    parser.add_argument("--seeds", type=int, default=0, metavar="N",
                        help="place and route so many times")
    parser.add_argument("--directory", metavar="DIR", help="keep the tools' files here")
    parser.add_argument("--json", action="store_true", help="figures for machines")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--fit", action="store_true", help="renew the area model")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tools = find_tools()
    if options.fit:
        renew(tools)
        text, equal = compare()
        if options.readme:
            write_readme(text, "bench_area.py --fit")
        print(text)
        return 0 if equal else 1
    results = []
    for shape in options.shapes:
        for family in options.family:
            results.append(measure(shape, family, options, tools))
            if options.readme and "cells" in results[-1]:
                update_readme(results[-1])  # after each: an interrupted run loses nothing
    print(json.dumps(results, indent=2) if options.json else markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
