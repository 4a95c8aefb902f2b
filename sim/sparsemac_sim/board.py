# SPDX-License-Identifier: Apache-2.0
"""A board simulated at its pins: the serial line ends in a pseudo-terminal.

The driver's own ``uart:`` transport opens the terminal as it would open a board's port; a thread
moves bytes between it and the simulated pins, and may lose, flip or double some on the way.
"""

import contextlib
import ctypes
import os
import random
import shutil
import subprocess
import threading
import time
import tty
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparsemac.config import CoreConfig
from sparsemac.errors import DeviceError
from sparsemac_boards.soc import UartSoc
from sparsemac_hw.emit import emit_verilog

from .build import VERILATOR_LINT_OFF
from .cache import cached, content_hash
from .toolchain import find_compiler, find_verilator

__all__ = ["SimulatedBoard", "WireFaults"]

_SOURCE = Path(__file__).parent / "native_board" / "board.cpp"
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
_VERILATE_FLAGS = (
    "--cc", "--no-timing", "-O3", "--top-module", "board", "--prefix", "Vboard", "--Mdir", ".",
    "--output-split", "0", "-fno-merge-cond-motion",
    *(f"-Wno-{name}" for name in VERILATOR_LINT_OFF),
)
_COMPILE_FLAGS = (
    "-shared", "-std=gnu++20", "-O1", "-fPIC", "-fvisibility=hidden", "-w", "-DVERILATOR=1",
    "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", "-DVM_TRACE=0", "-DVM_TRACE_FST=0",
    "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0", "-I.",
)

#: Cycles between two looks at the terminal: twenty bytes at 4 cycles per bit.
_SLICE_CYCLES = 800

#: After so many looks at a line on which nothing moves, the processor is left to others in between.
_QUIET_LOOKS = 50
_QUIET_SECONDS = 0.0005

#: Bytes from the board that may wait for a host that does not read.
_BACKLOG_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFaults:
    """What happens to bytes on the wire, each with a probability per byte, in both directions."""

    lost: float = 0.0
    flipped: float = 0.0
    doubled: float = 0.0
    seed: int = 0


class SimulatedBoard:
    """A running board; `port` is what ``uart:`` takes.

    Parameters
    ----------
    config : CoreConfig
    memory_bytes : int     On-chip memory.
    divisor : int          Cycles of a bit.
    faults : WireFaults
    """

    def __init__(self, config: CoreConfig, *, memory_bytes: int = 1 << 16, divisor: int = 4,
                 faults: WireFaults | None = None) -> None:
        self._library = _load(_build(config, memory_bytes, divisor))
        self._board = ctypes.c_void_p(self._library.board_create(divisor))
        self._faults = faults or WireFaults()
        self._rng = random.Random(self._faults.seed)
        self._master, slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave  # held open, so that the line survives a host that reconnects
        os.set_blocking(self._master, False)
        self._unplugged = threading.Event()
        self._stop = threading.Event()
        self._restart = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._thread.start()

    def __enter__(self) -> "SimulatedBoard":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def unplug(self) -> None:
        """From now on nothing passes the wire."""
        self._unplugged.set()

    def plug(self) -> None:
        """The wire is whole again."""
        self._unplugged.clear()

    def restart(self) -> None:
        """Resets the board, as after a loss of power but for its memory."""
        self._restart.set()
        while self._restart.is_set() and self._thread.is_alive():
            time.sleep(0.001)

    def close(self) -> None:
        """Stops the simulation; closing twice is harmless."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._library.board_destroy(self._board)
        os.close(self._master)
        os.close(self._slave)

    # -- the simulation's thread ----------------------------------------------------------------

    def _wire(self, data: bytes) -> bytes:
        """What of ``data`` comes out at the other end."""
        if self._unplugged.is_set():
            return b""
        faults, draw = self._faults, self._rng.random
        if not (faults.lost or faults.flipped or faults.doubled):
            return data
        out = bytearray()
        for byte in data:
            if draw() < faults.lost:
                continue
            if draw() < faults.flipped:
                byte ^= 1 << self._rng.randrange(8)
            out += bytes([byte]) * (2 if draw() < faults.doubled else 1)
        return bytes(out)

    def _run(self) -> None:
        buffer = (ctypes.c_uint8 * 4096)()
        back = bytearray()
        quiet = 0
        while not self._stop.is_set():
            if self._restart.is_set():
                self._library.board_reset(self._board)
                self._restart.clear()
            try:
                data = self._wire(os.read(self._master, 4096))
            except BlockingIOError:
                data = b""
            if data:
                self._library.board_send(self._board, data, len(data))
            self._library.board_run(self._board, _SLICE_CYCLES)
            count = self._library.board_receive(self._board, buffer, len(buffer))
            back += self._wire(bytes(buffer[:count]))
            quiet = 0 if data or count else quiet + 1
            if quiet > _QUIET_LOOKS:
                time.sleep(_QUIET_SECONDS)
            if back:
                # Nobody may be there to read: then the terminal is full, and its driver's buffer,
                # which this one stands for, grows no further either.
                del back[:-_BACKLOG_BYTES]
                with contextlib.suppress(BlockingIOError):
                    del back[: os.write(self._master, back)]


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.board_create.restype = ctypes.c_void_p
    library.board_receive.restype = ctypes.c_uint32
    return library


@cache
def _verilog(config: CoreConfig, memory_bytes: int, divisor: int) -> str:
    return emit_verilog(UartSoc(config, memory_bytes, divisor), "board")


def _build(config: CoreConfig, memory_bytes: int, divisor: int) -> Path:
    """Compiles the board's Verilog and its harness; cached by content."""
    verilog = _verilog(config, memory_bytes, divisor)
    verilator, compiler = find_verilator(), find_compiler()
    key = content_hash([verilog, _SOURCE.read_bytes(), verilator.version, compiler.version,
                        *_VERILATE_FLAGS, *_COMPILE_FLAGS])

    def make(work: Path) -> None:
        model = work / "model"
        model.mkdir()
        (model / "board.v").write_text(verilog, encoding="utf-8")
        _call([str(verilator.binary), *_VERILATE_FLAGS, "board.v"], model, verilator.environment)
        sources = sorted(path.name for path in model.glob("Vboard*.cpp"))
        unit = "".join(f'#include "{name}"\n' for name in [*sources, str(_SOURCE)])
        (model / "unit.cpp").write_text(unit, encoding="utf-8")
        include = verilator.include
        _call([
            str(compiler.path), *_COMPILE_FLAGS, f"-I{include}", f"-I{include / 'vltstd'}",
            "unit.cpp", *(str(include / name) for name in _RUNTIME), "-pthread",
            "-o", str(work / "board.so"),
        ], model, None)
        shutil.rmtree(model)

    return cached(f"boards/{key}", make) / "board.so"


def _call(command: list[str], folder: Path, env: dict[str, str] | None) -> None:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:20])
        raise DeviceError(f"{Path(command[0]).name} failed while it built the board:\n{said}")
