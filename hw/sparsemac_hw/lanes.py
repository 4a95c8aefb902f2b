# SPDX-License-Identifier: Apache-2.0
"""Activation memories and multiply-accumulate lanes of one engine."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig

from .block_memory import BlockMemory
from .ecp5 import PairedSums, Product, is_ecp5
from .layouts import index_shape, partial_width

__all__ = ["MacLanes"]

#: Cycles from an entry's address to the sum that has its product.
SUM_STAGES = 6

#: Sums that one LUT merges.
MERGED = 4


class MacLanes(wiring.Component):
    """Multiplies each entry with one activation per lane and sums up chunks of rows.

    All lanes read the same word address, each in its own memory, but lane ``v`` does so ``v``
    cycles after lane 0 (the entry travels down the lanes, register to register). The sums of a
    chunk thus leave one lane per cycle, lane 0 first. Each group of lanes has a bus for them that
    is only an OR: a lane drives zero except in its own cycle. The last level of that OR has no
    flip-flop behind it; whoever takes the sums has one. Accumulators need no clear cycle: they
    restart from zero behind ``i_end``. They are as narrow as a chunk allows, for this is the
    part that there is once per lane; `RowSum` adds the chunks of a row up, once per bus. On an ECP5
    two lanes work at once, and the sum of the second waits for a cycle: both are in one adder of
    the DSP blocks (`ecp5.PairedSums`).

    ``sum[v] = sum over the entries of a chunk of  i_weight * activation[v][i_addr]``

    Latency: `LATENCY_CYCLES` from an entry with ``i_end`` to the sum of lane 0. Throughput: one
    entry per cycle. Entries with ``i_end`` must be at least ``config.shortest_row_cycles`` apart,
    else sums collide on a bus: the issuer keeps that distance.
    Exact for: chunks of up to ``2 * chunk_entries - 1`` entries. Overflow: where a sum has the
    width of the row's it wraps, as that does; the compiler proves that it cannot happen.

    Parameters
    ----------
    config : CoreConfig

    Members
    -------
    i_valid, i_addr, i_weight : In             An entry: word address, int8 weight.
    i_end, i_last : In                         It is the last of its chunk; that of its row, too.
    i_flush : In                               Strobe, without an entry: forget sums not complete.
    o_valid : Out(1).array(sum_buses)          A sum is on the bus.
    o_last : Out(1).array(sum_buses)           With ``o_valid``: of the last chunk of its row.
    o_acc : Out(signed(partial_width)).array(sum_buses)     The sum; 0 if there is none.
    w_en, w_line, w_sub, w_data : In           One beat of activations, as the loader numbers it. It
                                               travels down the lanes as entries do, so an entry
                                               that comes two cycles later reads it.
    """

    i_valid: Signal
    i_addr: Signal
    i_weight: Signal
    i_end: Signal
    i_last: Signal
    i_flush: Signal
    o_valid: list[Signal]
    o_last: list[Signal]
    o_acc: list[Signal]
    w_en: Signal
    w_line: Signal
    w_sub: Signal
    w_data: Signal

    LATENCY_CYCLES = 9

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        lines = config.act_depth // config.line_words
        super().__init__({
            "i_valid": In(1),
            "i_addr": In(config.address_bits),
            "i_weight": In(signed(8)),
            "i_end": In(1),
            "i_last": In(1),
            "i_flush": In(1),
            "o_valid": Out(1).array(config.sum_buses),
            "o_last": Out(1).array(config.sum_buses),
            "o_acc": Out(signed(partial_width(config))).array(config.sum_buses),
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
        count = self._config.lanes
        # Sums are forgotten in the way they end, so that no lane needs a reset for them.
        ends = self.i_end & self.i_valid
        # A reset comes to the lanes a cycle late, from here: they are all over the chip.
        forgets = Signal(init=1)
        m.d.sync += forgets.eq(0)
        are_paired = is_ecp5(platform)
        # What clears a register travels as the clear itself: no lane has a LUT to invert it. The
        # further stages of a lane are those of the lanes behind it.
        bits = {
            "absent": self._line(m, "absent", ~self.i_valid, count + 1),
            "stays": self._line(m, "stays", ~ends, count + SUM_STAGES, sets=forgets),
            # Sums in pairs have to be started before they mean anything.
            "restarts": self._line(m, "restarts", ends | self.i_flush, count + SUM_STAGES,
                                   begins=are_paired),
            "last": self._line(m, "last", self.i_last, count + SUM_STAGES),
        }
        self._writes = self._distribute(m)
        addr: Value = self.i_addr
        weight: Value = self.i_weight
        shadows: list[Signal] = []
        for v in range(count):
            following = self._after(m, f"weight_{v + 1}", weight)
            if are_paired and v + 1 < count and len(shadows) == v:
                shadows += self._pair(m, v, addr, following, bits)
            elif len(shadows) == v:
                shadows.append(self._lane(m, v, addr, following, bits, platform))
            addr, weight = self._after(m, f"addr_{v + 1}", addr), following
        group = self._config.shortest_row_cycles
        for b in range(self._config.sum_buses):
            self._merge(m, b, shadows[b * group :][:group], bits, forgets)
        return m

    def _merge(self, m: Module, b: int, shadows: list[Signal], bits: dict[str, Value],
               forgets: Value) -> None:
        """Puts the sums of a group of lanes onto its bus, in two levels of ORs."""
        group = len(shadows)
        first = b * group
        stays = bits["stays"][first + SUM_STAGES :][:group]
        parts = -(-group // MERGED)
        merged = []
        all_stay = Signal(parts, name=f"all_stay_{b}", init=(1 << parts) - 1, reset_less=True)
        for k in range(0, group, MERGED):
            merged.append(self._after(m, f"merged_{b}_{k}", reduce(or_, shadows[k : k + MERGED])))
            m.d.sync += all_stay[k // MERGED].eq(stays[k : k + MERGED].all())
        m.d.comb += self.o_acc[b].eq(reduce(or_, merged))
        m.d.sync += self.o_valid[b].eq(~all_stay.all())
        with m.If(forgets):
            m.d.sync += [all_stay.eq(-1), self.o_valid[b].eq(0)]
        # The sums of a chunk follow one another: what the first lane knows holds for all.
        with m.If(~bits["stays"][first + SUM_STAGES + 1]):
            m.d.sync += self.o_last[b].eq(bits["last"][first + SUM_STAGES + 1])

    def _lane(self, m: Module, v: int, addr: Value, weight_read: Value, bits: dict[str, Value],
              platform: object) -> Signal:
        """Returns the sum, 0 if there is none."""
        width = partial_width(self._config)
        activation = self._read(m, v, addr)
        weight = Signal(signed(8), name=f"weight_now_{v}", reset_less=True)
        product = self._multiply(m, v, activation, weight, platform)
        acc = Signal(signed(width), name=f"acc_{v}", reset_less=True)
        shadow = Signal(signed(width), name=f"shadow_{v}", reset_less=True)
        total = Signal(signed(width), name=f"total_{v}")
        m.d.comb += total.eq(acc + product)
        m.d.sync += [weight.eq(weight_read), acc.eq(total), shadow.eq(total)]
        # Synchronous clears, so that the flip-flops' own reset does them without a LUT.
        with m.If(bits["absent"][v + 1]):
            m.d.sync += weight.eq(0)
        with m.If(bits["restarts"][v + SUM_STAGES]):
            m.d.sync += acc.eq(0)
        with m.If(bits["stays"][v + SUM_STAGES]):
            m.d.sync += shadow.eq(0)
        return shadow

    def _pair(self, m: Module, v: int, addr: Value, weight_read: Value, bits: dict[str, Value]
              ) -> list[Signal]:
        """Returns the sums of a lane and the next, which works with it and waits with its sum."""
        width = partial_width(self._config)
        m.submodules[f"sums_{v}"] = block = PairedSums(width)
        weight = Signal(signed(8), name=f"weight_now_{v}", reset_less=True)
        m.d.sync += weight.eq(weight_read)
        with m.If(bits["absent"][v + 1]):
            m.d.sync += weight.eq(0)
        m.d.comb += [
            block.i_b.eq(self._after(m, f"b_{v}", weight)),
            block.i_starts.eq(bits["restarts"][v + SUM_STAGES - block.LATENCY_CYCLES + 1]),
        ]
        shadows = []
        for k in range(2):
            activation = self._read(m, v + k, addr)
            m.d.comb += block.i_a[k].eq(self._after(m, f"a_{v + k}", activation))
            total: Value = block.o[k]
            if k:
                total = self._after(m, f"total_{v + k}", total)
            shadows.append(shadow := self._after(m, f"shadow_{v + k}", total))
            with m.If(bits["stays"][v + k + SUM_STAGES]):
                m.d.sync += shadow.eq(0)
        return shadows

    def _read(self, m: Module, v: int, addr: Value) -> Value:
        """The activation of an entry, two cycles later."""
        words = self._config.line_words
        depth = self._config.act_depth // words
        w_en, w_line, w_data = self._written(v)
        if words == 1:
            m.submodules[f"activations_{v}"] = block = BlockMemory(8, depth)
            m.d.comb += [
                block.r_addr.eq(addr),
                block.w_en.eq(w_en), block.w_addr.eq(w_line), block.w_data.eq(w_data),
            ]
            return block.r_data.as_signed()
        # A beat holds several words: the line is read whole, the word picked from it.
        m.submodules[f"activations_{v}"] = memory = Memory(
            shape=unsigned(8 * words), depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        bits = (words - 1).bit_length()
        pick = Signal(bits, name=f"pick_{v}", reset_less=True)
        activation = Signal(signed(8), name=f"activation_{v}", reset_less=True)
        m.d.comb += [
            write.data.eq(w_data), write.addr.eq(w_line), write.en.eq(w_en),
            read.addr.eq(addr[bits:]),
        ]
        m.d.sync += [pick.eq(addr[:bits]), activation.eq(read.data.word_select(pick, 8))]
        return activation

    def _distribute(self, m: Module) -> list[data.View]:
        """Passes a beat on from one group of lanes that share a beat to the next."""
        layout = data.StructLayout({
            "en": 1, "line": self.w_line.shape(), "sub": self.w_sub.shape(),
            "data": self.w_data.shape()})
        here = data.View(layout, Cat(self.w_en, self.w_line, self.w_sub, self.w_data))
        groups = []
        for sub in range(self._config.word_beats):
            passed = Signal(layout, name=f"write_{sub}", reset_less=True)
            with m.If(here.en):
                m.d.sync += passed.eq(here)
            m.d.sync += passed.en.eq(here.en)
            groups.append(passed)
            here = passed
        return groups

    def _written(self, v: int) -> tuple[Value, Value, Value]:
        """Whether a beat has words for a lane's memory, at which line, and what they are."""
        config = self._config
        sub, place = divmod(v, min(config.lanes, config.bus_bytes))
        write = self._writes[sub]
        # Byte `lane` of each word in the beat: words of `lanes` bytes follow one another.
        bytes_ = (k * config.lanes + place for k in range(config.line_words))
        line = [write.data[8 * byte : 8 * byte + 8] for byte in bytes_]
        return write.en & (write.sub == sub), write.line, Cat(line)

    @staticmethod
    def _multiply(
        m: Module, v: int, activation: Value, weight: Signal, platform: object
    ) -> Value:
        """The product, four cycles later: each way to the multiplier and from it takes one."""
        a, b = MacLanes._after(m, f"a_{v}", activation), MacLanes._after(m, f"b_{v}", weight)
        if is_ecp5(platform):
            m.submodules[f"product_{v}"] = block = Product(8, 8, is_signed=True)
            m.d.comb += [block.i_a.eq(a), block.i_b.eq(b)]
            return MacLanes._after(m, f"product_{v}", block.o)
        a, b = MacLanes._after(m, f"operand_a_{v}", a), MacLanes._after(m, f"operand_b_{v}", b)
        product = Signal(signed(16), name=f"product_early_{v}", reset_less=True)
        m.d.sync += product.eq(a * b)
        return MacLanes._after(m, f"product_{v}", product)

    @staticmethod
    def _after(m: Module, name: str, value: Value) -> Signal:
        """The value one cycle later."""
        later = Signal(value.shape(), name=name, reset_less=True)
        m.d.sync += later.eq(value)
        return later

    @staticmethod
    def _line(m: Module, name: str, bit: Value, stages: int, sets: Value | None = None,
              begins: bool = False) -> Value:
        """A bit, and how it was 1 to ``stages`` cycles ago; ``sets`` sets them all."""
        # Flip-flops are set by what sets them only if that is how they begin, too.
        init = (1 << stages) - 1 if begins or sets is not None else 0
        line = Signal(stages, name=f"{name}_line", init=init, reset_less=True)
        m.d.sync += line.eq(Cat(bit, line))
        if sets is not None:
            with m.If(sets):
                m.d.sync += line.eq(-1)
        return Cat(bit, line)
