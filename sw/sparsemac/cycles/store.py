# SPDX-License-Identifier: Apache-2.0
"""The cycle model of the store: output words of all engines, merged and written."""

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from ..config import CoreConfig
from .engine import ASSEMBLE_CYCLES, RESULT_CYCLES, EngineModel, queue_cycles
from .memory import FOREVER, NEVER, Alarm, Clock, DataPins, MemoryModel

__all__ = ["Store"]

#: Written bursts that may await their response.
WRITES_UNDER_WAY = 16

#: Cycles from a beat in the merger to the request of its burst, from there to its data, and from
#: the last beat to its response, beside the memory's latency.
REQUEST_CYCLES, GRANT_CYCLES, ANSWER_CYCLES = 5, 4, 1

#: How far ahead the words of all engines are known: less than it takes from the end of a row.
LOOKAHEAD_CYCLES = 16


class Store:
    """Takes words from the engines in turn and writes them.

    Attributes
    ----------
    idle : int          When everything so far is acknowledged.
    on_idle : function  Called when all words have been written.
    """

    def __init__(self, clock: Clock, memory: MemoryModel, pins: DataPins, config: CoreConfig,
                 engines: Sequence[EngineModel]) -> None:
        self._clock, self._latency, self._pins = clock, memory.latency, pins
        self._config, self._engines = config, engines
        self.idle = 0
        self.on_idle: Callable[[], None] = lambda: None
        self._offers: list[deque[int]] = [deque() for _ in engines]
        self._pending = 0  # words that are offered
        self._waiting = 0  # a bit for each engine whose oldest word is there
        self._ahead: list[tuple[int, int]] = []  # oldest words of the others: when, and whose
        self._time, self._turn = 0, 0  # from when whose turn it is
        self._alarm = Alarm(clock, self._merge)
        self._word_beats = self._result_cycles = 1
        self._first_cycles = 0
        self._depth = max(16, 2 * self._beats_of(raw=True))
        self._merged: deque[int] = deque()  # words to be written: when they are merged
        self._beats = 0  # of all words so far
        self._taken: list[int] = []  # when each beat leaves the queue
        self._asked = NEVER
        self._under_way = 0  # words asked for, not yet written
        self._answered: list[int] = []  # when each word is acknowledged
        self._words = 0  # words asked for

    def _beats_of(self, raw: bool) -> int:
        return max(1, self._config.out_word_bytes(raw) // self._config.bus_bytes)

    def begin(self, raw: bool) -> None:
        """Takes note of the words of an EXEC."""
        config = self._config
        self._word_beats = self._beats_of(raw)
        self._result_cycles = config.lanes // self._word_beats  # of a beat
        queue = queue_cycles(config.out_words * self._beats_of(raw=True))
        # From the last sum of a word to its first beat.
        self._first_cycles = (RESULT_CYCLES + ASSEMBLE_CYCLES + queue - 1
                              - (self._word_beats - 1) * self._result_cycles)

    @property
    def busy(self) -> bool:
        """Whether words are still to be written."""
        return bool(self._pending or self._merged or self._under_way)

    def offer(self, engine: int, last_sum: int) -> None:
        """Takes note of a word whose last sum leaves the lanes at a time."""
        time = last_sum + self._first_cycles
        offers = self._offers[engine]
        if not offers:
            heappush(self._ahead, (time, engine))
        offers.append(time)
        self._pending += 1
        if self._pending == 1:
            self._alarm.set(max(time - LOOKAHEAD_CYCLES, self._clock.now))

    def known_until(self, engine: int) -> int:
        """Returns the cycle before which no further word of an engine can be taken."""
        offers = self._offers[engine]
        return max(self._time, offers[0]) if offers else FOREVER

    # -- merging --------------------------------------------------------------------------------

    def _next(self) -> tuple[int, int]:
        """When the next word is taken, and whose."""
        ahead, start, turn, engines = self._ahead, self._time, self._turn, len(self._offers)
        while ahead and ahead[0][0] <= start:
            self._waiting |= 1 << heappop(ahead)[1]
        time, who = FOREVER, 0
        if waiting := self._waiting:
            in_turn = waiting >> turn | waiting << engines - turn
            d = (in_turn & -in_turn).bit_length() - 1
            time, who = start + d, (turn + d) % engines
        seen = []
        while ahead and ahead[0][0] <= time:
            offered, engine = head = heappop(ahead)
            seen.append(head)
            # The turn passes on in every cycle without a word.
            mine = offered + (engine - turn - offered + start) % engines
            if mine < time:
                time, who = mine, engine
        for head in seen:
            heappush(ahead, head)
        return time, who

    def _take(self, engine: int) -> int:
        """Removes the oldest word of an engine; returns when it was offered."""
        offers = self._offers[engine]
        offered = offers.popleft()
        if self._waiting >> engine & 1:
            self._waiting &= ~(1 << engine)
        else:
            self._ahead.remove((offered, engine))
            heapify(self._ahead)
        if offers:
            heappush(self._ahead, (offers[0], engine))
        self._pending -= 1
        return offered

    def _merge(self) -> None:
        """Takes words as far as it is known whose comes next."""
        limit, beats, taken = self._clock.now + LOOKAHEAD_CYCLES, self._word_beats, self._taken
        slack = 2 * beats * len(self._offers) + LOOKAHEAD_CYCLES
        # Of each word, the beat whose place its last beat takes.
        displaced = self._beats + beats - 1 - self._depth
        while self._pending:
            time, number = self._next()
            if time > limit:
                self._alarm.set(time)
                break
            if displaced >= len(taken):
                self._write()
                if displaced >= len(taken):
                    break  # until it is written
            if displaced >= 0 and taken[displaced] + 3 > time + beats:
                time = taken[displaced] + 3 - beats
            offered = self._take(number)
            if beats > 1:
                time = max(time + beats - 1, offered + (beats - 1) * self._result_cycles)
            self._time, self._turn = time + 1, (number + 1) % len(self._offers)
            displaced += beats
            self._merged.append(time)
            engine, offers = self._engines[number], self._offers[number]
            insort(engine.returned, time)
            # A later word tells early enough, if what the engine does next is far ahead.
            if not offers or offers[0] + slack > engine.last_issue:
                engine.issue()
        self._beats = displaced - beats + 1 + self._depth
        self._write()

    # -- writing --------------------------------------------------------------------------------

    def _write(self) -> None:
        """Asks for bursts as long as it is known when they may be."""
        merged, answered, beats = self._merged, self._answered, self._word_beats
        before = self._words - WRITES_UNDER_WAY
        while merged and before < len(answered):
            time = merged.popleft() + REQUEST_CYCLES
            if time <= self._asked:
                time = self._asked + 1
            if before >= 0 and time <= answered[before] + 1:
                time = answered[before] + 2
            # Unless it was the writes' turn at the windows in the last cycle, it is in the next.
            time += time > self._asked + 1
            self._asked = time
            before += 1
            self._under_way += 1
            first = self._pins.write(time + GRANT_CYCLES, beats, self._written)
            if first is not None:
                self._taken.extend(range(first - 1, first - 1 + beats))
                self._acknowledge(first + beats - 1)
        self._words = before + WRITES_UNDER_WAY

    def _written(self, time: int) -> None:
        """Notes that a beat is written, as it happens."""
        self._taken.append(time - 1)
        if len(self._taken) % self._word_beats == 0:
            self._acknowledge(time)
        self._write()
        self._merge()
        if not self.busy:
            self.on_idle()

    def _acknowledge(self, written: int) -> None:
        """Notes that a word is written."""
        answered = written + self._latency + ANSWER_CYCLES
        if self._answered and self._answered[-1] >= answered:
            answered = self._answered[-1] + 1
        self._answered.append(answered)
        self._under_way -= 1
        self.idle = answered + 1
