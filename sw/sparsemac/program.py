# SPDX-License-Identifier: Apache-2.0
"""The compiler: layers in, a memory image with its command list out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .commands import COMMAND_BYTES, Exec, Load, OutputMode, StreamFormat, encode_list
from .config import CoreConfig
from .csr import Csr
from .errors import UnsupportedLayer
from .layer import LinearLayer
from .layout import Area, Tensor, round_up
from .numerics import check_no_overflow
from .registers import WINDOW_GRANULE_BYTES
from .schedule import balance_rows, row_costs
from .stream import PackedStreams, choose_format, entry_counts, pack
from .tiling import Tiling, choose_tiling, estimate

__all__ = ["LayerPlan", "PackedCache", "Program", "TooManyColumns", "compile_network"]

MAX_COMMANDS = 65535

#: Streams that were packed before, by layer, block and tiling.
PackedCache = dict[tuple[int, ...], PackedStreams]


class TooManyColumns(UnsupportedLayer):
    """A network that would fit the core and its memory with fewer columns at a time.

    Attributes
    ----------
    columns : int    Columns that are worth trying; 0 if even one position is too many.
    """

    def __init__(self, text: str, columns: int) -> None:
        self.columns = columns
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer was compiled."""

    name: str
    fmt: StreamFormat
    tiling: Tiling
    macs: int
    estimated_cycles: int


@dataclass(frozen=True, slots=True)
class Program:
    """A network for a number of columns, ready to be written to memory.

    Attributes
    ----------
    image : bytes                  Commands and weights; written once, at ``image_address``.
    image_address : int
    command_count : int            Commands at ``image_address``.
    input, output : Tensor         Where the host puts the input and finds the output.
    areas : tuple of Area          What the windows must cover.
    macs : int                     Useful multiply-accumulates: nonzeros times columns.
    entries, fillers : int         In the weight streams.
    format_bits, parameter_bits : int     Bits of the streams: the matrix's, and the rows' bias,
                                   multiplier and shift.
    estimated_cycles : int
    layers : tuple of LayerPlan
    """

    image: bytes
    image_address: int
    command_count: int
    input: Tensor
    output: Tensor
    areas: tuple[Area, ...]
    macs: int
    entries: int
    fillers: int
    format_bits: int
    parameter_bits: int
    estimated_cycles: int
    layers: tuple[LayerPlan, ...]


@dataclass(slots=True)
class _Builder:
    """Collects commands and weights while layers are compiled."""

    config: CoreConfig
    commands: list[Load | Exec] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)
    loads: int = 0
    execs: int = 0
    # For each part of the buffer in use: how many EXECs must be complete before it is free.
    busy_until: list[tuple[int, int, int]] = field(default_factory=list)
    packed: list[PackedStreams] = field(default_factory=list)
    cache: PackedCache = field(default_factory=dict)

    def put_weights(self, streams: PackedStreams) -> int:
        """Keeps streams; returns their offset from the first weight."""
        offset = len(self.weights)
        self.weights += streams.data
        self.weights += bytes(-len(self.weights) % COMMAND_BYTES)
        self.packed.append(streams)
        return offset

    def free_after(self, first: int, last: int) -> int:
        """EXECs that must be complete before the words ``first..last - 1`` may be overwritten."""
        return max((n for a, b, n in self.busy_until if a < last and first < b), default=0)

    def occupy(self, first: int, last: int, execs: int) -> None:
        """Notes that the words are read until ``execs`` EXECs are complete."""
        self.busy_until = [
            entry for entry in self.busy_until if not (first <= entry[0] and entry[1] <= last)
        ]
        self.busy_until.append((first, last, execs))


@dataclass(frozen=True, slots=True)
class _Piece:
    """The streams of one block of a layer."""

    rows: slice
    columns: slice
    offset: int
    beats: int
    fmt: StreamFormat


