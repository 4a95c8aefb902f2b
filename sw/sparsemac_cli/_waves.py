# SPDX-License-Identifier: Apache-2.0
"""A waveform of the cycles in which a simulated core wrote a wrong value.

The job at fault is found in the run that differed. The run is then repeated twice on a fresh
simulation, which is deterministic: once in small steps, to see in which cycle the value appears in
memory, and once with waves around that cycle.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sparsemac
from numpy.typing import NDArray
from sparsemac import Core
from sparsemac.conv import ConvLayer
from sparsemac.driver import Network
from sparsemac.graph import Layer
from sparsemac.inference import Mismatch
from sparsemac.program import Program

__all__ = ["Culprit", "JobLog", "Window", "find_culprit", "record_window"]

#: Cycles between two looks at memory, and in the waveform before and after the value appears.
STEP_CYCLES = 64
CYCLES_BEFORE, CYCLES_AFTER = 4096, 512


@dataclass(slots=True)
class JobLog:
    """Jobs of a core, in order: the network, its program, and the outputs.

    ``watch`` is called before the wait for the interrupt of the job of that number.
    """

    core: Core
    watch: tuple[int, Callable[[Any], None]] | None = None
    jobs: list[tuple[Network, Program, list[NDArray[Any]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.core.device
        wait = device.wait_interrupt

        def watched(timeout: float) -> None:
            if self.watch is not None and self.watch[0] == len(self.jobs):
                self.watch[1](device)
            wait(timeout)

        device.wait_interrupt = watched
        self.core.on_job = lambda *job: self.jobs.append(job)


@dataclass(frozen=True, slots=True)
class Culprit:
    """A wrong value: the job that wrote it, counted from the first, and where it stands."""

    job: int
    address: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Window:
    """What was recorded: cycles ``first`` to ``last``, and when the value appeared."""

    first: int
    last: int
    cycle: int


def find_culprit(log: JobLog, mismatch: Mismatch) -> Culprit | None:
    """Finds the last job that wrote the wrong value of a mismatch; None if it is not in the log."""
    layer = mismatch.node.layer
    assert layer is not None
    place, column = _place(layer, mismatch)
    runs: dict[int, list[int]] = {}
    for number, (network, _, _) in enumerate(log.jobs):
        if any(use.layer is layer for use in network.segment.uses):
            runs.setdefault(id(network), []).append(number)
    for numbers in reversed(list(runs.values())):
        found = _in_run(log, numbers, layer, place, column, mismatch.got)
        if found is not None:
            return found
    return None


def _in_run(log: JobLog, numbers: list[int], layer: Layer, place: tuple[int, int, int],
            column: int, got: int) -> Culprit | None:
    """Looks for a value in the jobs of one network; its columns are cut into jobs in order."""
    network = log.jobs[numbers[0]][0]
    (target,) = (use.target for use in network.segment.uses if use.layer is layer)
    if target not in network.segment.outputs:
        return None
    which = network.segment.outputs.index(target)
    for number in numbers:
        _, program, _ = log.jobs[number]
        tensor = program.outputs[which]
        if column >= tensor.columns:
            column -= tensor.columns
            continue
        array = log.jobs[number][2][which]
        index = (place[0], column) if array.ndim == 2 else (*place, column)
        if array[index] != got:
            return None
        address = tensor.element_address(*place, column)
        return Culprit(number, address, array[index].astype(tensor.dtype).tobytes())
    return None


def _place(layer: Layer, mismatch: Mismatch) -> tuple[tuple[int, int, int], int]:
    """Channel, row and column of a map, and the column of the job."""
    index = mismatch.index
    if not isinstance(layer, ConvLayer):
        shape = mismatch.inputs.shape[:-1]
        return (index[-1], 0, 0), int(np.ravel_multi_index(index[:-1], shape)) if shape else 0
    *place, channel = index[1:] if layer.channels_last else (*index[2:], index[1])
    row, column = (0, place[0]) if layer.one_dimensional else place
    return (channel, row, column), index[0]


def record_window(
    uri: str, config: sparsemac.CoreConfig, culprit: Culprit, path: Path,
    repeat: Callable[[Core], Mismatch | None], mismatch: Mismatch,
) -> Window | None:
    """Writes the waveform around a wrong value.

    Parameters
    ----------
    uri : str, config    Of the simulation, as it was opened.
    culprit : Culprit
    path : Path          FST file to write.
    repeat : function    Runs the same inputs on an open core.
    mismatch : Mismatch  What it must return again.

    Returns
    -------
    Window    None if the mismatch does not show again; then nothing is written.
    """
    seen: list[int] = []

    def look(device: Any) -> None:
        before = device.read_memory(culprit.address, len(culprit.value))
        while not device.interrupt:
            device.step(STEP_CYCLES)
            now = device.read_memory(culprit.address, len(culprit.value))
            if now != before:
                seen.append(device.cycles_total)
                before = now
        # A value that was there already was written over with itself: the end of the job.
        seen.append(device.cycles_total)

    with sparsemac.open(uri, config) as core:
        JobLog(core, (culprit.job, look))
        again = repeat(core)
    if again is None or (again.index, again.got) != (mismatch.index, mismatch.got) or not seen:
        return None
    cycle = seen[-2] if len(seen) > 1 else seen[-1]
    first, last = max(0, cycle - CYCLES_BEFORE), cycle + CYCLES_AFTER
    with sparsemac.open(uri, config, waves=path, wave_from=first, wave_to=last) as core:
        repeat(core)
    return Window(first, last, cycle)
