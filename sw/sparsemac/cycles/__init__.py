# SPDX-License-Identifier: Apache-2.0
"""The cycle model: how long a program takes on any core and memory, without simulating it.

The units of the core are modelled by what they do, not cycle by cycle: a burst, a beat of weights,
a row at a position and an output word are one step each. What is modelled is the core as
`sparsemac_hw` builds it, with a memory as `sparsemac_sim` has one; ``scripts/check_cycle_model.py``
compares the two.

    program = compile_network([layer], 64, config)
    predict_cycles(program, config, MemoryModel(latency=40)).cycles
"""

from dataclasses import dataclass

from ..commands import COMMAND_BYTES, Exec, Load, decode_list
from ..config import CoreConfig
from ..program import Program
from ..result import Counters
from ..tiling import Tiling
from .core import CoreModel
from .memory import MemoryModel
from .streams import Streams, read_streams

__all__ = ["CycleEstimate", "LayerCycles", "MemoryModel", "predict_cycles"]


@dataclass(frozen=True, slots=True)
class LayerCycles:
    """What one layer takes, from the end of the layer before it to its own end."""

    name: str
    cycles: int


@dataclass(frozen=True, slots=True)
class CycleEstimate:
    """What a job takes.

    Attributes
    ----------
    cycles : int               From doorbell to interrupt.
    layers : tuple of LayerCycles    In order; together they take all cycles.
    counters : Counters        As the core's own would be, with the cycles lost by cause.
    config : CoreConfig
    """

    cycles: int
    layers: tuple[LayerCycles, ...]
    counters: Counters
    config: CoreConfig

    @property
    def stalls(self) -> dict[str, float]:
        """Shares of all engine cycles in which nothing was issued, as `Result.stalls` has them."""
        total = self.cycles * self.config.engines
        return {name: value / total for name, value in self.counters.as_dict().items()
                if name.startswith("stall_") or name == "idle"}


def predict_cycles(program: Program, config: CoreConfig, memory: MemoryModel | None = None
                   ) -> CycleEstimate:
    """Predicts the cycles of a job.

    Parameters
    ----------
    program : Program
    config : CoreConfig      The core that the program was compiled for.
    memory : MemoryModel     None: the default one.

    Raises
    ------
    ValueError                   If the program was compiled for another core, as far as it shows.
    CommandError, StreamError    If it is none that the core would run.
    """
    if program.input.lanes != config.lanes:
        raise ValueError(
            f"program must be compiled for {config.lanes} lanes, not {program.input.lanes}")
    commands = decode_list(program.image[:program.command_count * COMMAND_BYTES])
    known: dict[tuple[object, ...], Streams] = {}

    def streams_of(command: Exec) -> Streams:
        key = (command.weights, command.beats, command.positions, command.width, command.mode,
               command.psum_out, command.out_step, command.out_wrap_step,
               command.output % config.bus_bytes)
        if key not in known:
            first = command.weights - program.image_address
            data = program.image[first:first + command.beats * config.bus_bytes]
            known[key] = read_streams(command, data, config)
        return known[key]

    core = CoreModel(config, memory or MemoryModel(), streams_of)
    core.run(commands)
    return CycleEstimate(core.cycles, _layers(program, commands, core.exec_ends, core.cycles),
                         Counters(**core.counters), config)


def _layers(program: Program, commands: list[Load | Exec], ends: list[int], cycles: int
            ) -> tuple[LayerCycles, ...]:
    """Deals the time line out to the layers.

    The streams of all layers lie one behind another, those of a row tile together; only the last
    of these stores anything. So they tell the layers apart.
    """
    last: dict[int, int] = {}  # EXEC of each stream that stores
    for number, command in enumerate(c for c in commands if isinstance(c, Exec)):
        if not command.psum_out:
            last[command.weights] = number
    ordered = [number for _, number in sorted(last.items())]
    layers, first, begin = [], 0, 0
    for i, plan in enumerate(program.layers):
        tiling = plan.tiling
        tiles = len(tiling.row_tiles if isinstance(tiling, Tiling) else tiling.passes)
        mine, first = ordered[first:first + tiles], first + tiles
        end = cycles if i == len(program.layers) - 1 else max(ends[n] for n in mine)
        layers.append(LayerCycles(plan.name, end - begin))
        begin = end
    return tuple(layers)
