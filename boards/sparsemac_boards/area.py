# SPDX-License-Identifier: Apache-2.0
"""What a core takes of an ECP5, predicted from its configuration without any tool.

It is the core that a build makes, of the family's own blocks (`sparsemac_hw.ecp5`). Multipliers and
block memories follow from the structure: every memory of the core is listed with its shape, and
mapped as yosys maps memories; `sparsemac_hw.ecp5` takes as many blocks for those that it makes of
them itself. LUTs and flip-flops are linear in counts of the structure
(`features`). The coefficients are fitted by least squares of relative errors to cores that were
synthesized, and stand with these measurements in ``area_ecp5.json``, which
``scripts/bench_area.py --fit`` writes.

The LUTs are those of nextpnr's report (TRELLIS_COMB): LUT4s, two for each CCU2C, four for each
TRELLIS_DPR16X4, and those with which its packer begins and ends chains of carries and feeds
flip-flops.

Fitted to eleven cores of 1 to 3 engines, one of them with a board's system: LUTs and flip-flops are
within 2.1 %. Two held out, chosen before they were measured (2 x 4 with a 128-bit bus, 2 x 16 with
64 bits), are 3.4 % off at worst, 2.1 % in the mean. Cores of more multipliers than 1 x 64 are not
among them: there it is an extrapolation.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from sparsemac.config import CoreConfig
from sparsemac_hw.bus import ID_BITS
from sparsemac_hw.counters import COUNTER_BITS, SLOTS
from sparsemac_hw.engine import Engine
from sparsemac_hw.layouts import (
    index_shape,
    out_beat_layout,
    partial_width,
    row_layout,
    words_per_beat,
)
from sparsemac_hw.reader import Reader
from sparsemac_hw.results import pass_layout
from sparsemac_hw.streams import DISTRIBUTED_DEPTH
from sparsemac_hw.unpacker import entry_layout
from sparsemac_hw.window import weight_beat_layout
from sparsemac_hw.writer import Writer

from .frames import BUFFER_BYTES

__all__ = [
    "ERROR_LIMIT",
    "FITTED",
    "MEASUREMENTS",
    "Area",
    "MemoryShape",
    "engine_memories",
    "features",
    "forget",
    "measurements",
    "multipliers",
    "predict_area",
    "shared_memories",
    "soc_memories",
]

#: Where measurements and coefficients stand, in this package.
MEASUREMENTS = "area_ecp5.json"

#: Cells whose counts are fitted; ``PACKED`` are the LUTs that nextpnr's packer adds.
FITTED = ("LUT4", "CCU2C", "TRELLIS_FF", "PACKED")

#: What the tests allow LUTs and flip-flops of any measured core to be off.
ERROR_LIMIT = {"worst": 0.10, "mean": 0.05}

#: Words and bits of a DP16KD (Lattice FPGA-TN-02204, table 2.2); 36 bits with one port each way.
BLOCK_MODES = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))

#: Words and bits of a TRELLIS_DPR16X4.
SLICE_WORDS, SLICE_BITS = 16, 4

#: What yosys reckons a memory cell, and a two-way multiplexer for a bit behind it, to cost
#: (its files ``lattice/brams_16kd.txt``, ``lattice/lutrams_trellis.txt``; ``memory_libmap.cc``).
BLOCK_COST, SLICE_COST, MUX_COST = 128, 4, 0.5

#: 18 x 18-bit products of a requantizer: 32 x 36 bits.
REQUANTIZER_PRODUCTS = 4


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """Memories of one shape.

    Attributes
    ----------
    width, depth : int    Bits of a word, words.
    kind : str            "block" if the gateware says so (a read without a clock then takes the
                          register behind it in), else "slice" if it is read without a clock, and
                          "any" if yosys may choose.
    count : int           How many there are.
    granularity : int     Bits that are written at a time; 0: whole words.
    unread : int          Bits of a word that nothing reads, so that yosys removes them.
    """

    width: int
    depth: int
    kind: str
    count: int = 1
    granularity: int = 0
    unread: int = 0

    @property
    def mapped(self) -> tuple[str, int, int]:
        """Cell that one of them is made of, how many, and two-way multiplexers behind them."""
        block, slice_ = self._blocks(), self._slices()
        if self.kind == "slice" or (self.kind == "any" and slice_[0] < block[0]):
            return "TRELLIS_DPR16X4", slice_[1], slice_[2]
        return "DP16KD", block[1], block[2]

    @property
    def _read(self) -> int:
        return self.width - self.unread

    def _blocks(self) -> tuple[float, int, int]:
        """Cost, cells and multiplexers of the cheapest mode."""
        found = []
        for words, bits in BLOCK_MODES:
            # A byte that is written alone takes all nine bits.
            usable = bits // 9 * self.granularity if self.granularity and bits >= 9 else bits
            rows = math.ceil(self.depth / words)
            cells = rows * math.ceil(self._read / usable)
            muxes = (rows - 1) * self._read
            found.append((BLOCK_COST * cells + MUX_COST * muxes, cells, muxes))
        return min(found, key=lambda mode: mode[0])

    def _slices(self) -> tuple[float, int, int]:
        rows = math.ceil(self.depth / SLICE_WORDS)
        cells = rows * math.ceil(self._read / SLICE_BITS)
        muxes = (rows - 1) * self._read
        return SLICE_COST * cells + MUX_COST * muxes, cells, muxes


def _queue(width: int, depth: int, count: int = 1, block: bool = False) -> MemoryShape:
    """The memory of a `sparsemac_hw.streams.Queue`."""
    block = block or depth > DISTRIBUTED_DEPTH
    return MemoryShape(width, depth, "block" if block else "slice", count)


def engine_memories(config: CoreConfig) -> Iterator[MemoryShape]:
    """Lists the memories of one engine, with its weight FIFO."""
    group, buses = config.shortest_row_cycles, config.sum_buses
    raw_beats = max(1, config.out_word_bytes(raw=True) // config.bus_bytes)
    yield _queue(weight_beat_layout(config.bus_width).size, config.fifo_depth)
    yield _queue(15, Engine.ROWS_UNDER_WAY, block=True)
    yield _queue(row_layout.size, Engine.ROWS_UNDER_WAY, block=True)
    yield MemoryShape(pass_layout.size, config.out_words, "slice")
    yield _queue(out_beat_layout(config).size, config.out_words * raw_beats)
    yield MemoryShape(entry_layout.size, config.entry_depth, "block")
    words = config.line_words  # lines of several words are read without a register behind them
    yield MemoryShape(
        8 * words, config.act_depth // words, "block" if words == 1 else "any", config.lanes)
    if partial_width(config) != config.acc_width:
        yield MemoryShape(config.acc_width, max(2, group), "block", buses)
    if buses > 1:
        yield MemoryShape(config.acc_width, config.out_words * group, "block", buses)
    if config.psum_depth:
        yield MemoryShape(32, config.psum_depth, "block")


def shared_memories(config: CoreConfig) -> Iterator[MemoryShape]:
    """Lists the memories of a core outside its engines."""
    beat_bits = config.bus_bytes.bit_length() - 1
    word_beats = [max(1, config.out_word_bytes(raw) // config.bus_bytes) for raw in (False, True)]
    store_depth = max(16, 2 * word_beats[True])
    burst_bits = index_shape(config.burst_beats).width
    tracked = 2 + 1 + 32 - beat_bits + burst_bits + config.engines.bit_length()
    yield _queue(tracked, Reader.BURSTS_UNDER_WAY, block=True)
    yield _queue(config.bus_width + words_per_beat(config) + 1, store_depth)
    yield _queue(1 + 32, store_depth // word_beats[False], block=True)
    yield _queue(32 - beat_bits, Writer.MAX_OUTSTANDING, block=True)
    if config.counters:
        yield MemoryShape(COUNTER_BITS, SLOTS, "block")


def soc_memories(config: CoreConfig, memory_bytes: int) -> Iterator[MemoryShape]:
    """Lists the memories of a `sparsemac_boards.soc.UartSoc` beside its core's."""
    yield MemoryShape(config.bus_width, memory_bytes // config.bus_bytes, "any", granularity=8)
    yield MemoryShape(8, BUFFER_BYTES, "slice", 2)
    yield _queue(ID_BITS + 32 + 8, 4)
    yield MemoryShape(ID_BITS + 32 + 8, 4, "slice", unread=8)  # writes end by their own WLAST
    yield _queue(config.bus_width + ID_BITS + 2, 4)
    yield _queue(ID_BITS + 1, 4)


def multipliers(config: CoreConfig) -> int:
    """MULT18X18D: one for each lane, and those of each engine's requantizer."""
    return config.engines * (config.lanes + REQUANTIZER_PRODUCTS)


@dataclass(frozen=True, slots=True)
class _Cells:
    """What memories are made of: TRELLIS_DPR16X4, DP16KD, two-way multiplexers behind them."""

    slices: int = 0
    blocks: int = 0
    muxes: int = 0

    @classmethod
    def of(cls, memories: Iterable[MemoryShape]) -> "_Cells":
        slices = blocks = muxes = 0
        for memory in memories:
            cell, number, behind = memory.mapped
            muxes += memory.count * behind
            if cell == "DP16KD":
                blocks += memory.count * number
            else:
                slices += memory.count * number
        return cls(slices, blocks, muxes)


#: Searches ask for thousands of cores that differ in little.
_known: dict[tuple[object, ...], _Cells] = {}


def _memory_cells(config: CoreConfig, soc_memory_bytes: int) -> _Cells:
    """Cells of all memories of a core and the system around it."""
    geometry = config.lanes, config.bus_width
    buffers = (config.act_depth, config.entry_depth, config.psum_depth, config.acc_width,
               config.fifo_depth)
    others = config.engines, config.burst_beats, config.counters, soc_memory_bytes
    engine = _known.get(("engine", *geometry, *buffers))
    if engine is None:
        engine = _Cells.of(engine_memories(config))
        _known["engine", *geometry, *buffers] = engine
    shared = _known.get(("shared", *geometry, *others))
    if shared is None:
        soc = soc_memories(config, soc_memory_bytes) if soc_memory_bytes else ()
        shared = _Cells.of([*shared_memories(config), *soc])
        _known["shared", *geometry, *others] = shared
    return _Cells(shared.slices + config.engines * engine.slices,
                  shared.blocks + config.engines * engine.blocks,
                  shared.muxes + config.engines * engine.muxes)


def features(config: CoreConfig, soc_memory_bytes: int = 0) -> dict[str, float]:
    """Counts of the structure that LUTs and flip-flops are linear in.

    Parameters
    ----------
    config : CoreConfig
    soc_memory_bytes : int    On-chip memory of the board's system around the core; 0: none.
    """
    engines, lanes, width = config.engines, config.macs, config.bus_width
    muxes = _memory_cells(config, soc_memory_bytes).muxes
    buses = config.sum_buses if partial_width(config) != config.acc_width else 0
    return {
        "core": 1,
        "bus bit": width,
        "window": config.windows,
        "counters": config.counters,
        "engine's counters": config.counters * engines,
        "engine": engines,
        "engine's bus bit": engines * width,
        "further beat of a word": engines * width * (config.word_beats - 1),
        "lane": lanes,
        "lane's sum bit": lanes * partial_width(config),
        # Of lanes in pairs they are in the DSP slices.
        "accumulator bit": engines * (config.lanes % 2) * partial_width(config),
        "word of a line": 8 * lanes * (config.line_words - 1),
        "sum bus bit": engines * buses * config.acc_width,
        "partial sums": engines * (config.psum_depth > 0),
        "memory multiplexer": muxes,
        "soc": soc_memory_bytes > 0,
        "soc's bus bit": (soc_memory_bytes > 0) * width,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Cells of an ECP5.

    Attributes
    ----------
    luts : int            As nextpnr's report counts them (TRELLIS_COMB).
    flip_flops : int      TRELLIS_FF.
    multipliers : int     MULT18X18D.
    block_rams : int      DP16KD.
    lut4s, carries, slices : int    What the LUTs are: LUT4, CCU2C, TRELLIS_DPR16X4.
    """

    luts: int
    flip_flops: int
    multipliers: int
    block_rams: int
    lut4s: int
    carries: int
    slices: int

    @property
    def equivalents(self) -> int:
        """LUT4-equivalents: 1 for a LUT4, 2 for a CCU2C, 4 for a TRELLIS_DPR16X4."""
        return self.lut4s + 2 * self.carries + 4 * self.slices


@cache
def _data() -> Mapping[str, Any]:
    return json.loads((files("sparsemac_boards") / MEASUREMENTS).read_text(encoding="utf-8"))


def forget() -> None:
    """Reads the file again at the next call, for whoever has written it."""
    _data.cache_clear()


def measurements() -> list[dict[str, Any]]:
    """Returns the cores that were synthesized.

    Each is a dict of ``config``, ``soc_memory_bytes``, ``held_out`` (whether the coefficients were
    not fitted to it) and ``cells``: counts of yosys, TRELLIS_COMB and TRELLIS_RAMW of nextpnr.
    """
    return [{**m, "config": CoreConfig.from_dict(m["config"])} for m in _data()["measurements"]]


def predict_area(config: CoreConfig, soc_memory_bytes: int = 0) -> Area:
    """Predicts what a core takes, with the system around it if that has memory.

    Parameters
    ----------
    config : CoreConfig
    soc_memory_bytes : int    On-chip memory of the board's `UartSoc`; 0: the core alone.
    """
    counts = features(config, soc_memory_bytes)
    fitted = {cell: round(sum(c * counts[name] for name, c in of_cell.items()))
              for cell, of_cell in _data()["coefficients"].items()}
    memories = _memory_cells(config, soc_memory_bytes)
    lut4s, carries, slices = fitted["LUT4"], fitted["CCU2C"], memories.slices
    return Area(
        luts=lut4s + 2 * carries + 4 * slices + fitted["PACKED"],
        flip_flops=fitted["TRELLIS_FF"], multipliers=multipliers(config),
        block_rams=memories.blocks, lut4s=lut4s, carries=carries, slices=slices,
    )
