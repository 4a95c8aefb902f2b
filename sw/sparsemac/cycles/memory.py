# SPDX-License-Identifier: Apache-2.0
"""The cycle model's memory, and the clock that all of the model goes by."""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from .._checks import as_int_in

__all__ = ["FOREVER", "NEVER", "Alarm", "Clock", "DataPins", "MemoryModel", "Process"]

#: Waits until a cycle, or (None) until it is woken.
Process = Iterator[int | None]

NEVER, FOREVER = -(1 << 60), 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """Timing of a memory, as `sparsemac_sim.options.SimOptions` describes it.

    Parameters
    ----------
    latency : int               Cycles from a read address to its first beat, and from the last beat
                                of a write to its response.  At least 1.
    bytes_per_cycle : float     One budget for reads and writes, of which each beat takes the bytes
                                of the bus.  None: one beat each way per cycle.
    """

    latency: int = 20
    bytes_per_cycle: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "latency", as_int_in("latency", self.latency, 1, 1 << 20))
        rate = self.bytes_per_cycle
        if rate is None:
            return
        if isinstance(rate, bool) or not isinstance(rate, int | float | np.floating | np.integer):
            raise TypeError(f"bytes_per_cycle must be a number, not {rate!r}")
        if not 0 < rate < float("inf"):
            raise ValueError(f"bytes_per_cycle must be above 0 and finite, not {rate!r}")
        object.__setattr__(self, "bytes_per_cycle", float(rate))


class Clock:
    """Wakes processes in the order of their times."""

    def __init__(self) -> None:
        self.now = 0
        self._queue: list[tuple[int, int, int, Process]] = []
        self._count = count()

    def wake(self, process: Process, time: int, *, late: bool = False) -> None:
        """Resumes a process at a time; ``late``: behind all others of that time."""
        heapq.heappush(self._queue, (max(time, self.now), late, next(self._count), process))

    def run(self) -> None:
        """Runs until all processes wait to be woken."""
        queue = self._queue
        while queue:
            self.now, late, _, process = heapq.heappop(queue)
            time = next(process, None)
            if time is not None:
                self.wake(process, time, late=bool(late))


class Alarm:
    """Calls a function at the earliest of all times that it is set to; it may set it again."""

    def __init__(self, clock: Clock, call: Callable[[], None], *, late: bool = False) -> None:
        self._clock, self._call, self._late = clock, call, late
        self._time = FOREVER
        self._process = self._ring()

    def set(self, time: int) -> None:
        """Has the function called at a time, if not before."""
        if time < self._time:
            self._time = time
            self._clock.wake(self._process, time, late=self._late)

    def _ring(self) -> Process:
        while True:
            if self._clock.now >= self._time:
                self._time = FOREVER
                self._call()
            yield None


class DataPins:
    """The data channels: beats of read bursts and of output words, each kind in order.

    With a limit, both take their bytes from one bucket that holds two beats. When it has but one
    beat left, reads go first in odd cycles, and in even ones both go on credit, as in
    ``sim/sparsemac_sim/native/memory.h``. There cycle 0 is even for the first job of a device that
    was just opened, and so it is here; where it is odd, and the limit well below a beat per cycle,
    a job takes up to 3 % more or less.
    """

    def __init__(self, clock: Clock, memory: MemoryModel, beat_bytes: int) -> None:
        self._clock, self._rate = clock, memory.bytes_per_cycle or 0.0
        self._beat_bytes = float(beat_bytes)
        self._most = self._left = max(self._rate, 2.0 * beat_bytes)
        self._limited = 0 < self._rate < 2 * beat_bytes
        self._filled = 0  # up to when the bucket was filled
        self._reads: deque[tuple[int, int, Callable[[int, int], None]]] = deque()
        self._writes: deque[tuple[int, int, Callable[[int], None]]] = deque()
        self._last_read = self._last_write = NEVER
        self._alarm = Alarm(clock, self._move)

    def read(self, ready: int, beats: int, deliver: Callable[[int, int], None]) -> None:
        """Has ``deliver(first, count)`` called for beats on the pins from cycle ``first``."""
        if not self._limited:
            first = max(ready, self._last_read + 1)
            self._last_read = first + beats - 1
            deliver(first, beats)
            return
        self._reads.append((ready, beats, deliver))
        self._plan()

    def write(self, ready: int, beats: int, done: Callable[[int], None]) -> int | None:
        """Writes beats; returns when the first one goes, if all do so one behind another.

        Else returns None, and has ``done(cycle)`` called for each beat as it goes.
        """
        if not self._limited:
            first = max(ready, self._last_write + 1)
            self._last_write = first + beats - 1
            return first
        self._writes.append((ready, beats, done))
        self._plan()
        return None

    def _next(self) -> tuple[int, int]:
        """When the next beat each way may go, if there are bytes."""
        read = max(self._reads[0][0], self._last_read + 1) if self._reads else FOREVER
        write = max(self._writes[0][0], self._last_write + 1) if self._writes else FOREVER
        return read, write

    def _fill(self, time: int) -> float:
        """Bytes in the bucket at a time."""
        return min(self._most, self._left + (time - self._filled) * self._rate)

    def _plan(self) -> None:
        """Looks again when the next beat may go."""
        time = max(min(self._next()), self._clock.now)
        if time == FOREVER:
            return
        missing = self._beat_bytes - self._fill(time)
        self._alarm.set(time + max(0, math.ceil(missing / self._rate)))

    def _move(self) -> None:
        """Moves the beats of one cycle."""
        now = self._clock.now
        read, write = self._next()
        left = self._fill(now)
        if left >= self._beat_bytes and min(read, write) <= now:
            reads, writes = read <= now, write <= now
            if reads and writes and now % 2 and left < 2 * self._beat_bytes:
                writes = False
            self._left = left - (reads + writes) * self._beat_bytes
            self._filled = now
            if reads:
                ready, beats, deliver = self._reads.popleft()
                if beats > 1:
                    self._reads.appendleft((ready, beats - 1, deliver))
                self._last_read = now
                deliver(now, 1)
            if writes:
                ready, beats, done = self._writes.popleft()
                if beats > 1:
                    self._writes.appendleft((ready, beats - 1, done))
                self._last_write = now
                done(now)
        self._plan()
