# SPDX-License-Identifier: Apache-2.0
"""Compiles an emitted core and the harness into a shared library.

Verilator turns ``core.v`` into C++, which is compiled with the harness in one unit: neither make
nor Perl is needed, and the compiler sees the whole cycle. Everything is cached by content;
Verilator's run time, most of a small build, has an entry of its own.
"""

import logging
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sparsemac.errors import DeviceError

from .cache import cached, content_hash
from .toolchain import Compiler, Verilator, find_compiler, find_verilator

__all__ = ["VERILATOR_LINT_OFF", "BuildOptions", "build_library", "with_random_power_up"]

_log = logging.getLogger(__name__)

_NATIVE = Path(__file__).parent / "native"

#: What Verilator warns of in any Verilog that Amaranth and yosys write, and that is not a fault:
#: widths are extended where Amaranth means it, unused wires are removed later, names are escaped.
VERILATOR_LINT_OFF = (
    "CASEINCOMPLETE",
    "CASEOVERLAP",
    "CMPCONST",
    "DECLFILENAME",
    "EOFNEWLINE",
    "INITIALDLY",
    "SYNCASYNCNET",
    "UNDRIVEN",
    "UNOPTFLAT",
    "UNSIGNED",
    "UNUSEDSIGNAL",
    "WIDTHEXPAND",
    "WIDTHTRUNC",
)

