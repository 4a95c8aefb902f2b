# SPDX-License-Identifier: Apache-2.0
"""Performance counters: where each cycle of each engine went."""

from functools import reduce
from operator import add

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS

__all__ = ["CounterBank"]

#: Bits that count; at 1 GHz and 64 engines they last for an hour. Read as 64 bits.
COUNTER_BITS = 48

#: Words of the memory that keeps the counters: the next power of two.
SLOTS = 16
SLOT_BITS = 4


class CounterBank(wiring.Component):
    """Adds up what the engines and the bus did in each cycle of a job.

    What happens is first added up in a few bits for each counter. In turn, one counter a cycle,
    these go to a memory behind the only wide adder. A read takes the turn of the cycle behind its
    strobe, so what it returns is complete up to the cycle before the strobe.

    Latency: `READ_CYCLES` from ``r_stb`` to ``r_data``. Throughput: a read in every third cycle.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    clear : In(1)                    Strobe: all counters to 0; what happens meanwhile is lost.
    busy : In(1)                     A job is running; nothing counts otherwise.
    <counter>_now : In               What happens in this cycle: a bit per engine, or an amount.
    r_stb, r_idx : In                Strobe: read the counter at this place in
                                     `sparsemac.registers.COUNTERS`; ``r_idx`` stays for 2 cycles
                                     more.
    r_data : Out(64)                 Its value, for one cycle.
    """

    READ_CYCLES = 2

    clear: Signal
    busy: Signal
    cycles_now: Signal
    issued_now: Signal
    stall_command_now: Signal
    stall_activations_now: Signal
    stall_weights_now: Signal
    stall_store_now: Signal
    stall_short_now: Signal
    idle_now: Signal
    fillers_now: Signal
    read_beats_now: Signal
    write_beats_now: Signal
    write_bytes_now: Signal
    r_stb: Signal
    r_idx: Signal
    r_data: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._names = [name.lower() for name, _ in COUNTERS]
        widths = dict.fromkeys(self._names, config.engines)
        widths |= {"cycles": 1, "read_beats": 1, "write_beats": 1, "write_bytes": 8}
        super().__init__({
            "clear": In(1),
            "busy": In(1),
            **{f"{name}_now": In(widths[name]) for name in self._names},
            "r_stb": In(1),
            "r_idx": In(SLOT_BITS),
            "r_data": Out(64),
        })

    @property
    def names(self) -> list[str]:
        """Names of the counters, lower case, in order of ``r_idx``."""
        return list(self._names)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        turn, pick, slot = Signal(SLOT_BITS), Signal(SLOT_BITS), Signal(SLOT_BITS)
        reading, has_read = Signal(), Signal()
        m.d.sync += [reading.eq(self.r_stb), has_read.eq(reading), slot.eq(pick)]
        # A word is read while the one before it is written: so they must not be the same. A counter
        # that is read in this cycle's neighbour needs no turn; it is complete by then.
        skips = (self.r_stb | has_read) & (turn == self.r_idx)
        m.d.comb += pick.eq(Mux(reading, self.r_idx, turn | skips.replicate(SLOT_BITS)))
        with m.If(~reading):
            m.d.sync += turn.eq(turn + 1)

        pending = [self._collect(m, name, pick == k) for k, name in enumerate(self._names)]
        moved = Signal(max(len(amount) for amount in pending))
        with m.Switch(pick):
            for k, amount in enumerate(pending):
                with m.Case(k):
                    m.d.sync += moved.eq(amount)
            with m.Default():
                m.d.sync += moved.eq(0)
        with m.If(self.clear):
            m.d.sync += moved.eq(0)
        self._accumulate(m, pick, slot, moved)
        return m

    def _collect(self, m: Module, name: str, picked: Value) -> Signal:
        """Adds up one counter until its turn comes."""
        now: Value = getattr(self, f"{name}_now")
        if name == "write_bytes":
            most, amount = self._config.bus_bytes, now
        else:
            most, amount = len(now), reduce(add, list(now))
        step = Signal(range(most + 1), name=f"{name}_step")
        # Reads make the turn come half as often at worst.
        pending = Signal(range(2 * SLOTS * most + 1), name=f"{name}_pending")
        m.d.sync += step.eq(0)
        with m.If(self.busy & ~self.clear):
            m.d.sync += step.eq(amount)
        m.d.sync += pending.eq(pending + step)
        with m.If(picked):  # for the upper bits a synchronous clear, without a LUT
            m.d.sync += pending.eq(step)
        with m.If(self.clear):
            m.d.sync += pending.eq(0)
        return pending

    def _accumulate(self, m: Module, pick: Signal, slot: Signal, moved: Signal) -> None:
        """Adds to the memory. It cannot be cleared at once: ``fresh`` words count as 0."""
        m.submodules.memory = memory = Memory(
            shape=COUNTER_BITS, depth=SLOTS, init=[], attrs={"ram_style": "block"})
        read, write = memory.read_port(domain="comb"), memory.write_port()
        fresh = Signal(SLOTS, init=(1 << SLOTS) - 1)
        before, total = Signal(COUNTER_BITS), Signal(COUNTER_BITS)
        m.d.comb += [
            read.addr.eq(pick),
            total.eq(before + moved),
            write.addr.eq(slot),
            write.data.eq(total),
            write.en.eq(1),
            self.r_data.eq(total),
        ]
        m.d.sync += before.eq(read.data)  # the output register of the memory, with its clear
        with m.If(fresh.bit_select(pick, 1) | self.clear):
            m.d.sync += before.eq(0)
        m.d.sync += fresh.bit_select(slot, 1).eq(0)
        with m.If(self.clear):
            m.d.sync += fresh.eq((1 << SLOTS) - 1)
