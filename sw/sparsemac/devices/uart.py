# SPDX-License-Identifier: Apache-2.0
"""``uart:PORT``: a board behind the framed serial link."""

import time
from typing import Any

from .._checks import as_int_in, need
from ..config import CoreConfig
from ..errors import DeviceClosed, DeviceTimeout, LinkError
from ..link import LinkClient
from ..registers import register_map
from .base import Device

__all__ = ["SerialTransport", "UartDevice", "open_device"]

DEFAULT_BAUD = 1_000_000


def open_device(
    rest: str,
    config: CoreConfig | None = None,
    *,
    baud: int = DEFAULT_BAUD,
    timeout: float = 0.25,
    retries: int = 12,
) -> "UartDevice":
    """Opens ``uart:PORT``, 8 data bits, no parity, 1 stop bit.

    Parameters
    ----------
    rest : str          The port.
    config : CoreConfig or None    The core on the board; by default one of all defaults.
    baud : int          Bits per second, 300 to 12,000,000; those of the board.
    timeout : float     Seconds that a reply may take.
    retries : int       How often a request is sent again, 0 to 1000.
    """
    if not rest:
        raise ValueError("a serial device must be 'uart:PORT', for example 'uart:/dev/ttyUSB0'")
    baud = as_int_in("baud", baud, 300, 12_000_000)
    retries = as_int_in("retries", retries, 0, 1000)
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 s, not {timeout!r}")
    transport = SerialTransport(rest, baud)
    client = LinkClient(transport, timeout=timeout, retries=retries)
    try:
        client.hello()
    except BaseException:
        transport.close()
        raise
    return UartDevice(f"uart:{rest}", config or CoreConfig(), client)


class SerialTransport:
    """A serial port, for exclusive use."""

    def __init__(self, port: str, baud: int) -> None:
        serial = need("serial", "uart", "a serial device")
        try:
            self._port: Any = serial.Serial(port, baud, timeout=0, write_timeout=5, exclusive=True)
        except (OSError, ValueError) as error:
            raise LinkError(f"serial port {port} cannot be opened: {error}") from None
        self._port.reset_input_buffer()

    def write(self, data: bytes) -> None:
        """Sends all of ``data``."""
        self._port.write(data)

    def read(self, timeout: float) -> bytes:
        """Returns what has come, or nothing after ``timeout`` seconds."""
        self._port.timeout = timeout
        first = self._port.read(1)
        return first + self._port.read(self._port.in_waiting) if first else first

    def close(self) -> None:
        """Releases the port."""
        self._port.close()


class UartDevice(Device):
    """A core and its on-chip memory behind a `LinkClient`."""

    POLL_SECONDS = 0.002

    def __init__(self, uri: str, config: CoreConfig, client: LinkClient) -> None:
        self.uri = uri
        self.config = config
        self.link = client
        self.memory_base = client.memory_base
        self.memory_bytes = client.memory_bytes
        self._status = register_map(config)["STATUS"].byte_offset
        self._closed = False

    def _client(self) -> LinkClient:
        if self._closed:
            raise DeviceClosed(f"{self.uri} is closed")
        return self.link

    def read_register(self, offset: int) -> int:
        """Returns a register."""
        return self._client().read_register(offset)

    def write_register(self, offset: int, value: int) -> None:
        """Writes a register."""
        self._client().write_register(offset, value)

    def _check_span(self, address: int, length: int) -> None:
        end = self.memory_base + self.memory_bytes
        if address < self.memory_base or length < 0 or address + length > end:
            raise ValueError(
                f"memory accesses must lie in {self.memory_base:#x}..{end:#x}, not "
                f"{address:#x}..{address + length:#x}"
            )

    def read_memory(self, address: int, length: int) -> bytes:
        """Returns ``length`` bytes."""
        client = self._client()
        self._check_span(address, length)
        return client.read_memory(address, length)

    def write_memory(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Writes bytes."""
        client = self._client()
        self._check_span(address, len(data))
        client.write_memory(address, bytes(data))

    def wait_interrupt(self, timeout: float) -> None:
        """Polls the interrupt until it is raised."""
        client = self._client()
        deadline = time.monotonic() + timeout
        while not client.interrupt():
            if time.monotonic() > deadline:
                status = client.read_register(self._status)
                raise DeviceTimeout(
                    f"{self.uri} has raised no interrupt within {timeout} s (STATUS {status:#x})"
                )
            time.sleep(self.POLL_SECONDS)

    def close(self) -> None:
        """Releases the port."""
        if not self._closed:
            self._closed = True
            self.link.close()
