# SPDX-License-Identifier: Apache-2.0
"""The guards, the only drivers of the address channels: with their lookup all that is trusted."""

from typing import Any, Literal

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import WINDOW_GRANULE_BYTES, FaultCode

from .bus import ID_BITS
from .layouts import burst_layout, window_layout

__all__ = ["Guard", "WindowLookup"]

#: AXI4 (IHI 0022, A3.4.1): ``AxBURST`` of incrementing addresses.
BURST_INCR = 0b01

PAGE_BITS = WINDOW_GRANULE_BYTES.bit_length() - 1


class WindowLookup(wiring.Component):
    """Finds the windows that hold a page, for two guards: comparators are most of what they take.

    A page per cycle. If both guards ask they have it in turns, so a request that waits for its
    address channel does not keep it. Whose turn it is follows from the cycle before, for
    comparators are slow enough: the write guard waits for a cycle if it did not ask then.

    Latency: none, ``covering`` belongs to the guard whose ``turn`` it is.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    windows : In(array of window_layout)
    asks : In(1).array(2)         A guard has a request.
    pages : In(20).array(2)       Its page.
    turns : Out(1).array(2)       It may take the request in this cycle; one of them always may.
    covering : Out(windows)       For each window, whether it holds that guard's page.
    """

    windows: data.View
    asks: Any
    pages: Any
    turns: Any
    covering: Signal

    def __init__(self, config: CoreConfig) -> None:
        super().__init__({
            "windows": In(data.ArrayLayout(window_layout, config.windows)),
            "asks": In(1).array(2),
            "pages": In(32 - PAGE_BITS).array(2),
            "turns": Out(1).array(2),
            "covering": Out(config.windows),
        })

    def _covers(self, window: data.View, page: Value) -> Value:
        """Whether the window holds the page."""
        # Both as "less than": yosys adds a comparator for equality to any "less or equal".
        return ~(page < window.first) & ~(window.last < page)

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        second = Signal()
        page = Signal(32 - PAGE_BITS)
        m.d.sync += second.eq(self.asks[1] & ~(self.asks[0] & second))
        m.d.comb += [
            self.turns[0].eq(~second),
            self.turns[1].eq(second),
            page.eq(Mux(second, self.pages[1], self.pages[0])),
            self.covering.eq(Cat(self._covers(window, page) for window in self.windows)),
        ]
        return m


