# SPDX-License-Identifier: Apache-2.0
"""The device interface: registers, memory, an interrupt, an identity."""

from abc import ABC, abstractmethod

from ..config import CoreConfig
from ..errors import DeviceMismatch
from ..registers import MAGIC, VERSION, register_map

__all__ = ["Device", "check_identity"]


class Device(ABC):
    """A core and the memory that it works in.

    Addresses are byte addresses; registers are 32 bits wide. A device belongs to one thread of one
    process. All methods raise `DeviceClosed` after `close`.

    Attributes
    ----------
    uri : str              How the device was opened.
    config : CoreConfig    Configuration of the core.
    memory_base : int      First byte address of the memory that the core and the host share.
    memory_bytes : int     Bytes of that memory.
    """

    uri: str
    config: CoreConfig
    memory_base: int = 0
    memory_bytes: int

    @abstractmethod
    def read_register(self, offset: int) -> int:
        """Returns the register at byte ``offset``; `DeviceError` if the core answers SLVERR."""

    @abstractmethod
    def write_register(self, offset: int, value: int) -> None:
        """Writes the register at byte ``offset``; `DeviceError` if the core answers SLVERR."""

    @abstractmethod
    def read_memory(self, address: int, length: int) -> bytes:
        """Returns ``length`` bytes from ``address``."""

    @abstractmethod
    def write_memory(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Writes ``data`` to ``address``."""

    @abstractmethod
    def wait_interrupt(self, timeout: float) -> None:
        """Returns when the interrupt is raised.

        ``timeout`` is a limit in seconds on a board and in the reference model; simulators scale
        it to cycles by their own stated rate. `DeviceTimeout` names the limit with its unit.
        """

    @abstractmethod
    def close(self) -> None:
        """Releases the device; closing twice is harmless."""

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_identity(device: Device) -> None:
    """Compares magic, version and configuration hash of the core with what the host expects.

    Raises
    ------
    DeviceMismatch    Naming the register, what was wanted and what was read.
    """
    registers = register_map(device.config)
    wanted = (("MAGIC", MAGIC), ("VERSION", VERSION), ("CONFIG_HASH", device.config.hash))
    for name, want in wanted:
        got = device.read_register(registers[name].byte_offset)
        if got != want:
            raise DeviceMismatch(f"{name} of {device.uri} must be {want:#010x}, not {got:#010x}")
