# SPDX-License-Identifier: Apache-2.0
"""Command-wise golden model: runs a command list on a memory image, as the core does.

It reads what stands in memory, byte for byte, so a fault of the compiler and a fault of the core
can be told apart. Commands run one after another; their waits are checked, not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .commands import (
    COMMAND_BYTES,
    CommandError,
    Exec,
    Load,
    OutputMode,
    Shift,
    decode,
)
from .config import CoreConfig
from .csr import Csr
from .golden import matmul
from .numerics import requantize
from .registers import WINDOW_GRANULE_BYTES, FaultCode
from .schedule import row_costs
from .stream import StreamError, UnpackedStreams, unpack

__all__ = ["Fault", "Machine", "MachineFault", "Window"]

ADDRESS_SPACE = 1 << 32
DECERR = 3


@dataclass(frozen=True, slots=True)
class Window:
    """Pages ``first`` to ``last``, both included, and what is allowed in them."""

    first: int
    last: int
    read: bool
    write: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a job stopped; as the registers ERROR and FAULT_* tell it."""

    code: FaultCode
    command: int
    address: int = 0
    detail: int = 0


class MachineFault(Exception):
    """Carries a `Fault` out of a job."""

    def __init__(self, code: FaultCode, address: int = 0, detail: int = 0) -> None:
        self.code, self.address, self.detail = code, address, detail
        super().__init__(code.name)


