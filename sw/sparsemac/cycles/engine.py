# SPDX-License-Identifier: Apache-2.0
"""The cycle model of one engine: unpacking, issuing, results.

Its parts do not run in step with a clock. Each goes on as long as the times that it depends on are
known, and leaves its own times in lists for the others (a process network, Kahn, "The semantics of
a simple language for parallel programming", 1974). A time is the number of a cycle of the job.
"""

from bisect import insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..config import CoreConfig
from .memory import FOREVER, NEVER
from .streams import BEGINS_ROW, ENDS_HEADER, ENDS_ROW, WORD_BITS, EngineStream

if TYPE_CHECKING:
    from .core import CoreModel

__all__ = ["ASSEMBLE_CYCLES", "RESULT_CYCLES", "EngineModel", "queue_cycles"]

#: Rows between the unpacker and the results, the one that is handed over among them.
ROWS_UNDER_WAY = 9

#: Deepest queue without cycles more (`sparsemac_hw.streams`).
DISTRIBUTED_DEPTH = 16

#: Cycles from a beat that leaves the FIFO to the first item that needs it; one more at the start of
#: an EXEC, when the window is empty, unless a beat is a word.
WINDOW_CYCLES = 2

#: Cycles from a header's first word to the row's first entry.
COUNT_CYCLES = 3

#: Cycles from an entry that is asked for to the entry in the buffer, and from there to its issue.
ENTRY_CYCLES, STORED_CYCLES = 7, 2

#: Cycles from the issue of an entry to another that can be asked for in its place.
FREE_CYCLES = 4

#: Cycles from room for a word to the issue that waits for it.
CREDIT_CYCLES = 2

#: Cycles from the last entry of a row to the sum of lane 0, more if rows are summed in chunks, to
#: the result path, and more if several buses of sums are merged.
LANE_CYCLES, CHUNK_CYCLES, QUEUE_CYCLES, MERGE_CYCLES = 11, 3, 1, 3

#: Cycles from a sum to the result, and from the result to a beat that is offered to the store.
RESULT_CYCLES, ASSEMBLE_CYCLES = 14, 2


class EngineModel:
    """One engine.

    Attributes
    ----------
    arrivals : list of int    For each beat since the job began, when its FIFO shows it.
    pops : list of int        When it leaves the FIFO.
    returned : list of int    For each word of the EXEC, when its room is free again.
    last_issue : int          When it last issued a row, if it waits for room for words; else never.
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
        self.last_issue = FOREVER
        self._taken: list[int] = []  # when each beat may leave, were it there
        self._started = 0  # beats of the EXECs before
        self._dropped = FOREVER  # first beat that is not unpacked any more
        self._parts: list[Iterator[bool]] = []
        words = config.bus_width // WORD_BITS
        # A beat of several words is unpacked before there is room for the next.
        self._beat_cycles = words + 1 if words > 1 else 1
        self._first_cycles = WINDOW_CYCLES + (words > 1)
        self._lane_cycles = LANE_CYCLES + CHUNK_CYCLES * _has_chunks(config) + config.lanes - 1
        self._lane_cycles += QUEUE_CYCLES
        if config.sum_buses > 1:
            self._lane_cycles += MERGE_CYCLES

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
        self._unpacked, self._dropped = -1, FOREVER
        self._row = 0  # of the entry that was looked up last
        self._parts = [self._unpack(), self._issue()]
        self.advance()

    def arrive(self, time: int) -> None:
        """Takes a beat."""
        self.arrivals.append(time)

    def advance(self) -> None:
        """Goes on as far as all times are known."""
        if self._parts:
            next(self._parts[0], False)
            self.issue()
        else:
            self._settle()

    def issue(self) -> None:
        """Goes on, if nothing is new but room for words."""
        unpack, issue = self._parts
        while next(issue, False) and next(unpack, False):
            pass
        self._settle()
        if self._unpacked >= 0 and len(self.pops) == self._started + self._rounds:
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
        pops, taken = self.pops, self._taken
        first_beat, pop_items = self._started, self._stream.pops
        depth = self._config.entry_depth
        now = opened = self._start
        item, held, row, popped = -1, -1, 0, 0
        taken_cycles = 0 if self._beat_cycles == 1 else 1
        while popped < len(pop_items) and pop_items[popped] < 0:
            taken.append(now + 1)
            popped += 1
        moved = False
        for items, beat, entries, kind in self._stream.segments:
            now += items
            if beat > held:
                j = first_beat + beat
                while len(pops) <= j:
                    self._settle()
                    if len(pops) > j:
                        break
                    yield moved
                    moved = False
                begins = pops[j] + (WINDOW_CYCLES if beat else self._first_cycles)
                now = max(now, begins + items - 1)
                held = beat
            if kind & BEGINS_ROW:
                if row >= ROWS_UNDER_WAY:
                    while len(self._left) <= row - ROWS_UNDER_WAY:
                        yield moved
                        moved = False
                    now = max(now, self._left[row - ROWS_UNDER_WAY])
                opened = now
            if entries > depth:
                while (released := self._released(entries - depth - 1)) is None:
                    yield moved
                    moved = False
                now = max(now, released + FREE_CYCLES)
            item += items
            while popped < len(pop_items) and pop_items[popped] <= item:
                taken.append(now - item + pop_items[popped] + taken_cycles)
                popped += 1
            if kind & ENDS_HEADER:
                now = max(now, opened + COUNT_CYCLES - 1)
            if kind & ENDS_ROW:
                row += 1
                self._ready.append(now + ENTRY_CYCLES + STORED_CYCLES)
                moved = True
        self._dropped = first_beat + popped
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
        time = pops[-1] if pops else NEVER
        while k < last:
            spacing = self._beat_cycles if k < self._dropped else 1
            time = max(time + spacing, arrivals[k], taken[k])
            pops.append(time)
            self._core.fetch.popped(k, time)
            k += 1

    # -- issuing --------------------------------------------------------------------------------

    def _issue(self) -> Iterator[bool]:
        """Issues each row at all positions; yields whether it got further."""
        config, core, stream = self._config, self._core, self._stream
        positions, closes, returned = self._positions, self._stream.closes, self.returned
        shortest, lanes, credits = config.shortest_row_cycles, config.lanes, config.out_words
        last_entry, sums, word = self._start, NEVER, 0
        gap_end = NEVER
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
                        self.last_issue = last_entry
                        yield moved
                        moved = False
                    self.last_issue = FOREVER
                    credit = returned[word - credits] + CREDIT_CYCLES
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
        self.last_issue = last_entry
        yield True


def queue_cycles(depth: int) -> int:
    """Cycles from a word into a queue to the word out of it."""
    return 1 if depth <= DISTRIBUTED_DEPTH else 3


def _has_chunks(config: CoreConfig) -> bool:
    """Whether lanes sum up chunks of rows (`sparsemac_hw.layouts.partial_width`)."""
    chunk = max(8, config.shortest_row_cycles)
    return ((2 * chunk - 1) << 14).bit_length() + 1 < config.acc_width
