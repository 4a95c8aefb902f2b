# SPDX-License-Identifier: Apache-2.0
"""Runs every job of the plan on the core and compares all of the memory with the golden model."""

from typing import Any

import cocotb

from .host import Host, load_plan, plan_folder
from .jobs import Job
from .scoreboard import Check, Scoreboard

__all__ = ["matches_the_golden_model"]


@cocotb.test()
async def matches_the_golden_model(dut: Any) -> None:
    """Random jobs, each under back-pressure of its own, leave the memory that they should."""
    plan = load_plan()
    board = Scoreboard(plan_folder(), "core")
    host = Host(dut, plan.config)
    await host.reset()
    for number, job in enumerate(plan.jobs):
        check = Check(bench=board.bench, name=job.name, number=number)
        with board.timed(check, host.now):
            await _run(host, job, check)
        if check.problems:
            await host.reset()
        board.add(check)
    board.finish()


async def _run(host: Host, job: Job, check: Check) -> None:
    host.load(job)
    host.set_back_pressure(job.seed if job.back_pressure else None)
    await host.start(job)
    check.cycles = await host.wait_interrupt()
    host.set_back_pressure(None)
    if error := await host.read("ERROR"):
        command = await host.read("FAULT_COMMAND")
        check.problems.append(f"the core stopped with fault {error} at command {command}")
    Scoreboard.compare_memory(check, job, host.memory_image())
    counters = await host.counters()
    Scoreboard.compare_counters(check, job, host.config, counters)
    check.cycles = counters.get("CYCLES", check.cycles)
