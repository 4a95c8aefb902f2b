# SPDX-License-Identifier: Apache-2.0
"""Helpers for unit tests in Amaranth's simulator: streams under random back-pressure, time limits.

A testbench is an ``async`` function of one argument, the simulator's context. Randomness comes from
the caller as anything with a method ``random()`` (`random.Random`, `numpy.random.Generator`), so
that one printed seed replays a run.
"""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from amaranth.lib import stream
from amaranth.sim import Simulator

__all__ = ["simulate", "stream_get", "stream_get_n", "stream_put", "stream_put_all"]

#: Seconds per cycle of a simulation; its value shows in waveforms only.
CLOCK_PERIOD = 1e-8

Testbench = Callable[[Any], Coroutine[Any, Any, None]]


class Random(Protocol):
    """A source of numbers in [0, 1)."""

    def random(self) -> float:
        """Returns the next number."""
        ...


def simulate(
    dut: Any,
    *testbenches: Testbench,
    background: Iterable[Testbench] = (),
    period: float = CLOCK_PERIOD,
    max_cycles: int = 20_000,
    vcd: str | None = None,
) -> None:
    """Runs testbenches in domain ``sync`` of ``dut`` until all of them have returned.

    Those in ``background`` need not return. ``period`` is that of the clock [s]; ``vcd`` names a
    file for waveforms. A deadlock ends after ``max_cycles``.

    Raises
    ------
    TimeoutError    If the testbenches have not returned after ``max_cycles``.
    """
    simulator = Simulator(dut)
    simulator.add_clock(period)

    async def limit(ctx: Any) -> None:
        for _ in range(max_cycles):
            await ctx.tick()
        raise TimeoutError(f"testbenches have not returned after {max_cycles} cycles")

    for testbench in testbenches:
        simulator.add_testbench(testbench)
    for testbench in (*background, limit):
        simulator.add_testbench(testbench, background=True)
    if vcd is None:
        simulator.run()
    else:
        with simulator.write_vcd(vcd):
            simulator.run()


# The loops below wait tick by tick: an unfinished `until()` or `repeat()` cannot be closed, and
# hides the reason why a simulation ended early behind an error of its own.


async def stream_put(ctx: Any, dst: stream.Interface, payload: Any) -> None:
    """Sends one payload, and returns after the cycle of its transfer."""
    ctx.set(dst.payload, payload)
    ctx.set(dst.valid, 1)
    ready = False
    while not ready:
        *_, ready = await ctx.tick().sample(dst.ready)
    ctx.set(dst.valid, 0)


async def stream_get(ctx: Any, src: stream.Interface) -> Any:
    """Receives one payload, and returns it after the cycle of its transfer."""
    ctx.set(src.ready, 1)
    valid, payload = False, None
    while not valid:
        *_, valid, payload = await ctx.tick().sample(src.valid, src.payload)
    ctx.set(src.ready, 0)
    return payload


async def _pause(ctx: Any, rng: Random | None, stall: float) -> None:
    while rng is not None and rng.random() < stall:
        await ctx.tick()


async def stream_put_all(
    ctx: Any,
    dst: stream.Interface,
    payloads: Iterable[Any],
    rng: Random | None = None,
    stall: float = 0.0,
) -> None:
    """Sends all payloads; before each, idles for another cycle with probability ``stall``."""
    for payload in payloads:
        await _pause(ctx, rng, stall)
        await stream_put(ctx, dst, payload)


async def stream_get_n(
    ctx: Any,
    src: stream.Interface,
    count: int,
    rng: Random | None = None,
    stall: float = 0.0,
) -> list[Any]:
    """Receives ``count`` payloads; before each, stalls another cycle with probability ``stall``."""
    payloads = []
    for _ in range(count):
        await _pause(ctx, rng, stall)
        payloads.append(await stream_get(ctx, src))
    return payloads
