# SPDX-License-Identifier: Apache-2.0
"""The driver: open a core, load a network, run it. The same calls on every device."""

import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .conv import ConvLayer
from .devices.base import Device, check_identity
from .emitter import PackedCache
from .errors import (
    DeviceBusy,
    DeviceClosed,
    DeviceError,
    DeviceFault,
    DeviceTimeout,
    MissingDependency,
)
from .layer import LinearLayer
from .program import Program, TooManyColumns, compile_segment
from .registers import FaultCode
from .result import Counters, Result
from .segment import Segment, TensorShape
from .session import Session

__all__ = ["Core", "Network", "open"]

Layer = LinearLayer | ConvLayer

_log = logging.getLogger(__name__)

ENTRY_POINTS = "sparsemac.devices"

#: Extras that bring the modules of a device, for the message when one is missing.
_EXTRAS = {"sim": "sim", "uart": "uart"}

#: A job may take this long [seconds], and so many times what the compiler expects at
#: `SLOWEST_HERTZ`, before it is given up: a last resort, as the watchdog hears a hang earlier.
LEAST_SECONDS = 10.0
PATIENCE = 100
SLOWEST_HERTZ = 1e6

#: Faults that say nothing against the commands and weights that are in memory.
MEMORY_FAULTS = (FaultCode.BUS, FaultCode.PROTO, FaultCode.TIMEOUT)

#: Programs that a network keeps, one for each number of columns.
PROGRAMS_KEPT = 4


def open(  # noqa: A001 - as in sparsemac.open("sim:")
    uri: str = "reference:", config: CoreConfig | str | Path | None = None, **options: Any
) -> "Core":
    """Opens a device by its name and checks that it is the core that is asked for.

    Parameters
    ----------
    uri : str        ``scheme:rest``: ``reference:``, ``sim:``, ``uart:/dev/ttyUSB0``, or any scheme
                     that an installed package brings as an entry point.
    config :         The core's configuration, or a TOML file with it.  None: the device's default.
    options :        Passed to the device.

    Raises
    ------
    ValueError           If no such scheme is installed; names those that are.
    MissingDependency    If the device needs a package that is not installed; names the extra.
    DeviceMismatch       If the device is another core.
    """
    if not isinstance(uri, str):
        raise TypeError(f"uri must be a string like 'reference:', not {uri!r}")
    scheme, colon, rest = uri.partition(":")
    known = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if not colon or scheme not in known:
        names = ", ".join(f"'{name}:'" for name in sorted(known))
        extra = _EXTRAS.get(scheme)
        hint = f"; pip install 'sparsemac[{extra}]' brings it" if extra else ""
        raise ValueError(f"uri must begin with one of {names}, not {uri!r}{hint}")
    if isinstance(config, (str, Path)):
        config = CoreConfig.from_toml(config)
    if config is not None and not isinstance(config, CoreConfig):
        raise TypeError(f"config must be a CoreConfig or the path of a TOML file, not {config!r}")
    try:
        open_device = known[scheme].load()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(scheme, scheme)
        raise MissingDependency(
            f"{scheme}: needs the package {error.name!r}, which is not installed: "
            f"pip install 'sparsemac[{extra}]'"
        ) from error
    return Core(open_device(rest, config, **options))


