# SPDX-License-Identifier: Apache-2.0
"""The scoreboard: memory and counters against the golden model, and a record of every check."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sparsemac.config import CoreConfig

from .jobs import Job

__all__ = ["RESULTS_FILE", "Check", "Scoreboard"]

RESULTS_FILE = "results.json"

#: How many differences a record names, not to drown the first one.
_NAMED = 4


@dataclass(kw_only=True)
class Check:
    """What a bench found out about one job.

    Attributes
    ----------
    bench, name : str       Which bench, which job.
    number : int            Number of the job in the plan; -1 if the check is of no job.
    cycles : int            From the doorbell to the interrupt.
    simulated_cycles : int  In all, with the registers' set-up and the reading of results.
    seconds : float         What these took.
    mismatches : int        Bytes of the memory that differ.
    problems : list         What is wrong, in words; empty if nothing is.
    """

    bench: str
    name: str
    number: int = -1
    cycles: int = 0
    simulated_cycles: int = 0
    seconds: float = 0.0
    mismatches: int = 0
    problems: list[str] = field(default_factory=list)


class Scoreboard:
    """Collects checks, writes them to a file as they come, and judges them at the end.

    Parameters
    ----------
    folder : Path     Where `RESULTS_FILE` is, to which benches of one simulation append.
    bench : str       Name of the bench.
    """

    def __init__(self, folder: Path, bench: str) -> None:
        self._path, self.bench = folder / RESULTS_FILE, bench
        self.checks: list[Check] = []

    def add(self, check: Check) -> None:
        """Records a check."""
        self.checks.append(check)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(check)) + "\n")

    @staticmethod
    @contextmanager
    def timed(check: Check, now: Callable[[], int]) -> Iterator[None]:
        """Notes what a check takes; an error of the core or of the bus becomes a problem."""
        cycle, began = now(), time.perf_counter()
        try:
            yield
        except (RuntimeError, TimeoutError) as error:
            check.problems.append(str(error))
        check.simulated_cycles = now() - cycle
        check.seconds = time.perf_counter() - began

    def finish(self) -> None:
        """Fails the bench if any check has found a problem."""
        bad = [check for check in self.checks if check.problems]
        if bad:
            lines = [f"{check.name}: {'; '.join(check.problems)}" for check in bad]
            what = f"{len(bad)} of {len(self.checks)} checks failed"
            raise AssertionError("\n".join([what, *lines]))

    @staticmethod
    def compare_memory(check: Check, job: Job, got: NDArray[np.uint8]) -> None:
        """Compares all of the memory with what the golden model left."""
        wrong = np.flatnonzero(got != job.after)
        check.mismatches = len(wrong)
        for at in wrong[:_NAMED]:
            check.problems.append(
                f"byte {job.memory_base + at:#010x} is {got[at]:#04x}, not {job.after[at]:#04x}")
        if len(wrong) > _NAMED:
            check.problems.append(f"{len(wrong)} bytes differ")

    @staticmethod
    def compare_inputs(check: Check, job: Job, got: NDArray[np.uint8]) -> None:
        """Checks that nothing outside the writable pages has changed."""
        writable = np.zeros(len(got), bool)
        for area in job.areas:
            if area.writable:
                first = area.address - job.memory_base
                writable[first : first + area.length] = True
        if changed := np.count_nonzero((got != job.before) & ~writable):
            check.problems.append(f"{changed} bytes outside the writable windows have changed")

    @staticmethod
    def compare_counters(
        check: Check, job: Job, config: CoreConfig, got: dict[str, int]
    ) -> None:
        """Checks the identity of the counters, and those that the golden model knows exactly."""
        if not got:
            return
        spent = sum(n for name, n in got.items() if name.startswith("STALL_"))
        spent += got["ISSUED"] + got["IDLE"]
        total = got["CYCLES"] * config.engines
        if spent != total:
            check.problems.append(f"the counters account for {spent} of {total} engine cycles")
        for name, want in job.counters.items():
            if got[name] != want:
                check.problems.append(f"{name} is {got[name]}, not {want}")
