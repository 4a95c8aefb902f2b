# SPDX-License-Identifier: Apache-2.0
"""Activation memories and multiply-accumulate lanes of one engine."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .layouts import index_shape

__all__ = ["MacLanes"]


class MacLanes(wiring.Component):
    """Multiplies each entry with one activation per lane and sums up rows.

    All lanes read the same word address, each in its own memory, but lane ``v`` does so ``v``
    cycles after lane 0 (the entry travels down the lanes, register to register). The sums of a row
    thus leave one lane per cycle, lane 0 first. Each group of lanes has a bus for them that is only
    an OR: a lane drives zero except in its own cycle. Accumulators need no clear cycle: they
    restart from zero behind ``last``.

    ``sum[v] = sum over the entries of a row of  i_weight * activation[v][i_addr]``

    Latency: `LATENCY_CYCLES` from an entry with ``i_last`` to the sum of lane 0. Throughput: one
    entry per cycle. Entries with ``i_last`` must be at least ``config.shortest_row_cycles`` apart,
    else sums collide on a bus: the issuer keeps that distance.
    Overflow: wraps modulo 2**acc_width; the compiler proves that it cannot happen.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_valid, i_addr, i_weight, i_last : In     An entry: word address, int8 weight, end of the row.
    o_valid : Out(1).array(sum_buses)          A sum is on the bus.
    o_acc : Out(signed(acc_width)).array(sum_buses)     The sum; 0 if there is none.
    w_en, w_line, w_sub, w_data : In           One beat of activations, as the loader numbers it.
    """

    i_valid: Signal
    i_addr: Signal
    i_weight: Signal
    i_last: Signal
    o_valid: list[Signal]
    o_acc: list[Signal]
    w_en: Signal
    w_line: Signal
    w_sub: Signal
    w_data: Signal

    LATENCY_CYCLES = 5

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        lines = config.act_depth // config.line_words
        super().__init__({
            "i_valid": In(1),
            "i_addr": In(config.address_bits),
            "i_weight": In(signed(8)),
            "i_last": In(1),
            "o_valid": Out(1).array(config.sum_buses),
            "o_acc": Out(signed(config.acc_width)).array(config.sum_buses),
            "w_en": In(1),
            "w_line": In(range(lines)),
            "w_sub": In(index_shape(config.word_beats)),
            "w_data": In(config.bus_width),
        })

    @property
    def config(self) -> CoreConfig:
        """The configuration."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = self._config.acc_width
        stage = {"valid": self.i_valid, "addr": self.i_addr, "weight": self.i_weight,
                 "last": self.i_last}
        shadows, valids = [], []
        for v in range(self._config.lanes):
            shadow, done = self._lane(m, v, stage)
            shadows.append(shadow)
            valids.append(done)
            stage = self._delay(m, v, stage)
        group = self._config.shortest_row_cycles
        for b in range(self._config.sum_buses):
            mine = slice(b * group, (b + 1) * group)
            sums = Signal(signed(width), name=f"sums_{b}")
            m.d.sync += [
                sums.eq(reduce(or_, shadows[mine])),
                self.o_valid[b].eq(Cat(valids[mine]).any()),
            ]
            m.d.comb += self.o_acc[b].eq(sums)
        return m

    def _delay(self, m: Module, v: int, stage: dict[str, Signal]) -> dict[str, Signal]:
        """The entry one cycle later, for the next lane."""
        later = {}
        for name, signal in stage.items():
            later[name] = Signal(signal.shape(), name=f"{name}_{v + 1}", reset_less=name != "valid")
            m.d.sync += later[name].eq(signal)
        return later

    def _lane(self, m: Module, v: int, stage: dict[str, Signal]) -> tuple[Signal, Signal]:
        config = self._config
        words = config.line_words
        memory = Memory(shape=unsigned(8 * words), depth=config.act_depth // words, init=[])
        m.submodules[f"activations_{v}"] = memory
        self._connect_write(m, v, memory)
        read = memory.read_port()
        activation = Signal(signed(8), name=f"activation_{v}")
        if words == 1:
            m.d.comb += [read.addr.eq(stage["addr"]), activation.eq(read.data)]
        else:
            # A beat holds several words: the line is read whole, the word picked from it.
            bits = (words - 1).bit_length()
            pick = Signal(bits, name=f"pick_{v}", reset_less=True)
            m.d.sync += pick.eq(stage["addr"][:bits])
            m.d.comb += [
                read.addr.eq(stage["addr"][bits:]),
                activation.eq(read.data.word_select(pick, 8)),
            ]
        m.d.comb += read.en.eq(stage["valid"])

        weight = Signal(signed(8), name=f"weight_now_{v}")
        last_1 = Signal(name=f"last_1_{v}")
        last_2 = Signal(name=f"last_2_{v}")
        done = Signal(name=f"done_{v}")
        product = Signal(signed(16), name=f"product_{v}", reset_less=True)
        acc = Signal(signed(config.acc_width), name=f"acc_{v}")
        shadow = Signal(signed(config.acc_width), name=f"shadow_{v}", reset_less=True)
        total = Signal(signed(config.acc_width), name=f"total_{v}")
        m.d.comb += total.eq(acc + product)
        m.d.sync += [
            weight.eq(stage["weight"]),
            last_1.eq(stage["last"] & stage["valid"]),
            product.eq(activation * weight),
            last_2.eq(last_1),
            acc.eq(total),
            shadow.eq(total),
            done.eq(last_2),
        ]
        # Synchronous clears, so that the flip-flops' own reset does them without a LUT.
        with m.If(~stage["valid"]):
            m.d.sync += weight.eq(0)
        with m.If(last_2):
            m.d.sync += acc.eq(0)
        with m.Else():
            m.d.sync += shadow.eq(0)
        return shadow, done

    def _connect_write(self, m: Module, v: int, memory: Memory) -> None:
        config = self._config
        write = memory.write_port()
        lanes_per_beat = min(config.lanes, config.bus_bytes)
        sub, place = divmod(v, lanes_per_beat)
        # Byte `lane` of each word in the beat: words of `lanes` bytes follow one another.
        for k in range(config.line_words):
            byte = k * config.lanes + place
            m.d.comb += write.data[8 * k : 8 * k + 8].eq(self.w_data[8 * byte : 8 * byte + 8])
        m.d.comb += [
            write.addr.eq(self.w_line),
            write.en.eq(self.w_en & (self.w_sub == sub)),
        ]
