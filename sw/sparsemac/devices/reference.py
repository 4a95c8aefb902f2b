# SPDX-License-Identifier: Apache-2.0
"""``reference:``: the registers of a core in front of the command-wise golden model."""

from collections.abc import Mapping

import numpy as np

from .._checks import as_int_in
from ..config import CoreConfig
from ..errors import DeviceClosed, DeviceError, DeviceTimeout
from ..machine import Fault, Machine, Window
from ..registers import COUNTERS, FaultCode, register_map
from .base import Device

__all__ = ["ReferenceDevice", "open_device"]

DEFAULT_MEMORY_BYTES = 64 << 20


def open_device(
    rest: str,
    config: CoreConfig | None = None,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    memory_base: int = 0,
) -> "ReferenceDevice":
    """Opens ``reference:``; nothing may follow the colon."""
    if rest:
        raise ValueError(f"a reference device must be 'reference:', not 'reference:{rest}'")
    return ReferenceDevice(config or CoreConfig(), memory_bytes, memory_base)


class ReferenceDevice(Device):
    """The golden model as a device. A job runs to its end within the write that starts it.

    CYCLES is a lower bound (the busiest engine of each EXEC, memory for free) and no stall is
    counted; ISSUED, FILLERS and what crosses the bus are exact.
    """

    def __init__(self, config: CoreConfig, memory_bytes: int, memory_base: int = 0) -> None:
        self.uri = "reference:"
        self.config = config
        self.memory_base = as_int_in("memory_base", memory_base, 0, (1 << 32) - 4096)
        self.memory_bytes = as_int_in("memory_bytes", memory_bytes, 4096, (1 << 32) - memory_base)
        self._memory = np.zeros(self.memory_bytes, np.uint8)
        self._map = register_map(config)
        self._by_offset = {r.byte_offset: r for r in self._map}
        self._values = {
            r.name: sum(f.reset << f.lsb for f in r.fields if f.access in ("R", "RW"))
            for r in self._map
        }
        self._latched = 0
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceClosed(f"{self.uri} is closed")

    def _reject(self, text: str) -> DeviceError:
        self._values["REJECTED"] = (self._values["REJECTED"] + 1) & 0xFFFF
        return DeviceError(f"{text} answered SLVERR")

    def read_register(self, offset: int) -> int:
        self._check_open()
        register = self._by_offset.get(offset)
        if register is None:
            raise self._reject(f"read of register {offset:#05x}")
        value = self._values[register.name]
        if register.name.endswith("_LO"):
            self._latched = value >> 32
            return value & 0xFFFF_FFFF
        if register.name.endswith("_HI") and register.name[:-3] + "_LO" in self._values:
            return self._latched
        return value

    def write_register(self, offset: int, value: int) -> None:
        self._check_open()
        value = as_int_in("value", value, 0, 0xFFFF_FFFF)
        register = self._by_offset.get(offset)
        if register is None or not register.writable:
            raise self._reject(f"write of register {offset:#05x}")
        if register.name == "CTRL":
            self._control(value)
        elif register.name == "STATUS":
            self._values["STATUS"] &= ~(value & register["done"].mask)
        else:
            kept = sum(f.mask for f in register.fields if f.access == "RW")
            self._values[register.name] = value & kept

    def _control(self, value: int) -> None:
        control = self._map["CTRL"]
        if value & control["soft_reset"].mask:
            self._set_fault(None)
            self._count({})
        elif value & control["start"].mask and not value & control["abort"].mask:
            self._run()

    def _windows(self) -> list[Window]:
        windows = []
        for i in range(self.config.windows):
            perm = self._values[f"WINDOW{i}_PERM"]
            windows.append(Window(
                self._values[f"WINDOW{i}_FIRST"] >> 12, self._values[f"WINDOW{i}_LAST"] >> 12,
                bool(perm & 1), bool(perm & 2)))
        return windows

    def _run(self) -> None:
        machine = Machine(self.config, self._memory, self.memory_base, self._windows())
        self._set_fault(machine.run(self._values["COMMAND_ADDRESS"], self._values["COMMAND_COUNT"]))
        self._count(machine.counters)
        self._values["STATUS"] |= self._map["STATUS"]["done"].mask

    def _count(self, counters: Mapping[str, int]) -> None:
        """Sets all counters; those that are not given become 0."""
        if self.config.counters:
            for name, _ in COUNTERS:
                self._values[f"{name}_LO"] = counters.get(name, 0)

    def _set_fault(self, fault: Fault | None) -> None:
        flag = self._map["STATUS"]["fault"].mask
        self._values["ERROR"] = fault.code if fault else FaultCode.NONE
        self._values["FAULT_COMMAND"] = fault.command if fault else 0
        self._values["FAULT_ADDRESS"] = fault.address if fault else 0
        self._values["FAULT_DETAIL"] = fault.detail if fault else 0
        self._values["FAULT_COUNT"] += bool(fault)
        self._values["STATUS"] = self._values["STATUS"] & ~flag | (flag if fault else 0)

    def _span(self, address: int, length: int) -> slice:
        self._check_open()
        first = address - self.memory_base
        if first < 0 or length < 0 or first + length > self.memory_bytes:
            end = self.memory_base + self.memory_bytes
            raise ValueError(
                f"memory accesses must lie in {self.memory_base:#x}..{end:#x}, not "
                f"{address:#x}..{address + length:#x}"
            )
        return slice(first, first + length)

    def read_memory(self, address: int, length: int) -> bytes:
        return self._memory[self._span(address, length)].tobytes()

    def write_memory(self, address: int, data: bytes | bytearray | memoryview) -> None:
        block = np.frombuffer(data, np.uint8)
        self._memory[self._span(address, len(block))] = block

    def wait_interrupt(self, timeout: float) -> None:
        self._check_open()
        done = self._values["STATUS"] & self._map["STATUS"]["done"].mask
        if not done or not self._values["IRQ_ENABLE"]:
            why = "IRQ_ENABLE is 0" if done else "no job was started"
            raise DeviceTimeout(
                f"{self.uri} has raised no interrupt within {timeout} s "
                f"(STATUS {self._values['STATUS']:#x}): {why}"
            )

    def close(self) -> None:
        self._closed = True
