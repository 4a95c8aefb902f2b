# SPDX-License-Identifier: Apache-2.0
"""Random cores and random jobs, each from one number, and the folder that hands them to a bench.

A job is a compiled program in a memory image, and the image as the golden model leaves it. The
simulator runs in a process of its own, so both travel as files, beside a ``plan.json``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsemac.commands import OutputMode
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.csr import Csr, as_csr, weight_range
from sparsemac.errors import DeviceError, UnsupportedLayer
from sparsemac.layer import LinearLayer
from sparsemac.layout import Area
from sparsemac.machine import Machine, Window
from sparsemac.program import Program, compile_network
from sparsemac.registers import WINDOW_GRANULE_BYTES

__all__ = [
    "MEMORY_BYTES",
    "Job",
    "Plan",
    "make_job",
    "random_config",
    "random_job",
]

#: Memory of every job; also the alignment of its base, as the memory model decodes low bits only.
MEMORY_BYTES = 1 << 20

#: A random job is drawn again if the core cannot hold it, or if it would take too long.
_ATTEMPTS = 200
_MAX_CYCLES = 4000
_MAX_BEATS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A program in memory, and what must stand there after it.

    Parameters
    ----------
    name : str                     Which network, in a few words.
    seed : int                     Seeds the back-pressure of the bus.
    back_pressure : bool           Whether the channels of the bus pause at random.
    memory_base : int              Address of the first byte, a multiple of `MEMORY_BYTES`.
    before, after : (bytes,) uint8     Memory before and after the job.
    command_address, command_count : int
    areas : tuple of Area          Pages that the windows must open.
    counters : dict                What some counters of the core must say, by name.
    """

    name: str
    seed: int
    back_pressure: bool
    memory_base: int
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    command_address: int
    command_count: int
    areas: tuple[Area, ...]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one simulation is to do: a core, its jobs, and a seed for all that is random."""

    config: CoreConfig
    seed: int
    jobs: tuple[Job, ...] = field(default_factory=tuple)

    def save(self, folder: Path) -> None:
        """Writes the plan into an existing folder."""
        specs: list[dict[str, Any]] = []
        for i, job in enumerate(self.jobs):
            job.before.tofile(folder / f"{i}.before.bin")
            job.after.tofile(folder / f"{i}.after.bin")
            areas = [[a.address, a.length, a.writable] for a in job.areas]
            names = ("name", "seed", "back_pressure", "memory_base", "command_address",
                     "command_count", "counters")
            specs.append({name: getattr(job, name) for name in names} | {"areas": areas})
        plan = {"config": self.config.as_dict(), "seed": self.seed, "jobs": specs}
        (folder / "plan.json").write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads what `save` wrote."""
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        jobs = []
        for i, spec in enumerate(plan["jobs"]):
            areas = tuple(Area(*area) for area in spec.pop("areas"))
            before = np.fromfile(folder / f"{i}.before.bin", np.uint8)
            after = np.fromfile(folder / f"{i}.after.bin", np.uint8)
            jobs.append(Job(before=before, after=after, areas=areas, **spec))
        return cls(config=CoreConfig.from_dict(plan["config"]), seed=plan["seed"], jobs=tuple(jobs))


def random_config(seed: int) -> CoreConfig:
    """Returns a small core; every parameter is drawn from ``seed``."""
    rng = np.random.default_rng([seed, 0])

    def pick(*values: int) -> int:
        return int(rng.choice(values))

    engines, fifo_depth = int(rng.integers(1, 5)), pick(4, 8, 16)
    bursts = [b for b in (1, 2, 4, 8, 16) if 2 * b <= engines * fifo_depth]
    return CoreConfig(
        engines=engines, lanes=pick(1, 2, 4, 8), depth=pick(1, 2, 5, 64),
        act_depth=pick(64, 128, 256), entry_depth=pick(16, 32), psum_depth=pick(0, 16, 64),
        bus_width=pick(32, 64, 128), acc_width=pick(20, 24, 32), fifo_depth=fifo_depth,
        burst_beats=pick(*bursts), windows=int(rng.integers(2, 5)),
        counters=bool(rng.random() < 0.8),
    )


