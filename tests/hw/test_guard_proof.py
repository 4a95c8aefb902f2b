# SPDX-License-Identifier: Apache-2.0
"""Containment, proved: no byte outside an open window, whatever the rest of the core does.

All inputs of the guard and of the lookup are free in every cycle: requests, those of the other
guard, epoch, stop, READY and reset. The one assumption is what the register bank does in hardware:
the windows do not change with the end of a cycle without stop, nor with one after which VALID is
up.
"""

import pytest
from amaranth.hdl import Assert, Assume, C, Cat, Cover, Module, ResetSignal, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In
from sparsemac.config import CoreConfig
from sparsemac.errors import MissingDependency
from sparsemac.registers import FaultCode
from sparsemac_hw.formal import check, find_tools
from sparsemac_hw.guard import Guard, WindowLookup
from sparsemac_hw.layouts import burst_layout, window_layout

PAGE_BYTES = 4096


class LastPageOpen(WindowLookup):
    """A lookup that takes the page behind a window for its last."""

    def _covers(self, window, page):
        return ~(page < window.first) & (page <= window.last + 1)


class HastyGuard(Guard):
    """A guard that changes its mind when it is told to stop."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.stop):
            m.d.sync += self.valid.eq(0)
        return m


class Containment(wiring.Component):
    """A guard and the lookup with free inputs, and what they promise, in parts.

    That some open window holds the page on the pins is proved window by window, since the solver's
    time grows exponentially with their number otherwise. ``chosen`` notes in the cycle of the grant
    which windows the guard takes for open and holding the page. Part "window" proves that there is
    a chosen one while VALID is up; part ``k``, for each window ``k``, that the guard is right about
    it while a request waits, and that it still holds the page on the pins if it was chosen; part
    "burst", that the burst stays in its page. Together: every byte lies in one open window.
    """

    i: stream.Interface
    epoch: Signal
    windows: data.View
    stop: Signal
    ready: Signal
    other_asks: Signal
    other_page: Signal

    def __init__(self, guard, part, lookup=None):
        self.guard = guard
        self.lookup = lookup or WindowLookup(guard.config)
        self.part = part
        super().__init__({
            "i": In(stream.Signature(burst_layout)),
            "epoch": In(4),
            "windows": In(data.ArrayLayout(window_layout, guard.config.windows)),
            "stop": In(1),
            "ready": In(1),
            "other_asks": In(1),
            "other_page": In(20),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.guard = guard = self.guard
        wiring.connect(m, wiring.flipped(self.i), guard.i)
        m.d.comb += [
            guard.epoch.eq(self.epoch),
            guard.windows.eq(self.windows),
            guard.stop.eq(self.stop),
            guard.ready.eq(self.ready),
        ]
        m.submodules.lookup = lookup = self.lookup
        mine = ("read", "write").index(guard.direction)
        m.d.comb += [
            lookup.windows.eq(self.windows),
            lookup.asks[mine].eq(guard.i.valid),
            lookup.pages[mine].eq(guard.page),
            lookup.asks[1 - mine].eq(self.other_asks),
            lookup.pages[1 - mine].eq(self.other_page),
            guard.turn.eq(lookup.turns[mine]),
            guard.covering.eq(lookup.covering),
        ]
        windows = Value.cast(self.windows)
        last_windows = Signal.like(windows)
        self._may_change = may_change = Signal(init=1)
        m.d.sync += [last_windows.eq(windows), may_change.eq(self.stop)]
        with m.If(guard.valid | ~may_change):
            m.d.comb += Assume(windows == last_windows, "locked")
        if self.part == "protocol":
            self._state_protocol(m)
        elif self.part == "covers":
            self._state_covers(m)
        else:
            self._state_containment(m)
        return m

    def _state_containment(self, m):
        """While VALID is up, the whole burst lies in one page, and that page in an open window."""
        guard = self.guard
        beat_bytes = guard.config.bus_bytes
        first = Signal(33)  # one bit more than an address, so that nothing wraps round
        last = Signal(33)
        request, request_last = Signal(32), Signal(33)  # of the one that waits for its answer
        chosen = Signal(guard.config.windows)
        m.d.comb += [
            first.eq(guard.addr),
            last.eq(first + Cat(C(beat_bytes - 1, beat_bytes.bit_length() - 1), guard.len)),
            request.eq(guard._address << beat_bytes.bit_length() - 1),
            request_last.eq(
                request + Cat(C(beat_bytes - 1, beat_bytes.bit_length() - 1), guard._length)),
        ]
        with m.If(guard.granted):
            m.d.sync += chosen.eq(
                guard._covering & Cat(window[guard.direction] for window in self.windows))
        if isinstance(self.part, int):
            with m.If(guard._held):
                m.d.comb += [
                    Assert(~self._may_change, "held though stopped"),
                    Assert(~guard._covering[self.part]
                           | self._covers(self.part, request[12:]), "misjudged"),
                ]
        elif self.part == "burst":
            with m.If(guard._held & guard._fits):
                m.d.comb += Assert(request[12:] == request_last[12:32], "misjudged")
        with m.If(guard.valid):
            if self.part == "window":
                m.d.comb += Assert(chosen.any(), "in no window")
            elif self.part == "burst":
                m.d.comb += Assert(first[12:] == last[12:], "crosses a page")
                m.d.comb += Assert(guard.burst == 1, "not incrementing")
                m.d.comb += Assert((1 << guard.size) == beat_bytes, "not full beats")
            else:
                holds = self._covers(self.part, first[12:32])
                is_open = self.windows[self.part][guard.direction]
                m.d.comb += Assert(~chosen[self.part] | (holds & is_open), "left")

    def _covers(self, index, page):
        """Whether a window holds the page.

        Written as "not less", as in the guard: yosys then shares the comparators where both look at
        the same page, and the proof takes a second instead of minutes.
        """
        window = self.windows[index]
        return ~(page < window.first) & ~(window.last < page)

    def _state_protocol(self, m):
        """VALID and what it carries stay until READY; nothing shows that was not granted."""
        guard = self.guard
        pins = Cat(guard.id, guard.addr, guard.len, guard.size, guard.burst, guard.prot)
        last_pins = Signal.like(pins)
        stalled = Signal()
        granted = Signal()
        m.d.sync += [
            last_pins.eq(pins),
            stalled.eq(guard.valid & ~guard.ready & ~ResetSignal()),
            granted.eq(guard.granted & ~ResetSignal()),
        ]
        with m.If(stalled):
            m.d.comb += Assert(guard.valid & (pins == last_pins), "VALID or payload withdrawn")
        with m.Else():
            m.d.comb += Assert(guard.valid == granted, "a burst that was not granted")
        m.d.comb += Assert(~(guard.granted & guard.denied), "two answers")

    def _state_covers(self, m):
        """Bursts leave, longest ones too, and requests are denied for each reason."""
        guard = self.guard
        m.d.comb += [
            Cover(guard.issued & (guard.len == 255), "longest"),
            Cover(guard.denied & (guard.denied_code == FaultCode.WINDOW), "outside"),
            Cover(guard.denied & (guard.denied_code == FaultCode.PERM), "not permitted"),
            Cover(guard.valid & ~guard.ready & guard.i.ready, "waits behind"),
        ]


@pytest.fixture(scope="module", autouse=True)
def tools():
    try:
        return find_tools()
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("part", ["protocol", "burst", "window", *range(CoreConfig().windows)])
@pytest.mark.parametrize("direction", ["read", "write"])
def test_no_burst_ever_leaves_the_windows(direction, part, tmp_path):
    guard = Guard(CoreConfig(), direction)
    result = check(Containment(guard, part), tmp_path, depth=1)
    assert result.passed, result.log


def test_assumptions_leave_room_for_every_outcome(tmp_path):
    guard = Guard(CoreConfig(bus_width=32, windows=2), "write")
    result = check(Containment(guard, "covers"), tmp_path, mode="cover", depth=5)
    assert result.passed, result.log


class HeedlessLookup(WindowLookup):
    """A lookup that lets both guards have it, and answers for one."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += Cat(self.turns[0], self.turns[1]).eq(0b11)
        return m


@pytest.mark.parametrize("faulty, lookup, part", [
    (Guard, LastPageOpen, 0),
    (Guard, HeedlessLookup, 0),
    (HastyGuard, WindowLookup, "protocol"),
])
def test_proof_fails_on_a_faulty_guard(faulty, lookup, part, tmp_path):
    config = CoreConfig()
    harness = Containment(faulty(config, "read"), part, lookup(config))
    result = check(harness, tmp_path, depth=4)
    assert result.status == "FAIL", result.log
