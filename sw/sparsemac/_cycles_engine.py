# SPDX-License-Identifier: Apache-2.0
"""The cycle model of one engine: unpacking, issuing, results.

Its parts do not run in step with a clock. Each goes on as long as the times that it depends on are
known, and leaves its own times in lists for the others (a process network, Kahn, "The semantics of
a simple language for parallel programming", 1974). A time is the number of a cycle of the job.
"""

from bisect import insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._cycles_streams import EMITS, ENDS_ROW, WINDOW_BITS, EngineStream
from .config import CoreConfig

if TYPE_CHECKING:
    from ._cycles_core import CoreModel

__all__ = ["EngineModel"]

#: Rows between the unpacker and the results (`sparsemac_hw.engine`).
ROWS_UNDER_WAY = 8

#: Deepest queue without a cycle more (`sparsemac_hw.streams`).
DISTRIBUTED_DEPTH = 32

#: Cycles from the step over an entry to its issue, and entries on the way into the full buffer.
UNPACK_CYCLES, ENTRIES_ON_THE_WAY = 3, 2

#: Cycles from the last entry of a row to the sum of lane 0.
LANE_CYCLES = 6

#: Cycles from a sum to the result, and from the result to a beat that is offered to the store.
RESULT_CYCLES, ASSEMBLE_CYCLES = 11, 2

_NEVER = -(1 << 60)


