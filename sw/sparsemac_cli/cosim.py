# SPDX-License-Identifier: Apache-2.0
"""``sparsemac cosim``: the cocotb regression on random cores and random networks."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from sparsemac._checks import as_int_in, need

from ._report import MISMATCH, OK, add_json_argument, write_json

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "cosim", help="check random cores against the golden model, with cocotb",
        description="Draws cores and networks of sparse matrices from the seed, drives the emitted "
        "Verilog over AXI with random back-pressure, and compares all of the memory with the "
        "golden model; also the register map, and resets in the middle of jobs. Four matrices "
        "share a core; the n-th core of seed S is the first of seed S + n. Exit code 1 if "
        "anything differs.",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S",
                        help="the number that replays a run (default: %(default)s)")
    parser.add_argument("--count", type=int, default=8, metavar="N",
                        help="matrices (default: %(default)s)")
    parser.add_argument("--waves", action="store_true", help="write waves (VCD), one file per core")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path,
                        help="folder for logs and waves (default: cosim-waves with --waves, "
                        "else a temporary one)")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the regression and prints a line per check; 1 if one failed."""
    seed = as_int_in("seed", args.seed, 0, 1 << 40)
    count = as_int_in("count", args.count, 1, 1 << 20)
    cosim = need("sparsemac_sim.cosim", "cosim", "co-simulation")
    print(f"seed {seed}, {count} matrices", flush=True)
    folder = args.output or (Path("cosim-waves") if args.waves else None)
    began = time.monotonic()
    results: list[Any] = []
    for found in cosim.iterate_cosim(seed, count, args.waves, folder):
        _print_core(found)
        results += found
    failed = [result for result in results if not result.passed]
    _print_summary(results, failed, time.monotonic() - began)
    write_json(args.json, {
        "seed": seed, "count": count, "failed": len(failed),
        "mismatches": sum(result.mismatches for result in results),
        "checks": [result.as_dict() for result in results],
    })
    return MISMATCH if failed else OK


def _print_core(found: list[Any]) -> None:
    """Prints the checks of one core."""
    config, seed = found[0].config, found[0].seed
    print(f"\nseed {seed}: {config.engines} engines x {config.lanes} lanes, {config.bus_width}-bit "
          f"bus, depth {config.depth}, bursts of {config.burst_beats}, "
          f"{config.acc_width}-bit accumulators, {config.psum_depth} partial sums")
    for result in found:
        state = "ok" if result.passed else "FAIL"
        print(f"  {state:4} {result.bench:8} {result.cycles:7} cycles {result.mismatches:6} wrong "
              f"{result.cycles_per_second / 1000:6.1f} kHz  {result.name}", flush=True)
        for problem in result.problems:
            print(f"       {problem}")
    if found[0].waves:
        print(f"  waves: {found[0].waves}")


def _print_summary(results: list[Any], failed: list[Any], seconds: float) -> None:
    cycles = sum(result.simulated_cycles for result in results)
    print(f"\n{len(results) - len(failed)} of {len(results)} checks passed, "
          f"{sum(result.mismatches for result in results)} bytes wrong, {cycles} cycles, "
          f"{seconds:.0f} s")
    for seed in sorted({result.seed for result in failed}):
        print(f"replay: sparsemac cosim --seed {seed} --count 4 --waves", file=sys.stderr)
