# SPDX-License-Identifier: Apache-2.0
"""Resets the core in the middle of a job, at random cycles, and runs the job again."""

import random
from typing import Any

import cocotb

from .host import Host, load_plan, plan_folder
from .jobs import Job
from .scoreboard import Check, Scoreboard

__all__ = ["runs_a_job_after_resets_in_its_middle"]

#: Resets in one job, before it may end.
_RESETS = 3


@cocotb.test()
async def runs_a_job_after_resets_in_its_middle(dut: Any) -> None:
    """After soft resets, and after a hard one, the same memory gives the same integers."""
    plan = load_plan()
    board = Scoreboard(plan_folder(), "reset")
    rng = random.Random(plan.seed)
    host = Host(dut, plan.config)
    await host.reset()
    for number, job in enumerate(plan.jobs):
        check = Check(bench=board.bench, name=job.name, number=number)
        with board.timed(check, host.now):
            await _run(host, job, check, rng)
        if check.problems:
            await host.reset()
        board.add(check)
    board.finish()


async def _run(host: Host, job: Job, check: Check, rng: random.Random) -> None:
    host.set_back_pressure(job.seed if job.back_pressure else None)
    host.load(job)
    await host.start(job)
    length = max(await host.wait_interrupt(), 1)
    for _ in range(_RESETS):
        await host.start(job)
        await host.cycles(rng.randrange(length))
        await host.soft_reset()
        Scoreboard.compare_inputs(check, job, host.memory_image())
    await host.start(job)
    await host.cycles(rng.randrange(length))
    await host.reset()
    if await host.read("WINDOW0_PERM"):
        check.problems.append("window 0 is open after a hard reset")
    # Nothing is loaded again: a job that failed has left its inputs as they were.
    await host.start(job)
    check.cycles = await host.wait_interrupt()
    if error := await host.read("ERROR"):
        check.problems.append(f"the core stopped with fault {error} after the resets")
    Scoreboard.compare_memory(check, job, host.memory_image())
    host.set_back_pressure(None)
