# SPDX-License-Identifier: Apache-2.0
"""The cycle model of the read side: reads in turn, the weight fetch."""

from collections import deque
from collections.abc import Callable, Sequence

from ..config import CoreConfig
from .engine import EngineModel, queue_cycles
from .memory import NEVER, Alarm, Clock, DataPins, MemoryModel, Process

__all__ = ["COMMANDS", "LOADS", "Bus", "WeightFetch", "bursts_of"]

#: Whoever wants to read; in order of precedence.
COMMANDS, LOADS, WEIGHTS = range(3)

#: Cycles from a request to its address on the bus, from one request to the next, and from a beat on
#: the bus to whoever asked for it.
ADDRESS_CYCLES, REQUEST_CYCLES, CHECK_CYCLES = 4, 2, 2

#: Cycles from a round of beats that all engines have taken to the request that waits for its room.
ROOM_CYCLES = 4

#: Read bursts that may be under way.
READS_UNDER_WAY = 16


class Bus:
    """The read side: requests in turn, beats in order."""

    def __init__(self, clock: Clock, memory: MemoryModel, pins: DataPins) -> None:
        self._clock, self._latency, self._pins = clock, memory.latency, pins
        self.beats = 0
        self._asked: list[tuple[int, int, Process, Callable[[int, int], None]] | None] = [None] * 3
        self._free = 0  # when the next request can be taken
        self._weights_turn = False
        self._bursts: deque[list[int]] = deque()  # under way: beats left
        self._ends: deque[int] = deque()  # under way: when the last beat has been checked
        self._alarm = Alarm(clock, self._arbitrate, late=True)

    def request(self, client: int, time: int, beats: int, asker: Process,
                deliver: Callable[[int, int], None]) -> None:
        """Asks for a burst. The asker is woken in the cycle in which it is taken.

        ``deliver(first, count)`` is told when ``count`` beats come, one per cycle from ``first``.
        """
        self._asked[client] = (time, beats, asker, deliver)
        self._alarm.set(max(time, self._free))

    def _choose(self) -> int | None:
        now = self._clock.now
        commands, loads, weights = (a is not None and a[0] <= now for a in self._asked)
        if commands:
            return COMMANDS
        if weights and (self._weights_turn or not loads):
            return WEIGHTS
        return LOADS if loads else None

    def _arbitrate(self) -> None:
        """Takes a request, if there is one and room for its burst."""
        now, ends = self._clock.now, self._ends
        while ends and ends[0] < now:
            ends.popleft()
        client = self._choose() if now >= self._free else None
        if client is not None:
            if len(ends) + len(self._bursts) >= READS_UNDER_WAY:
                self._free = ends[0] + 1 if ends else now + 1
            else:
                self._take(client, now)
        times = [asked[0] for asked in self._asked if asked is not None]
        if times:
            self._alarm.set(max(min(times), self._free, now))

    def _take(self, client: int, now: int) -> None:
        request = self._asked[client]
        assert request is not None
        _, beats, asker, deliver = request
        self._asked[client] = None
        if client != COMMANDS:
            self._weights_turn = client == LOADS
        self._free = now + REQUEST_CYCLES
        self.beats += beats
        self._bursts.append([beats])

        def arrive(first: int, count: int) -> None:
            self._bursts[0][0] -= count
            if not self._bursts[0][0]:
                self._bursts.popleft()
                self._ends.append(first + count)
            deliver(first + CHECK_CYCLES, count)

        self._pins.read(now + ADDRESS_CYCLES + self._latency, beats, arrive)
        self._clock.wake(asker, now)


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
        self._fifo_cycles = queue_cycles(config.fifo_depth)
        self._granted = NEVER
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
        leaves = 0  # when the newest burst leaves the splitter
        while True:
            while not self._runs:
                self._idle = True
                yield None
            now, address, beats = self._runs.popleft()
            step = max(now, leaves) + 1
            bursts = bursts_of(address, beats, config)
            for k, burst in enumerate(bursts):
                if k == len(bursts) - 1:
                    self.ready = step + 1
                    self.on_ready()
                need = -(-(self._asked + burst - capacity) // engines)
                # It comes out of the splitter, and goes on as soon as the one before it has left.
                leaves = max(step + 1, self._granted + 1)
                step = leaves + 1
                time = leaves + 1
                if need > 0:
                    while len(self._rounds) < need:
                        self._short = True
                        yield None
                    time = max(time, self._rounds[need - 1] + ROOM_CYCLES)
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
