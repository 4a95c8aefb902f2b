# SPDX-License-Identifier: Apache-2.0
"""One exception for each fault code, each with its cause and what to do about it.

After any of them the core has been reset and the same job can be run again: weights stay in memory.
"""

from .errors import DeviceAborted, DeviceError, DeviceFault
from .registers import FaultCode

__all__ = [
    "AlignmentFault",
    "BusFault",
    "CommandFault",
    "OffsetFault",
    "PartialSumFault",
    "PermissionFault",
    "ProtocolFault",
    "RowLengthFault",
    "SizeFault",
    "StreamFault",
    "WatchdogFault",
    "WindowFault",
    "ZeroLengthFault",
    "fault_error",
]


class CommandFault(DeviceFault):
    """A command was malformed: opcode, magic, checksum, reserved bits, or a wait never met."""

    remedy = "the command list was changed in memory; run again, which writes it again"


class AlignmentFault(DeviceFault):
    """An address or a length of a command is not a multiple of what it must be."""

    remedy = "the command list does not fit this core; compile it for the core's configuration"


class ZeroLengthFault(DeviceFault):
    """A length of a command is zero."""

    remedy = "the command list does not fit this core; compile it for the core's configuration"


class SizeFault(DeviceFault):
    """A length or an address of a command is beyond a buffer of the core."""

    remedy = "the command list does not fit this core; compile it for the core's configuration"


class WindowFault(DeviceFault):
    """A burst was outside every open window; the detail is 0 for a read, 1 for a write."""

    remedy = "open a window over the address, or find out who changed the command list"


class PermissionFault(DeviceFault):
    """A burst was in a window that does not allow its direction; the detail is 1 for a write."""

    remedy = "open the window for this direction, or find out who changed the command list"


class BusFault(DeviceFault):
    """The memory answered with an error; the detail is the AXI response, plus 4 for a write."""

    remedy = "check that the address is backed by memory; if the error was transient, run again"


class ProtocolFault(DeviceFault):
    """The memory broke a rule of AXI4: a last beat early or late, or a beat nobody asked for."""

    remedy = "check the interconnect between core and memory"


class WatchdogFault(DeviceFault, TimeoutError):
    """Nothing moved for WATCHDOG cycles."""

    remedy = "the memory does not answer; reset it, or raise WATCHDOG if it is that slow"


class StreamFault(DeviceFault):
    """A weight stream ended early or late; the detail is the engine."""

    remedy = "the weights were changed in memory; run again, which writes them again"


class OffsetFault(DeviceFault):
    """An entry's offset is beyond the limit of the command; the detail is the engine."""

    remedy = "the weights were changed in memory; run again, which writes them again"


class RowLengthFault(DeviceFault):
    """A row is too long to be replayed from the entry buffer; the detail is the engine."""

    remedy = "compile the network for the core's entry_depth"


class PartialSumFault(DeviceFault):
    """There were more partial sums than an engine keeps; the detail is the engine."""

    remedy = "compile the network for the core's psum_depth"


_CLASSES: dict[FaultCode, type[DeviceFault]] = {
    FaultCode.DESC: CommandFault,
    FaultCode.ALIGN: AlignmentFault,
    FaultCode.ZERO: ZeroLengthFault,
    FaultCode.SIZE: SizeFault,
    FaultCode.WINDOW: WindowFault,
    FaultCode.PERM: PermissionFault,
    FaultCode.BUS: BusFault,
    FaultCode.PROTO: ProtocolFault,
    FaultCode.TIMEOUT: WatchdogFault,
    FaultCode.STREAM: StreamFault,
    FaultCode.COLUMN: OffsetFault,
    FaultCode.ROW: RowLengthFault,
    FaultCode.PSUM: PartialSumFault,
}


def fault_error(code: int, command: int, address: int, detail: int, where: str = "") -> DeviceError:
    """Returns the exception for a fault; ``where`` names the layer or the job."""
    if code == FaultCode.ABORTED:
        job = f"the job ({where})" if where else "the job"
        return DeviceAborted(f"{job} was aborted at command {command}")
    try:
        known = FaultCode(code)
    except ValueError:
        return DeviceFault(code, command, address, detail, f"unknown fault code {code}")
    kind = _CLASSES[known]
    cause = (kind.__doc__ or "").strip()
    text = f"{where + '. ' if where else ''}{cause} Remedy: {getattr(kind, 'remedy', '')}."
    return kind(known, command, address, detail, text)
