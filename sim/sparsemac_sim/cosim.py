# SPDX-License-Identifier: Apache-2.0
"""The cocotb regression: random cores, as emitted, against the golden model.

Configuration ``n`` of a run with seed S is drawn from S + n, and so is all that runs on it: each
failure is replayed by one number. A model is compiled once per configuration and cached; all
matrices of a configuration run in one simulation, as do the benches of registers and resets.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsemac._checks import as_int_in, need
from sparsemac.config import CoreConfig
from sparsemac.errors import DeviceError, MissingDependency

from .benches.jobs import Plan, random_config, random_job
from .build import VERILATOR_LINT_OFF
from .cache import cache_folder, cached, content_hash
from .emission import core_files
from .toolchain import find_compiler, find_verilator

__all__ = [
    "BENCHES",
    "JOBS_PER_CONFIG",
    "CosimResult",
    "build_model",
    "iterate_cosim",
    "plan_run",
    "run_cosim",
    "run_plan",
]

_log = logging.getLogger(__name__)

#: Benches in the order in which they run.
BENCHES = ("axi_lite", "core", "reset")

#: Matrices that share a configuration, and so a build.
JOBS_PER_CONFIG = 4

_TOP = "sparsemac_core"

#: Objects of Verilator's run time and of cocotb's main program: the same for all cores.
_RUNTIME = "verilat*.o"


@dataclass(frozen=True, slots=True, kw_only=True)
class CosimResult:
    """What a bench found out about one matrix, or about the registers.

    Attributes
    ----------
    seed : int                    ``sparsemac cosim --seed`` with it replays this configuration.
    config : CoreConfig
    bench, name : str             Which bench; which network or which part of the registers.
    number : int                  Number of the matrix in its configuration; -1 if it is of none.
    cycles : int                  From the doorbell to the interrupt.
    simulated_cycles : int        All that the check took, in cycles and in seconds.
    seconds : float
    mismatches : int              Bytes of memory that differ from the golden model's.
    problems : tuple of str       What is wrong; empty if nothing is.
    waves : Path or None          Waves of the simulation, if asked for.
    """

    seed: int
    config: CoreConfig
    bench: str
    name: str
    number: int = -1
    cycles: int = 0
    simulated_cycles: int = 0
    seconds: float = 0.0
    mismatches: int = 0
    problems: tuple[str, ...] = field(default_factory=tuple)
    waves: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def cycles_per_second(self) -> float:
        """Speed of the simulation."""
        return self.simulated_cycles / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, ready for JSON."""
        names = ("seed", "bench", "name", "number", "cycles", "simulated_cycles", "seconds",
                 "mismatches", "cycles_per_second", "passed")
        return {name: getattr(self, name) for name in names} | {
            "problems": list(self.problems), "config": self.config.as_dict(),
            "waves": str(self.waves) if self.waves else None,
        }


def run_cosim(
    seed: int, count: int, waves: bool = False, directory: str | Path | None = None
) -> list[CosimResult]:
    """Runs the regression on ``count`` random matrices, `JOBS_PER_CONFIG` on each random core.

    Parameters
    ----------
    seed : int                 From 0.  All that is random comes from it.
    count : int                Matrices, from 1.
    waves : bool               Write waves; builds and runs are then slower.
    directory : Path           Folder for logs, results and waves, one subfolder for each seed.
                               None: a temporary one, kept only if waves were asked for.

    Raises
    ------
    MissingDependency    If a tool is missing; says what installs it.
    DeviceError          If a build fails, or a simulation ends without a result.
    """
    return [r for results in iterate_cosim(seed, count, waves, directory) for r in results]


def iterate_cosim(
    seed: int, count: int, waves: bool = False, directory: str | Path | None = None
) -> Iterator[list[CosimResult]]:
    """As `run_cosim`, but yields the results of each configuration when they are there."""
    seed = as_int_in("seed", seed, 0, 1 << 40)
    count = as_int_in("count", count, 1, 1 << 20)
    with _folder(directory, keep=waves) as folder:
        for n, first in enumerate(range(0, count, JOBS_PER_CONFIG)):
            plan = plan_run(seed + n, min(JOBS_PER_CONFIG, count - first))
            yield run_plan(plan, folder / f"seed-{plan.seed}", waves=waves)


