# SPDX-License-Identifier: Apache-2.0
"""What the commands share: exit codes, arguments, progress, tables and JSON."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsemac.config import CoreConfig

__all__ = [
    "DEVICE_ERROR",
    "DOES_NOT_FIT",
    "MISMATCH",
    "MISSING_TOOL",
    "OK",
    "USAGE",
    "Progress",
    "add_config_arguments",
    "add_json_argument",
    "config_from",
    "stalls_text",
    "write_json",
]

OK, MISMATCH, USAGE, MISSING_TOOL, DOES_NOT_FIT, DEVICE_ERROR = range(6)


class Progress:
    """A progress line per stage on stderr, with the time that the stage took."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._stage = 0

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Announces a stage and, when it ends, its seconds."""
        self._stage += 1
        print(f"[{self._stage}/{self._stages}] {text} ... ", end="", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            print("failed", file=sys.stderr, flush=True)
            raise
        print(f"{time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json FILE``."""
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write every number to FILE as JSON ('-': stdout)"
    )


def write_json(path: Path | None, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes ``value`` if a path was given; '-' is stdout."""
    if path is None:
        return
    text = json.dumps(value, indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that size a core."""
    group = parser.add_argument_group("core")
    group.add_argument(
        "--config", metavar="TOML", type=Path, help="read the configuration from a file"
    )
    group.add_argument("--engines", type=int, metavar="N", help="rows at work at once")
    group.add_argument(
        "--lanes", type=int, metavar="V", help="positions at work at once per engine"
    )
    group.add_argument(
        "--depth", type=int, metavar="T", help="positions per lane that a row serves"
    )
    group.add_argument("--bus-width", type=int, metavar="W", help="bits of the AXI4 data bus")
    group.add_argument(
        "--act-depth", type=int, metavar="WORDS", help="activation buffer per engine"
    )
    group.add_argument("--psum-depth", type=int, metavar="N", help="partial sums per engine")
    group.add_argument("--entry-depth", type=int, metavar="N", help="entry buffer per engine")


def config_from(args: argparse.Namespace, base: CoreConfig | None = None) -> CoreConfig:
    """Returns the configuration that the options describe, on top of ``base`` or a file."""
    config = CoreConfig.from_toml(args.config) if args.config else base or CoreConfig()
    names = ("engines", "lanes", "depth", "bus_width", "act_depth", "psum_depth", "entry_depth")
    changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if "engines" in changes or "bus_width" in changes:
        changes |= _buffers_that_follow(config, changes)
    return config.replace(**changes) if changes else config


def _buffers_that_follow(config: CoreConfig, changes: Mapping[str, Any]) -> dict[str, int]:
    """FIFO depth and burst length that suit another number of engines or another bus."""
    engines = changes.get("engines", config.engines)
    bus_width = changes.get("bus_width", config.bus_width)
    if not (isinstance(engines, int) and engines > 0 and bus_width in (32, 64, 128, 256, 512)):
        return {}  # left for the configuration's own checks to refuse
    burst_beats = min(config.burst_beats, 4096 // (bus_width // 8))
    fifo_depth = config.fifo_depth
    while fifo_depth * engines < 4 * burst_beats:
        fifo_depth *= 2
    return {"burst_beats": burst_beats, "fifo_depth": fifo_depth}


def stalls_text(stalls: Mapping[str, float]) -> str:
    """Lost cycles by cause, largest first, as shares of all engine cycles."""
    parts = [
        f"{name} {share:.1%}"
        for name, share in sorted(stalls.items(), key=lambda item: -item[1])
        if share >= 0.0005
    ]
    return ", ".join(parts) or "none"
