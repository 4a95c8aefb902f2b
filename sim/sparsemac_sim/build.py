# SPDX-License-Identifier: Apache-2.0
"""Compiles an emitted core and the harness into a shared library.

Verilator turns ``core.v`` into C++. All of it that runs in a cycle is compiled with the harness in
one unit, so neither make nor Perl is needed. Everything is cached by content; Verilator's run time,
most of a small build, has an entry of its own.
"""

import logging
import platform
import shlex
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparsemac.errors import DeviceError

from .cache import cached, content_hash
from .toolchain import Compiler, Verilator, find_compiler, find_verilator
from .verilog import fast_verilog, shared_modules, with_random_power_up

__all__ = ["VERILATOR_LINT_OFF", "BuildOptions", "build_library"]

_log = logging.getLogger(__name__)

_NATIVE = Path(__file__).parent / "native"

#: What Verilator warns of in any Verilog that Amaranth and yosys write, and that is not a fault:
#: widths are extended where Amaranth means it, unused wires are removed later, a signal of no bits
#: is a range that ascends.
VERILATOR_LINT_OFF = (
    "ASCRANGE",
    "CASEINCOMPLETE",
    "CASEOVERLAP",
    "CMPCONST",
    "DECLFILENAME",
    "EOFNEWLINE",
    "INITIALDLY",
    "PINCONNECTEMPTY",
    "SYNCASYNCNET",
    "UNDRIVEN",
    "UNOPTFLAT",
    "UNSIGNED",
    "UNUSEDSIGNAL",
    "WIDTHEXPAND",
    "WIDTHTRUNC",
)

#: A model runs where it is compiled: a tenth faster with the instructions that x86-64 has gained.
_PROCESSOR_FLAGS = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []

_TOP = "sm_top"
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
    optimize : str              Optimization level of the compiler, "-O0" to "-O3".  With GCC 12
                                "-O2" takes ten seconds longer than "-O1" on a core of eight
                                engines, and the model is an eighth faster.
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
    builder = _Builder(find_verilator(), find_compiler(), options)
    if options.random_power_up:
        verilog = with_random_power_up(verilog)
    verilog = fast_verilog(verilog)
    key = content_hash([verilog, *_read_all(_NATIVE), *builder.fingerprint])
    return cached(f"models/{key}", lambda work: builder.build(verilog, work)) / "core.so"


