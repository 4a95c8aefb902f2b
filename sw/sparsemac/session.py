# SPDX-License-Identifier: Apache-2.0
"""One job after another on a device: registers by name, windows, doorbell, faults, recovery."""

import logging
from collections.abc import Sequence

from .devices.base import Device
from .errors import DeviceBusy, DeviceChanged, DeviceError, DeviceTimeout
from .faults import fault_error
from .layout import Area
from .registers import COUNTERS, WINDOW_GRANULE_BYTES, FaultCode, register_map
from .result import Counters

__all__ = ["Session"]

_log = logging.getLogger(__name__)

#: How long an abort may take [seconds], and how often STATUS is read for the last beats.
ABORT_SECONDS = 1.0
DRAIN_POLLS = 1000


class Session:
    """Runs command lists on an open device; belongs to whoever holds the device.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._map = register_map(device.config)

    # -- registers ------------------------------------------------------------------------------

    def read(self, name: str, field: str | None = None) -> int:
        """Returns a register, or one field of it."""
        register = self._map[name]
        value = self._device.read_register(register.byte_offset)
        if field is None:
            return value
        return (value & register[field].mask) >> register[field].lsb

    def write(self, name: str, value: int) -> None:
        """Writes a register."""
        self._device.write_register(self._map[name].byte_offset, value)

    def strobe(self, name: str, field: str) -> None:
        """Writes 1 to one field of a register, 0 to all others."""
        self.write(name, self._map[name][field].mask)

    def read_counters(self) -> Counters | None:
        """Returns the counters of the last job; the low half latches the high one."""
        if not self._device.config.counters:
            return None
        values = {}
        for name, _ in COUNTERS:
            low = self.read(f"{name}_LO")
            values[name] = low | self.read(f"{name}_HI") << 32
        return Counters.from_registers(values)

    # -- jobs -----------------------------------------------------------------------------------

    def recover(self) -> None:
        """Brings the core to rest, whatever it is doing, e.g. for a process that is gone."""
        if self.read("STATUS", "busy"):
            _log.warning("%s was busy with a job of someone else: aborted", self._device.uri)
        self.quiesce()

    def check_unchanged(self) -> None:
        """Reads the configuration hash again: the cheapest sign of another bitstream."""
        want, got = self._device.config.hash, self.read("CONFIG_HASH")
        if got != want:
            raise DeviceChanged(
                f"CONFIG_HASH of {self._device.uri} must be {want:#010x}, as when it was opened, "
                f"not {got:#010x}: another core was loaded; open the device again"
            )

    def run(self, address: int, count: int, areas: Sequence[Area], timeout: float,
            where: str) -> Counters | None:
        """Runs a command list to its end; returns the counters.

        Whatever ends it early leaves the core idle: a fault, a timeout, or an exception such as
        `KeyboardInterrupt`, which is raised again once no burst is outstanding.

        Parameters
        ----------
        address, count :     The list.
        areas :              What the core may read, and what it may write; all else is closed.
        timeout : float      [seconds], see `Device.wait_interrupt`.
        where : str          Names the job in messages.

        Raises
        ------
        DeviceBusy       If a job is running or beats of one are outstanding.
        DeviceFault      One class for each code; see `sparsemac.faults`.
        DeviceTimeout    With STATUS and the job.
        """
        self._check_idle()
        try:
            self._open_windows(areas)
            self.write("COMMAND_ADDRESS", address)
            self.write("COMMAND_COUNT", count)
            self.strobe("STATUS", "done")
            self.strobe("IRQ_ENABLE", "done")
            self.strobe("CTRL", "start")
            self._wait(timeout, where)
            code = FaultCode(self.read("ERROR", "code"))
        except BaseException:
            self._stop_quietly()
            raise
        if code != FaultCode.NONE:
            error = fault_error(code, self.read("FAULT_COMMAND"), self.read("FAULT_ADDRESS"),
                                self.read("FAULT_DETAIL"), where)
            self._stop_quietly()
            raise error
        self.strobe("STATUS", "done")
        return self.read_counters()

    def _check_idle(self) -> None:
        status = self.read("STATUS")
        if status & self._map["STATUS"]["wedged"].mask:
            raise self._no_answer(status)
        if status & (self._map["STATUS"]["busy"].mask | self._map["STATUS"]["draining"].mask):
            raise DeviceBusy(f"{self._device.uri} is busy with another job (STATUS {status:#x})")

    def _no_answer(self, status: int) -> DeviceError:
        return DeviceError(
            f"the bus of {self._device.uri} does not answer (STATUS {status:#x}): it needs a reset "
            f"together with the core"
        )

    def _wait(self, timeout: float, where: str) -> None:
        try:
            self._device.wait_interrupt(timeout)
        except DeviceTimeout as error:
            raise DeviceTimeout(f"{error} ({where}; STATUS {self.read('STATUS'):#x})") from error

    def _open_windows(self, areas: Sequence[Area]) -> None:
        """Opens windows over the areas; with too few windows, one from the first to the last."""
        windows = self._device.config.windows
        spans = [(a.address, a.last_page, a.writable) for a in areas]
        if len(spans) > windows:
            spans = [(min(s[0] for s in spans), max(s[1] for s in spans), True)]
        for i in range(windows):
            perm = self._map[f"WINDOW{i}_PERM"]
            # A window that ends before it begins covers nothing: what hits it is outside (WINDOW).
            first, last, bits = WINDOW_GRANULE_BYTES, 0, 0
            if i < len(spans):
                first, last, writable = spans[i]
                bits = perm["read"].mask | (perm["write"].mask if writable else 0)
            self.write(f"WINDOW{i}_FIRST", first)
            self.write(f"WINDOW{i}_LAST", last)
            self.write(perm.name, bits)

    def close_windows(self) -> None:
        """Closes all windows: the core reaches no memory until the next job."""
        self._open_windows(())

    # -- the way back ---------------------------------------------------------------------------

    def quiesce(self) -> None:
        """Aborts what runs, waits for outstanding beats, and resets the core.

        Raises
        ------
        DeviceError    If beats stay outstanding: the bus does not answer and needs a reset.
        """
        if self.read("STATUS", "busy"):
            self.strobe("IRQ_ENABLE", "done")
            self.strobe("CTRL", "abort")
            try:
                self._device.wait_interrupt(ABORT_SECONDS)
            except DeviceTimeout:
                _log.debug("%s did not stop at the abort", self._device.uri)
        self.strobe("CTRL", "soft_reset")
        self.strobe("STATUS", "done")
        for _ in range(DRAIN_POLLS):
            if not self.read("STATUS", "draining"):
                break
        self.close_windows()
        if self.read("STATUS", "wedged") or self.read("STATUS", "draining"):
            raise self._no_answer(self.read("STATUS"))

    def _stop_quietly(self) -> None:
        """Quiesces on the way out of another exception, which must not be replaced."""
        try:
            self.quiesce()
        except DeviceError as error:
            _log.warning("after a failed job: %s", error)