def make_job(
    layers: Sequence[LinearLayer | ConvLayer],
    x: NDArray[np.int8],
    config: CoreConfig,
    *,
    name: str = "network",
    seed: int = 0,
    back_pressure: bool = False,
    memory_base: int = 0,
    memory_bytes: int = MEMORY_BYTES,
) -> Job:
    """Compiles layers for ``x``, int8, and runs them on the golden model.

    ``x`` is (inputs, columns), or (channels, height, width, columns) of convolutions.

    What the job does not write is filled with random bytes, so that a read or a write in the wrong
    place shows.

    Raises
    ------
    UnsupportedLayer    If the core cannot hold the layers.
    DeviceError         If the golden model refuses what the compiler made.
    """
    program = compile_network(
        layers, x.shape[-1], config, memory_base=memory_base, memory_bytes=memory_bytes)
    before = np.random.default_rng([seed, 2]).integers(0, 256, memory_bytes, np.uint8)

    def put(address: int, data: bytes) -> None:
        start = address - memory_base
        before[start : start + len(data)] = np.frombuffer(data, np.uint8)

    put(program.image_address, program.image)
    for address, data in program.fills:
        put(address, data)
    values = program.input.to_memory(x, program.input_padding[0])
    put(program.input.address, values.tobytes())
    machine = Machine(config, before.copy(), memory_base, _windows(program.areas))
    fault = machine.run(program.image_address, program.command_count)
    if fault is not None:
        raise DeviceError(f"the golden model stopped with {fault} in a program for {name}")
    return Job(
        name=name, seed=seed, back_pressure=back_pressure, memory_base=memory_base, before=before,
        after=machine.memory, command_address=program.image_address,
        command_count=program.command_count, areas=program.areas,
        counters={k: int(v) for k, v in machine.counters.items() if k != "CYCLES"},
    )


