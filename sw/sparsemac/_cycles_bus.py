# SPDX-License-Identifier: Apache-2.0
"""The cycle model of what shares the bus: reads in turn, the weight fetch, the store."""

import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from ._checks import as_int_in
from ._cycles_engine import ASSEMBLE_CYCLES, DISTRIBUTED_DEPTH, RESULT_CYCLES, EngineModel
from .config import CoreConfig

__all__ = ["Bus", "Clock", "MemoryModel", "Process", "Store", "WeightFetch", "bursts_of"]

#: Waits until a cycle, or (None) until it is woken.
Process = Iterator[int | None]

#: Whoever wants to read; in order of precedence.
COMMANDS, LOADS, WEIGHTS = range(3)

#: Cycles from a request to its address on the bus, and from one request to the next.
ADDRESS_CYCLES, REQUEST_CYCLES = 3, 2

#: Read bursts that may be under way, and written ones that await their response.
READS_UNDER_WAY, WRITES_UNDER_WAY = 16, 16

#: Cycles from a beat in the merger to the request of its burst, and from there to its data.
STORE_CYCLES, GRANT_CYCLES = 2, 3

#: How far ahead the offers of all engines are known: from a row's end to its word.
LOOKAHEAD_CYCLES = 16

_NEVER, _FOREVER = -(1 << 60), 1 << 60


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


class Budget:
    """Beats that the memory can move: one for each slot of time, also for those just past.

    A bucket that gains ``bytes_per_cycle`` and holds two beats, but told of beats in any order.
    """

    _SAVED = 2

    def __init__(self, memory: MemoryModel, beat_bytes: int) -> None:
        self.limited = (memory.bytes_per_cycle is not None
                        and memory.bytes_per_cycle < self._SAVED * beat_bytes)
        self._slot = beat_bytes / memory.bytes_per_cycle if memory.bytes_per_cycle else 0.0
        self._used: set[int] = set()

    def take(self, time: int) -> int:
        """Takes a slot for a beat at a time or as soon as there is one; returns when."""
        if not self.limited:
            return time
        slot = int(time / self._slot) - self._SAVED + 1
        while slot in self._used:
            slot += 1
        self._used.add(slot)
        return max(time, math.ceil(slot * self._slot))


class Bus:
    """The read side: requests in turn, beats in order."""

    def __init__(self, clock: Clock, memory: MemoryModel, budget: Budget) -> None:
        self._clock, self._memory, self._budget = clock, memory, budget
        self.beats = 0
        self._asked: list[tuple[int, int, Process, Callable[[int, int], None]] | None] = [None] * 3
        self._free = 0  # when the next request can be taken
        self._alarm = _FOREVER  # when the arbiter looks at the requests next
        self._weights_turn = False
        self._last = _NEVER  # when the newest beat comes
        self._ends: deque[int] = deque()  # when each burst under way ends
        self._under_way = 0
        self._due: deque[tuple[int, int, Callable[[int, int], None]]] = deque()
        self._process, self._return = self._arbitrate(), self._deliver()
        self._delivering = False

    def request(self, client: int, time: int, beats: int, asker: Process,
                deliver: Callable[[int, int], None]) -> None:
        """Asks for a burst. The asker is woken in the cycle in which it is taken.

        ``deliver(first, count)`` is told when ``count`` beats come, one per cycle from ``first``.
        """
        self._asked[client] = (time, beats, asker, deliver)
        self._wake(time)

    def _wake(self, time: int) -> None:
        """Arbitrates at a time, or as soon as a request can be taken."""
        time = max(time, self._free)
        if time < self._alarm:
            self._alarm = time
            self._clock.wake(self._process, time, late=True)

    def _choose(self) -> int | None:
        now = self._clock.now
        commands, loads, weights = (a is not None and a[0] <= now for a in self._asked)
        if commands:
            return COMMANDS
        if weights and (self._weights_turn or not loads):
            return WEIGHTS
        return LOADS if loads else None

    def _arbitrate(self) -> Process:
        while True:
            now = self._clock.now
            if now >= self._alarm:
                self._alarm = _FOREVER
            while self._ends and self._ends[0] < now:
                self._ends.popleft()
                self._under_way -= 1
            client = self._choose() if now >= self._free else None
            if client is not None and self._under_way == READS_UNDER_WAY:
                self._free = self._ends[0] + 1 if self._ends else now + 1
            elif client is not None:
                request = self._asked[client]
                assert request is not None
                self._asked[client] = None
                if client != COMMANDS:
                    self._weights_turn = client == LOADS
                self._free = now + REQUEST_CYCLES
                self._take(now, *request[1:])
            times = [a[0] for a in self._asked if a is not None]
            if times:
                self._wake(min(times))
            yield None

    def _take(self, now: int, beats: int, asker: Process, deliver: Callable[[int, int], None]
              ) -> None:
        ready = now + ADDRESS_CYCLES + self._memory.latency
        self.beats += beats
        self._under_way += 1
        if self._budget.limited:
            self._due.append((ready, beats, deliver))
            if not self._delivering:
                self._delivering = True
                self._clock.wake(self._return, ready)
        else:
            first = max(ready, self._last + 1)
            self._last = first + beats - 1
            self._ends.append(self._last + 1)
            deliver(first + 1, beats)
        self._clock.wake(asker, now)

    def _deliver(self) -> Process:
        """Returns beats one by one, as the budget allows."""
        while True:
            while self._due:
                ready, beats, deliver = self._due.popleft()
                for _ in range(beats):
                    time = max(ready, self._last + 1)
                    if time > self._clock.now:
                        yield time
                    time = self._budget.take(time)
                    if time > self._clock.now:
                        yield time
                    self._last = time
                    deliver(time + 1, 1)
                self._ends.append(self._last + 1)
            self._delivering = False
            yield None


