# SPDX-License-Identifier: Apache-2.0
import random

from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.control import FAULT_SOURCES, FaultOwner, JobControl
from sparsemac_hw.testing import simulate


def control():
    return JobControl(CoreConfig(engines=3))


async def pulse(ctx, signal):
    ctx.set(signal, 1)
    await ctx.tick()
    ctx.set(signal, 0)


async def wait_done(ctx, dut, limit=200):
    for cycle in range(limit):
        *_, done = await ctx.tick().sample(dut.done)
        if done:
            return cycle
    raise AssertionError(f"not done after {limit} cycles")


def test_a_job_starts_clear_runs_and_is_done_once():
    dut = control()

    async def drive(ctx):
        await pulse(ctx, dut.start_job)
        assert ctx.get(dut.clear) and not ctx.get(dut.start)
        await ctx.tick()
        assert not ctx.get(dut.clear) and ctx.get(dut.start)
        assert ctx.get(dut.stop) and ctx.get(dut.busy)
        await ctx.tick().repeat(5)
        assert ctx.get(dut.busy) and not ctx.get(dut.stop)
        ctx.set(dut.finished, 1)
        assert ctx.get(dut.done)
        await ctx.tick()
        assert not ctx.get(dut.done) and not ctx.get(dut.busy)
        assert ctx.get(dut.fault.code) == FaultCode.NONE

    simulate(dut, drive)


def test_the_first_fault_is_kept_and_outstanding_bursts_are_waited_for():
    dut = control()

    async def drive(ctx):
        await pulse(ctx, dut.start_job)
        await ctx.tick().repeat(3)
        ctx.set(dut.reads_outstanding, 1)
        ctx.set(dut.commands[FaultOwner.EXEC.value], 7)
        ctx.set(dut.engine_faults[1], FaultCode.COLUMN)
        ctx.set(dut.engine_faults[2], FaultCode.STREAM)
        await ctx.tick()
        ctx.set(dut.engine_faults[1], 0)
        ctx.set(dut.engine_faults[2], 0)
        ctx.set(dut.sources.reader, {"code": FaultCode.BUS, "address": 4})
        ctx.set(dut.strobes, 1 << FAULT_SOURCES.index("reader"))
        await ctx.tick()
        assert ctx.get(dut.stop) and not ctx.get(dut.done)
        ctx.set(dut.reads_outstanding, 0)
        await ctx.tick()
        assert ctx.get(dut.done)
        await ctx.tick()
        fault = ctx.get(dut.fault)
        assert (fault.code, fault.detail, fault.command) == (FaultCode.COLUMN, 1, 7)
        assert ctx.get(dut.fault_count) == 1

    simulate(dut, drive)


def test_c3_no_progress_is_a_timeout_within_two_cycles_of_the_watchdog():
    dut = control()

    async def drive(ctx):
        ctx.set(dut.watchdog, 20)
        ctx.set(dut.reads_outstanding, 1)
        await pulse(ctx, dut.start_job)
        await ctx.tick().repeat(10)
        await pulse(ctx, dut.progress)
        cycles = await wait_done(ctx, dut)
        assert cycles <= 22
        assert ctx.get(dut.fault.code) == FaultCode.TIMEOUT
        await ctx.tick()
        assert ctx.get(dut.draining)  # the burst is still owed
        await ctx.tick().repeat(25)
        assert not ctx.get(dut.draining)  # and given up

    simulate(dut, drive)


def test_c4_slow_progress_is_no_timeout():
    dut = control()

    async def drive(ctx):
        ctx.set(dut.watchdog, 20)
        await pulse(ctx, dut.start_job)
        for _ in range(10):
            await ctx.tick().repeat(18)
            await pulse(ctx, dut.progress)
        assert ctx.get(dut.busy) and ctx.get(dut.fault.code) == 0

    simulate(dut, drive)


def test_c3_a_valid_that_is_never_taken_is_wedged_until_it_is():
    dut = control()

    async def drive(ctx):
        ctx.set(dut.watchdog, 10)
        ctx.set(dut.held, 1)
        await pulse(ctx, dut.start_job)
        await wait_done(ctx, dut)
        await ctx.tick()
        assert ctx.get(dut.wedged) and ctx.get(dut.draining)
        await ctx.tick().repeat(30)
        assert ctx.get(dut.draining)  # cannot be given up: AXI does not allow it
        ctx.set(dut.held, 0)
        await ctx.tick().repeat(2)
        assert not ctx.get(dut.wedged) and not ctx.get(dut.draining)

    simulate(dut, drive)


def test_d5_every_job_ends_exactly_once_under_aborts_and_resets():
    seed = 5
    print("seed", seed)
    rng = random.Random(seed)
    dut = control()
    outcomes = []

    async def drive(ctx):
        for _ in range(300):
            await pulse(ctx, dut.start_job)
            ends, reset = 0, False
            finish_at, abort_at = rng.randrange(2, 8), rng.randrange(2, 8)
            reset_at = rng.randrange(20)
            for cycle in range(12):
                ctx.set(dut.finished, cycle >= finish_at)
                ctx.set(dut.abort, cycle == abort_at)
                ctx.set(dut.soft_reset, cycle == reset_at)
                *_, done, busy = await ctx.tick().sample(dut.done, dut.busy)
                ends += done
                reset |= cycle == reset_at and busy
            ctx.set(dut.finished, 0)
            ctx.set(dut.soft_reset, 0)
            assert ends == (0 if reset else 1)
            outcomes.append((ends, int(ctx.get(dut.fault.code))))

    simulate(dut, drive)
    assert {(1, 0), (1, FaultCode.ABORTED), (0, 0)} <= set(outcomes)


def test_d2_the_epoch_advances_when_a_clear_leaves_bursts_behind():
    dut = control()

    async def drive(ctx):
        await pulse(ctx, dut.soft_reset)
        await ctx.tick()
        assert ctx.get(dut.epoch) == 0
        ctx.set(dut.reads_outstanding, 1)
        await pulse(ctx, dut.soft_reset)
        await ctx.tick()
        assert ctx.get(dut.epoch) == 1

    simulate(dut, drive)