def _windows(areas: Sequence[Area]) -> list[Window]:
    granule = WINDOW_GRANULE_BYTES
    return [Window(a.address // granule, a.last_page // granule, True, a.writable) for a in areas]


def random_job(config: CoreConfig, seed: int, number: int) -> Job:
    """Returns job ``number`` of a seed: some layers of random sparse matrices, or convolutions."""
    rng = np.random.default_rng([seed, 1, number])
    base = int(rng.integers(0, 1 << 12)) * MEMORY_BYTES
    for _ in range(_ATTEMPTS):
        columns = int(rng.integers(1, 2 * config.lanes + 3))
        if rng.random() < 0.25:
            layers, shape = _random_convolutions(rng)
            columns = int(rng.choice([1, 2, columns]))
        else:
            layers = _random_layers(rng, config)
            shape = (layers[0].inputs,)
        x = rng.integers(-128, 128, (*shape, columns)).astype(np.int8)
        if rng.random() < 0.25:
            x[:] = rng.choice([-128, 127], x.shape)
        try:
            program = compile_network(layers, columns, config, memory_bytes=MEMORY_BYTES)
        except UnsupportedLayer:
            continue
        if _is_small(program, config):
            return make_job(
                layers, x, config, name=_describe(layers, columns), seed=int(rng.integers(1 << 30)),
                back_pressure=bool(rng.random() < 0.8), memory_base=base)
    raise UnsupportedLayer(f"no random network in {_ATTEMPTS} fits {config!r} (seed {seed})")


def _is_small(program: Program, config: CoreConfig) -> bool:
    moved = len(program.image) + program.input.length + program.output.length
    return program.estimated_cycles <= _MAX_CYCLES and moved // config.bus_bytes <= _MAX_BEATS


def _describe(layers: Sequence[LinearLayer | ConvLayer], columns: int) -> str:
    parts = []
    for layer in layers:
        if isinstance(layer, ConvLayer):
            linear, on = layer.linear, f" on {layer.geometry.height}x{layer.geometry.width}"
        else:
            linear, on = layer, ""
        parts.append(f"{linear.outputs}x{linear.inputs} int{linear.weight_bits} "
                     f"{linear.mode.name.lower()} {linear.weights.density:.0%}{on}")
    return ", ".join(parts) + f"; {columns} column{'s' if columns > 1 else ''}"


def _random_layers(rng: np.random.Generator, config: CoreConfig) -> list[LinearLayer]:
    count = int(rng.choice([1, 1, 2, 3]))
    # Some are wider than the buffer, so that they are cut into column tiles.
    widest = int(rng.choice([8, 40, config.act_depth + 40]))
    sizes = [int(size) for size in rng.integers(1, widest + 1, count + 1)]
    sizes[1:] = [min(size, 40) for size in sizes[1:]]
    return [
        _random_layer(rng, rows, columns, last=i == count - 1)
        for i, (columns, rows) in enumerate(zip(sizes, sizes[1:], strict=False))
    ]


def _random_convolutions(
    rng: np.random.Generator
) -> tuple[list[LinearLayer | ConvLayer], tuple[int, int, int]]:
    """One or two convolutions that keep the map's size, and the shape of the map.

    Often its height can be cut into strips; then few columns make LOADs that shift.
    """
    count = int(rng.choice([1, 2]))
    channels = [int(n) for n in rng.integers(1, 5, count + 1)]
    height, width = int(rng.choice([4, 6, 8])), int(rng.integers(1, 6))
    layers: list[LinearLayer | ConvLayer] = []
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        kernel = (int(rng.choice([1, 3, 3])), int(rng.choice([1, 3])))
        pad = (kernel[0] // 2, kernel[1] // 2)
        geometry = Geometry(channels=inputs, height=height, width=width, kernel=kernel,
                            padding=(*pad, *pad))
        linear = _random_layer(rng, outputs, geometry.patch, last=i == count - 1)
        linear = replace(linear, input_zero_point=int(rng.integers(-128, 128)))
        layers.append(ConvLayer(linear=linear, geometry=geometry))
    return layers, (channels[0], height, width)


def _random_layer(rng: np.random.Generator, rows: int, columns: int, *, last: bool) -> LinearLayer:
    bits = int(rng.choice([4, 8]))
    raw = last and rng.random() < 0.4
    weights = _random_matrix(rng, rows, columns, bits)
    layer = LinearLayer.from_matrix(weights, weight_bits=bits, raw=raw)
    bias = rng.integers(-(1 << 12), 1 << 12, rows).astype(np.int32)
    if raw:
        return replace(layer, bias=bias if rng.random() < 0.7 else None)
    low, high = sorted(int(v) for v in rng.integers(-128, 128, 2))
    clamp = (low, high) if rng.random() < 0.3 else (-128, 127)
    return replace(
        layer, bias=bias if rng.random() < 0.8 else None, low=clamp[0], high=clamp[1],
        mode=OutputMode.SINGLE if rng.random() < 0.5 else OutputMode.DOUBLE,
        zero_point=int(rng.integers(-128, 128)) if rng.random() < 0.5 else 0,
    )


def _random_matrix(rng: np.random.Generator, rows: int, columns: int, bits: int) -> Csr:
    """A matrix of random density, sometimes with a full row, an empty one, or extreme weights."""
    low, high = weight_range(bits)
    density = float(rng.choice([0.0, 0.03, 0.1, 0.1, 0.2, 0.3, 0.5, 1.0]))
    dense = rng.integers(low, high + 1, (rows, columns))
    if rng.random() < 0.2:
        dense = rng.choice([low, high], (rows, columns))
    keep = rng.random((rows, columns)) < density
    keep[rng.integers(rows)] |= rng.random() < 0.2
    keep[rng.integers(rows)] &= rng.random() < 0.8
    return as_csr(np.where(keep, dense, 0), weight_bits=bits)
