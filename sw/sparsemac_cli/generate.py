# SPDX-License-Identifier: Apache-2.0
"""``sparsemac generate``: Verilog of a core, with its description and register map."""

import argparse
from pathlib import Path

from sparsemac._checks import need
from sparsemac.config import CoreConfig

from ._report import OK, add_config_arguments, add_json_argument, config_from, write_json

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "generate",
        help="write a core's Verilog, description and register map",
        description="Writes core.v, core.json (ports with signedness, configuration, hash), the "
        "register map as Markdown, C header and JSON, and a file list. Two runs agree to the byte.",
    )
    parser.add_argument("--board", metavar="BOARD", help="configuration that suits a board")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    add_config_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def board_config(name: str) -> CoreConfig:
    """Returns the configuration of a board's core; `ValueError` names the boards there are."""
    boards = need("sparsemac_boards.registry", "ecp5", "a board's configuration").BOARDS
    if name not in boards:
        raise ValueError(f"board must be one of {', '.join(sorted(boards))}, not {name!r}")
    return boards[name].config


def run(args: argparse.Namespace) -> int:
    """Writes the files and lists them."""
    if args.board and args.config:
        raise ValueError("give --config or --board, not both")
    config = config_from(args, board_config(args.board) if args.board else None)
    emit = need("sparsemac_hw.emit", "hw", "generating Verilog")
    paths = emit.emit(config, args.output)
    for path in paths:
        print(path)
    write_json(
        args.json,
        {
            "files": [str(path) for path in paths],
            "config": config.as_dict(),
            "config_hash": f"{config.hash:#010x}",
        },
    )
    return OK
