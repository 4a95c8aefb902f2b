# SPDX-License-Identifier: Apache-2.0
"""Options of the device ``sim:``, from keywords or from its name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl

from sparsemac._checks import as_int_in

__all__ = ["PAGE_BYTES", "SimOptions"]

PAGE_BYTES = 4096
_ADDRESS_SPACE_BYTES = 1 << 32
_CYCLES_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """Timing of the simulated memory, and what else a simulation can be given.

    Text is accepted for every option, as it comes from a name like ``sim:?latency=40``.

    Parameters
    ----------
    memory_bytes : int       Bytes of memory, a multiple of 4096.
    memory_base : int        Its first byte address, a multiple of 4096.
    latency : int            Cycles from a read address to its first beat, and from the last beat of
                             a write to its response.  At least 1.
    bandwidth : float        Bytes per cycle, one budget for reads and writes, of which each beat
                             takes the bytes of the bus.  None: one beat each way per cycle.
    stall : float            Probability, per cycle, that a channel of the bus waits.  Below 1.
    seed : int               Of the stalls and of the random power-up.
    max_cycles : int         Limit of one wait for the interrupt, whatever its timeout.
    random_power_up : bool   Registers start with random bits, as in an ASIC.
    waves : Path             FST file to write; the model is then a slower one.
    wave_from : int          First cycle in the file, counted since the device was opened.
    wave_to : int            The cycle after the last one in the file.  None: until the end.
    """

    memory_bytes: int = 64 << 20
    memory_base: int = 0
    latency: int = 20
    bandwidth: float | None = None
    stall: float = 0.0
    seed: int = 1
    max_cycles: int | None = None
    random_power_up: bool = False
    waves: Path | None = None
    wave_from: int = 0
    wave_to: int | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        limit = _ADDRESS_SPACE_BYTES
        put("memory_bytes", _pages("memory_bytes", self.memory_bytes, PAGE_BYTES, limit))
        last = limit - self.memory_bytes
        put("memory_base", _pages("memory_base", self.memory_base, 0, last))
        put("latency", _integer("latency", self.latency, 1, 1 << 20))
        put("stall", _number("stall", self.stall))
        if not 0 <= self.stall < 1:
            raise ValueError(f"stall must be at least 0 and below 1, not {self.stall!r}")
        if self.bandwidth is not None:
            put("bandwidth", _number("bandwidth", self.bandwidth))
            if not self.bandwidth > 0:
                raise ValueError(f"bandwidth must be above 0, not {self.bandwidth!r}")
        put("seed", _integer("seed", self.seed, 0, (1 << 63) - 1))
        for name in ("max_cycles", "wave_to"):
            if getattr(self, name) is not None:
                put(name, _integer(name, getattr(self, name), 1, _CYCLES_MAX))
        put("random_power_up", _flag("random_power_up", self.random_power_up))
        put("wave_from", _integer("wave_from", self.wave_from, 0, _CYCLES_MAX))
        if self.waves is not None:
            put("waves", Path(self.waves))
        if self.wave_to is not None and self.wave_to <= self.wave_from:
            raise ValueError(
                f"wave_to must be above wave_from, {self.wave_from}, not {self.wave_to}"
            )

    @classmethod
    def parse(cls, rest: str, options: Mapping[str, object]) -> "SimOptions":
        """Reads what follows ``sim:`` in a name, and keywords beside it.

        ``from`` and ``to`` are short for ``wave_from`` and ``wave_to`` in a name.
        """
        if rest and not rest.startswith("?"):
            raise ValueError(f"the device must be sim: or sim:?name=value, not 'sim:{rest}'")
        short = {"from": "wave_from", "to": "wave_to"}
        values: dict[str, object] = {}
        given = parse_qsl(rest[1:], keep_blank_values=True, strict_parsing=bool(rest[1:]))
        for name, value in [*((short.get(n, n), v) for n, v in given), *options.items()]:
            known = [field.name for field in fields(cls)]
            if name not in known:
                raise ValueError(f"option must be one of {', '.join(known)}, not {name!r}")
            if name in values:
                raise ValueError(f"option {name} must be given once, not twice")
            values[name] = value
        return cls(**values)  # type: ignore[arg-type]


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            raise ValueError(f"{name} must be an integer, not {value!r}") from None
    return as_int_in(name, value, low, high)


def _pages(name: str, value: object, low: int, high: int) -> int:
    number = _integer(name, value, low, high)
    if number % PAGE_BYTES:
        legal = number - number % PAGE_BYTES
        raise ValueError(
            f"{name} must be a multiple of {PAGE_BYTES}, not {number} (nearest legal value: "
            f"{legal if legal >= low else low})"
        )
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return number


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise TypeError(f"{name} must be true or false, not {value!r}")
