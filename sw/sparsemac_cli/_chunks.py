# SPDX-License-Identifier: Apache-2.0
"""Runs any number of samples through a model, a batch at a time, as one inference."""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsemac.conv import ConvLayer
from sparsemac.graph import Graph
from sparsemac.inference import Inference, Mismatch, Model, StepReport
from sparsemac.layout import ceil_div, round_up
from sparsemac.precompile import samples_of

__all__ = ["Chunk", "Ticker", "chunks_of", "default_batch", "run_chunks", "samples_in"]

Arrays = Mapping[str, NDArray[Any]]

#: Samples at a time of a network of linear layers: its weights then cross the bus less often.
LINEAR_BATCH = 512

#: Seconds between two signs of life.
TICK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples that run together.

    Attributes
    ----------
    first, samples : int      Which of all.
    inputs : dict of arrays   Filled up with repetitions of the last sample.
    """

    first: int
    samples: int
    inputs: dict[str, NDArray[Any]]


@dataclass(slots=True)
class Ticker:
    """Tells on stderr how far a long run is, every few seconds."""

    total: int
    first: int = 0
    _told: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, steps: int, name: str) -> None:
        now = time.monotonic()
        if done < steps and now - self._told >= TICK_SECONDS:
            self._told = now
            print(f"\n      {self.first} of {self.total} samples, step {done + 1} of {steps}: "
                  f"{name} ... ", end="", file=sys.stderr, flush=True)


def samples_in(graph: Graph, arrays: Arrays) -> int:
    """Number of samples of inputs, which must be the same for all of them.

    Raises
    ------
    ValueError    If it is not, or is no multiple of what the graph was made for.
    """
    made_for = samples_of(graph)
    counts = {}
    for name, array in arrays.items():
        shape = graph.values[name].shape
        own = shape[0] if shape else 1
        axis = array.shape[0] if shape and array.ndim else 1
        if own and axis % own:
            raise ValueError(f"{name} must hold a multiple of {own} samples, not {axis}")
        counts[name] = (axis // own if own else 1) * made_for
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"inputs must hold as many samples, not {text}")
    count = next(iter(counts.values()), made_for)
    if count < 1:
        raise ValueError(f"inputs of {graph.name} must hold at least one sample, not none")
    return count


def default_batch(graph: Graph, samples: int, lanes: int) -> int:
    """Samples to run at a time: all if lanes are left, whose maps are then cut into strips.

    Else one for each lane; more if that needs little compiling.
    """
    made_for = samples_of(graph)
    if not graph.batchable:
        return made_for
    lanes = round_up(lanes, made_for)
    if samples <= lanes:
        return round_up(samples, made_for)
    if any(isinstance(layer, ConvLayer) for layer in graph.layers):
        return lanes
    each = ceil_div(samples, ceil_div(samples, LINEAR_BATCH))
    return round_up(each, lanes)


def chunks_of(graph: Graph, arrays: Arrays, samples: int, batch: int) -> Iterator[Chunk]:
    """Cuts inputs into batches; the last one is filled up."""
    made_for = samples_of(graph)
    for first in range(0, samples, batch):
        inputs = {}
        for name, array in arrays.items():
            shape = graph.values[name].shape
            if not shape:
                inputs[name] = array
                continue
            own = shape[0] * batch // made_for
            part = array[first // batch * own : first // batch * own + own]
            if len(part) < own:
                part = np.concatenate([part, np.repeat(part[-1:], own - len(part), axis=0)])
            inputs[name] = part
        yield Chunk(first, min(batch, samples - first), inputs)


def run_chunks(
    model: Model, arrays: Arrays, samples: int, batch: int, *, per_layer: bool, check: bool,
    ticker: Ticker, begin: Any = None,
) -> tuple[Inference, Chunk, Mismatch | None]:
    """Runs all samples; stops at the first that differs from the golden model, if checked.

    Returns
    -------
    Inference    Of all samples together; useful work is counted of samples that were given only.
    Chunk        The last one that ran.
    Mismatch     As the model gave it for that chunk, or None.
    """
    parts: list[Inference] = []
    chunk = None
    for chunk in chunks_of(model.graph, arrays, samples, batch):
        ticker.first = chunk.first
        if begin is not None:
            begin()
        result = model.run(chunk.inputs, per_layer=per_layer, check=check, progress=ticker)
        parts.append(_cut(result, model.graph, chunk, batch))
        if result.mismatch is not None:
            break
    assert chunk is not None
    mismatch = parts[-1].mismatch
    whole = parts[0]
    for part in parts[1:]:
        whole = _joined(whole, part)
    if mismatch is not None:
        # What was filled up repeats the last sample.
        sample = chunk.first + min(mismatch.index[0], chunk.samples - 1)
        index = (sample, *mismatch.index[1:])
        whole = replace(whole, mismatch=replace(mismatch, index=index))
    elif len(parts) > 1:
        whole = replace(whole, outputs={
            name: np.concatenate([np.atleast_1d(part.outputs[name]) for part in parts])
            for name in whole.outputs})
    return whole, chunk, mismatch


def _cut(result: Inference, graph: Graph, chunk: Chunk, batch: int) -> Inference:
    """Takes away what stands for samples that were not given."""
    if chunk.samples == batch:
        return result
    outputs = {name: array[: len(array) * chunk.samples // batch]
               for name, array in result.outputs.items()}
    share = chunk.samples / batch
    steps = tuple(replace(step, macs=step.macs * chunk.samples // batch,
                          utilization=step.utilization * share) for step in result.steps)
    return replace(result, outputs=outputs, steps=steps)


def _joined(a: Inference, b: Inference) -> Inference:
    """Adds the steps of two runs; the second may have stopped early."""
    steps = [_sum(one, other, a.config.macs)
             for one, other in zip(a.steps, b.steps, strict=False)]
    return replace(a, steps=(*steps, *a.steps[len(steps):]), mismatch=b.mismatch)


def _sum(a: StepReport, b: StepReport, peak: int) -> StepReport:
    names = ("seconds", "macs", "cycles", "estimated_cycles", "jobs", "bytes_to_device",
             "bytes_from_device")
    sums = {name: getattr(a, name) + getattr(b, name) for name in names}
    counters = a.counters + b.counters if a.counters and b.counters else a.counters
    used = sums["macs"] / (sums["cycles"] * peak) if sums["cycles"] else 0.0
    return replace(a, **sums, counters=counters, utilization=used)