def bursts_of(address: int, beats: int, config: CoreConfig) -> list[int]:
    """Beats of each burst of a linear read: none crosses a block of ``burst_beats``."""
    block = config.burst_beats
    first = min(beats, block - address // config.bus_bytes % block)
    whole, rest = divmod(beats - first, block)
    return [first] + [block] * whole + [rest] * (rest > 0)


class WeightFetch:
    """Reads weight streams ahead, as far as the FIFOs have room.

    Attributes
    ----------
    ready : int    When it takes the next run; None: not known yet.
    """

    def __init__(self, clock: Clock, bus: Bus, config: CoreConfig,
                 engines: Sequence[EngineModel]) -> None:
        self._clock, self._bus, self._config, self._engines = clock, bus, config, engines
        self.ready: int | None = 0
        self.on_ready: Callable[[], None] = lambda: None
        self._runs: deque[tuple[int, int, int]] = deque()
        self._asked = 0  # beats
        self._dealt = 0
        self._rounds: list[int] = []  # when all engines have taken their beats of it
        self._counts: list[int] = []  # engines that have
        self._latest: list[int] = []
        self._fifo_cycles = 1 if config.fifo_depth <= DISTRIBUTED_DEPTH else 2
        self._granted = _NEVER
        self._process = self._fetch()
        self._idle = self._short = True
        next(self._process)

    def run(self, now: int, address: int, beats: int) -> None:
        """Takes the streams of an EXEC."""
        self._runs.append((now, address, beats))
        self.ready = None
        if self._idle:
            self._idle = False
            self._clock.wake(self._process, now)

    def popped(self, round_number: int, time: int) -> None:
        """Notes that an engine has taken its beat of a round."""
        counts, latest = self._counts, self._latest
        if round_number == len(counts):
            counts.append(0)
            latest.append(0)
        counts[round_number] += 1
        latest[round_number] = max(latest[round_number], time)
        if counts[round_number] == self._config.engines:
            last = self._rounds[-1] + 1 if self._rounds else 0
            self._rounds.append(max(latest[round_number], last))
            if self._short:
                self._short = False
                self._clock.wake(self._process, self._clock.now)

    def _fetch(self) -> Process:
        config = self._config
        engines, capacity = config.engines, config.fifo_depth * config.engines
        self._short = False
        while True:
            while not self._runs:
                self._idle = True
                yield None
            now, address, beats = self._runs.popleft()
            step = now
            bursts = bursts_of(address, beats, config)
            for k, burst in enumerate(bursts):
                step = max(step + 1, self._granted)
                if k == len(bursts) - 1:
                    self.ready = step + 1
                    self.on_ready()
                need = -(-(self._asked + burst - capacity) // engines)
                time = step + 1
                if need > 0:
                    while len(self._rounds) < need:
                        self._short = True
                        yield None
                    time = max(time, self._rounds[need - 1] + 2)
                self._bus.request(WEIGHTS, time, burst, self._process, self._deliver)
                yield None
                self._granted = self._clock.now
                self._asked += burst

    def _deliver(self, first: int, beats: int) -> None:
        """Deals beats out to the engines."""
        engines, dealt = self._engines, self._dealt
        first += self._fifo_cycles
        for i in range(beats):
            engines[(dealt + i) % len(engines)].arrive(first + i)
        for i in range(min(beats, len(engines))):
            engines[(dealt + i) % len(engines)].advance()
        self._dealt += beats


class Store:
    """Takes words from the engines in turn and writes them.

    Attributes
    ----------
    idle : int     When everything so far is acknowledged.
    """

    def __init__(self, clock: Clock, memory: MemoryModel, budget: Budget, config: CoreConfig,
                 engines: Sequence[EngineModel]) -> None:
        self._clock, self._memory, self._budget = clock, memory, budget
        self._config, self._engines = config, engines
        self.idle = 0
        self._offers: list[deque[int]] = [deque() for _ in engines]
        self._pending = 0
        self._time, self._turn = 0, 0  # from when whose turn it is
        self._word_beats = self._result_cycles = 1
        self._first_cycles = 0
        self._asked = self._written = self._answered = _NEVER
        self._answers: deque[int] = deque([_NEVER] * WRITES_UNDER_WAY, WRITES_UNDER_WAY)
        depth = max(16, 2 * self._beats_of(raw=True))
        self._taken: deque[int] = deque([_NEVER] * depth, depth)
        self._process, self._parked = self._merge(), True

    def _beats_of(self, raw: bool) -> int:
        return max(1, self._config.out_word_bytes(raw) // self._config.bus_bytes)

    def begin(self, raw: bool) -> None:
        """Takes note of the words of an EXEC."""
        config = self._config
        self._word_beats = self._beats_of(raw)
        self._result_cycles = config.lanes // self._word_beats  # of a beat
        queue = config.out_words * self._beats_of(raw=True) > DISTRIBUTED_DEPTH
        # From the last sum of a word to its first beat.
        self._first_cycles = (RESULT_CYCLES + ASSEMBLE_CYCLES + queue
                              - (self._word_beats - 1) * self._result_cycles)

    def offer(self, engine: int, last_sum: int) -> None:
        """Takes note of a word whose last sum leaves the lanes at a time."""
        time = last_sum + self._first_cycles
        self._offers[engine].append(time)
        self._pending += 1
        if self._parked:
            self._parked = False
            self._clock.wake(self._process, time - LOOKAHEAD_CYCLES)

    def known_until(self, engine: int) -> int:
        """Returns the cycle before which no further word of an engine can be taken."""
        offers = self._offers[engine]
        return max(self._time, offers[0]) if offers else _FOREVER

    def _next(self) -> tuple[int, int]:
        """Whose word comes next, and when."""
        offers, turn, engines = self._offers, self._turn, len(self._offers)
        time, best, who = self._time, _FOREVER, 0
        for d in range(engines):
            e = (turn + d) % engines
            if offers[e]:
                late = offers[e][0] - time - d
                when = time + d + (-(-late // engines) * engines if late > 0 else 0)
                if when < best:
                    best, who = when, e
                    if late <= 0:
                        break
        return best, who

    def _merge(self) -> Process:
        clock, beats = self._clock, 0
        while True:
            while not self._pending:
                self._parked = True
                yield None
            time, engine = self._next()
            if time > clock.now + LOOKAHEAD_CYCLES:
                yield time - LOOKAHEAD_CYCLES
                continue
            beats = self._word_beats
            time = max(time, self._taken[beats - 1] + 2 - (beats - 1))
            offered = self._offers[engine].popleft()
            self._pending -= 1
            time = max(time + beats - 1, offered + (beats - 1) * self._result_cycles)
            self._time, self._turn = time + 1, (engine + 1) % len(self._offers)
            self._write(time, beats)
            insort(self._engines[engine].returned, time)
            self._engines[engine].advance()

    def _write(self, time: int, beats: int) -> None:
        """Writes a word whose last beat has left the merger."""
        asked = max(time + STORE_CYCLES, self._asked + 1, self._answers[0] + 1)
        self._asked = asked
        written = max(asked + GRANT_CYCLES, self._written + 1)
        for k in range(beats):
            written = self._budget.take(written + (k > 0))
            self._taken.append(written - 1)
        self._written = written
        self._answered = max(written + self._memory.latency + 1, self._answered + 1)
        self._answers.append(self._answered)
        self.idle = self._answered + 1
