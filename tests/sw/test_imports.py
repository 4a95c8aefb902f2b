# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the sources; and what `import sparsemac` costs."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Package: where it is, which of our packages it may import, which others at module level.
PACKAGES = {
    "sparsemac": ("sw", set(), {"numpy", "ml_dtypes"}),
    "sparsemac_hw": ("hw", {"sparsemac"}, {"amaranth", "numpy"}),
    "sparsemac_boards": ("boards", {"sparsemac", "sparsemac_hw"},
                         {"amaranth", "amaranth_boards", "numpy"}),
    "sparsemac_sim": ("sim", {"sparsemac", "sparsemac_hw", "sparsemac_boards"},
                      {"amaranth", "cocotb", "cocotb_tools", "cocotbext", "numpy"}),
    "sparsemac_cli": ("sw", {"sparsemac", "sparsemac_hw", "sparsemac_boards", "sparsemac_sim"},
                      {"numpy"}),
}


def modules_of(package):
    return sorted((ROOT / PACKAGES[package][0] / package).rglob("*.py"))


def imports_of(path):
    """(module, line, at module level) of every absolute import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(node) for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
        or isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], node.lineno, id(node) not in guarded


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below(package):
    _, ours, others = PACKAGES[package]
    assert modules_of(package), f"{package} has no modules"
    for path in modules_of(package):
        for name, line, at_module_level in imports_of(path):
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            if name in PACKAGES:
                assert name == package or name in ours, f"{where}, which lies above"
            elif at_module_level and name not in sys.stdlib_module_names:
                assert name in others, f"{where} at module level"


def test_nothing_imports_the_command_line():
    for package in PACKAGES:
        if package == "sparsemac_cli":
            continue
        for path in modules_of(package):
            assert all(name != "sparsemac_cli" for name, _, _ in imports_of(path)), path


def in_fresh_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_brings_numpy_and_ml_dtypes_only():
    code = (
        "import sys; before = set(sys.modules); import sparsemac\n"
        "for name in sparsemac.__all__: getattr(sparsemac, name)\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    foreign = {
        name for name in in_fresh_python(code).split()
        if name not in sys.stdlib_module_names and not name.startswith("_")
    }
    assert foreign <= {"numpy", "ml_dtypes", "sparsemac"}


def test_import_takes_less_than_three_tenths_of_a_second():
    code = "import time; t = time.perf_counter(); import sparsemac; print(time.perf_counter() - t)"
    best = 1.0
    for _ in range(5):  # the machine may be busy with something else
        best = min(best, float(in_fresh_python(code)))
        if best < 0.3:
            break
        time.sleep(0.2)
    assert best < 0.3
