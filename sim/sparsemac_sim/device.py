# SPDX-License-Identifier: Apache-2.0
"""The device ``sim:``: the emitted core, compiled, with a memory whose timing is yours to set."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsemac._checks import as_int, as_int_in
from sparsemac.config import CoreConfig
from sparsemac.devices.base import Device
from sparsemac.errors import DeviceBusy, DeviceClosed, DeviceError, DeviceTimeout
from sparsemac.registers import register_map

from .build import BuildOptions, build_library
from .emission import core_files
from .faults import Injection
from .native import NativeSimulation, Statistics
from .options import SimOptions
from .waves import can_write, is_complete

__all__ = ["CYCLES_PER_SECOND", "SimDevice", "open_device"]

_log = logging.getLogger(__name__)

#: How many cycles one second of a timeout stands for.
CYCLES_PER_SECOND = 1_000_000

#: A run is cut into slices of about this many seconds, so that Ctrl-C is heard between them.
_SLICE_SECONDS = 0.05

_FIRST_SLICE_CYCLES = 4096
_RESET_CYCLES = 8
_FOREVER = (1 << 64) - 1


def open_device(rest: str, config: CoreConfig | None = None, **options: object) -> "SimDevice":
    """Opens a simulated core; generates and compiles it if the cache does not hold it.

    ``rest`` is what follows ``sim:`` in the name: nothing, or ``?name=value&name=value`` with
    fields of `SimOptions`, which may also be given as ``options``. Without a configuration the
    core is the default one.

    Raises
    ------
    MissingDependency       If Amaranth, Verilator or a C++ compiler is missing; says what
                            installs it.
    """
    settings = SimOptions.parse(rest, options)
    config = CoreConfig() if config is None else config
    verilog = (core_files(config) / "core.v").read_text(encoding="utf-8")
    return SimDevice(verilog, config, settings, uri="sim:" + rest)


class SimDevice(Device):
    """A simulated core with its memory.

    Parameters
    ----------
    verilog : str          The core, as `sparsemac_hw.emit.emit` writes it.
    config : CoreConfig    Its configuration.
    options : SimOptions   Timing of the memory, waves.
    uri : str              How the device was opened.

    Attributes
    ----------
    last_cycles : int             Cycles of the last wait for the interrupt.
    cycles_total : int            Cycles since the device was opened.
    simulation_seconds : float    Seconds spent in the simulator since then.
    """

    def __init__(
        self, verilog: str, config: CoreConfig, options: SimOptions, uri: str = "sim:"
    ) -> None:
        self.uri, self.config, self.options = uri, config, options
        self.memory_base, self.memory_bytes = options.memory_base, options.memory_bytes
        self.last_cycles = 0
        self.simulation_seconds = 0.0
        self._busy = threading.Lock()
        self._native: NativeSimulation | None = None
        self._reported_violations = 0
        self._waves = _usable(options.waves)
        build = BuildOptions(
            bus_bytes=config.bus_bytes,
            waves=self._waves is not None,
            random_power_up=options.random_power_up,
        )
        self._native = native = NativeSimulation(
            build_library(verilog, build),
            memory_bytes=options.memory_bytes,
            memory_base=options.memory_base,
            latency=options.latency,
            bandwidth=options.bandwidth or 0.0,
            stall=options.stall,
            seed=options.seed,
        )
        if self._waves is not None:
            native.trace(self._waves, options.wave_from, options.wave_to or _FOREVER)
        native.reset(_RESET_CYCLES, bus=True)

    @contextmanager
    def _simulation(self) -> Iterator[NativeSimulation]:
        """The simulation, for one call of one thread."""
        if not self._busy.acquire(blocking=False):
            raise DeviceBusy(f"{self.uri} is in use by another thread")
        start = time.perf_counter()
        try:
            if self._native is None:
                raise DeviceClosed(f"{self.uri} is closed")
            yield self._native
        finally:
            self.simulation_seconds += time.perf_counter() - start
            self._busy.release()

    # -- registers and memory -------------------------------------------------------------------

    def read_register(self, offset: int) -> int:
        """Returns the register at byte ``offset``; `DeviceError` if the core answers SLVERR."""
        with self._simulation() as native:
            response, value = native.read(as_int_in("offset", offset, 0, 0xFFF))
        if response:
            raise DeviceError(f"read of register {offset:#05x} of {self.uri} was refused (SLVERR)")
        return value

    def write_register(self, offset: int, value: int, *, strobe: int = 0xF) -> None:
        """Writes the register at byte ``offset``; `DeviceError` if the core answers SLVERR.

        ``strobe`` has a bit for each byte that is written.
        """
        value = as_int_in("value", value, 0, 0xFFFF_FFFF)
        with self._simulation() as native:
            response = native.write(as_int_in("offset", offset, 0, 0xFFF), value, strobe & 0xF)
        if response:
            raise DeviceError(f"write of register {offset:#05x} of {self.uri} was refused (SLVERR)")

    def read_memory(self, address: int, length: int) -> bytes:
        """Returns ``length`` bytes from ``address``."""
        with self._simulation() as native:
            start = self._offset(address, as_int("length", length))
            return bytes(native.memory[start : start + length])

    def write_memory(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Writes ``data``, anything with a contiguous buffer, to ``address``."""
        source = memoryview(data)
        if source.nbytes == 0:
            return
        with self._simulation() as native:
            start = self._offset(address, source.nbytes)
            native.memory[start : start + source.nbytes] = source.cast("B")

    def _offset(self, address: int, length: int) -> int:
        start = as_int("address", address) - self.memory_base
        if length < 0 or start < 0 or start + length > self.memory_bytes:
            end = self.memory_base + self.memory_bytes
            raise ValueError(
                f"bytes {address:#x} to {address + length:#x} must be inside the memory of "
                f"{self.uri}, {self.memory_base:#x} to {end:#x}"
            )
        return start

    # -- running --------------------------------------------------------------------------------

    def wait_interrupt(self, timeout: float) -> None:
        """Runs until the interrupt is raised.

        A second of ``timeout`` stands for `CYCLES_PER_SECOND` cycles; the option ``max_cycles``
        limits every wait as well. A `KeyboardInterrupt` leaves the device as it is between two
        cycles; after a soft reset it is as good as new.

        Raises
        ------
        DeviceTimeout    Naming the limit in cycles and STATUS.
        DeviceError      If the core broke a rule of AXI4 or one of its own assertions.
        """
        limit = self._limit(timeout)
        with self._simulation() as native:
            first = native.cycles
            try:
                raised = self._run(native, limit)
            finally:
                self.last_cycles = native.cycles - first
            self._check_bus(native)
            if not raised:
                raise self._timed_out(native, limit)

    def _run(self, native: NativeSimulation, limit: int) -> bool:
        """Runs in slices; returns whether the interrupt was raised within ``limit`` cycles."""
        end, slice_cycles = native.cycles + limit, _FIRST_SLICE_CYCLES
        while not native.interrupt and native.cycles < end:
            start = time.perf_counter()
            native.run(min(end - native.cycles, slice_cycles))
            slice_cycles = _next_slice(slice_cycles, time.perf_counter() - start)
        return native.interrupt

    def _limit(self, timeout: float) -> int:
        if not timeout >= 0:
            raise ValueError(f"timeout must be at least 0 seconds, not {timeout!r}")
        limit = int(min(timeout * CYCLES_PER_SECOND, float(1 << 62)))
        return limit if self.options.max_cycles is None else min(limit, self.options.max_cycles)

    def _timed_out(self, native: NativeSimulation, limit: int) -> DeviceTimeout:
        try:
            _, status = native.read(register_map(self.config)["STATUS"].byte_offset)
            text = f"{status:#x}"
        except DeviceError:
            text = "not readable"
        return DeviceTimeout(f"no interrupt from {self.uri} in {limit} cycles; STATUS is {text}")

    def _check_bus(self, native: NativeSimulation) -> None:
        if native.violations > self._reported_violations:
            self._reported_violations = native.violations
            raise DeviceError(f"the core broke a rule of AXI4: {native.first_violation}")

    def step(self, cycles: int) -> None:
        """Runs for a number of cycles, whatever the interrupt does."""
        with self._simulation() as native:
            native.step(as_int_in("cycles", cycles, 0, 1 << 40))

    def reset(self, cycles: int = _RESET_CYCLES, *, bus: bool = True) -> None:
        """Holds the core in hard reset.

        With ``bus`` the memory forgets what is outstanding, as if both shared the reset; without,
        the beats of the time before arrive after it.
        """
        with self._simulation() as native:
            native.reset(as_int_in("cycles", cycles, 1, 1 << 32), bus)

    # -- what only a simulation can do ----------------------------------------------------------

    def inject(self, injection: Injection) -> None:
        """Arms a fault of the bus; several may be armed."""
        with self._simulation() as native:
            native.inject(injection)

    def clear_injections(self) -> None:
        """Disarms all faults of the bus."""
        with self._simulation() as native:
            native.clear_injections()

    @property
    def statistics(self) -> Statistics:
        """What the memory has counted since the device was opened."""
        with self._simulation() as native:
            return native.statistics

    @property
    def cycles_total(self) -> int:
        """Cycles since the device was opened."""
        return self.statistics.cycles

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt line."""
        with self._simulation() as native:
            return native.interrupt

    def finish_waves(self) -> None:
        """Completes the file of waves before its window ends; `close` does it as well."""
        with self._simulation() as native:
            self._finish_waves(native)

    def _finish_waves(self, native: NativeSimulation) -> None:
        path, self._waves = self._waves, None
        if path is None:
            return
        begun = native.cycles > self.options.wave_from
        native.finish_trace()
        if not begun:
            _log.warning("no waves: cycle %d was not reached", self.options.wave_from)
        elif not is_complete(path):
            _log.warning("waves in %s are incomplete: is the disc full?", path)

    def close(self) -> None:
        """Completes the waves and frees the simulation; closing twice is harmless."""
        if self._native is None:
            return
        with self._simulation() as native:
            try:
                self._finish_waves(native)
            finally:
                self._native = None
                native.destroy()

    def __del__(self) -> None:
        native = getattr(self, "_native", None)
        if native is not None:
            self._native = None
            native.destroy()


def _usable(path: Path | None) -> Path | None:
    """The path, or None with a warning if nothing can be written there: the run goes on."""
    if path is not None and (why := can_write(path)) is not None:
        _log.warning("no waves: %s", why)
        return None
    return path


def _next_slice(cycles: int, seconds: float) -> int:
    """Cycles of the next slice, so that it takes about `_SLICE_SECONDS`."""
    wanted = cycles * _SLICE_SECONDS / max(seconds, 1e-6)
    return int(min(max(wanted, cycles / 2, 256), cycles * 2))
