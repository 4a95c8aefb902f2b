# SPDX-License-Identifier: Apache-2.0
"""A store that stalls at random, for benches of what makes output words."""

from dataclasses import dataclass, field

ADDRESSES = 1 << 32


@dataclass
class Written:
    """What one EXEC wrote: bytes by address, and how many there were, with repetitions."""

    output: int
    image: dict[int, int] = field(default_factory=dict)
    count: int = 0


class WordStore:
    """Takes beats of output words, and puts their bytes where the writer would.

    ``written`` has an entry for each EXEC that was begun. A beat must not change while it waits,
    and the beats of a word must follow one another.
    """

    def __init__(self, config, rng, stall):
        self.config, self.rng, self.stall = config, rng, stall
        self.written: list[Written] = []
        self.part = 0  # beats of the word that have come

    def begin(self, output):
        """An EXEC begins, whose output is at this address."""
        self.written.append(Written(output))
        return self.written[-1]

    async def run(self, ctx, o, holds=lambda: False):
        """Serves stream ``o``; takes nothing while ``holds()``."""
        held = None
        while True:
            ready = not holds() and self.rng.random() >= self.stall
            ctx.set(o.ready, ready)
            *_, valid, beat = await ctx.tick().sample(o.valid, o.p)
            assert held is None or (valid and beat == held), "beat changed while stalled"
            held = beat if valid and not ready else None
            if valid and ready:
                self._take(beat)

    def _take(self, beat):
        bus_bytes, written = self.config.bus_bytes, self.written[-1]
        size = self.config.out_word_bytes(beat.raw)
        assert beat.first == (self.part == 0)
        address = written.output + beat.out_word * size + self.part * bus_bytes
        data = beat.data.to_bytes(bus_bytes, "little")
        for k in self._covered(beat, address, size):
            written.image[(address // bus_bytes * bus_bytes + k) % ADDRESSES] = data[k]
            written.count += 1
        self.part = (self.part + 1) % max(1, size // bus_bytes)
        assert beat.last == (self.part == 0)

    def _covered(self, beat, address, size):
        """Which bytes of a beat are there."""
        bus_bytes = self.config.bus_bytes
        if "filled" in dict(beat.shape()):
            count = max(1, bus_bytes // self.config.lanes)
            return [k for k in range(bus_bytes) if beat.filled >> k * count // bus_bytes & 1]
        start = address % bus_bytes
        return range(start, start + min(size, bus_bytes))
