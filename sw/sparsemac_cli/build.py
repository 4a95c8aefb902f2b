# SPDX-License-Identifier: Apache-2.0
"""``sparsemac build``: a bitstream for a board, with a report of what it takes."""

import argparse
from dataclasses import asdict
from pathlib import Path

from sparsemac._checks import need
from sparsemac.config import CoreConfig

from ._report import DOES_NOT_FIT, OK, Progress, add_json_argument, write_json

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "build",
        help="build a bitstream for a board",
        description="Builds core, UART link and on-chip memory for a board. Exit code 4 if the "
        "design does not fit or misses its clock.",
    )
    parser.add_argument("--board", metavar="BOARD", required=True, help="ulx3s-85f")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("build"))
    parser.add_argument("--config", metavar="TOML", type=Path,
                        help="another core than the board's own, as `sparsemac fit -o` writes it")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds and prints the report."""
    boards = need("sparsemac_boards.build", "ecp5", "building for a board")
    config = CoreConfig.from_toml(args.config) if args.config else None
    progress = Progress(1)
    with progress.stage(f"synthesize, place and route for {args.board} (some minutes)"):
        report = boards.build(args.board, args.output, config)
    for name, value in asdict(report).items():
        print(f"{name:18} {value}")
    write_json(
        args.json, {k: str(v) if isinstance(v, Path) else v for k, v in asdict(report).items()}
    )
    return OK if report.fits and report.meets_clock else DOES_NOT_FIT
