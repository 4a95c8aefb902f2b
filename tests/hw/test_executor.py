# SPDX-License-Identifier: Apache-2.0
import random

from sparsemac.config import CoreConfig
from sparsemac_hw.executor import Executor
from sparsemac_hw.testing import simulate, stream_get, stream_put_all


def test_runs_commands_in_order_when_their_loads_are_done_and_prefetches_the_next():
    seed = 1
    print("seed", seed)
    rng = random.Random(seed)
    dut = Executor(CoreConfig(engines=2))
    waits = [0, 1, 1, 3, 4]  # LOADs that must be complete
    issued = [1, 1, 2, 3, 5]  # LOADs before it in the list; one is under way at most
    commands = [{"weights": 64 * k, "beats": 2 * k + 2, "index": k} for k in range(len(waits))]
    runs, started = [], []
    state = {"loads": 0, "issued": 0, "running": None, "left": 0}

    async def put(ctx):
        for command, wait, loads in zip(commands, waits, issued, strict=True):
            while state["loads"] < loads - 1:
                await ctx.tick()
            state["issued"] = loads
            await ctx.tick()
            payload = {"command": command, "spare": min(loads - wait, 3)}
            await stream_put_all(ctx, dut.i, [payload], rng, 0.3)

    async def fetch(ctx):
        while True:
            run = await stream_get(ctx, dut.run)
            runs.append((run.address, run.beats))
            # At most one command waits behind the one at work.
            assert len(runs) <= len(started) + 2

    async def world(ctx):
        count = 0
        while count < len(waits):
            completes = rng.random() < 0.1 and state["loads"] < max(issued)
            ctx.set(dut.load_done, completes)
            ctx.set(dut.load_under_way, state["issued"] > state["loads"] + completes)
            *_, start, running, index, done = await ctx.tick().sample(
                dut.start, dut.running, dut.command.index, dut.done)
            count += done
            if start:
                assert state["running"] is None
                assert state["loads"] >= waits[index]
                started.append(index)
                state.update(running=index, left=rng.randrange(8))
                ctx.set(dut.engines_done, 0)
                ctx.set(dut.store_idle, 0)
            elif state["running"] is not None:
                state["left"] -= 1
                if state["left"] == 1:
                    ctx.set(dut.engines_done, 3)
                if state["left"] <= 0:
                    ctx.set(dut.engines_done, 3)
                    ctx.set(dut.store_idle, 1)
                    state["running"] = None
            state["loads"] += completes

    async def idle_engines(ctx):
        ctx.set(dut.engines_done, 3)
        ctx.set(dut.store_idle, 1)
        await ctx.tick()

    simulate(dut, put, world, idle_engines, background=[fetch])
    assert started == list(range(len(waits)))
    assert runs == [(c["weights"], c["beats"]) for c in commands]
