# SPDX-License-Identifier: Apache-2.0
"""Checks the registers over AXI4-Lite against the table of `sparsemac.registers`."""

import random
from typing import Any

import cocotb
from cocotbext.axi import AxiResp
from sparsemac.registers import Register

from .host import Host, load_plan, plan_folder
from .scoreboard import Check, Scoreboard

__all__ = ["answers_as_the_register_map_says"]

_ADDRESS_SPACE_BYTES = 1 << 12


@cocotb.test()
async def answers_as_the_register_map_says(dut: Any) -> None:
    """Reset values, writable bits, byte strobes and refusals, with every channel pausing."""
    plan = load_plan()
    board = Scoreboard(plan_folder(), "axi_lite")
    host = Host(dut, plan.config)
    await host.reset()
    host.set_back_pressure(plan.seed)
    rng = random.Random(plan.seed)
    for name, check_part in _PARTS.items():
        check = Check(bench=board.bench, name=name)
        with board.timed(check, host.now):
            await check_part(host, check, rng)
        board.add(check)
    host.set_back_pressure(None)
    board.finish()


def _expect(check: Check, what: str, got: int, want: int) -> None:
    if got != want:
        check.problems.append(f"{what} is {got:#x}, not {want:#x}")


def _reset_value(register: Register) -> int:
    return sum(f.reset << f.lsb for f in register.fields if f.access in ("R", "RW"))


def _mask(register: Register) -> int:
    """Bits that keep what is written."""
    return sum(f.mask for f in register.fields if f.access == "RW")


async def _reset_values(host: Host, check: Check, rng: random.Random) -> None:
    for register in host.map:
        _expect(check, register.name, await host.read(register.name), _reset_value(register))


async def _writable_bits(host: Host, check: Check, rng: random.Random) -> None:
    """Writes random words to all registers, then reads all: none may change another."""
    expected: dict[str, int] = {}
    registers = [r for r in host.map if _mask(r)]
    rng.shuffle(registers)
    for register in registers:
        value = rng.getrandbits(32)
        await host.write(register.name, value)
        expected[register.name] = value & _mask(register)
    for name, want in expected.items():
        _expect(check, name, await host.read(name), want)
    for register in registers:  # byte by byte
        byte, value = rng.randrange(4), rng.getrandbits(8)
        await host.access_write(register.byte_offset + byte, value, 1)
        want = expected[register.name] & ~(0xFF << 8 * byte) | value << 8 * byte
        _expect(check, register.name, await host.read(register.name), want & _mask(register))
    for register in registers:
        await host.write(register.name, _reset_value(register))


async def _refusals(host: Host, check: Check, rng: random.Random) -> None:
    """Unknown offsets and writes to what is read-only answer SLVERR, change nothing, count."""
    known = {r.byte_offset for r in host.map}
    unknown = [o for o in range(0, _ADDRESS_SPACE_BYTES, 4) if o not in known]
    refused = await host.read("REJECTED")
    for offset in rng.sample(unknown, 12):
        response, value = await host.access_read(offset)
        _expect(check, f"response of a read of {offset:#x}", response, AxiResp.SLVERR)
        _expect(check, f"data of a read of {offset:#x}", value, 0)
        response = await host.access_write(offset, rng.getrandbits(32))
        _expect(check, f"response of a write of {offset:#x}", response, AxiResp.SLVERR)
        refused += 2
    for register in host.map:
        if not register.writable:
            before = await host.read(register.name) if register.name != "REJECTED" else 0
            response = await host.access_write(register.byte_offset, rng.getrandbits(32))
            _expect(check, f"response of a write of {register.name}", response, AxiResp.SLVERR)
            refused += 1
            if register.name != "REJECTED":
                _expect(check, register.name, await host.read(register.name), before)
    _expect(check, "REJECTED", await host.read("REJECTED"), refused & 0xFFFF)


async def _reads_in_flight(host: Host, check: Check, rng: random.Random) -> None:
    """Many reads in flight at once: no response is lost, doubled or out of order."""
    names = [r.name for r in host.map if not r.writable and r.name != "REJECTED"]
    reads = [(name, cocotb.start_soon(host.read(name))) for name in rng.choices(names, k=24)]
    for name, read in reads:
        _expect(check, name, await read, _reset_value(host.map[name]))


_PARTS = {
    "reset values": _reset_values,
    "writable bits": _writable_bits,
    "refusals": _refusals,
    "reads in flight": _reads_in_flight,
}