@contextmanager
def _folder(directory: str | Path | None, *, keep: bool) -> Iterator[Path]:
    if directory is not None:
        yield Path(directory)
        return
    folder = Path(tempfile.mkdtemp(prefix="sparsemac-cosim-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def plan_run(seed: int, count: int, config: CoreConfig | None = None) -> Plan:
    """Returns the plan of one configuration: a random core, or a given one, and ``count`` jobs."""
    config = random_config(seed) if config is None else config
    jobs = tuple(random_job(config, seed, n) for n in range(count))
    return Plan(config=config, seed=seed, jobs=jobs)


def run_plan(
    plan: Plan, folder: Path, *, waves: bool = False, benches: Sequence[str] = BENCHES
) -> list[CosimResult]:
    """Builds the model of a plan, runs benches on it and returns what they found.

    ``folder`` is emptied, and then holds plan, results, log and waves of the run.
    """
    for name in benches:
        if name not in BENCHES:
            raise ValueError(f"bench must be one of {', '.join(BENCHES)}, not {name!r}")
    model = build_model(plan.config, waves=waves)
    folder = folder.resolve()  # the simulator runs in another folder
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    plan.save(folder)
    _simulate(model, plan, folder, waves, benches)
    return _results(plan, folder, waves)


def build_model(config: CoreConfig, *, waves: bool = False) -> Path:
    """Returns the folder of a compiled model that cocotb can drive, from the cache if it is there.

    Raises
    ------
    MissingDependency    If Verilator, a C++ compiler, make or cocotb is missing.
    DeviceError          If the build fails; the text ends with what the tools said.
    """
    need("cocotb_tools.runner", "cosim", "co-simulation")
    need("cocotbext.axi", "cosim", "co-simulation")
    if shutil.which("make") is None:
        raise MissingDependency(
            "co-simulation needs make, and none is on PATH: apt-get install make")
    files = core_files(config)
    flags = _build_flags()
    key = content_hash([
        (files / "core.v").read_bytes(), find_verilator().version, find_compiler().version,
        version("cocotb"), sys.prefix, sys.version, str(waves), *flags,
    ])
    return cached(f"cosim/{key}", lambda work: _build(files, work, flags, waves))


def _build_flags() -> list[str]:
    return [
        # With every signal open to the bench, as cocotb asks, a build takes half as long again.
        "--no-public-flat-rw",
        "--assert", "--no-timing", "--x-assign", "fast", "--output-split", "0",
        *(f"-Wno-{name}" for name in VERILATOR_LINT_OFF),
    ]


def _build(files: Path, work: Path, flags: list[str], waves: bool) -> None:
    _log.info("compiling the core for cocotb with Verilator %s", find_verilator().version)
    ports = json.loads((files / "core.json").read_text(encoding="utf-8"))["ports"]
    opened = "".join(f'public_flat_rw -module "{_TOP}" -var "{p["name"]}"\n' for p in ports)
    control, build, log = work / "ports.vlt", work / "build", work / "build.log"
    control.write_text("`verilator_config\n" + opened, encoding="utf-8")
    build.mkdir()
    runtime = _runtime_name(waves)
    for path in (cache_folder() / runtime).glob(_RUNTIME):
        shutil.copy(path, build)  # newer than its source, so make takes it as it is
    with _environment(work):
        from cocotb_tools.runner import get_runner

        runner = get_runner("verilator")
        runner.log.setLevel(logging.WARNING)
        try:
            runner.build(
                sources=[control, files / "core.v"], hdl_toplevel=_TOP, build_dir=build,
                timescale=("1ns", "1ns"), build_args=flags, waves=waves, log_file=log)
        except (RuntimeError, SystemExit) as error:
            raise DeviceError(f"the model could not be built: {error}\n{_tail(log)}") from error

    def keep(folder: Path) -> None:
        for path in build.glob(_RUNTIME):
            shutil.copy2(path, folder)

    cached(runtime, keep)
    shutil.move(build / _TOP, work / _TOP)
    shutil.rmtree(build)


def _runtime_name(waves: bool) -> str:
    """Name in the cache of the objects that are the same for all cores."""
    key = content_hash([
        find_verilator().version, find_compiler().version, version("cocotb"), sys.prefix,
        str(waves),
    ])
    return f"cosim-runtime/{key}"


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Environment of cocotb's runner, which takes it from the process; restored afterwards."""
    verilator = find_verilator()
    saved = dict(os.environ)
    # The runner calls `verilator`, a Perl script around the program: it gets the program itself.
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    if not (tools / "verilator").exists():
        (tools / "verilator").symlink_to(verilator.binary)
    try:
        os.environ.update(verilator.environment)
        os.environ["PATH"] = os.pathsep.join([str(tools), os.environ["PATH"]])
        # Verilator's package leaves this empty, and GCC then takes the header for a linker input.
        os.environ["MAKEFLAGS"] = (
            f"CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 CXX={find_compiler().path} "
            f"LINK={find_compiler().path}")
        # Under pytest the runner judges results itself, and ends the process.
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
        shutil.rmtree(tools, ignore_errors=True)


def _simulate(
    model: Path, plan: Plan, folder: Path, waves: bool, benches: Sequence[str]
) -> None:
    from .benches.host import PLAN_VARIABLE

    log = folder / "simulation.log"
    with _environment(folder):
        from cocotb_tools.runner import get_runner

        runner = get_runner("verilator")
        runner.log.setLevel(logging.CRITICAL)
        try:
            runner.test(
                test_module=[f"sparsemac_sim.benches.bench_{name}" for name in benches],
                hdl_toplevel=_TOP, hdl_toplevel_lang="verilog", build_dir=model, test_dir=folder,
                seed=plan.seed, waves=waves, log_file=log, results_xml=str(folder / "results.xml"),
                extra_env={PLAN_VARIABLE: str(folder), "COCOTB_LOG_LEVEL": "INFO"})
        except (RuntimeError, SystemExit) as error:
            raise DeviceError(
                f"the simulation of seed {plan.seed} ended early ({error}):\n{_tail(log)}"
            ) from error


def _results(plan: Plan, folder: Path, waves: bool) -> list[CosimResult]:
    """Reads what the benches recorded.

    Raises
    ------
    DeviceError    If a bench broke down without a record of why.
    """
    from cocotb_tools.check_results import get_results

    from .benches.scoreboard import RESULTS_FILE

    path, dump, log = folder / RESULTS_FILE, folder / "dump.vcd", folder / "simulation.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    results = []
    for line in lines:
        values = json.loads(line)
        values["problems"] = tuple(values["problems"])
        results.append(CosimResult(
            seed=plan.seed, config=plan.config, waves=dump if waves else None, **values))
    try:
        _, failed = get_results(folder / "results.xml")
    except RuntimeError as error:
        raise DeviceError(
            f"the simulation of seed {plan.seed} left no results ({error}):\n{_tail(log)}"
        ) from error
    if failed and all(result.passed for result in results):
        raise DeviceError(
            f"a bench broke down with seed {plan.seed}:\n{_tail(log)}")
    return results


def _tail(log: Path, lines: int = 30) -> str:
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
