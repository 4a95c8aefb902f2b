# SPDX-License-Identifier: Apache-2.0
"""The driver: opens a device, keeps networks in its memory, runs them, and says what it cost."""

import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .devices.base import Device, check_identity
from .errors import (
    DeviceBusy,
    DeviceChanged,
    DeviceClosed,
    DeviceError,
    DeviceTimeout,
    UnsupportedLayer,
)
from .faults import fault_error
from .layer import LinearLayer
from .program import Program, compile_network
from .registers import COUNTERS, register_map
from .result import Counters, Result

__all__ = ["Core", "Network", "open"]

log = logging.getLogger(__name__)

ENTRY_POINTS = "sparsemac.devices"
#: Which extra brings the device of a scheme.
_EXTRAS = {"sim": "sim", "uart": "uart"}
#: Seconds that a job may take beyond ten times its estimate at the slowest clock foreseen.
_GRACE_SECONDS = 10.0
_SLOWEST_CLOCK = 1_000_000.0


def open(  # noqa: A001 - `sparsemac.open` reads as it should
    uri: str = "reference:", config: CoreConfig | str | Path | None = None, **options: Any
) -> "Core":
    """Opens a device and checks that it is the core that was asked for.

    Parameters
    ----------
    uri : str       ``reference:``, ``sim:``, ``uart:PORT``: a scheme, a colon, and what it needs.
    config :        A `CoreConfig`, or a TOML file of one; the default configuration if omitted.
    options :       What the device takes, e.g. ``latency=40`` of ``sim:``.

    Raises
    ------
    ValueError          Unknown scheme; lists those there are.
    MissingDependency   The scheme needs a package that is not installed.
    DeviceMismatch      The core is another one.
    """
    if not isinstance(uri, str):
        raise TypeError(f"uri must be a string, not {uri!r}")
    if isinstance(config, (str, Path)):
        config = CoreConfig.from_toml(config)
    if config is not None and not isinstance(config, CoreConfig):
        raise TypeError(f"config must be a CoreConfig or a file, not {config!r}")
    scheme, colon, rest = uri.partition(":")
    found = importlib.metadata.entry_points(group=ENTRY_POINTS, name=scheme)
    if not colon or not found:
        schemes = sorted({e.name + ":" for e in importlib.metadata.entry_points(group=ENTRY_POINTS)})
        raise ValueError(f"uri must begin with one of {', '.join(schemes)}, not {uri!r}")
    try:
        opener = next(iter(found)).load()
    except ModuleNotFoundError as error:
        from .errors import MissingDependency

        raise MissingDependency(
            f"{scheme}: needs the package {error.name!r}, which is not installed: "
            f"pip install 'sparsemac[{_EXTRAS.get(scheme, scheme)}]'"
        ) from error
    device = opener(rest, config, **options)
    try:
        return Core(device)
    except BaseException:
        device.close()
        raise


class Network:
    """Layers that a `Core` has loaded; compiled for each number of columns when first needed.

    Attributes
    ----------
    layers : tuple of LinearLayer
    """

    def __init__(self, layers: tuple[LinearLayer, ...]) -> None:
        self.layers = layers
        self._programs: dict[int, Program] = {}

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.layers[0].inputs

    def program(self, columns: int, core: "Core") -> Program:
        """Returns the program for a number of columns."""
        if columns not in self._programs:
            device = core.device
            self._programs[columns] = compile_network(
                self.layers, columns, device.config, memory_base=device.memory_base,
                memory_bytes=device.memory_bytes)
        return self._programs[columns]