class Network:
    """Layers that a core can run; made by `Core.load`.

    The layers are kept, so nothing that a job needs can go away while it runs.

    Attributes
    ----------
    segment : Segment    The layers and the tensors between them.
    """

    def __init__(self, segment: Segment, core: "Core") -> None:
        self.segment = segment
        self._core = core
        self._programs: dict[int, Program] = {}
        self._packed: PackedCache = {}
        self._columns_that_fit: int | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(use.layer for use in self.segment.uses)

    @property
    def inputs(self) -> int:
        """Elements of a sample of the first input."""
        return self.segment.shapes[self.segment.inputs[0]].elements

    @property
    def outputs(self) -> int:
        """Elements of a sample of the first output."""
        return self.segment.shapes[self.segment.outputs[0]].elements

    def compile(self, columns: int) -> Program:
        """Returns the program for a number of columns; compiles it the first time."""
        if columns not in self._programs:
            program = self._core._place(self.segment, columns, self._packed)
            while len(self._programs) >= PROGRAMS_KEPT:
                del self._programs[next(iter(self._programs))]
            self._programs[columns] = program
        return self._programs[columns]

    def split(self, columns: int) -> list[int]:
        """Cuts columns into jobs that fit the memory; compiles their programs."""
        most = min(columns, self._columns_that_fit or columns)
        while True:
            try:
                self.compile(most)
                break
            except TooManyColumns as error:
                if error.columns < 1:
                    raise
                most = self._columns_that_fit = error.columns
        jobs = [most] * (columns // most)
        if columns % most:
            jobs.append(columns % most)
        return jobs


class Core:
    """An open core. Use it in a ``with`` statement, or close it.

    It belongs to the process that opened it, and to one thread at a time: a second one gets
    `DeviceBusy` at once.

    Attributes
    ----------
    device : Device    What it drives.
    timeout : float    Seconds that a job may take; None: a generous multiple of the estimate.
    find_program : function    Given a segment and columns, returns a program that exists already,
                       or None; asked before a program is compiled.
    on_program : function      Called with a segment, columns and each program that was compiled.
    on_job : function  Called with the network, its program and the outputs after each job.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.timeout: float | None = None
        self.find_program: Callable[[Segment, int], Program | None] | None = None
        self.on_program: Callable[[Segment, int, Program], None] | None = None
        self.on_job: Callable[[Network, Program, list[NDArray[np.generic]]], None] | None = None
        self._session = Session(device)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        self._resident: list[Program] = []  # whose images are in memory
        self._free = device.memory_base  # where the next program goes
        try:
            check_identity(device)
            self._session.recover()
        except BaseException:
            device.close()
            raise

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self.device.config

    @property
    def uri(self) -> str:
        """How the device was opened."""
        return self.device.uri

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """The device, for one call of one thread of the process that opened it."""
        if os.getpid() != self._process:
            raise DeviceBusy(f"{self.uri} belongs to process {self._process}, which opened it")
        if not self._lock.acquire(blocking=False):
            raise DeviceBusy(f"{self.uri} is in use by another thread")
        try:
            if self._closed:
                raise DeviceClosed(f"{self.uri} is closed")
            yield
        finally:
            self._lock.release()

    # -- networks -------------------------------------------------------------------------------

    def load(self, network: Any, *, weight_bits: int = 8) -> Network:
        """Takes layers, one layer, or a matrix, and returns what `run` needs.

        Parameters
        ----------
        network : layer, a sequence of layers, a Segment, or a matrix
            Layers are LinearLayer or ConvLayer. A matrix is anything that `sparsemac.csr.as_csr`
            takes; its outputs are raw int32.
        weight_bits : int    Of a matrix: 4 or 8.

        Raises
        ------
        UnsupportedLayer    If the core cannot run it, with the limit that stands in the way.
        """
        if self._closed:
            raise DeviceClosed(f"{self.uri} is closed")
        loaded = Network(_segment(network, weight_bits), self)
        loaded.split(self.config.lanes)  # refuses now what could not be run later
        return loaded

    def run(self, network: Network, x: NDArray[Any] | Sequence[NDArray[Any]]) -> Result:
        """Runs a network.

        Parameters
        ----------
        network : Network    From this core's `load`.
        x : int8             Or integers in its range; copied, never modified. Of a vector
                             (inputs, columns), of a map (channels, height, width, columns). A
                             sequence of them for a segment of several inputs.

        Returns
        -------
        Result    Its outputs are new arrays, and exist only if every job ended without a fault.
        """
        if not isinstance(network, Network):
            raise TypeError(f"network must be what load returned, not {type(network).__name__}")
        if network._core is not self:
            raise ValueError(f"network must be loaded by this core, {self.uri}, not by another")
        arrays = _inputs(x, network.segment)
        total = arrays[0].shape[-1]
        with self._in_use():
            self._session.check_unchanged()
            parts, counters, first, jobs = [], None, 0, network.split(total)
            moved = [0, 0]
            for columns in jobs:
                program = network.compile(columns)
                out, counted = self._run_job(
                    network, program, [a[..., first : first + columns] for a in arrays], moved)
                parts.append(out)
                if counted is not None:
                    counters = counted if counters is None else counters + counted
                first += columns
        programs = [network.compile(columns) for columns in jobs]
        return Result(
            all_outputs=tuple(np.concatenate(p, axis=-1) for p in zip(*parts, strict=True)),
            counters=counters, jobs=len(jobs),
            macs=sum(program.macs for program in programs), program=programs[0],
            estimated_cycles=sum(program.estimated_cycles for program in programs),
            bytes_to_device=moved[0], bytes_from_device=moved[1], config=self.config,
        )

    def matmul(self, matrix: Any, x: NDArray[Any], *, weight_bits: int = 8) -> NDArray[np.int32]:
        """Returns ``matrix @ x`` as int32, computed by the core; see `load` and `run`."""
        network = self.load(matrix, weight_bits=weight_bits)
        return self.run(network, x).outputs.astype(np.int32, copy=False)

    def _place(self, segment: Segment, columns: int, packed: PackedCache) -> Program:
        """Compiles a program for memory that no other one has, as long as there is such memory."""
        device = self.device
        known = self.find_program(segment, columns) if self.find_program else None
        if known is not None:
            self._free = max(self._free, known.end)
            return known
        end = device.memory_base + device.memory_bytes

        def compiled(base: int) -> Program:
            return compile_segment(segment, columns, device.config, memory_base=base,
                                   memory_bytes=end - base, packed=packed)

        try:
            program = compiled(self._free)
        except TooManyColumns:
            if self._free == device.memory_base:
                raise
            program = compiled(device.memory_base)
        self._free = program.end
        if self.on_program is not None:
            self.on_program(segment, columns, program)
        return program

    def _write_image(self, program: Program) -> int:
        """Writes what stays in memory between jobs; returns its bytes."""
        self._resident = [other for other in self._resident
                          if not (other.image_address < program.end
                                  and program.image_address < other.end)]
        parts = ((program.image_address, program.image), *program.fills)
        for address, data in parts:
            self.device.write_memory(address, data)
        return sum(len(data) for _, data in parts)

    def _run_job(self, network: Network, program: Program, arrays: Sequence[NDArray[np.int8]],
                 moved: list[int]) -> tuple[list[NDArray[np.generic]], Counters | None]:
        """One doorbell; adds the bytes written and read to ``moved``."""
        device = self.device
        where = f"{network.segment.name}, {arrays[0].shape[-1]} columns"
        timeout = self.timeout
        if timeout is None:
            timeout = LEAST_SECONDS + PATIENCE * program.estimated_cycles / SLOWEST_HERTZ
        try:
            if program not in self._resident:
                moved[0] += self._write_image(program)
            for tensor, padding, x in zip(program.inputs, program.input_padding, arrays,
                                          strict=True):
                device.write_memory(tensor.address, tensor.to_memory(x, padding).tobytes())
                moved[0] += tensor.length
            if program not in self._resident:
                self._resident.append(program)
            counters = self._session.run(
                program.image_address, program.command_count, program.areas, timeout, where)
            outputs = [tensor.from_memory(device.read_memory(tensor.address, tensor.length))
                       for tensor in program.outputs]
            moved[1] += sum(tensor.length for tensor in program.outputs)
        except DeviceFault as fault:
            if fault.code not in MEMORY_FAULTS:
                self._resident.clear()  # images may be damaged: they are written again next time
            raise
        except DeviceTimeout:
            raise  # the core was stopped; nothing wrote where the image is
        except DeviceError:
            self._resident.clear()  # a device that restarted or went away has lost its memory
            raise
        _log.debug("%s: %s", where, counters)
        if self.on_job is not None:
            self.on_job(network, program, outputs)
        return outputs, counters

    # -- the end --------------------------------------------------------------------------------

    def reset(self) -> None:
        """Brings the core to rest and forgets what is in its memory."""
        with self._in_use():
            self._resident.clear()
            self._session.quiesce()

    def close(self) -> None:
        """Closes the windows and the device; closing twice is harmless.

        Raises
        ------
        DeviceBusy    If another thread has a job running.
        """
        if self._closed:
            return
        if os.getpid() != self._process:
            self._closed = True  # the device stays open where it was opened
            return
        with self._in_use():
            self._closed = True
            try:
                self._session.close_windows()
            except DeviceError as error:
                # The device is gone, or not ours any more: nothing is left to close there.
                _log.warning("%s closed with its windows open: %s", self.device.uri, error)
            finally:
                self.device.close()

    def __enter__(self) -> "Core":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Core {self.uri} {self.config.engines} x {self.config.lanes}, {state}>"


def _segment(network: Any, weight_bits: int) -> Segment:
    """Makes a segment of what `Core.load` takes."""
    if isinstance(network, Segment):
        return network
    if isinstance(network, LinearLayer | ConvLayer):
        return Segment.chain([network])
    if isinstance(network, Sequence) and any(isinstance(e, Layer) for e in network):
        for layer in network:
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"layers must be LinearLayer or ConvLayer, not {type(layer).__name__}")
        return Segment.chain(network)
    if isinstance(network, (list, tuple)) and not network:
        raise ValueError("layers must have at least one layer, not none")
    return Segment.chain([LinearLayer.from_matrix(network, weight_bits=weight_bits)])


def _inputs(x: Any, segment: Segment) -> list[NDArray[np.int8]]:
    """Checks the inputs of a segment; returns them as int8."""
    arrays = list(x) if isinstance(x, (list, tuple)) else [x]
    if len(arrays) != len(segment.inputs):
        raise ValueError(f"x must be {len(segment.inputs)} arrays, not {len(arrays)}")
    shapes = segment.shapes
    checked = [_activations(array, shapes[number])
               for array, number in zip(arrays, segment.inputs, strict=True)]
    counts = {array.shape[-1] for array in checked}
    if len(counts) > 1:
        raise ValueError(f"x must be arrays of as many columns, not of {sorted(counts)}")
    return checked


def _activations(x: Any, shape: TensorShape) -> NDArray[np.int8]:
    """Checks activations; returns them as int8, itself if they are that already."""
    want = (shape.channels,)
    if shape.height * shape.width > 1:
        want = (shape.channels, shape.height, shape.width)
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x must be an array of int8, not {type(x).__name__}")
    if x.shape[:-1] != want or x.ndim != len(want) + 1:
        text = ", ".join(map(str, want))
        raise ValueError(f"x must have shape ({text}, columns), not {x.shape}")
    if x.shape[-1] < 1:
        raise ValueError("x must have at least one column, not 0")
    if x.dtype == np.int8:
        return x
    if x.dtype.kind not in "iu":
        raise TypeError(f"x must hold int8 values, not {x.dtype}: quantize them first")
    if x.size and (x.min() < -128 or x.max() > 127):
        raise ValueError(f"x must hold values of -128 to 127, not {x.min()} to {x.max()}")
    return x.astype(np.int8)
