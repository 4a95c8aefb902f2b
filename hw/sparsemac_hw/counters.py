# SPDX-License-Identifier: Apache-2.0
"""Performance counters: where each cycle of each engine went."""

from functools import reduce
from itertools import pairwise
from operator import add, or_

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS

from .block_memory import BlockMemory

__all__ = ["CounterBank"]

#: Bits that count; at 1 GHz and 64 engines they last for an hour. Read as 64 bits.
COUNTER_BITS = 48

#: Words of the memory that keeps the counters: the next power of two.
SLOTS = 16
SLOT_BITS = 4

#: A shift register of so many bits counts to 30, more than happens from one turn to the next.
CODE_BITS = 5


def _next_code(code: int) -> int:
    """What follows in the shift register; 0 is its first state (x**5 + x**3 + 1, inverted)."""
    return (code << 1 & (1 << CODE_BITS) - 1) | (~(code >> 4 ^ code >> 2) & 1)


class CounterBank(wiring.Component):
    """Adds up what the engines and the bus did in each cycle of a job.

    What happens is first added up in a few bits for each counter. In turn, one counter a cycle,
    these go to a memory behind the only wide adder. A read takes a turn behind its strobe, so what
    it returns is complete up to two cycles behind the strobe.

    Events that come one at a time are counted by feedback shift registers, which take a LUT where a
    counter takes one for each bit; one table for all tells what their states mean.

    Latency: `READ_CYCLES` from ``r_stb`` to ``r_data``. Throughput: a read in every eighth cycle.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    clear : In(1)                    Strobe: all counters to 0; what happens meanwhile is lost. High
                                     in reset, too: no counter has another reset.
    busy : In(1)                     A job is running; nothing counts otherwise.
    <counter>_now : In               What happens in this cycle: a bit per engine, or an amount.
    r_stb, r_idx : In                Strobe: read the counter at this place in
                                     `sparsemac.registers.COUNTERS`; ``r_idx`` stays for 6 cycles
                                     more.
    r_data : Out(64)                 Its value, for one cycle.
    """

    READ_CYCLES = 7

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
        turn, pick = Signal(SLOT_BITS), Signal(SLOT_BITS)
        asked = Signal(6)  # the strobe, cycle by cycle
        m.d.sync += asked.eq(Cat(self.r_stb, asked))
        # A word is written four cycles behind its turn: so no other turn that close must be the
        # same. A counter that is read has its turn three cycles behind ``asked[0]``, and needs none
        # in the neighbourhood; it is complete by then.
        reads = asked[2]
        near = self.r_stb | asked.any()
        skips = near & (turn == self.r_idx)
        m.d.sync += pick.eq(Mux(reads, self.r_idx, turn | skips.replicate(SLOT_BITS)))
        with m.If(~reads):
            m.d.sync += turn.eq(turn + 1)

        codes, amounts = [], []
        for k, name in enumerate(self._names):
            now = getattr(self, f"{name}_now")
            if len(now) == 1:
                codes.append(self._collect_one(m, name, now, pick == k))
            else:
                amounts.append(self._collect(m, name, now, pick == k))
        code = Signal(CODE_BITS)
        amount = Signal(max(len(a) for a in amounts))
        decoded = Signal(CODE_BITS)
        m.d.comb += [code.eq(reduce(or_, codes)), amount.eq(reduce(or_, amounts))]
        collected = Signal(max(len(amount), CODE_BITS), reset_less=True)
        moved = Signal.like(collected, reset_less=True)
        state = 0
        with m.Switch(code):
            for count in range((1 << CODE_BITS) - 1):
                with m.Case(state):
                    m.d.comb += decoded.eq(count)
                state = _next_code(state)
        m.d.sync += [collected.eq(amount | decoded), moved.eq(collected)]
        with m.If(self.clear):
            m.d.sync += [collected.eq(0), moved.eq(0)]
        self._accumulate(m, pick, moved)
        return m

    def _handed_over(self, m: Module, name: str, pending: Signal, picked: Value) -> Signal:
        """Returns what was collected, in the cycle behind its turn; 0 in all others.

        The flip-flops' own reset does that, so that a multiplexer is no more than an OR.
        """
        given = Signal.like(pending, name=f"{name}_given", reset_less=True)
        m.d.sync += given.eq(pending)
        with m.If(self.clear | ~picked):
            m.d.sync += given.eq(0)
        return given

    def _collect_one(self, m: Module, name: str, now: Value, picked: Value) -> Signal:
        """Counts single events until the counter's turn comes."""
        step = Signal(name=f"{name}_step", reset_less=True)
        code = Signal(CODE_BITS, name=f"{name}_code", reset_less=True)
        m.d.sync += step.eq(0)
        with m.If(self.busy & ~self.clear):
            m.d.sync += step.eq(now)
        # The enable inside, the clear around it: as the flip-flops have them.
        with m.If(step):
            m.d.sync += code[1:].eq(code)
        with m.If(picked | self.clear):
            m.d.sync += code[1:].eq(0)
        with m.If(step | picked):
            m.d.sync += code[0].eq(Mux(picked, step, ~(code[4] ^ code[2])))
        with m.If(self.clear):
            m.d.sync += code[0].eq(0)
        return self._handed_over(m, name, code, picked)

    def _collect(self, m: Module, name: str, now: Value, picked: Value) -> Signal:
        """Adds up one counter until its turn comes."""
        if name == "write_bytes":
            most, amount = self._config.bus_bytes, now
        else:
            most, amount = len(now), reduce(add, list(now))
        step = Signal(range(most + 1), name=f"{name}_step", reset_less=True)
        # A read takes one turn of eight, and may make the counter's own be left out once.
        pending = Signal(
            range(2 * SLOTS * most + 1), name=f"{name}_pending", reset_less=True)
        m.d.sync += step.eq(0)
        with m.If(self.busy & ~self.clear):
            m.d.sync += step.eq(amount)
        m.d.sync += pending.eq(pending + step)
        with m.If(picked):  # for the upper bits a synchronous clear, without a LUT
            m.d.sync += pending.eq(step)
        with m.If(self.clear):
            m.d.sync += pending.eq(0)
        return self._handed_over(m, name, pending, picked)

    def _accumulate(self, m: Module, pick: Signal, moved: Signal) -> None:
        """Adds to the memory. It cannot be cleared at once: ``fresh`` words count as 0."""
        m.submodules.memory = memory = BlockMemory(COUNTER_BITS, SLOTS)
        fresh = Signal(SLOTS, init=(1 << SLOTS) - 1, reset_less=True)
        before, total = Signal(COUNTER_BITS, reset_less=True), Signal(COUNTER_BITS)
        slots = [Signal(SLOT_BITS, name=f"slot_{k}") for k in range(1, 4)]
        m.d.comb += [
            memory.r_addr.eq(pick),
            total.eq(before + moved),
            memory.w_addr.eq(slots[2]),
            memory.w_data.eq(total),
            memory.w_en.eq(1),
            self.r_data.eq(total),
        ]
        # Behind the memory another register: the adder takes a cycle.
        m.d.sync += before.eq(memory.r_data)
        m.d.sync += [later.eq(now) for now, later in pairwise([pick, *slots])]
        with m.If(fresh.bit_select(slots[1], 1) | self.clear):
            m.d.sync += before.eq(0)
        m.d.sync += fresh.bit_select(slots[2], 1).eq(0)
        with m.If(self.clear):
            m.d.sync += fresh.eq((1 << SLOTS) - 1)
