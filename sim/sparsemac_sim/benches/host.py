# SPDX-License-Identifier: Apache-2.0
"""The host side of a bench: clock, reset, registers by name, a memory that makes the core wait."""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import First, RisingEdge, Timer
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam, AxiResp
from numpy.typing import NDArray
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS, register_map

from .jobs import MEMORY_BYTES, Job, Plan

__all__ = ["PLAN_VARIABLE", "Host", "load_plan", "plan_folder"]

#: Environment variable that names the folder of the plan.
PLAN_VARIABLE = "SPARSEMAC_COSIM_PLAN"

PERIOD_NS = 10
_RESET_CYCLES = 8
#: A job that takes longer has hung; random jobs take a few thousand cycles.
_LIMIT_CYCLES = 400_000
#: The watchdog stays on, well above the longest pause of a channel.
_WATCHDOG_CYCLES = 20_000

# The bus models call what cocotb 2 has deprecated, in a few hundred lines of warnings.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\..*")
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotb_bus\..*")


def plan_folder() -> Path:
    """Folder of the plan of this simulation, where results go as well."""
    return Path(os.environ[PLAN_VARIABLE])


def load_plan() -> Plan:
    """The plan of this simulation."""
    return Plan.load(plan_folder())


def _pauses(rng: random.Random) -> Iterator[bool]:
    """Whether a channel waits, cycle by cycle: never, at random, or for long times."""
    share = rng.choice([0.0, 0.1, 0.3, 0.6])
    longest = rng.choice([1, 4, 60])
    while True:
        if rng.random() < share:
            yield from [True] * rng.randint(1, longest)
        yield from [False] * rng.randint(1, longest)


class Host:
    """A core in the simulator with a memory of `MEMORY_BYTES`, and the registers by name.

    Parameters
    ----------
    dut :                  The top of the design, as `sparsemac_hw.emit` names its ports.
    config : CoreConfig
    """

    def __init__(self, dut: Any, config: CoreConfig) -> None:
        logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)
        self.dut, self.config, self.map = dut, config, register_map(config)
        cocotb.start_soon(Clock(dut.clk, PERIOD_NS, unit="ns").start())
        names = {"bus_separator": "__"}
        self.registers: Any = AxiLiteMaster(
            AxiLiteBus.from_prefix(dut, "s_axil", **names), dut.clk, dut.rst)
        self.memory: Any = AxiRam(
            AxiBus.from_prefix(dut, "m_axi", **names), dut.clk, dut.rst, size=MEMORY_BYTES)

    async def reset(self) -> None:
        """Holds the core in reset for some cycles."""
        self.dut.rst.value = 1
        await Timer(_RESET_CYCLES * PERIOD_NS, "ns")
        await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)

    async def cycles(self, count: int) -> None:
        """Lets so many cycles pass."""
        await Timer(max(count, 1) * PERIOD_NS, "ns")
        await RisingEdge(self.dut.clk)

    @staticmethod
    def now() -> int:
        """Cycles since the simulation began."""
        return round(get_sim_time("ns")) // PERIOD_NS

    def set_back_pressure(self, seed: int | None) -> None:
        """Makes every channel of both buses pause at random; None: no channel ever does."""
        ram, registers = self.memory, self.registers
        channels = [
            ram.write_if.aw_channel, ram.write_if.w_channel, ram.write_if.b_channel,
            ram.read_if.ar_channel, ram.read_if.r_channel,
            registers.write_if.aw_channel, registers.write_if.w_channel,
            registers.write_if.b_channel, registers.read_if.ar_channel,
            registers.read_if.r_channel,
        ]
        for i, channel in enumerate(channels):
            channel.clear_pause_generator()
            channel.pause = False
            if seed is not None:
                channel.set_pause_generator(_pauses(random.Random(f"{seed} {i}")))

    # -- registers ------------------------------------------------------------------------------

    async def access_read(self, offset: int) -> tuple[AxiResp, int]:
        """Reads a register by its offset; returns response and value."""
        answer = await self.registers.read(offset, 4)
        return answer.resp, int.from_bytes(answer.data, "little")

    async def access_write(self, offset: int, value: int, length: int = 4) -> AxiResp:
        """Writes the low ``length`` bytes of a register by its offset; returns the response."""
        answer = await self.registers.write(offset, value.to_bytes(length, "little"))
        return answer.resp

    async def read(self, name: str) -> int:
        """Reads a register by its name."""
        response, value = await self.access_read(self.map[name].byte_offset)
        if response != AxiResp.OKAY:
            raise RuntimeError(f"a read of {name} must answer OKAY, not {response.name}")
        return value

    async def write(self, name: str, value: int) -> None:
        """Writes a register by its name."""
        response = await self.access_write(self.map[name].byte_offset, value)
        if response != AxiResp.OKAY:
            raise RuntimeError(f"a write of {name} must answer OKAY, not {response.name}")

    async def counters(self) -> dict[str, int]:
        """Reads all performance counters; empty if the core has none."""
        if not self.config.counters:
            return {}
        return {
            name: await self.read(f"{name}_LO") | await self.read(f"{name}_HI") << 32
            for name, _ in COUNTERS
        }

    # -- jobs -----------------------------------------------------------------------------------

    def load(self, job: Job) -> None:
        """Puts a job's image into memory."""
        self.memory.write(0, job.before.tobytes())

    def memory_image(self) -> NDArray[np.uint8]:
        """All of the memory."""
        return np.frombuffer(bytes(self.memory.read(0, MEMORY_BYTES)), np.uint8)

    async def open_windows(self, job: Job) -> None:
        """Opens the pages of a job, and closes all other windows."""
        for i in range(self.config.windows):
            area = job.areas[i] if i < len(job.areas) else None
            await self.write(f"WINDOW{i}_PERM", 0)
            if area is not None:
                await self.write(f"WINDOW{i}_FIRST", area.address)
                await self.write(f"WINDOW{i}_LAST", area.last_page)
                await self.write(f"WINDOW{i}_PERM", 3 if area.writable else 1)

    async def start(self, job: Job) -> None:
        """Sets up a job and rings the doorbell; what is in memory is left as it is."""
        await self.open_windows(job)
        await self.write("COMMAND_ADDRESS", job.command_address)
        await self.write("COMMAND_COUNT", job.command_count)
        await self.write("WATCHDOG", _WATCHDOG_CYCLES)
        await self.write("STATUS", self.map["STATUS"]["done"].mask)
        await self.write("IRQ_ENABLE", 1)
        await self.write("CTRL", self.map["CTRL"]["start"].mask)

    async def wait_interrupt(self) -> int:
        """Waits for the interrupt; returns the cycles that passed.

        Raises
        ------
        TimeoutError    Naming the limit and STATUS.
        """
        began = self.now()
        if not self.dut.irq.value:
            await First(RisingEdge(self.dut.irq), Timer(_LIMIT_CYCLES * PERIOD_NS, "ns"))
        passed = self.now() - began
        if not self.dut.irq.value:
            status = await self.read("STATUS")
            raise TimeoutError(f"no interrupt in {_LIMIT_CYCLES} cycles; STATUS is {status:#x}")
        return passed

    async def soft_reset(self) -> None:
        """Resets the core by its register and waits until no beat is outstanding."""
        status = self.map["STATUS"]
        await self.write("CTRL", self.map["CTRL"]["soft_reset"].mask)
        for _ in range(_LIMIT_CYCLES // 100):
            if not await self.read("STATUS") & (status["busy"].mask | status["draining"].mask):
                return
            await self.cycles(20)
        raise TimeoutError(f"busy or draining {_LIMIT_CYCLES} cycles after a soft reset")