class Core:
    """One open device.

    Not for several threads at once, nor for a child process: both are refused by `DeviceBusy`.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._map = register_map(device.config)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._closed = False
        self._resident: Program | None = None  # whose image is in the memory
        check_identity(device)
        self._recover()

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self.device.config

    # -- registers ------------------------------------------------------------------------------

    def _read(self, name: str) -> int:
        return self.device.read_register(self._map[name].byte_offset)

    def _write(self, name: str, value: int) -> None:
        self.device.write_register(self._map[name].byte_offset, value)

    def _flag(self, flag: str) -> bool:
        return bool(self._read("STATUS") & self._map["STATUS"][flag].mask)

    # -- the life of a core ---------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._closed:
            raise DeviceClosed(f"{self.device.uri} is closed")
        if os.getpid() != self._owner:
            raise DeviceBusy(f"{self.device.uri} belongs to the process that opened it, {self._owner}")
        if not self._lock.acquire(blocking=False):
            raise DeviceBusy(f"{self.device.uri} is in use by another thread")
        try:
            yield
        finally:
            self._lock.release()

    def close(self) -> None:
        """Closes the device; closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self.device.close()

    def __enter__(self) -> "Core":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reset(self) -> None:
        """Soft reset: back to idle from any state; memory keeps its contents."""
        with self._exclusive():
            self._recover()

    def _recover(self) -> None:
        """Soft reset, and wait until the bus owes nothing."""
        control, status = self._map["CTRL"], self._map["STATUS"]
        self._write("CTRL", control["soft_reset"].mask)
        self._write("STATUS", status["done"].mask)
        deadline = time.monotonic() + _GRACE_SECONDS
        while (value := self._read("STATUS")) & status["draining"].mask:
            if value & status["wedged"].mask or time.monotonic() > deadline:
                raise DeviceTimeout(
                    f"{self.device.uri} still waits for its bus after a soft reset (STATUS "
                    f"{value:#x}): the memory does not answer; reset memory and core together"
                )

    # -- networks -------------------------------------------------------------------------------

    def load(self, layers: Any, *, weight_bits: int = 8) -> Network:
        """Makes layers ready to run.

        ``layers`` is a `LinearLayer`, a sequence of them, or an integer matrix of any kind that
        `as_csr` takes, which gives raw int32 sums.
        """
        if isinstance(layers, LinearLayer):
            layers = (layers,)
        elif not (isinstance(layers, Sequence) and layers
                  and all(isinstance(layer, LinearLayer) for layer in layers)):
            layers = (LinearLayer.from_matrix(layers, weight_bits=weight_bits),)
        network = Network(tuple(layers))
        network.program(self.config.lanes, self)  # refuses now what cannot run at all
        return network

    def matmul(self, matrix: Any, x: NDArray[np.int8], *, weight_bits: int = 8) -> NDArray[np.int32]:
        """Returns ``matrix @ x`` in int32, computed on the core."""
        return self.run(self.load(matrix, weight_bits=weight_bits), x).outputs.astype(np.int32)

    def run(self, network: Network, x: NDArray[np.int8]) -> Result:
        """Runs a network.

        Parameters
        ----------
        network : Network
        x : (inputs, columns) int8    Left as it is. More columns than fit the memory are split.

        Raises
        ------
        DeviceFault     A subclass for each code; the core has been reset and can be used again.
        DeviceTimeout
        """
        values = self._checked_input(network, x)
        with self._exclusive():
            self._check_unchanged()
            parts = self._split(network, values.shape[1])
            results = []
            first = 0
            for columns in parts:
                program = network.program(columns, self)
                results.append(self._job(program, values[:, first : first + columns]))
                first += columns
        programs = [network.program(columns, self) for columns in parts]
        counted = [c for _, c in results if c is not None]
        return Result(
            outputs=np.concatenate([outputs for outputs, _ in results], axis=1),
            counters=sum(counted[1:], counted[0]) if counted else None,
            macs=sum(p.macs for p in programs), jobs=len(parts),
            estimated_cycles=sum(p.estimated_cycles for p in programs), config=self.config,
            program=programs[0],
        )

    def _checked_input(self, network: Network, x: Any) -> NDArray[np.int8]:
        values = np.asarray(x)
        if values.ndim != 2 or values.shape[0] != network.inputs or values.shape[1] < 1:
            raise ValueError(
                f"x must have shape ({network.inputs}, columns) with 1 column or more, not "
                f"{values.shape}"
            )
        if values.dtype == np.int8:
            return values
        if values.dtype.kind not in "iu":
            raise TypeError(f"x must hold int8 values, not {values.dtype}")
        if values.min() < -128 or values.max() > 127:
            raise ValueError(f"x must be -128 to 127, not {values.min()} to {values.max()}")
        return values.astype(np.int8)

    def _split(self, network: Network, columns: int) -> list[int]:
        """Columns of each job: all at once, or halves of that until they fit the memory."""
        size = columns
        while True:
            try:
                network.program(size, self)
                break
            except UnsupportedLayer:
                lanes = self.config.lanes
                if size <= lanes:
                    raise
                size = max(lanes, size // 2 // lanes * lanes)
        full, rest = divmod(columns, size)
        return [size] * full + ([rest] if rest else [])

    def _check_unchanged(self) -> None:
        found = self._read("CONFIG_HASH")
        if found != self.config.hash:
            raise DeviceChanged(
                f"CONFIG_HASH of {self.device.uri} must be {self.config.hash:#010x}, as when it was "
                f"opened, not {found:#010x}"
            )

    # -- one job --------------------------------------------------------------------------------

    def _job(
        self, program: Program, x: NDArray[np.int8]
    ) -> tuple[NDArray[np.generic], Counters | None]:
        device = self.device
        try:
            if self._resident is not program:
                self._resident = None
                device.write_memory(program.image_address, program.image)
                self._resident = program
            device.write_memory(program.input.address, program.input.to_memory(x).tobytes())
            self._start(program)
            self._wait(program)
        except BaseException:
            # Whatever happened: nothing of this job may go on behind the caller's back.
            self._abandon()
            raise
        code = self._read("ERROR")
        if code:
            where = [self._read(f"FAULT_{part}") for part in ("COMMAND", "ADDRESS", "DETAIL")]
            self._abandon()
            raise fault_error(code, where[0], where[1], where[2])
        self._write("STATUS", self._map["STATUS"]["done"].mask)
        output = program.output
        data = device.read_memory(output.address, output.length)
        return output.from_memory(data), self._counters()

    def _start(self, program: Program) -> None:
        for i in range(self.config.windows):
            area = program.areas[i] if i < len(program.areas) else None
            self._write(f"WINDOW{i}_PERM", 0)
            if area is not None:
                self._write(f"WINDOW{i}_FIRST", area.address)
                self._write(f"WINDOW{i}_LAST", area.last_page)
                self._write(f"WINDOW{i}_PERM", 3 if area.writable else 1)
        self._write("COMMAND_ADDRESS", program.image_address)
        self._write("COMMAND_COUNT", program.command_count)
        self._write("IRQ_ENABLE", 1)
        self._write("CTRL", self._map["CTRL"]["start"].mask)

    def _wait(self, program: Program) -> None:
        timeout = _GRACE_SECONDS + 10 * program.estimated_cycles / _SLOWEST_CLOCK
        try:
            self.device.wait_interrupt(timeout)
        except DeviceTimeout as error:
            names = ", ".join(layer.name for layer in program.layers)
            raise DeviceTimeout(f"{error} (layers {names})") from error

    def _abandon(self) -> None:
        """Abort, drain, reset; a second failure does not hide the first."""
        try:
            self._write("CTRL", self._map["CTRL"]["abort"].mask)
            self._recover()
        except DeviceError as error:
            self._resident = None
            log.warning("%s could not be brought back: %s", self.device.uri, error)

    def _counters(self) -> Counters | None:
        if not self.config.counters:
            return None
        values = {}
        for name, _ in COUNTERS:
            low = self._read(f"{name}_LO")
            values[name] = low | self._read(f"{name}_HI") << 32
        return Counters.from_registers(values)
