# SPDX-License-Identifier: Apache-2.0
"""Performance counters: where each cycle of each engine went."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac.registers import COUNTERS

__all__ = ["CounterBank"]

#: Bits that count; at 1 GHz and 64 engines they last for an hour. Read as 64 bits.
COUNTER_BITS = 48


class CounterBank(wiring.Component):
    """Adds up what the engines and the bus did in each cycle of a job.

    Increments are registered once, so a counter lags its cause by a cycle; all lag alike.

    Members
    -------
    clear : In(1)                    Strobe: all counters to 0.
    busy : In(1)                     A job is running; nothing counts otherwise.
    <counter>_now : In               What happens in this cycle: a bit per engine, or an amount.
    <counter> : Out(64)              One for each of `sparsemac.registers.COUNTERS`, lower case.
    """

    def __init__(self, config: CoreConfig) -> None:
        self._names = [name.lower() for name, _ in COUNTERS]
        widths = dict.fromkeys(self._names, config.engines)
        widths |= {"cycles": 1, "read_beats": 1, "write_beats": 1, "write_bytes": 8}
        self._amounts = ("write_bytes",)
        members: dict[str, wiring.Member] = {"clear": In(1), "busy": In(1)}
        for name in self._names:
            members[f"{name}_now"] = In(widths[name])
            members[name] = Out(64)
        super().__init__(members)

    @property
    def names(self) -> list[str]:
        """Names of the counters, lower case."""
        return list(self._names)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name in self._names:
            now: Value = getattr(self, f"{name}_now")
            amount = now if name in self._amounts else sum((now[i] for i in range(1, len(now))), now[0])
            step = Signal(8, name=f"{name}_step", reset_less=True)
            count = Signal(COUNTER_BITS, name=f"{name}_count")
            m.d.sync += step.eq(0)
            with m.If(self.busy):
                m.d.sync += step.eq(amount)
            m.d.sync += count.eq(count + step)
            with m.If(self.clear):
                m.d.sync += count.eq(0)
            m.d.comb += getattr(self, name).eq(count)
        return m
