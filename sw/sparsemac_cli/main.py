# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command ``sparsemac``: arguments in, exit code out.

Exit codes: 0 ok, 1 mismatch, 2 usage or bad input, 3 missing tool, 4 does not fit or misses its
clock, 5 device error. Results go to stdout, progress and logs to stderr.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

import sparsemac
from sparsemac.errors import DeviceError, MissingDependency

from . import bench, build, compile, cosim, demo, doctor, fit, generate, inspect, run
from ._report import DEVICE_ERROR, MISSING_TOOL, USAGE

__all__ = ["main"]

COMMANDS = (demo, inspect, compile, run, fit, generate, build, bench, cosim, doctor)

log = logging.getLogger("sparsemac")


def parser() -> argparse.ArgumentParser:
    """Returns the parser with all subcommands."""
    top = argparse.ArgumentParser(
        prog="sparsemac",
        description="Sparse multiply-accumulate cores: generate, simulate, build and use them.",
    )
    top.add_argument("--version", action="version", version=f"sparsemac {sparsemac.__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="log every step to stderr")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s"
        if args.verbose
        else "%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return args.run(args)
    except MissingDependency as error:
        return _fail(error, MISSING_TOOL)
    except DeviceError as error:
        return _fail(error, DEVICE_ERROR)
    except (ValueError, TypeError, OSError) as error:
        if args.verbose:
            log.exception("command failed")
        return _fail(error, USAGE)
    except KeyboardInterrupt:
        print("\nsparsemac: interrupted", file=sys.stderr)
        return 130


def _fail(error: Exception, code: int) -> int:
    print(f"sparsemac: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