def _read_all(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def _processor() -> str:
    """What sort of processor a model is compiled for; a cache may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith("flags")), platform.machine())


@dataclass(frozen=True, slots=True)
class _Builder:
    """The steps of a build, with the tools that they call."""

    verilator: Verilator
    compiler: Compiler
    options: BuildOptions

    @property
    def fingerprint(self) -> list[str]:
        """What a model depends on beside its sources."""
        return [
            self.verilator.version, self.compiler.version, _processor(), *self.verilate_flags,
            *self.model_flags, self.options.optimize,
        ]

    @property
    def verilate_flags(self) -> list[str]:
        return [
            "--cc", "--no-timing", "-O3", "--assert", "--top-module", _TOP, "--prefix", _PREFIX,
            f"-GBUS_WIDTH={8 * self.options.bus_bytes}",
            # Both would make the functions of each engine different from those of its twins.
            "-fno-dfg", "-fno-table",
            "--output-split", "0",  # one file each for what is called often and what is not
            "--x-assign", "fast",
            "--x-initial", "unique" if self.options.random_power_up else "fast",
            *(f"-Wno-{name}" for name in VERILATOR_LINT_OFF),
            *(["--trace-fst"] if self.options.waves else []),
        ]

    @property
    def runtime_flags(self) -> list[str]:
        waves = int(self.options.waves)
        return [
            "-std=gnu++20", "-fPIC", "-fvisibility=hidden", "-w", *_PROCESSOR_FLAGS,
            "-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", f"-DVM_TRACE={waves}",
            f"-DVM_TRACE_FST={waves}", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0",
            "-DVL_TIME_CONTEXT", "-DVL_USER_FINISH", "-DVL_USER_STOP", "-DVL_USER_FATAL",
            *(f"-I{folder}" for folder in self._include_folders),
        ]

    @property
    def model_flags(self) -> list[str]:
        own = [f"-DSM_BUS_BYTES={self.options.bus_bytes}", f"-DSM_TRACE={int(self.options.waves)}"]
        return [*self.runtime_flags, *own, "-I.", f"-I{_NATIVE}"]

    @property
    def _include_folders(self) -> list[Path]:
        folders = [self.verilator.include, self.verilator.include / "vltstd"]
        # Verilator's own wave writer needs no more of LZ4 and zlib than stands here. The writer of
        # older versions does; it finds the system's.
        return [_NATIVE / "fst", *folders] if self._writes_own_waves else folders

    @property
    def _writes_own_waves(self) -> bool:
        return (self.verilator.include / "fstcpp").is_dir()

    def build(self, verilog: str, work: Path) -> None:
        """Leaves ``core.so`` in ``work``; independent steps run side by side."""
        start = time.perf_counter()
        model = work / "model"
        with ThreadPoolExecutor(max_workers=2) as pool:
            runtime = pool.submit(self._runtime)
            _log.info("compiling the core's Verilog with Verilator %s", self.verilator.version)
            self._verilate(verilog, model)
            verilated = time.perf_counter()
            _log.info("compiling the simulator with %s", self.compiler.path.name)
            # What is called once is not worth optimizing, and is half of the code.
            units = [
                pool.submit(self._compile_unit, model, "fast", self.options.optimize),
                pool.submit(self._compile_unit, model, "slow", "-O0"),
            ]
            for unit in units:
                unit.result()
            self._link(model, runtime.result(), work / "core.so")
        shutil.rmtree(model)
        _log.info(
            "simulator built: %.1f s Verilator, %.1f s compiler",
            verilated - start, time.perf_counter() - verilated,
        )

    def _verilate(self, verilog: str, model: Path) -> None:
        model.mkdir()
        (model / "core.v").write_text(verilog, encoding="utf-8")
        (model / "core.vlt").write_text(shared_modules(verilog), encoding="utf-8")
        shutil.copyfile(_NATIVE / "top.v", model / "top.v")
        # Relative paths, so that no path of the machine gets into messages of the model.
        command = [str(self.verilator.binary), *self.verilate_flags, "--Mdir", "."]
        command += ["core.vlt", "top.v", "core.v"]
        _run(command, model, "Verilator", env=self.verilator.environment)

    def _compile_unit(self, model: Path, name: str, optimize: str) -> None:
        slow = name == "slow"
        files = [p.name for p in sorted(model.glob(f"{_PREFIX}*.cpp"))]
        names = [f for f in files if ("Slow" in f) == slow] + ([] if slow else ["harness.cpp"])
        text = "".join(f'#include "{file}"\n' for file in names)
        (model / f"{name}.cpp").write_text(text, encoding="utf-8")
        command = [str(self.compiler.path), *self.model_flags, optimize, "-c", f"{name}.cpp"]
        _run([*command, "-o", f"{name}.o"], model, "the C++ compiler")

    def _link(self, model: Path, runtime: Path, library: Path) -> None:
        command = [
            str(self.compiler.path), "-shared", "fast.o", "slow.o",
            *map(str, sorted(runtime.glob("*.o"))), "-pthread", "-o", str(library),
            *(["-lz"] if self.options.waves and not self._writes_own_waves else []),
        ]
        _run(command, model, "the linker")

    def _runtime(self) -> Path:
        """Verilator's run time, compiled once for all cores."""
        include = self.verilator.include
        names = ["verilated.cpp", "verilated_threads.cpp"]
        if self.options.waves:
            names.append("verilated_fst_c.cpp")
        # Little of it is called in a cycle.
        flags = [*self.runtime_flags, "-O1"]
        sources = [(include / name).read_bytes() for name in names] + _read_all(_NATIVE / "fst")
        key = content_hash(
            [*sources, self.verilator.version, self.compiler.version, _processor(), *flags]
        )

        def make(work: Path) -> None:
            _log.info("compiling Verilator's run time (once)")
            for name in names:
                command = [str(self.compiler.path), *flags, "-c", str(include / name)]
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
