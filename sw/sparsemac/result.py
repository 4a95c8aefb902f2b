# SPDX-License-Identifier: Apache-2.0
"""What a run returns: the outputs, and where the cycles went."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .registers import COUNTERS

if TYPE_CHECKING:
    from .program import Program

__all__ = ["Counters", "Result"]

#: Counters of engine cycles in which nothing was issued.
_LOST = (
    "stall_command", "stall_activations", "stall_weights", "stall_store", "stall_short", "idle",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The performance counters of `sparsemac.registers.COUNTERS`, which says what each counts."""

    cycles: int = 0
    issued: int = 0
    stall_command: int = 0
    stall_activations: int = 0
    stall_weights: int = 0
    stall_store: int = 0
    stall_short: int = 0
    idle: int = 0
    fillers: int = 0
    read_beats: int = 0
    write_beats: int = 0
    write_bytes: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        names = [field.name for field in fields(Counters)]
        return Counters(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def as_dict(self) -> dict[str, int]:
        """Returns all counters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_registers(cls, values: Mapping[str, int]) -> "Counters":
        """Builds the counters from values under their names in the register map."""
        return cls(**{name.lower(): values[name] for name, _ in COUNTERS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outputs of a network, and what it cost.

    Attributes
    ----------
    all_outputs : tuple of arrays    int8, or int32 of a raw layer; a vector's (channels, columns),
                                     a map's (channels, height, width, columns).
    counters : Counters              None if the core was built without counters.
    macs : int                       Useful multiply-accumulates: nonzeros times samples.
    jobs : int                       Doorbells that it took; more than 1 if the samples were split.
    estimated_cycles : int           What the compiler expected.
    bytes_to_device : int            Commands, weights and inputs that the host wrote.
    bytes_from_device : int          Outputs that it read.
    program : Program                What ran, for a job of as many samples as one job took.
    config : CoreConfig              The core.
    """

    all_outputs: tuple[NDArray[np.generic], ...]
    counters: Counters | None
    macs: int
    jobs: int
    estimated_cycles: int
    bytes_to_device: int
    bytes_from_device: int
    program: "Program"
    config: CoreConfig

    @property
    def outputs(self) -> NDArray[np.generic]:
        """The first output."""
        return self.all_outputs[0]

    @property
    def cycles(self) -> int:
        """Cycles from doorbell to interrupt, of all jobs together; 0 without counters."""
        return self.counters.cycles if self.counters else 0

    @property
    def utilization(self) -> float:
        """Useful multiply-accumulates as a share of the peak in the cycles it took."""
        return self.macs / (self.cycles * self.config.macs) if self.cycles else 0.0

    @property
    def stalls(self) -> dict[str, float]:
        """Shares of all engine cycles in which nothing was issued, by cause."""
        total = self.cycles * self.config.engines
        if not self.counters or not total:
            return dict.fromkeys(_LOST, 0.0)
        return {name: getattr(self.counters, name) / total for name in _LOST}

    @property
    def bytes_read(self) -> int:
        """Bytes read over the bus."""
        return self.counters.read_beats * self.config.bus_bytes if self.counters else 0

    @property
    def bytes_written(self) -> int:
        """Bytes written over the bus."""
        return self.counters.write_bytes if self.counters else 0

    @property
    def bus_utilization(self) -> float:
        """Beats read or written as a share of the beats of both data channels."""
        if not self.counters or not self.cycles:
            return 0.0
        return (self.counters.read_beats + self.counters.write_beats) / (2 * self.cycles)
