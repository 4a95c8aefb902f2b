# SPDX-License-Identifier: Apache-2.0
"""On-chip memory behind AXI4, with a second port for the host."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac._checks import as_power_of_two
from sparsemac_hw.bus import ID_BITS, Axi4Signature
from sparsemac_hw.streams import Queue

__all__ = ["OnChipMemory"]

OKAY, DECERR = 0, 3

burst_layout = data.StructLayout({"id": ID_BITS, "address": 32, "len": 8})


class OnChipMemory(wiring.Component):
    """Block memory from address 0 as an AXI4 slave: INCR bursts of full beats, WSTRB, IDs returned.

    Addresses beyond the memory answer DECERR. The host's port goes first: while it is used, AXI
    waits a cycle.

    Latency: 3 cycles from AR to the first beat. Throughput: one beat per cycle each way.

    Parameters
    ----------
    data_width : int      Width of the bus [bits].
    length : int          Bytes, a power of two, 4096 to 1 MiB.

    Members
    -------
    bus : In(Axi4Signature)
    host_en, host_we : In(1)                       Strobes: read, or with ``host_we`` write.
    host_addr : In(32), host_w_data : In(32)       A word of 4 bytes.
    host_r_data : Out(32)     The word, one cycle after ``host_en``.
    """

    bus: Any
    host_en: Signal
    host_we: Signal
    host_addr: Signal
    host_w_data: Signal
    host_r_data: Signal

    def __init__(self, data_width: int, length: int) -> None:
        self._width = data_width
        self._length = as_power_of_two("length", length, 4096, 1 << 20)
        super().__init__({
            "bus": In(Axi4Signature(data_width)),
            "host_en": In(1),
            "host_we": In(1),
            "host_addr": In(32),
            "host_w_data": In(32),
            "host_r_data": Out(32),
        })

    @property
    def length(self) -> int:
        """Bytes."""
        return self._length

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat_bytes = self._width // 8
        m.submodules.memory = memory = Memory(
            shape=self._width, depth=self._length // beat_bytes, init=[])
        self._skip = beat_bytes.bit_length() - 1  # address bits inside a beat
        words = self._width // 32
        pick = Signal(range(max(2, words)))
        m.d.sync += pick.eq(self.host_addr[2:])
        self._read_side(m, memory, pick, words)
        self._write_side(m, memory, words)
        return m

    def _queue(self, m: Module, name: str, prefix: str) -> Queue:
        """Bursts that have been accepted."""
        queue = Queue(burst_layout, 4)
        m.submodules[name] = queue
        bus = self.bus
        m.d.comb += [
            queue.i.p.id.eq(getattr(bus, f"{prefix}id")),
            queue.i.p.address.eq(getattr(bus, f"{prefix}addr")),
            queue.i.p.len.eq(getattr(bus, f"{prefix}len")),
            queue.i.valid.eq(getattr(bus, f"{prefix}valid")),
            getattr(bus, f"{prefix}ready").eq(queue.i.ready),
        ]
        return queue

    def _read_side(self, m: Module, memory: Memory, pick: Signal, words: int) -> None:
        bus = self.bus
        queue = self._queue(m, "reads", "ar")
        read = memory.read_port()
        beat = Signal(8)
        burst = queue.o.p
        address = Signal(32)
        m.d.comb += address.eq(burst.address + (beat << self._skip))

        # One beat is being read, and one more may wait in the queue behind the memory.
        beat_layout = data.StructLayout({"id": ID_BITS, "last": 1, "fault": 1})
        m.submodules.beats = beats = Queue(
            data.StructLayout({"data": self._width, "tag": beat_layout}), 4)
        reading = Signal()
        tag = Signal(beat_layout)
        take = Signal()
        m.d.comb += [
            take.eq(queue.o.valid & ~self.host_en & (beats.level + reading < 4)),
            read.addr.eq(Mux(self.host_en, self.host_addr[self._skip:], address[self._skip:])),
            read.en.eq(self.host_en | take),
            queue.o.ready.eq(take & (beat == burst.len)),
            beats.i.valid.eq(reading),
            beats.i.p.data.eq(read.data),
            beats.i.p.tag.eq(tag),
            self.host_r_data.eq(read.data.word_select(pick, 32) if words > 1 else read.data),
            bus.rvalid.eq(beats.o.valid),
            beats.o.ready.eq(bus.rready),
            bus.rdata.eq(beats.o.p.data),
            bus.rid.eq(beats.o.p.tag.id),
            bus.rlast.eq(beats.o.p.tag.last),
            bus.rresp.eq(Mux(beats.o.p.tag.fault, DECERR, OKAY)),
        ]
        m.d.sync += reading.eq(take)
        with m.If(take):
            m.d.sync += [
                beat.eq(Mux(queue.o.ready, 0, beat + 1)),
                tag.id.eq(burst.id),
                tag.last.eq(beat == burst.len),
                tag.fault.eq(address >= self._length),
            ]

    def _write_side(self, m: Module, memory: Memory, words: int) -> None:
        bus = self.bus
        queue = self._queue(m, "writes", "aw")
        write = memory.write_port(granularity=8)
        m.submodules.answers = answers = Queue(data.StructLayout({"id": ID_BITS, "fault": 1}), 4)
        beat = Signal(8)
        fault = Signal()
        address = Signal(32)
        outside = Signal()
        take = Signal()
        burst = queue.o.p
        m.d.comb += [
            address.eq(burst.address + (beat << self._skip)),
            outside.eq(address >= self._length),
            take.eq(bus.wvalid & bus.wready),
            bus.wready.eq(queue.o.valid & answers.i.ready & ~(self.host_en & self.host_we)),
            queue.o.ready.eq(take & bus.wlast),
            answers.i.valid.eq(take & bus.wlast),
            answers.i.p.id.eq(burst.id),
            answers.i.p.fault.eq(fault | outside),
            bus.bvalid.eq(answers.o.valid),
            answers.o.ready.eq(bus.bready),
            bus.bid.eq(answers.o.p.id),
            bus.bresp.eq(Mux(answers.o.p.fault, DECERR, OKAY)),
        ]
        with m.If(take):
            m.d.sync += [beat.eq(beat + 1), fault.eq(fault | outside)]
            with m.If(bus.wlast):
                m.d.sync += [beat.eq(0), fault.eq(0)]
        with m.If(self.host_en & self.host_we):
            place = self.host_addr[2 : self._skip] if words > 1 else 0
            m.d.comb += [
                write.addr.eq(self.host_addr[self._skip:]),
                write.data.eq(self.host_w_data.replicate(words)),
                write.en.eq(0xF << (place << 2)),
            ]
        with m.Elif(take & ~outside):
            m.d.comb += [
                write.addr.eq(address[self._skip:]),
                write.data.eq(bus.wdata),
                write.en.eq(Cat(*bus.wstrb)),
            ]