@dataclass
class Machine:
    """A core with its buffers, and the memory that it works in.

    Parameters
    ----------
    config : CoreConfig
    memory : (bytes,) uint8            Changed in place.
    memory_base : int                  Address of its first byte.
    windows : sequence of Window       None: everything is open.

    Attributes
    ----------
    counters : dict                    By the names of `registers.COUNTERS`. CYCLES is a lower
                                       bound: the cycles of the slowest engine of each EXEC.
    """

    config: CoreConfig
    memory: NDArray[np.uint8]
    memory_base: int = 0
    windows: Sequence[Window] | None = None
    counters: dict[str, int] = field(default_factory=dict)

    def run(self, command_address: int, command_count: int) -> Fault | None:
        """Runs a list; returns the fault that stopped it, or None."""
        config = self.config
        self.counters = dict.fromkeys(
            ("CYCLES", "ISSUED", "FILLERS", "READ_BEATS", "WRITE_BEATS", "WRITE_BYTES"), 0)
        self._buffer = np.zeros((config.act_depth, config.lanes), np.int8)
        self._psums: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * config.engines
        loads = execs = index = 0
        try:
            if command_address % COMMAND_BYTES:
                raise MachineFault(FaultCode.ALIGN)
            if command_count == 0:
                raise MachineFault(FaultCode.ZERO)
            for index in range(command_count):
                address = (command_address + index * COMMAND_BYTES) % ADDRESS_SPACE
                command = self._fetch(address)
                if isinstance(command, Load):
                    if command.wait > execs:
                        raise MachineFault(FaultCode.DESC)
                    self._check_load(command)
                    self._load(command)
                    loads += 1
                else:
                    if command.wait > loads:
                        raise MachineFault(FaultCode.DESC)
                    self._check_exec(command)
                    self._exec(command)
                    execs += 1
        except MachineFault as fault:
            return Fault(fault.code, index, fault.address, fault.detail)
        return None

    # -- memory ---------------------------------------------------------------------------------

    def _check_pages(self, addresses: NDArray[np.int64], write: bool) -> None:
        """Checks the pages of accesses in order; the first that is refused is the fault."""
        if self.windows is not None:
            pages = addresses // WINDOW_GRANULE_BYTES
            covered = np.zeros(len(pages), bool)
            allowed = np.zeros(len(pages), bool)
            for window in self.windows:
                inside = (pages >= window.first) & (pages <= window.last)
                covered |= inside
                if window.write if write else window.read:
                    allowed |= inside
            if not allowed.all():
                at = int(np.flatnonzero(~allowed)[0])
                code = FaultCode.PERM if covered[at] else FaultCode.WINDOW
                raise MachineFault(code, int(addresses[at]), int(write))
        local = addresses - self.memory_base
        if (bad := np.flatnonzero((local < 0) | (local >= len(self.memory)))).size:
            raise MachineFault(FaultCode.BUS, int(addresses[bad[0]]), DECERR | write << 2)

    def _read(self, address: int, length: int) -> NDArray[np.uint8]:
        first_page = address // WINDOW_GRANULE_BYTES
        pages = np.arange(first_page, (address + length - 1) // WINDOW_GRANULE_BYTES + 1)
        starts = np.maximum(pages * WINDOW_GRANULE_BYTES, address)
        self._check_pages(starts % ADDRESS_SPACE, False)
        self.counters["READ_BEATS"] += length // self.config.bus_bytes
        local = address - self.memory_base
        data = self.memory[local : local + length]
        if len(data) < length:
            raise MachineFault(FaultCode.BUS, self.memory_base + len(self.memory), DECERR)
        return data

    # -- commands -------------------------------------------------------------------------------

    def _fetch(self, address: int) -> Load | Exec:
        try:
            return decode(self._read(address, COMMAND_BYTES).tobytes())
        except CommandError:
            raise MachineFault(FaultCode.DESC) from None

    def _check_load(self, command: Load) -> None:
        config = self.config
        beat = config.bus_bytes
        if (command.shift or command.mask) and not config.shifts:
            raise MachineFault(FaultCode.DESC)
        if (command.address % beat or command.stride % beat
                or command.destination % config.line_words or command.gap % config.line_words
                or command.line_beats % config.word_beats):
            raise MachineFault(FaultCode.ALIGN)
        if not command.line_beats or not command.lines:
            raise MachineFault(FaultCode.ZERO)
        if (command.destination >= config.act_depth or command.gap >= config.act_depth
                or command.line_beats > 0xFFFF or command.lines > 0xFFFF):
            raise MachineFault(FaultCode.SIZE)

    def _load(self, command: Load) -> None:
        config = self.config
        words = command.line_beats * config.bus_bytes // config.lanes
        length = command.line_beats * config.bus_bytes
        destination, address = command.destination, command.address
        for _ in range(command.lines):
            if destination + words > config.act_depth:
                raise MachineFault(FaultCode.SIZE, address)
            line = self._read(address, length).view(np.int8).reshape(words, config.lanes)
            self._buffer[destination : destination + words] = _shifted(line, command)
            destination += words + command.gap
            address = (address + command.stride) % ADDRESS_SPACE

    def _check_exec(self, command: Exec) -> None:
        config = self.config
        word = config.out_word_bytes(command.mode == OutputMode.RAW)
        if (command.output % word or command.weights % config.bus_bytes
                or command.beats % config.engines):
            raise MachineFault(FaultCode.ALIGN)
        if not (command.beats and command.positions and command.width and command.limit):
            raise MachineFault(FaultCode.ZERO)
        if (command.limit > 1 << 16 or command.base >= config.act_depth
                or command.positions > config.depth
                or (not config.psum_depth and (command.psum_in or command.psum_out))):
            raise MachineFault(FaultCode.SIZE)

    @staticmethod
    def _walk(
        positions: int, width: int, step: int, wrap_step: int, modulus: int
    ) -> NDArray[np.int64]:
        """a(p) of `sparsemac.commands`."""
        p = np.arange(1, positions, dtype=np.int64)
        steps = np.where(p % width == 0, wrap_step, step)
        return np.concatenate([[0], np.cumsum(steps)]) % modulus

    def _exec(self, command: Exec) -> None:
        config = self.config
        data = self._read(command.weights, command.beats * config.bus_bytes)
        try:
            streams = unpack(
                data, config.engines, config.bus_bytes, command.format, has_bias=command.has_bias,
                quantized=command.mode != OutputMode.RAW)
        except StreamError as error:
            raise MachineFault(FaultCode.STREAM, detail=error.engine) from None
        places = (command.base + self._walk(command.positions, command.width, command.step,
                                            command.wrap_step, 1 << 16)) % (1 << 16)
        self._check_streams(command, streams, places)
        self._count(command, streams)
        sums = self._sums(command, streams, places)
        if command.psum_in or command.psum_out:
            sums = self._exchange_psums(command, streams, sums)
        if not command.psum_out:
            self._store(command, streams, sums)

    def _check_streams(self, command: Exec, streams: UnpackedStreams,
                       places: NDArray[np.int64]) -> None:
        def refuse(bad: NDArray[np.bool_], code: FaultCode) -> None:
            if bad.any():
                raise MachineFault(code, detail=int(streams.engine_of_row[np.flatnonzero(bad)[0]]))

        if command.positions > 1:
            refuse(streams.counts > self.config.entry_depth, FaultCode.ROW)
        highest = np.zeros(len(streams.counts), np.int64)
        filled = np.flatnonzero(streams.counts)
        if len(filled):
            highest[filled] = np.maximum.reduceat(streams.offsets, streams.indptr[filled])
        refuse(highest >= command.limit, FaultCode.COLUMN)
        refuse(highest + places.max() >= self.config.act_depth, FaultCode.COLUMN)

    def _count(self, command: Exec, streams: UnpackedStreams) -> None:
        entries = np.maximum(streams.counts, 1) * command.positions
        cycles = row_costs(streams.counts, self.config.shortest_row_cycles) * command.positions
        per_engine = np.bincount(streams.engine_of_row, cycles, minlength=self.config.engines)
        self.counters["ISSUED"] += int(entries.sum())
        self.counters["FILLERS"] += streams.fillers
        self.counters["CYCLES"] += int(per_engine.max(initial=0))

    def _sums(self, command: Exec, streams: UnpackedStreams,
              places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(rows, positions, lanes) accumulated sums, in ``acc_width`` bits."""
        config = self.config
        used, columns = np.unique(streams.offsets, return_inverse=True)
        x = self._buffer[used[:, None] + places].reshape(len(used), len(places) * config.lanes)
        csr = Csr((len(streams.counts), len(used)), streams.indptr, columns,
                  streams.weights.astype(np.int8))
        return _wrap(matmul(csr, x), config.acc_width).reshape(-1, len(places), config.lanes)

    def _exchange_psums(self, command: Exec, streams: UnpackedStreams,
                        sums: NDArray[np.int64]) -> NDArray[np.int64]:
        """Adds the sums kept before, or the bias; keeps the result if asked to."""
        config = self.config
        result = np.empty_like(sums)
        for e in range(config.engines):
            mine = streams.engine_of_row == e
            part = sums[mine]
            if part.size > config.psum_depth:
                raise MachineFault(FaultCode.PSUM, detail=e)
            if command.psum_in:
                kept = np.zeros(part.size, np.int64)
                kept[: len(self._psums[e])] = self._psums[e][: part.size]
                part = part + kept.reshape(part.shape)
            else:
                part = part + streams.bias[mine][:, None, None]
            result[mine] = part = _wrap(part, 32)
            if command.psum_out:
                self._psums[e] = np.concatenate([part.ravel(), self._psums[e][part.size :]])
        return result

    def _store(self, command: Exec, streams: UnpackedStreams, sums: NDArray[np.int64]) -> None:
        config = self.config
        if not command.psum_in:
            sums = _wrap(sums + streams.bias[:, None, None], 32)
        raw = command.mode == OutputMode.RAW
        if raw:
            values = sums.astype("<i4")
        else:
            values = requantize(
                sums, streams.multiplier[:, None, None], streams.shift[:, None, None],
                command.zero_point, command.low, command.high, command.mode)
        word_bytes = config.out_word_bytes(raw)
        walk = self._walk(command.positions, command.width, command.out_step,
                          command.out_wrap_step, ADDRESS_SPACE)
        words = (streams.out_offsets[:, None] + walk) % ADDRESS_SPACE
        addresses = ((command.output + words * word_bytes) % ADDRESS_SPACE).ravel()
        self._check_pages(addresses, True)
        beats = max(1, word_bytes // config.bus_bytes) * self._bursts(command, words, word_bytes)
        self.counters["WRITE_BEATS"] += beats
        self.counters["WRITE_BYTES"] += len(addresses) * word_bytes
        local = (addresses - self.memory_base)[:, None] + np.arange(word_bytes)
        self.memory[local] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, word_bytes)

    def _bursts(self, command: Exec, words: NDArray[np.int64], word_bytes: int) -> int:
        """Bursts that output words (rows, positions) take.

        Words that come one behind another in the same beat share it.
        """
        each = max(1, self.config.bus_bytes // word_bytes)
        places = (words + command.output // word_bytes) % each
        p = np.arange(1, words.shape[1] + 1)
        steps = np.where(p % command.width == 0, command.out_wrap_step, command.out_step)
        shares = (0 < steps) & (places + steps < each) & (p < words.shape[1])
        return int(np.count_nonzero(~shares))


def _shifted(words: NDArray[np.int8], command: Load) -> NDArray[np.int8]:
    """Moves the elements of words by a lane, and fills those of masked lanes."""
    step = {Shift.NONE: 0, Shift.UP: 1, Shift.DOWN: -1}[command.shift]
    masked = [bool(command.mask >> lane & 1) for lane in range(words.shape[1])]
    return np.where(masked, np.int8(command.fill), np.roll(words, step, axis=1))


def _wrap(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Two's complement of ``width`` bits."""
    half = 1 << width - 1
    return ((values + half) & ((1 << width) - 1)) - half