_TOP = "sparsemac_core"
_PREFIX = "Vcore"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a model is compiled.

    Parameters
    ----------
    bus_bytes : int             Bytes of a beat of ``m_axi``.
    waves : bool                Whether the model can write waves; then it is slower.
    random_power_up : bool      Registers start with random bits, as in an ASIC; the device's seed
                                draws them.
    optimize : str              Optimization level of the compiler, "-O0" to "-O3".
    """

    bus_bytes: int
    waves: bool = False
    random_power_up: bool = False
    optimize: str = "-O2"


def build_library(verilog: str, options: BuildOptions) -> Path:
    """Returns the shared library for a core, compiling it if the cache does not hold it.

    Raises
    ------
    MissingDependency    If Verilator or a C++ compiler is not there.
    DeviceError          If one of them fails; the text ends with what it said.
    """
    verilator, compiler = find_verilator(), find_compiler()
    if options.random_power_up:
        verilog = with_random_power_up(verilog)
    sources = _read_all(_NATIVE)
    flags = _compile_flags(verilator, options)
    key = content_hash([
        verilog, *sources, verilator.version, compiler.version,
        *_verilate_flags(options), *flags, str(options.bus_bytes),
    ])

    def make(work: Path) -> None:
        start = time.perf_counter()
        _log.info("compiling the core's Verilog with Verilator %s", verilator.version)
        _verilate(verilator, verilog, options, work / "model")
        verilated = time.perf_counter()
        _log.info("compiling the simulator with %s (%s)", compiler.path.name, options.optimize)
        runtime = _runtime(verilator, compiler, options)
        _compile(verilator, compiler, options, flags, work / "model", runtime)
        (work / "model" / "core.so").rename(work / "core.so")
        shutil.rmtree(work / "model")
        _log.info(
            "simulator built: %.1f s Verilator, %.1f s compiler",
            verilated - start, time.perf_counter() - verilated,
        )

    return cached(f"models/{key}", make) / "core.so"


def _read_all(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def with_random_power_up(verilog: str) -> str:
    """Returns Verilog whose registers have no initial value, so that Verilator draws one.

    Memories keep theirs: what a design reads before it writes would differ from run to run.
    """
    return re.sub(r"^(  reg (?:\[\d+:\d+\] )?\S+ )\s*= \S+;$", r"\1;", verilog, flags=re.MULTILINE)


def _verilate_flags(options: BuildOptions) -> list[str]:
    return [
        "--cc", "--no-timing", "-O3", "--assert", "--top-module", _TOP, "--prefix", _PREFIX,
        # Not set explicitly, it would be unlimited for a build without --build.
        "--output-split", "0",
        "--x-assign", "fast",
        "--x-initial", "unique" if options.random_power_up else "fast",
        *(f"-Wno-{name}" for name in VERILATOR_LINT_OFF),
        *(["--trace-fst"] if options.waves else []),
    ]


def _verilate(verilator: Verilator, verilog: str, options: BuildOptions, work: Path) -> None:
    work.mkdir()
    (work / "core.v").write_text(verilog, encoding="utf-8")
    # A relative path, so that no path of the machine gets into messages of the model.
    command = [str(verilator.binary), *_verilate_flags(options), "--Mdir", ".", "core.v"]
    _run(command, work, "Verilator", env=verilator.environment)


def _compile_flags(verilator: Verilator, options: BuildOptions) -> list[str]:
    return [
        "-std=gnu++20", options.optimize, "-fPIC", "-fvisibility=hidden", "-w", "-DVERILATOR=1",
        "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", f"-DVM_TRACE={int(options.waves)}",
        f"-DVM_TRACE_FST={int(options.waves)}", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0",
        "-DVL_TIME_CONTEXT", "-DVL_USER_FINISH", "-DVL_USER_STOP", "-DVL_USER_FATAL",
        *(f"-I{folder}" for folder in _include_folders(verilator)),
    ]


def _include_folders(verilator: Verilator) -> list[Path]:
    folders = [verilator.include, verilator.include / "vltstd"]
    # Verilator's own wave writer needs no more of LZ4 and zlib than stands here. The writer of
    # older versions does; it finds the system's.
    return [_NATIVE / "fst", *folders] if _writes_own_waves(verilator) else folders


def _writes_own_waves(verilator: Verilator) -> bool:
    return (verilator.include / "fstcpp").is_dir()


def _compile(
    verilator: Verilator,
    compiler: Compiler,
    options: BuildOptions,
    flags: list[str],
    model: Path,
    runtime: Path,
) -> None:
    unit = [f'#include "{path.name}"' for path in sorted(model.glob(f"{_PREFIX}*.cpp"))]
    (model / "unit.cpp").write_text("\n".join([*unit, '#include "harness.cpp"', ""]))
    own = [f"-DSM_BUS_BYTES={options.bus_bytes}", f"-DSM_TRACE={int(options.waves)}"]
    command = [
        str(compiler.path), *flags, *own, "-I.", f"-I{_NATIVE}", "-shared", "unit.cpp",
        *map(str, sorted(runtime.glob("*.o"))), "-pthread", "-o", "core.so",
        *(["-lz"] if options.waves and not _writes_own_waves(verilator) else []),
    ]
    _run(command, model, "the C++ compiler")


def _runtime(verilator: Verilator, compiler: Compiler, options: BuildOptions) -> Path:
    names = ["verilated.cpp", "verilated_threads.cpp"]
    if options.waves:
        names.append("verilated_fst_c.cpp")
    # It is compiled once for all cores, and little of it is called in a cycle.
    flags = [f for f in _compile_flags(verilator, options) if not f.startswith("-O")] + ["-O1"]
    sources = [(verilator.include / name).read_bytes() for name in names]
    sources += _read_all(_NATIVE / "fst")
    key = content_hash([*sources, verilator.version, compiler.version, *flags])

    def make(work: Path) -> None:
        _log.info("compiling Verilator's run time (once)")
        for name in names:
            command = [str(compiler.path), *flags, "-c", str(verilator.include / name)]
            _run([*command, "-o", f"{Path(name).stem}.o"], work, "the C++ compiler")

    return cached(f"runtime/{key}", make)


def _run(command: list[str], folder: Path, what: str, env: dict[str, str] | None = None) -> None:
    _log.debug("in %s: %s", folder, shlex.join(command))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return
    said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:20])
    raise DeviceError(
        f"{what} failed with exit code {done.returncode} while it built the simulator:\n{said}"
    )