class _LayerCompiler:
    """Cuts one layer into LOADs and EXECs."""

    def __init__(self, build: _Builder, index: int, layer: LinearLayer, source: Tensor,
                 target: Tensor) -> None:
        self.build, self.index, self.layer, self.config = build, index, layer, build.config
        self.source, self.target = source, target
        self.source_ready = build.execs  # all layers before this one
        self.turn = 0
        self.raw = layer.mode == OutputMode.RAW
        check_no_overflow(layer.weights, layer.bias, self.config.acc_width)
        self.fmt = choose_format(layer.weights, layer.weight_bits)
        self.entries = entry_counts(layer.weights, layer.weight_bits)
        cleaned = layer.weights.without_zeros()
        self.tiling = choose_tiling(
            cleaned, self.config, source.positions, entry_bits=self.fmt.entry_bits, raw=self.raw,
            name=layer.name)
        self.estimated = estimate(self.tiling, cleaned, self.config, self.fmt.entry_bits, self.raw)

    def plan(self) -> LayerPlan:
        """Returns what was decided."""
        macs = int(self.entries.sum()) * self.source.columns
        return LayerPlan(self.layer.name, self.fmt, self.tiling, macs, self.estimated)

    def _pack(self, rows: slice, columns: slice) -> _Piece:
        tiling = self.tiling
        key = (self.index, rows.start, rows.stop, columns.start, columns.stop, tiling.columns,
               tiling.rows_per_engine)
        if key not in self.build.cache:
            self.build.cache[key] = self._pack_block(rows, columns)
        streams = self.build.cache[key]
        return _Piece(rows, columns, self.build.put_weights(streams), streams.beats, streams.fmt)

    def _pack_block(self, rows: slice, columns: slice) -> PackedStreams:
        layer, config = self.layer, self.config
        block: Csr = layer.weights.take(rows, columns)

        def part(vector: NDArray | None) -> NDArray | None:
            return None if vector is None else vector[rows]

        return pack(
            block, self._assign(rows), choose_format(block, layer.weight_bits),
            engines=config.engines, bus_bytes=config.bus_bytes, bias=part(layer.bias),
            multiplier=part(layer.multiplier), shift=part(layer.shift))

    def _assign(self, rows: slice) -> list[NDArray[np.int64]]:
        """Rows of each engine; the same for all column tiles, as partial sums stay in an engine."""
        layer, config = self.layer, self.config
        columns = self.tiling.column_tiles(layer.weights.shape[1])
        costs = sum(
            row_costs(entry_counts(layer.weights.take(rows, c), layer.weight_bits), config.lanes)
            for c in columns
        )
        return balance_rows(np.asarray(costs), config.engines, self.tiling.rows_per_engine)

    def compile(self, weights_address: int) -> None:
        """Emits the commands of the layer."""
        tiling, shape = self.tiling, self.layer.weights.shape
        blocks = [
            [self._pack(rows, columns) for columns in tiling.column_tiles(shape[1])]
            for rows in tiling.row_tiles(shape[0])
        ]
        first = 0
        for positions in tiling.positions:
            loaded = None
            for pieces in blocks:
                for c, piece in enumerate(pieces):
                    # With all channels in the buffer, one LOAD serves every row tile.
                    if loaded is None or len(pieces) > 1:
                        loaded = self._load(piece.columns, first, positions)
                    self._exec(piece, loaded, first, positions, weights_address,
                               psum_in=c > 0, psum_out=c < len(pieces) - 1)
            first += positions

    def _region(self, width: int) -> int:
        """First word of the part of the buffer whose turn it is."""
        tiling = self.tiling
        slot = self.turn % tiling.regions
        self.turn += 1
        if tiling.resident:
            return sum(tiling.positions[:slot]) * width
        return slot * (self.config.act_depth // tiling.regions)

    def _load(self, columns: slice, first: int, positions: int) -> tuple[int, int, int]:
        """Loads channels of some positions; returns (word, words per position, loads)."""
        config, source, build = self.config, self.source, self.build
        width = round_up(max(columns.stop - columns.start, 1), config.line_words)
        destination = self._region(width)
        beats = width * config.lanes // config.bus_bytes
        whole = columns.start == 0 and width == source.pitch
        lines, line_beats = (1, beats * positions) if whole else (positions, beats)
        if line_beats > 0xFFFF:
            lines, line_beats = positions, beats
        last = destination + width * positions
        wait = max(self.source_ready, build.free_after(destination, last))
        build.commands.append(Load(
            address=source.word_address(first, columns.start), destination=destination,
            line_beats=line_beats, lines=lines, stride=source.position_bytes, wait=wait))
        build.loads += 1
        return destination, width, build.loads

    def _exec(self, piece: _Piece, loaded: tuple[int, int, int], first: int, positions: int,
              weights_address: int, *, psum_in: bool, psum_out: bool) -> None:
        build, layer, target = self.build, self.layer, self.target
        destination, width, loads = loaded
        build.commands.append(Exec(
            weights=weights_address + piece.offset, beats=piece.beats,
            output=target.word_address(first, piece.rows.start), base=destination,
            limit=max(piece.columns.stop - piece.columns.start, 1), positions=positions,
            width=positions, step=width, wrap_step=0, out_step=target.pitch, out_wrap_step=0,
            format=piece.fmt, has_bias=layer.bias is not None, mode=layer.mode, psum_in=psum_in,
            psum_out=psum_out, zero_point=layer.zero_point, low=layer.low, high=layer.high,
            wait=loads))
        build.execs += 1
        build.occupy(destination, destination + width * positions, build.execs)


def compile_network(
    layers: Sequence[LinearLayer],
    columns: int,
    config: CoreConfig,
    *,
    memory_base: int = 0,
    memory_bytes: int = 64 << 20,
    packed: PackedCache | None = None,
) -> Program:
    """Compiles layers for a number of columns.

    The memory is laid out as: commands and weights, input (both read-only for the core), tensors
    between layers, output. ``packed`` is kept by a caller who compiles the same layers for other
    numbers of columns: their streams are then packed once.

    Raises
    ------
    UnsupportedLayer    If a layer cannot be tiled or a row could overflow.
    TooManyColumns      If the memory is too small, or a command list too short, for the columns.
    """
    if not layers:
        raise ValueError("layers must not be empty")
    for before, after in zip(layers, layers[1:], strict=False):
        if before.outputs != after.inputs:
            raise ValueError(
                f"{after.name} must take the {before.outputs} outputs of {before.name}, not "
                f"{after.inputs}"
            )
        if before.mode == OutputMode.RAW:
            raise UnsupportedLayer(
                f"{before.name} must have int8 outputs, as {after.name} follows it"
            )
    channels = [layers[0].inputs, *(layer.outputs for layer in layers)]
    # Addresses depend on the number of commands, which the first pass tells; packing is kept.
    cache: PackedCache = {} if packed is None else packed
    build, tensors, plans = _emit(layers, channels, columns, config, memory_base, (0, 0), cache)
    command_bytes = round_up(len(build.commands) * COMMAND_BYTES, WINDOW_GRANULE_BYTES)
    image_bytes = round_up(command_bytes + len(build.weights), WINDOW_GRANULE_BYTES)
    sizes = command_bytes, image_bytes
    build, tensors, plans = _emit(layers, channels, columns, config, memory_base, sizes, cache)
    end = tensors[-1].address + round_up(max(tensors[-1].length, 1), WINDOW_GRANULE_BYTES)
    _check_size(len(build.commands), tensors, end - memory_base, image_bytes, memory_bytes)
    image = bytearray(encode_list(build.commands))
    image += bytes(command_bytes - len(image)) + build.weights
    first_written = tensors[1].address
    areas = (
        Area(memory_base, first_written - memory_base, False),
        Area(first_written, end - first_written, True),
    )
    return Program(
        image=bytes(image), image_address=memory_base, command_count=len(build.commands),
        input=tensors[0], output=tensors[-1], areas=areas, macs=sum(p.macs for p in plans),
        entries=sum(p.entries for p in build.packed), fillers=sum(p.fillers for p in build.packed),
        format_bits=sum(p.format_bits for p in build.packed),
        parameter_bits=sum(p.parameter_bits for p in build.packed),
        estimated_cycles=sum(p.estimated_cycles for p in plans), layers=tuple(plans),
    )


def _check_size(commands: int, tensors: Sequence[Tensor], needed: int, image_bytes: int,
                memory_bytes: int) -> None:
    """Refuses a program that is too long or too large, and estimates what would not be."""
    first = tensors[0]
    # Fewer columns leave at least one position, or are none at all.
    fewer = (first.columns - 1) // first.lanes * first.lanes
    if commands > MAX_COMMANDS:
        raise TooManyColumns(
            f"a network must take at most {MAX_COMMANDS} commands, not {commands} as for "
            f"{first.columns} columns: run fewer columns at a time",
            min(fewer, max(first.lanes, first.columns // 2 // first.lanes * first.lanes)),
        )
    if needed > memory_bytes:
        command_bytes = commands * COMMAND_BYTES
        fixed = image_bytes - command_bytes + len(tensors) * WINDOW_GRANULE_BYTES
        each = sum(t.position_bytes for t in tensors) + command_bytes // first.positions
        positions = max(1, (memory_bytes - fixed) // max(each, 1))
        raise TooManyColumns(
            f"the network needs {needed} bytes of memory for {first.columns} columns, and there "
            f"are {memory_bytes}: run fewer columns at a time, or open the device with more memory",
            min(fewer, positions * first.lanes),
        )


def _emit(
    layers: Sequence[LinearLayer],
    channels: Sequence[int],
    columns: int,
    config: CoreConfig,
    memory_base: int,
    sizes: tuple[int, int],
    cache: PackedCache,
) -> tuple[_Builder, list[Tensor], list[LayerPlan]]:
    """Lays tensors out behind an image of ``sizes`` (commands, all) and compiles every layer."""
    command_bytes, image_bytes = sizes
    tensors = []
    address = memory_base + image_bytes
    for i, count in enumerate(channels):
        raw = i > 0 and layers[i - 1].mode == OutputMode.RAW
        tensor = Tensor.of(config, count, columns, address=address, raw=raw)
        tensors.append(tensor)
        address += round_up(max(tensor.length, 1), WINDOW_GRANULE_BYTES)
    build = _Builder(config, cache=cache)
    plans = []
    for i, layer in enumerate(layers):
        compiler = _LayerCompiler(build, i, layer, tensors[i], tensors[i + 1])
        compiler.compile(memory_base + command_bytes)
        plans.append(compiler.plan())
    return build, tensors, plans
