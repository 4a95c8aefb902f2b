# SPDX-License-Identifier: Apache-2.0
"""``sparsemac fit``: the largest core that fits a board, or the fastest for a network."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sparsemac._checks import need
from sparsemac.config import CoreConfig
from sparsemac.precompile import samples_of

from ._network import batch_of, counted, load_network
from ._report import DOES_NOT_FIT, OK, Progress, add_json_argument, write_json

__all__ = ["add_parser", "config_toml"]

#: As `sparsemac_boards.fit.FILL`, which may not be installed.
FILL = 85


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "fit",
        help="find the largest core that fits a board, or the fastest for a network",
        description="Searches the legal configurations for the one of most multiply-accumulates "
        "per cycle that fits a board, or with --network for the one that runs the network in the "
        "fewest predicted cycles. What a core takes is predicted; nothing is synthesized. The "
        "board's link and on-chip memory are counted in. Prints the configuration as TOML, for "
        "--config, with the figures as comments. Exit code 4 if nothing fits.",
    )
    parser.add_argument("--board", metavar="BOARD", required=True, help="ulx3s-85f")
    parser.add_argument(
        "--network", dest="model", metavar="MODEL", type=Path,
        help=".tflite, .onnx, a matrix (.mtx, .smtx, .npz, .npy), or a network file (.smnet)")
    parser.add_argument(
        "--weight-bits", type=int, choices=(4, 8), help="of a matrix (default: 8)")
    parser.add_argument(
        "--batch", type=int, metavar="N",
        help="samples of the network that run at a time (default: as many as it was made for)")
    parser.add_argument(
        "--fill", type=int, metavar="PERCENT", default=FILL,
        help="share of LUTs and flip-flops that may be used, for a full device cannot be routed "
        "(default: %(default)s); multipliers and block RAMs may all be used")
    parser.add_argument(
        "-o", "--output", metavar="TOML", type=Path, help="write the configuration to a file, too")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def config_toml(config: CoreConfig) -> str:
    """Returns a configuration as `CoreConfig.from_toml` reads it."""
    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    lines = [f"{name} = {text(value)}" for name, value in config.as_dict().items()]
    return "\n".join(["[core]", *lines]) + "\n"


def run(args: argparse.Namespace) -> int:
    """Prints the configuration and what it takes; 4 if nothing fits."""
    boards = need("sparsemac_boards.registry", "ecp5", "fitting a board").BOARDS
    fit = need("sparsemac_boards.fit", "ecp5", "fitting a board")
    if args.board not in boards:
        raise ValueError(f"board must be one of {', '.join(sorted(boards))}, not {args.board!r}")
    board = boards[args.board]
    if args.output is not None and not args.output.parent.is_dir():
        raise ValueError(f"folder of the output file must be there: {args.output.parent}")
    for option in ("batch", "weight_bits"):
        if args.model is None and getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} must go with --network")
    try:
        found = _for_network(args, board) if args.model else fit.largest(board, args.fill)
    except fit.DoesNotFit as error:
        print(f"sparsemac: {error}", file=sys.stderr)
        return DOES_NOT_FIT
    toml = config_toml(found.config)
    if args.output is not None:
        args.output.write_text(toml, encoding="utf-8")
    figures = _figures(found)
    if args.model:
        figures["network"] = _network_figures(found)
    if str(args.json) != "-":
        print(toml)
        print("\n".join(f"# {line}" for line in _lines(figures)))
    write_json(args.json, figures)
    return OK


def _for_network(args: argparse.Namespace, board: Any) -> Any:
    fit = need("sparsemac_boards.fit_network", "ecp5", "fitting a board")
    progress = Progress(2)
    with progress.stage(f"read {args.model.name}"):
        graph, _ = load_network(args)
    batch = batch_of(samples_of(graph) if args.batch is None else args.batch, graph, board.config)

    def tell(text: str) -> None:
        print(f"      {text}", file=sys.stderr, flush=True)

    with progress.stage(f"search what fits {board.name}, "
                        f"{counted(batch, 'sample')} at a time"):
        print(file=sys.stderr)
        found = fit.fastest(board, graph, batch, args.fill, progress=tell)
    if found.memory_bytes > board.memory_bytes:
        print(f"sparsemac: the network needs {found.memory_bytes} bytes of memory, and "
              f"{board.name} has {board.memory_bytes}: it runs there only with more",
              file=sys.stderr)
    return found


def _figures(found: Any) -> dict[str, Any]:
    """Figures of a `sparsemac_boards.fit.Fit`, under the names of the JSON output."""
    board, config = found.board, found.config
    return {
        "board": board.name,
        "part": board.part.name,
        "config": config.as_dict(),
        "config_hash": f"{config.hash:#010x}",
        "fill": found.fill,
        "resources": {r.name: {"used": r.used, "usable": r.usable, "available": r.available}
                      for r in found.resources},
        "macs_per_cycle": config.macs,
        "clock_hz": board.clock_hz,
        "macs_per_second": config.macs * board.clock_hz,
    }


def _network_figures(found: Any) -> dict[str, Any]:
    """Figures of a `sparsemac_boards.fit_network.NetworkFit`."""
    placed, shares = found.compiled.placed, found.time_shares()
    device = sum(p.macs for p in placed if p.where == "device")
    return {
        "batch": found.batch,
        "cycles": found.cycles,
        "seconds": found.cycles / found.board.clock_hz,
        "utilization": device / (found.cycles * found.config.macs),
        "device_macs": device,
        "host_macs": found.host_macs,
        "shares": shares,
        "bottleneck": CAUSES[max(shares, key=lambda cause: shares[cause])],
        "memory_bytes": found.memory_bytes,
        "memory_available": found.board.memory_bytes,
    }


#: What to say of the largest share of the engines' time.
CAUSES = {
    "computing": "the engines: more of them would be faster",
    "stall_weights": "the bus: engines wait for weights",
    "stall_activations": "the bus: engines wait for activations",
    "stall_store": "the store: engines wait for room for results",
    "stall_short": "short rows: a row takes as many cycles as a bus of sums has lanes",
    "stall_command": "the commands: engines wait for one",
    "idle": "uneven work: engines wait for the last one",
}


def _lines(f: dict[str, Any]) -> list[str]:
    config = f["config"]
    lines = [
        (f"{f['board']} ({f['part']}), predicted with link and on-chip memory; at most "
        f"{f['fill']} % of LUTs and flip-flops"),
        *(f"{name:16} {r['used']} of {r['available']}" for name, r in f["resources"].items()),
        (f"{'MACs per cycle':16} {f['macs_per_cycle']}: "
        f"{counted(config['engines'], 'engine')} x {counted(config['lanes'], 'lane')}; "
        f"{f['macs_per_second'] / 1e9:.2f} GMAC/s at "
        f"{f['clock_hz'] / 1e6:g} MHz"),
    ]
    if "network" in f:
        n = f["network"]
        lines += [
            (f"{'cycles':16} {n['cycles']} for {counted(n['batch'], 'sample')}: "
            f"{1e3 * n['seconds']:.2f} ms, {n['utilization']:.1%} of the multipliers' peak"),
            f"{'bottleneck':16} {n['bottleneck']} ({max(n['shares'].values()):.0%})",
            f"{'memory':16} {n['memory_bytes']} bytes, the board has {n['memory_available']}",
        ]
        if n["host_macs"]:
            share = n["host_macs"] / (n["host_macs"] + n["device_macs"])
            lines.append(f"{'on the host':16} {share:.1%} of the multiply-accumulates")
    return lines
