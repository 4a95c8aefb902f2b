# SPDX-License-Identifier: Apache-2.0
"""``sparsemac bench``: real sparse matrices on the core, with every cycle accounted for."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sparsemac
from sparsemac._checks import as_int_in
from sparsemac.config import CoreConfig
from sparsemac.csr import Csr
from sparsemac.golden import run_layer
from sparsemac.layer import LinearLayer
from sparsemac.matrices import quantize_matrix, random_values, read_matrix
from sparsemac.stream import entropy_bound_bits

from ._report import (
    MISMATCH,
    OK,
    USAGE,
    add_config_arguments,
    add_json_argument,
    config_from,
    stalls_text,
    write_json,
)

__all__ = ["add_parser", "bench_matrix"]

#: A bus that does not limit 8 engines x 8 lanes; ``--bus-width`` sets another.
BENCH_CONFIG = CoreConfig(bus_width=256)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "bench",
        help="run real sparse matrices on the core, against the golden model",
        description="Multiplies each matrix with a random int8 activation matrix on the core and "
        "compares every integer with the golden model. Patterns without values get random "
        "weights from the seed; real values are rounded row by row.",
    )
    parser.add_argument(
        "files", metavar="FILE", type=Path, nargs="+", help=".smtx, .mtx, SciPy .npz or dense .npy"
    )
    parser.add_argument(
        "--columns",
        type=int,
        default=64,
        metavar="P",
        help="columns of the activation matrix (default: %(default)s)",
    )
    parser.add_argument("--weight-bits", type=int, choices=(4, 8), default=8)
    parser.add_argument(
        "--output",
        choices=("int8", "raw"),
        default="int8",
        help="requantized outputs, or raw int32 sums (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-latency",
        type=int,
        metavar="CYCLES",
        help="cycles from a read's address to its first beat",
    )
    parser.add_argument(
        "--memory-bandwidth",
        type=float,
        metavar="BYTES_PER_CYCLE",
        help="limit of the memory in each direction (default: one beat per cycle)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="sim:", metavar="URI", help="default: %(default)s")
    add_config_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def bench_matrix(
    core: "sparsemac.Core",
    csr: Csr,
    *,
    name: str,
    columns: int,
    weight_bits: int,
    raw: bool,
    seed: int,
) -> dict[str, Any]:
    """Runs one matrix and returns its figures, under the names of the JSON output."""
    layer = LinearLayer.from_matrix(csr, weight_bits=weight_bits, raw=raw, name=name)
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (layer.inputs, columns)).astype(np.int8)
    began = time.monotonic()
    network = core.load(layer)
    result = core.run(network, x)
    seconds = time.monotonic() - began
    mismatches = int((result.outputs != run_layer(layer, x)).sum())
    program = result.program
    nnz = program.entries
    return {
        "file": name,
        "rows": csr.shape[0],
        "cols": csr.shape[1],
        "nnz": nnz,
        "density": nnz / max(1, csr.shape[0] * csr.shape[1]),
        "columns": columns,
        "weight_bits": weight_bits,
        "cycles": result.cycles,
        "macs": result.macs,
        "utilization": result.utilization,
        "bits_per_nonzero": program.format_bits / nnz if nnz else 0.0,
        "bound_bits_per_nonzero": entropy_bound_bits(csr),
        "parameter_bits_per_row": program.parameter_bits / max(1, csr.shape[0]),
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "bus_utilization": result.bus_utilization,
        "stalls": result.stalls,
        "fillers": program.fillers,
        "mismatches": mismatches,
        "wall_seconds": seconds,
        "config": core.config.as_dict(),
    }


def _device_options(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if args.memory_latency is not None:
        options["latency"] = args.memory_latency
    if args.memory_bandwidth is not None:
        options["bandwidth"] = args.memory_bandwidth
    if options and not args.device.startswith("sim:"):
        raise ValueError(
            f"memory latency and bandwidth can be set on sim: only, not on {args.device}"
        )
    return options


def run(args: argparse.Namespace) -> int:
    """Runs all files; 1 if an integer differs, 2 if a file was refused."""
    as_int_in("columns", args.columns, 1, 1 << 20)
    config = config_from(args, BENCH_CONFIG)
    rows: list[dict[str, Any]] = []
    refused = 0
    with sparsemac.open(args.device, config, **_device_options(args)) as core:
        print(
            f"{config.engines} engines x {config.lanes} lanes, {config.bus_width}-bit bus, "
            f"seed {args.seed}",
            file=sys.stderr,
        )
        print(
            f"{'file':44} {'shape':>12} {'nnz':>8} {'cycles':>9} {'util':>6} {'bits/nz':>8} "
            f"{'bound':>6} {'bus':>6} {'wrong':>6}  lost to"
        )
        for path in args.files:
            try:
                matrix = read_matrix(path)
                if matrix.values is None:
                    csr = random_values(matrix, args.weight_bits, args.seed)
                else:
                    csr = quantize_matrix(matrix, args.weight_bits)[0]
                row = bench_matrix(
                    core,
                    csr,
                    name=path.name,
                    columns=args.columns,
                    weight_bits=args.weight_bits,
                    raw=args.output == "raw",
                    seed=args.seed,
                )
            except (ValueError, OSError) as error:
                refused += 1
                print(f"{path.name[:44]:44} refused: {error}", flush=True)
                continue
            rows.append(row)
            shape = f"{row['rows']}x{row['cols']}"
            print(
                f"{path.name[:44]:44} {shape:>12} {row['nnz']:8} {row['cycles']:9} "
                f"{row['utilization']:6.3f} {row['bits_per_nonzero']:8.2f} "
                f"{row['bound_bits_per_nonzero']:6.2f} {row['bus_utilization']:6.3f} "
                f"{row['mismatches']:6}  {stalls_text(row['stalls'])}",
                flush=True,
            )
    write_json(args.json, rows)
    if any(row["mismatches"] for row in rows):
        return MISMATCH
    return USAGE if refused else OK
