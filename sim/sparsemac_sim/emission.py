# SPDX-License-Identifier: Apache-2.0
"""The Verilog of a core, from the cache if its generator has not changed since."""

import ast
import importlib.util
import logging
import time
from importlib.metadata import version
from pathlib import Path

from sparsemac._checks import need
from sparsemac.config import CoreConfig

from .cache import cached, content_hash

__all__ = ["core_files", "generator_sources"]

_log = logging.getLogger(__name__)


def core_files(config: CoreConfig) -> Path:
    """Returns a folder with what `sparsemac_hw.emit.emit` writes for this configuration.

    Elaboration takes longer than a small simulation, so it is done once for each configuration and
    each state of the generator's sources.
    """
    need("amaranth", "hw", "generating a core")
    sources = [path.read_bytes() for path in generator_sources()]
    key = content_hash([version("amaranth"), str(config.as_dict()), *sources])

    def make(work: Path) -> None:
        from sparsemac_hw.emit import emit

        start = time.perf_counter()
        _log.info("generating the core's Verilog")
        emit(config, work)
        _log.info("Verilog generated: %.1f s", time.perf_counter() - start)

    return cached(f"verilog/{key}", make)


def generator_sources() -> list[Path]:
    """Returns the modules of the gateware, and those of the library that it imports, sorted.

    Only these can change the Verilog: a change of the compiler or of the driver needs no new core.
    """
    hw, library = _folder("sparsemac_hw"), _folder("sparsemac")
    found = {path for path in hw.rglob("*.py") if path.name != "testing.py"}
    waiting = list(found)
    while waiting:
        for path in _library_imports(waiting.pop()):
            if path in found:
                continue
            found.add(path)
            # The face of the library imports all of it, and the gateware takes its version only.
            if path != library / "__init__.py":
                waiting.append(path)
    return sorted(found)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"package {package} is not installed", name=package)
    return Path(spec.submodule_search_locations[0])


def _library_imports(path: Path) -> list[Path]:
    """Modules of `sparsemac` that a source names in its imports, absolute or relative."""
    library = _folder("sparsemac")
    inside = library in path.parents
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and inside:
                above = path.relative_to(library).parts[: -node.level]
                module = ".".join(["sparsemac", *above, *([module] if module else [])])
            elif node.level:
                continue
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    parts = [name.split(".")[1:] for name in names if name.split(".")[0] == "sparsemac"]
    candidates = [library.joinpath(*p) for p in parts]
    files = [c / "__init__.py" if c.is_dir() else c.with_suffix(".py") for c in candidates]
    return [file for file in files if file.is_file()]
