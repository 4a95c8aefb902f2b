# SPDX-License-Identifier: Apache-2.0
"""Registers and memory of the reference device, as the register map defines them."""

import numpy as np
import pytest
from sparsemac.commands import COMMAND_BYTES, Load
from sparsemac.config import CoreConfig
from sparsemac.devices.base import check_identity
from sparsemac.devices.reference import open_device
from sparsemac.errors import DeviceClosed, DeviceError, DeviceTimeout
from sparsemac.registers import COUNTERS, FaultCode, register_map

CONFIG = CoreConfig(engines=2, lanes=4, act_depth=256, psum_depth=256, windows=2)
REGISTERS = register_map(CONFIG)
START, SOFT_RESET, ABORT = (REGISTERS["CTRL"][f].mask for f in ("start", "soft_reset", "abort"))
BUSY, DONE, FAULT = (REGISTERS["STATUS"][f].mask for f in ("busy", "done", "fault"))


@pytest.fixture
def device():
    with open_device("", CONFIG, memory_bytes=1 << 16) as opened:
        yield opened


def read(device, name):
    return device.read_register(REGISTERS[name].byte_offset)


def write(device, name, value):
    device.write_register(REGISTERS[name].byte_offset, value)


def ring(device, *, good=True, control=START):
    """Runs a list of one LOAD in an open window, or of zeros."""
    command = Load(address=4096, destination=0, line_beats=8).encode()
    device.write_memory(0, command if good else bytes(COMMAND_BYTES))
    write(device, "WINDOW0_LAST", 0x1000)
    write(device, "WINDOW0_PERM", 1)
    write(device, "COMMAND_COUNT", 1)
    write(device, "CTRL", control)


def test_identity_is_that_of_the_configuration(device):
    check_identity(device)
    assert read(device, "CONFIG_HASH") == CONFIG.hash


def test_registers_hold_their_reset_values(device):
    for register in REGISTERS:
        want = sum(f.reset << f.lsb for f in register.fields if f.access in ("R", "RW"))
        assert device.read_register(register.byte_offset) == want, register.name


def test_windows_are_closed_after_reset(device):
    assert [read(device, f"WINDOW{i}_PERM") for i in range(CONFIG.windows)] == [0, 0]


def test_job_ends_with_done_and_the_interrupt(device):
    write(device, "IRQ_ENABLE", 1)
    ring(device)
    device.wait_interrupt(0.0)
    assert read(device, "STATUS") == DONE
    assert read(device, "ERROR") == FaultCode.NONE
    write(device, "STATUS", DONE)
    assert read(device, "STATUS") == 0


def test_done_is_kept_until_one_is_written(device):
    ring(device)
    write(device, "STATUS", 0)
    write(device, "STATUS", ~DONE & 0xFFFF_FFFF)
    assert read(device, "STATUS") == DONE


def test_interrupt_needs_a_job_and_to_be_enabled(device):
    with pytest.raises(DeviceTimeout, match="no interrupt within 0.5 s .*: no job was started"):
        device.wait_interrupt(0.5)
    ring(device)
    with pytest.raises(DeviceTimeout, match="IRQ_ENABLE is 0"):
        device.wait_interrupt(0.5)