class Guard(wiring.Component):
    """Lets a burst out if every byte of it lies in one open window; denies it otherwise.

    A burst passes if it has 1 to 256 beats, stays inside a page of 4096 bytes, and its page lies in
    ``first .. last`` of a window with the permission for this direction. A window with
    ``first > last`` matches nothing. Nothing upstream is trusted: whatever comes in on ``i``, only
    such bursts come out (proved in ``tests/hw/test_guard_proof.py``). Address bits below a beat are
    ignored and sent as 0.

    Each request that was taken is answered in order by one strobe, ``granted`` at least a cycle
    later or ``denied`` at least two, unless ``stop`` comes first: then it is dropped without an
    answer. In the cycle of ``denied`` no other request is granted: so none is behind a denied one,
    if ``stop`` follows. Once
    VALID is up, it stays with the same payload until READY, as AXI4 (A3.2.1) demands, whatever
    ``stop``, ``epoch`` and the requests do.

    A page is looked up in the windows on its way in, by a `WindowLookup`, so that what a verdict
    sets off begins at a flip-flop. So the windows must not change with the end of a cycle without
    ``stop``, nor with one after which VALID is up: the bank locks them while the core is busy,
    which begins before ``stop`` ends, or ``pending`` is high.

    Latency: `LATENCY_CYCLES` from a transfer on ``i`` to VALID. Throughput: one burst per cycle
    while READY and ``turn`` are high.

    Parameters
    ----------
    config : CoreConfig
    direction : "read" or "write"     Which permission of the windows counts.

    Members
    -------
    i : In(stream of burst_layout)    Requests.
    epoch : In(4)                     ID of the bursts let out from now on.
    windows : In(array of window_layout)    For their permissions.
    page : Out(20), turn : In(1), covering : In(windows)    The lookup's: the page of ``i``, whether
                                      it may be taken in this cycle, which windows hold it.
    stop : In(1)                      Take no request, and drop one that is not yet granted.
    id, addr, len, size, burst, prot, valid : Out; ready : In     The pins of AR or AW.
    granted : Out(1)                  Strobe: the oldest request is on the pins from the next cycle.
    denied : Out(1)                   Strobe: the oldest request was refused in the last cycle.
    denied_code : Out(8)              With ``denied``: PERM if the page is in a window, but in none
                                      with the permission; WINDOW for any other reason.
    denied_address : Out(32)          With ``denied``: first byte of the burst.
    issued : Out(1)                   Strobe: a burst has left, VALID and READY are high.
    pending : Out(1)                  VALID is high.
    """

    LATENCY_CYCLES = 2

    i: stream.Interface
    epoch: Signal
    windows: data.View
    page: Signal
    turn: Signal
    covering: Signal
    stop: Signal
    id: Signal
    addr: Signal
    len: Signal
    size: Signal
    burst: Signal
    prot: Signal
    valid: Signal
    ready: Signal
    granted: Signal
    denied: Signal
    denied_code: Signal
    denied_address: Signal
    issued: Signal
    pending: Signal

    def __init__(self, config: CoreConfig, direction: Literal["read", "write"]) -> None:
        if direction not in ("read", "write"):
            raise ValueError(f"direction must be 'read' or 'write', not {direction!r}")
        self._config = config
        self._direction = direction
        # A request waits for its answer; the windows that hold its page; where it begins, in beats
        # (bits below one are not even stored); its beats less one, as on the pins; whether it stays
        # in its page. Here for the proof to see.
        self._held = Signal()
        self._covering = Signal(config.windows)
        self._address = Signal(32 - self._beat_bits)
        self._length = Signal(8)
        self._fits = Signal()
        super().__init__({
            "i": In(stream.Signature(burst_layout)),
            "epoch": In(ID_BITS),
            "windows": In(data.ArrayLayout(window_layout, config.windows)),
            "page": Out(32 - PAGE_BITS),
            "turn": In(1),
            "covering": In(config.windows),
            "stop": In(1),
            "id": Out(ID_BITS),
            "addr": Out(32),
            "len": Out(8),
            "size": Out(3),
            "burst": Out(2),
            "prot": Out(3),
            "valid": Out(1),
            "ready": In(1),
            "granted": Out(1),
            "denied": Out(1),
            "denied_code": Out(8),
            "denied_address": Out(32),
            "issued": Out(1),
            "pending": Out(1),
        })

    @property
    def config(self) -> CoreConfig:
        """Configuration of the core."""
        return self._config

    @property
    def direction(self) -> str:
        """Which permission of the windows counts, "read" or "write"."""
        return self._direction

    @property
    def _beat_bits(self) -> int:
        return self._config.bus_bytes.bit_length() - 1

    def elaborate(self, platform: object) -> Module:
        """Returns the gateware."""
        m = Module()
        held, covering = self._held, self._covering
        address, length, fits = self._address, self._length, self._fits
        shown = Signal.like(address)
        length_next = Signal(9)  # beats of 0 and of more than 256 set bit 8
        permitted = Signal()

        first_beat = self.i.payload.address[self._beat_bits : PAGE_BITS]
        last_beat = first_beat + length_next[:8]
        opens = Cat(window[self._direction] for window in self.windows)
        m.d.comb += [
            self.page.eq(self.i.payload.address[PAGE_BITS:]),
            length_next.eq(self.i.payload.beats - 1),
            permitted.eq((covering & opens).any()),
        ]

        passes = fits & permitted
        vacant = ~self.valid | self.ready
        # A request leaves when the pins are free, granted or not: what comes behind it need not
        # wait for the verdict. A denied one's address stands on the pins, without VALID.
        leaves = Signal()
        m.d.comb += [
            leaves.eq(vacant & ~self.denied),
            self.granted.eq(held & ~self.stop & passes & leaves),
            self.denied_address.eq(shown << self._beat_bits),
            self.i.ready.eq(~self.stop & self.turn & (~held | leaves)),
        ]
        m.d.sync += [
            self.denied.eq(held & ~self.stop & ~passes & leaves),
            self.denied_code.eq(Mux(fits & covering.any(), FaultCode.PERM, FaultCode.WINDOW)),
        ]
        with m.If(self.stop | leaves):
            m.d.sync += held.eq(0)
        with m.If(self.i.ready):
            m.d.sync += [
                held.eq(self.i.valid),
                address.eq(self.i.payload.address[self._beat_bits :]),
                length.eq(length_next),
                fits.eq(~length_next[8] & (last_beat < WINDOW_GRANULE_BYTES >> self._beat_bits)),
                covering.eq(self.covering),
            ]

        with m.If(vacant):
            m.d.sync += [
                self.valid.eq(self.granted),
                self.id.eq(self.epoch),
                shown.eq(address),
                self.len.eq(length),
            ]
        m.d.comb += [
            self.addr.eq(shown << self._beat_bits),
            self.size.eq(self._beat_bits),
            self.burst.eq(BURST_INCR),
            self.issued.eq(self.valid & self.ready),
            self.pending.eq(self.valid),
        ]
        return m
