# SPDX-License-Identifier: Apache-2.0
"""Exceptions that every device raises, simulated or real.

The kinds follow one rule: `TypeError` for the wrong kind of argument, `ValueError` for the wrong
value, and a `DeviceError` for what happens on the other side of the bus.
"""

__all__ = [
    "DeviceAborted",
    "DeviceBusy",
    "DeviceChanged",
    "DeviceClosed",
    "DeviceError",
    "DeviceFault",
    "DeviceMismatch",
    "DeviceRestarted",
    "DeviceTimeout",
    "LinkError",
    "MissingDependency",
    "ModelError",
    "OutcomeUnknown",
    "UnsupportedLayer",
]


class DeviceError(RuntimeError):
    """Base of everything that a device can report."""


class DeviceTimeout(DeviceError, TimeoutError):
    """A device did not answer within a stated limit (cycles in simulation, seconds on a board)."""


class DeviceMismatch(DeviceError):
    """The device found is not the one asked for: magic, version or configuration hash differ."""


class DeviceChanged(DeviceMismatch):
    """The device changed its identity while it was open (another bitstream was loaded)."""


class DeviceBusy(DeviceError):
    """The device is in use by a job, another thread or another process."""


class DeviceClosed(DeviceError):
    """The device was used after it had been closed."""


class DeviceAborted(DeviceError):
    """The job was stopped by an abort; its outputs do not count."""


class DeviceFault(DeviceError):
    """The core stopped with a fault code.

    Attributes
    ----------
    code : int          The fault code, a member of `sparsemac.registers.FaultCode` where known.
    command : int       Index of the command at fault, in the list of the job.
    address : int       Byte address of the access at fault, 0 if there was none.
    detail : int        Engine, lane or position, as the code defines.
    """

    def __init__(
        self, code: int, command: int, address: int = 0, detail: int = 0, text: str = ""
    ) -> None:
        self.code = code
        self.command = command
        self.address = address
        self.detail = detail
        name = getattr(code, "name", str(int(code)))
        where = f"command {command}, address {address:#010x}, detail {detail}"
        super().__init__(
            f"core stopped with fault {name} at {where}" + (f": {text}" if text else "")
        )


class LinkError(DeviceError):
    """A transport gave up after its retries; the operation was not carried out or has no effect."""


class OutcomeUnknown(LinkError):
    """Retries ran out after a write was sent: it may or may not have been carried out."""


class DeviceRestarted(LinkError):
    """The far side of a link restarted in the middle of a session; its state is lost."""


class UnsupportedLayer(ValueError):
    """A layer or a matrix that this core cannot run, with the limit that stands in the way."""


class ModelError(ValueError):
    """A model file that is damaged, or that holds what cannot be run; names what and where."""


class MissingDependency(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""
