# SPDX-License-Identifier: Apache-2.0
"""``sparsemac compile``: a network in one file that opens anywhere and needs no compiling."""

import argparse
import sys
import time
from pathlib import Path

from sparsemac._checks import as_int_in
from sparsemac.netfile import write_network_file
from sparsemac.precompile import compile_graph

from ._network import add_model_arguments, batch_of, counted, load_network
from ._report import (
    OK,
    Progress,
    add_config_arguments,
    add_json_argument,
    config_from,
    write_json,
)
from .inspect import inspect_network

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "compile",
        help="write a network as one file with all that a core needs to run it",
        description="Compiles a network for a core and writes one file (.smnet): weights, packed "
        "streams, command lists, host operations and checksums of golden outputs. It opens with "
        "NumPy alone, and a run on the same core compiles nothing. The same model makes the same "
        "bytes.",
    )
    add_model_arguments(parser, "samples that a run takes at a time")
    parser.add_argument("-o", "--output", metavar="NET", type=Path, required=True,
                        help="file to write, such as network.smnet")
    parser.add_argument("--seed", type=int, default=1,
                        help="of the input for the golden checksums (default: %(default)s)")
    add_config_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it."""
    began = time.monotonic()
    if args.output.suffix.lower() != ".smnet":
        raise ValueError(f"output file must end in .smnet, not {args.output.name!r}")
    if not args.output.parent.is_dir():
        raise ValueError(f"folder of the output file must be there: {args.output.parent}")
    as_int_in("seed", args.seed, 0, (1 << 63) - 1)
    progress = Progress(3)
    with progress.stage(f"read {args.model.name}"):
        graph, file = load_network(args)
    config = config_from(args, file.config if file else None)
    batch = batch_of(args.batch, graph, config)
    with progress.stage(f"compile for {config.engines} engines x {config.lanes} lanes, "
                        f"{counted(batch, 'sample')} at a time"):
        compiled = compile_graph(graph, config, batch)
    with progress.stage(f"run the golden model and write {args.output.name}"):
        written = write_network_file(args.output, graph, config, compiled, seed=args.seed)
    if written.golden is None:
        print("sparsemac: no golden checksums: the network does not run on a random input",
              file=sys.stderr)
    figures = inspect_network(graph, compiled.placements(graph), config, batch)
    programs = [item.program for item in compiled.programs]
    figures |= {
        "file": str(args.output), "file_bytes": args.output.stat().st_size,
        "programs": len(programs), "program_bytes": sum(len(p.image) for p in programs),
        "commands": sum(p.command_count for p in programs),
        "seconds": time.monotonic() - began,
    }
    if str(args.json) != "-":
        print(f"{args.output}: {figures['file_bytes']} bytes, "
              f"{counted(len(graph.nodes), 'node')}, {counted(figures['doorbells'], 'doorbell')}, "
              f"{counted(figures['commands'], 'command')}; {figures['cycles']} cycles predicted "
              f"for {counted(batch, 'sample')}")
    write_json(args.json, figures)
    return OK