def test_counters_are_read_as_atomic_pairs(device):
    ring(device)
    low = read(device, "READ_BEATS_LO")
    assert (low, read(device, "READ_BEATS_HI")) == (COMMAND_BYTES // 8 + 8, 0)
    device._values["READ_BEATS_LO"] = (5 << 32) | 7  # no job of a test gets that far
    device._values["CYCLES_LO"] = 9 << 32
    assert read(device, "READ_BEATS_LO") == 7
    assert read(device, "READ_BEATS_HI") == 5
    assert (read(device, "CYCLES_LO"), read(device, "CYCLES_HI")) == (0, 9)


def test_soft_reset_clears_the_counters_of_the_last_job(device):
    ring(device)
    assert read(device, "READ_BEATS_LO") > 0
    write(device, "CTRL", SOFT_RESET)
    assert not any(read(device, f"{name}_LO") for name, _ in COUNTERS)


def test_core_without_counters_has_no_such_registers():
    with open_device("", CONFIG.replace(counters=False), memory_bytes=1 << 16) as device:
        ring(device)
        assert read(device, "STATUS") == DONE
        with pytest.raises(DeviceError, match="0x080 answered SLVERR"):
            read(device, "CYCLES_LO")


def test_b1_empty_list_is_a_fault(device):
    write(device, "CTRL", START)
    assert (read(device, "ERROR"), read(device, "STATUS")) == (FaultCode.ZERO, DONE | FAULT)


def test_b2_fault_registers_say_where(device):
    ring(device)
    write(device, "WINDOW0_LAST", 0)
    write(device, "CTRL", START)
    assert read(device, "ERROR") == FaultCode.WINDOW
    assert (read(device, "FAULT_COMMAND"), read(device, "FAULT_ADDRESS")) == (0, 4096)
    assert (read(device, "FAULT_DETAIL"), read(device, "FAULT_COUNT")) == (0, 1)


def test_b3_window_that_ends_before_it_begins_is_legal_and_empty(device):
    ring(device)
    for i in range(CONFIG.windows):
        write(device, f"WINDOW{i}_FIRST", 0x1000)
        write(device, f"WINDOW{i}_LAST", 0)
    write(device, "CTRL", START)
    assert read(device, "ERROR") == FaultCode.WINDOW
    assert read(device, "FAULT_ADDRESS") == 0


def test_b5_abort_and_soft_reset_win_over_start(device):
    for control in (START | ABORT, START | SOFT_RESET, ABORT):
        ring(device, control=control)
        assert read(device, "STATUS") == 0


def test_b8_fault_is_cleared_by_soft_reset_or_the_next_start(device):
    ring(device, good=False)
    assert (read(device, "ERROR"), read(device, "STATUS")) == (FaultCode.DESC, DONE | FAULT)
    write(device, "CTRL", SOFT_RESET)
    assert read(device, "ERROR") == FaultCode.NONE
    assert not read(device, "STATUS") & FAULT
    ring(device, good=False)
    ring(device)
    assert (read(device, "ERROR"), read(device, "STATUS")) == (FaultCode.NONE, DONE)
    assert read(device, "FAULT_COUNT") == 2


@pytest.mark.parametrize("offset", [0x4C, 0x7C, 0xFFC, 0x1001, 2])
def test_b6_unknown_addresses_answer_slverr_and_are_counted(device, offset):
    for k, call in enumerate((lambda: device.read_register(offset),
                              lambda: device.write_register(offset, 1))):
        with pytest.raises(DeviceError, match=f"register {offset:#05x} answered SLVERR"):
            call()
        assert read(device, "REJECTED") == k + 1


def test_b6_read_only_registers_refuse_writes_and_keep_their_value(device):
    refused = 0
    for register in REGISTERS:
        if register.writable:
            continue
        before = device.read_register(register.byte_offset)
        with pytest.raises(DeviceError, match="answered SLVERR"):
            device.write_register(register.byte_offset, 0xFFFF_FFFF)
        refused += 1
        if register.name != "REJECTED":
            assert device.read_register(register.byte_offset) == before, register.name
    assert read(device, "REJECTED") == refused


def test_b6_reserved_bits_read_zero(device):
    for register in REGISTERS:
        if register.name in ("CTRL", "STATUS") or not register.writable:
            continue
        device.write_register(register.byte_offset, 0xFFFF_FFFF)
        kept = sum(f.mask for f in register.fields)
        assert device.read_register(register.byte_offset) == kept, register.name
    assert read(device, "CTRL") == 0


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_register_values_are_words(device, value):
    with pytest.raises(ValueError, match="value must be 0 to 4294967295"):
        write(device, "WATCHDOG", value)


def test_memory_is_bytes_at_any_address():
    with open_device("", CONFIG, memory_bytes=8192, memory_base=0x8000_0000) as device:
        for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
            device.write_memory(0x8000_0011, data)
            assert device.read_memory(0x8000_0010, 5) == b"\0abc\0"
        device.write_memory(0x8000_1FFF, b"z")
        assert device.read_memory(0x8000_1FFF, 1) == b"z"


@pytest.mark.parametrize(("address", "length"), [(-1, 1), (65535, 2), (65536, 1), (8, -4)])
def test_memory_accesses_beyond_its_ends_are_refused(device, address, length):
    with pytest.raises(ValueError, match=r"memory accesses must lie in 0x0\.\.0x10000, not"):
        device.read_memory(address, length)
    if length > 0:
        with pytest.raises(ValueError, match="memory accesses must lie in"):
            device.write_memory(address, bytes(length))


def test_job_reads_what_was_written(device):
    data = np.random.default_rng(3).integers(0, 256, 64).astype(np.uint8).tobytes()
    device.write_memory(4096, data)
    ring(device)
    assert device.read_memory(4096, 64) == data  # inputs are never written


def test_f4_closed_device_says_so_and_closes_twice(device):
    device.close()
    device.close()
    for call in (lambda: read(device, "MAGIC"), lambda: write(device, "WATCHDOG", 0),
                 lambda: device.read_memory(0, 4), lambda: device.write_memory(0, b"1"),
                 lambda: device.wait_interrupt(0)):
        with pytest.raises(DeviceClosed, match="reference: is closed"):
            call()


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="must be 'reference:', not 'reference:x'"):
        open_device("x")
    with pytest.raises(ValueError, match="memory_bytes must be 4096 to"):
        open_device("", memory_bytes=100)
    with pytest.raises(ValueError, match="memory_base must be 0 to"):
        open_device("", memory_base=-4096)