class EngineModel:
    """One engine.

    Attributes
    ----------
    arrivals : list of int    For each beat since the job began, when its FIFO shows it.
    pops : list of int        When it leaves the FIFO.
    returned : list of int    For each word of the EXEC, when its room is free again.
    issued, short, store : int      Cycles of the EXEC: entries, waits.
    all_issued, done : int          When the engine has nothing more to issue, and to store.
    """

    def __init__(self, number: int, config: CoreConfig, core: "CoreModel") -> None:
        self.number, self._config, self._core = number, config, core
        self.arrivals: list[int] = []
        self.pops: list[int] = []
        self.returned: list[int] = []
        self.issued = self.short = self.store = 0
        self.all_issued = self.done = 0
        self._taken: list[int] = []  # when each beat may leave, were it there
        self._started = 0  # beats of the EXECs before
        self._parts: list[Iterator[bool]] = []
        self._beat_words = config.bus_width // 32
        self._window_beats = WINDOW_BITS // config.bus_width
        buses, words = config.sum_buses, config.out_words
        sums = 0 if buses == 1 else _queue_cycles(words * config.lanes // buses)
        self._lane_cycles = LANE_CYCLES + sums + config.lanes - 1

    def start(self, stream: EngineStream, rounds: int, positions: int, stores: bool,
              now: int) -> None:
        """Begins an EXEC; ``now`` is the cycle of the start strobe."""
        self._stream, self._rounds, self._positions = stream, rounds, positions
        self._stores, self._start = stores, now
        self.issued = self.short = self.store = 0
        self.returned = []
        self._ready: list[int] = []  # for each row, when its last entry can be issued
        self._final: list[int] = []  # when its final position begins
        self._issued: list[int] = []  # when its last entry is issued
        self._left: list[int] = []  # when its last sum leaves
        self._unpacked = -1
        self._row = 0  # of the entry that was looked up last
        self._parts = [self._unpack(), self._issue()]
        self.advance()

    def arrive(self, time: int) -> None:
        """Takes a beat."""
        self.arrivals.append(time)

    def advance(self) -> None:
        """Goes on as far as all times are known."""
        parts = self._parts
        while parts and next(parts[0], False) | next(parts[1], False):
            pass
        self._settle()
        if self._parts and self._unpacked >= 0 and len(self.pops) == self._started + self._rounds:
            self._finish()

    def _finish(self) -> None:
        """Ends the EXEC, if all words have been taken."""
        words = len(self._stream.counts) * self._positions
        if len(self.returned) < words:
            return
        unpacked = max(self._unpacked, self.pops[-1]) + 2
        quiet = self._issued[-1] + 1 if words else 0
        self.all_issued = max(unpacked, quiet)
        self.done = max(self.all_issued, self.returned[-1] + 1 if words else 0)
        self._parts = []
        self._started += self._rounds
        self._core.engine_done()

    # -- unpacking ------------------------------------------------------------------------------

    def _unpack(self) -> Iterator[bool]:
        """Steps through the stream; yields whether it got further, where a time is missing."""
        arrivals, pops, taken = self.arrivals, self.pops, self._taken
        first_beat, pop_items = self._started, self._stream.pops
        hidden = self._config.entry_depth + ENTRIES_ON_THE_WAY + 1
        now, item, held, row = self._start + 1, -1, -1, 0
        popped = min(self._window_beats, self._rounds)  # they leave to fill the empty window
        taken.extend([self._start + self._beat_words] * popped)
        moved = False
        for items, beat, entries, kind in self._stream.segments:
            now += items
            if beat > held:
                j = first_beat + beat
                while len(arrivals) <= j or len(pops) < j:
                    self._settle()
                    if len(arrivals) > j and len(pops) >= j:
                        break
                    yield moved
                    moved = False
                held = beat
                shown = max(arrivals[j], pops[j - 1] + 1) if j else arrivals[j]
                now = max(now, shown + items)
            if kind & EMITS and row >= ROWS_UNDER_WAY:
                while len(self._left) <= row - ROWS_UNDER_WAY:
                    yield moved
                    moved = False
                now = max(now, self._left[row - ROWS_UNDER_WAY] + 1)
            if entries > hidden:
                while (released := self._released(entries - hidden - 1)) is None:
                    yield moved
                    moved = False
                now = max(now, released + 1)
            item += items
            while popped < len(pop_items) and pop_items[popped] <= item:
                taken.append(now - item + pop_items[popped])
                popped += 1
            if kind & ENDS_ROW:
                moved = True
                ready, row = now + UNPACK_CYCLES, row + 1
                if entries > hidden - ENTRIES_ON_THE_WAY:
                    last = entries - hidden + ENTRIES_ON_THE_WAY - 1
                    while (released := self._released(last)) is None:
                        yield moved
                        moved = False
                    ready = max(ready, released + 2)
                self._ready.append(ready)
                moved = True
        taken.extend([now + 1] * (self._rounds - popped))
        self._unpacked = now
        yield True

    def _released(self, entry: int) -> int | None:
        """When an entry leaves the buffer, if that is known."""
        ends = self._stream.row_ends
        row = self._row
        while entry >= ends[row]:
            row += 1
        while row and entry < ends[row - 1]:
            row -= 1
        self._row = row
        if entry == ends[row] - 1:
            return self._issued[row] if len(self._issued) > row else None
        if len(self._final) <= row:
            return None
        return self._final[row] + entry - (ends[row - 1] if row else 0)

    def _settle(self) -> None:
        """Lets beats leave that have come and are wanted."""
        arrivals, pops, taken = self.arrivals, self.pops, self._taken
        k = len(pops)
        last = min(len(arrivals), len(taken))
        if k == last:
            return
        time = pops[-1] if pops else _NEVER
        while k < last:
            time = max(time + 1, arrivals[k], taken[k])
            pops.append(time)
            self._core.fetch.popped(k, time)
            k += 1

    # -- issuing --------------------------------------------------------------------------------

    def _issue(self) -> Iterator[bool]:
        """Issues each row at all positions; yields whether it got further."""
        config, core, stream = self._config, self._core, self._stream
        positions, closes, returned = self._positions, self._stream.closes, self.returned
        shortest, lanes, credits = config.shortest_row_cycles, config.lanes, config.out_words
        last_entry, sums, word = self._start, _NEVER, 0
        gap_end = _NEVER
        moved = False
        for row, count in enumerate(stream.counts):
            if positions == 1:
                self._final.append(last_entry + 1)
                moved = True
            while len(self._ready) <= row:
                yield moved
                moved = False
            now = max(last_entry + count, self._ready[row])
            for position in range(positions):
                if now < gap_end:
                    self.short += gap_end - now
                    now = gap_end
                if word >= credits:
                    while len(returned) <= word - credits or (
                            returned[word - credits] > core.store.known_until(self.number)):
                        yield moved
                        moved = False
                    credit = returned[word - credits] + 1
                    if credit > now:
                        self.store += credit - now
                        now = credit
                last_entry = now
                gap_end = now + shortest
                sums = max(sums + lanes, now + self._lane_cycles)
                if self._stores and (not closes or closes[word]):
                    core.store.offer(self.number, sums)
                else:
                    insort(returned, sums + RESULT_CYCLES)
                word += 1
                if position == positions - 2:
                    self._final.append(now + 1)
                moved = True
                now += count
            self.issued += count * positions
            self._issued.append(last_entry)
            self._left.append(sums)
        yield True


def _queue_cycles(depth: int) -> int:
    """Cycles from a word into a queue to the word out of it."""
    return 1 if depth <= DISTRIBUTED_DEPTH else 2
