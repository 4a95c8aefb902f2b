# SPDX-License-Identifier: Apache-2.0
"""The flat C interface of the harness, called with ctypes; see ``native/harness.cpp``."""

import ctypes
import operator
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path

from sparsemac.errors import DeviceError

from .faults import Injection

__all__ = ["NativeSimulation", "Statistics"]

_FAILED = -1
_NO_ANSWER = -2

#: Cycles that the core has to answer a register access.
_REGISTER_CYCLES = 10_000


class _Options(Structure):
    _fields_ = [  # noqa: RUF012 - the form that ctypes asks for
        ("memory_bytes", c_uint64),
        ("memory_base", c_uint64),
        ("latency", c_uint64),
        ("bandwidth", c_double),
        ("stall", c_double),
        ("seed", c_uint64),
    ]


class _Injection(Structure):
    _fields_ = [  # noqa: RUF012
        ("kind", c_int32),
        ("channel", c_int32),
        ("burst", c_uint64),
        ("beat", c_uint32),
        ("value", c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the memory has counted since the device was opened.

    ``cycles`` are clock cycles in all; bursts count when their address is taken, beats and bytes
    when they are transferred; ``violations`` are breaches of AXI4 by the core.
    """

    cycles: int
    read_bursts: int
    read_beats: int
    write_bursts: int
    write_beats: int
    write_bytes: int
    injections_fired: int
    violations: int


class _Statistics(Structure):
    _fields_ = [(name, c_uint64) for name in Statistics.__slots__]  # noqa: RUF012


_SIGNATURES = {
    "sm_create": (c_void_p, [POINTER(_Options)]),
    "sm_destroy": (None, [c_void_p]),
    "sm_error": (c_char_p, [c_void_p]),
    "sm_memory": (c_void_p, [c_void_p]),
    "sm_statistics": (POINTER(_Statistics), [c_void_p]),
    "sm_violation": (c_char_p, [c_void_p]),
    "sm_reset": (c_int64, [c_void_p, c_uint64, c_int]),
    "sm_write": (c_int64, [c_void_p, c_uint32, c_uint32, c_uint32, c_uint64]),
    "sm_read": (c_int64, [c_void_p, c_uint32, POINTER(c_uint32), c_uint64]),
    "sm_run": (c_int64, [c_void_p, c_uint64]),
    "sm_irq": (c_int, [c_void_p]),
    "sm_step": (c_int64, [c_void_p, c_uint64]),
    "sm_inject": (None, [c_void_p, POINTER(_Injection)]),
    "sm_clear_injections": (None, [c_void_p]),
    "sm_trace": (c_int64, [c_void_p, c_char_p, c_uint64, c_uint64]),
    "sm_finish_trace": (c_int64, [c_void_p]),
}


class NativeSimulation:
    """A simulated core with its memory; one method for each function of the harness.

    Parameters
    ----------
    library : Path         What `sparsemac_sim.build.build_library` made.
    memory_bytes : int     A multiple of 4096.
    memory_base : int      First byte address of the memory.
    latency : int          Cycles from an address to its first beat, at least 1.
    bandwidth : float      Bytes per cycle, both directions together; 0 does not limit.
    stall : float          Probability, per cycle, that a channel waits.
    seed : int             Of the stalls, and of registers without an initial value.
    """

    def __init__(
        self,
        library: Path,
        *,
        memory_bytes: int,
        memory_base: int = 0,
        latency: int = 20,
        bandwidth: float = 0.0,
        stall: float = 0.0,
        seed: int = 1,
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        options = _Options(memory_bytes, memory_base, latency, bandwidth, stall, seed)
        self._handle = self._library.sm_create(options)
        if not self._handle:
            raise DeviceError(f"{memory_bytes} bytes of simulated memory cannot be allocated")
        address = self._library.sm_memory(self._handle)
        self._memory = memoryview((c_uint8 * memory_bytes).from_address(address)).cast("B")

    @property
    def memory(self) -> memoryview:
        """The bytes of the memory, writable; not to be used after `destroy`."""
        return self._memory

    @property
    def statistics(self) -> Statistics:
        """A snapshot of what was counted."""
        counted = self._library.sm_statistics(self._handle).contents
        return Statistics(*(getattr(counted, name) for name in Statistics.__slots__))

    @property
    def cycles(self) -> int:
        """Clock cycles since creation."""
        return self._library.sm_statistics(self._handle).contents.cycles

    @property
    def violations(self) -> int:
        """Breaches of AXI4 by the core since creation."""
        return self._library.sm_statistics(self._handle).contents.violations

    @property
    def first_violation(self) -> str:
        """The first of them, empty if there was none."""
        return self._library.sm_violation(self._handle).decode()

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt line."""
        return bool(self._library.sm_irq(self._handle))

    def _check(self, result: int) -> int:
        if result == _FAILED:
            text = self._library.sm_error(self._handle).decode(errors="replace")
            raise DeviceError(f"the simulation stopped: {text}")
        return result

    def reset(self, cycles: int, bus: bool) -> None:
        """Holds the core in reset; ``bus`` also clears what is outstanding in the memory."""
        self._check(self._library.sm_reset(self._handle, cycles, bus))

    def read(self, offset: int) -> tuple[int, int]:
        """Returns the response and the data of a register."""
        data = c_uint32(0)
        response = self._library.sm_read(self._handle, offset, data, _REGISTER_CYCLES)
        return self._answered(self._check(response), "read", offset), data.value

    def write(self, offset: int, value: int, strobe: int = 0xF) -> int:
        """Writes a register and returns the response; ``strobe`` has a bit for each byte."""
        response = self._library.sm_write(self._handle, offset, value, strobe, _REGISTER_CYCLES)
        return self._answered(self._check(response), "write", offset)

    def _answered(self, response: int, what: str, offset: int) -> int:
        if response == _NO_ANSWER:
            raise DeviceError(
                f"the core did not answer a {what} of register {offset:#05x} "
                f"in {_REGISTER_CYCLES} cycles"
            )
        return response

    def run(self, limit: int) -> int:
        """Runs until the interrupt is raised or for ``limit`` cycles; returns the cycles run."""
        return self._check(self._library.sm_run(self._handle, limit))

    def step(self, cycles: int) -> None:
        """Runs for a number of cycles."""
        self._check(self._library.sm_step(self._handle, cycles))

    def inject(self, injection: Injection) -> None:
        """Arms a fault."""
        i = injection
        self._library.sm_inject(
            self._handle, _Injection(i.kind, i.channel, i.burst, i.beat, i.value)
        )

    def clear_injections(self) -> None:
        """Disarms all faults; channels that were dead answer again."""
        self._library.sm_clear_injections(self._handle)

    def trace(self, path: Path, first: int, end: int) -> None:
        """Writes waves of the cycles ``first`` to ``end`` - 1 into an FST file."""
        self._check(
            self._library.sm_trace(self._handle, str(path).encode(), first, operator.index(end))
        )

    def finish_trace(self) -> None:
        """Completes the file of waves."""
        self._check(self._library.sm_finish_trace(self._handle))

    def destroy(self) -> None:
        """Frees the simulation and its memory."""
        handle, self._handle = self._handle, None
        if handle:
            self._memory.release()
            self._library.sm_destroy(handle)
