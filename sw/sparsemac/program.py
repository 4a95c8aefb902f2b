# SPDX-License-Identifier: Apache-2.0
"""The compiler: layers in, a memory image with its command list out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ._checks import as_int, as_int_in
from .commands import COMMAND_BYTES, encode_list
from .config import CoreConfig
from .conv import ConvLayer
from .conv_emitter import ConvCompiler
from .emitter import Builder, Decision, LayerCompiler, LayerPlan, PackedCache
from .errors import UnsupportedLayer
from .golden import run_layer
from .layer import LinearLayer
from .layout import Area, Tensor, round_up
from .registers import WINDOW_GRANULE_BYTES
from .segment import Segment, TensorShape

__all__ = ["Program", "TooManyColumns", "compile_network", "compile_segment"]

MAX_COMMANDS = 65535

MAX_COLUMNS = 1 << 24


class TooManyColumns(UnsupportedLayer):
    """A network that would fit the core and its memory with fewer columns at a time.

    Attributes
    ----------
    columns : int    Columns that are worth trying; 0 if even one position is too many.
    """

    def __init__(self, text: str, columns: int) -> None:
        self.columns = columns
        super().__init__(text)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A segment for a number of columns, ready to be written to memory.

    Attributes
    ----------
    image : bytes                  Commands and weights; written once, at ``image_address``.
    image_address : int
    command_count : int            Commands at ``image_address``.
    inputs, outputs : tuple of Tensor    Where the host puts the inputs and finds the outputs.
    input_padding : tuple of int   What stands around the maps of each input.
    fills : tuple of (address, bytes)    Tensors with what the core never writes: padding, and the
                                   outputs of rows without a weight, which are constants. Written
                                   once.
    areas : tuple of Area          What the windows must cover.
    macs : int                     Useful multiply-accumulates: nonzeros times positions.
    entries, fillers : int         In the weight streams.
    format_bits, parameter_bits : int     Bits of the streams: the matrix's, and the rows' bias,
                                   multiplier and shift.
    estimated_cycles : int
    layers : tuple of LayerPlan
    """

    image: bytes
    image_address: int
    command_count: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_padding: tuple[int, ...]
    fills: tuple[tuple[int, bytes], ...]
    areas: tuple[Area, ...]
    macs: int
    entries: int
    fillers: int
    format_bits: int
    parameter_bits: int
    estimated_cycles: int
    layers: tuple[LayerPlan, ...]

    @property
    def end(self) -> int:
        """Byte address behind all that the program needs."""
        last = self.areas[-1]
        return last.address + last.length

    @property
    def input(self) -> Tensor:
        """The first input."""
        return self.inputs[0]

    @property
    def output(self) -> Tensor:
        """The first output."""
        return self.outputs[0]


def compile_network(
    layers: Sequence[LinearLayer | ConvLayer],
    columns: int,
    config: CoreConfig,
    *,
    memory_base: int = 0,
    memory_bytes: int = 64 << 20,
    packed: PackedCache | None = None,
) -> Program:
    """Compiles layers, one after another, for a number of columns; see `compile_segment`."""
    return compile_segment(Segment.chain(layers), columns, config, memory_base=memory_base,
                           memory_bytes=memory_bytes, packed=packed)


def compile_segment(
    segment: Segment,
    columns: int,
    config: CoreConfig,
    *,
    memory_base: int = 0,
    memory_bytes: int = 64 << 20,
    packed: PackedCache | None = None,
) -> Program:
    """Compiles layers between tensors for a number of columns.

    The memory is laid out as: commands and weights, inputs (both read-only for the core), tensors
    between layers, outputs. ``packed`` is kept by a caller who compiles the same layers for other
    numbers of columns: their streams are then packed once.

    Raises
    ------
    ValueError          If layers do not follow one another, or a number is out of range.
    UnsupportedLayer    If a layer cannot be tiled or a row could overflow.
    TooManyColumns      If the memory is too small, or a command list too short, for the columns.
    """
    columns = as_int_in("columns", columns, 1, MAX_COLUMNS)
    if as_int("memory_base", memory_base) % WINDOW_GRANULE_BYTES:
        raise ValueError(
            f"memory_base must be a multiple of {WINDOW_GRANULE_BYTES}, not {memory_base:#x}"
        )
    # Addresses depend on the number of commands, which the first pass tells; packing is kept.
    cache: PackedCache = {} if packed is None else packed
    emitter = _Emitter(segment, columns, config, memory_base, cache)
    build, _, _ = emitter.emit(0, 0)
    command_bytes = round_up(len(build.commands) * COMMAND_BYTES, WINDOW_GRANULE_BYTES)
    image_bytes = round_up(command_bytes + len(build.weights), WINDOW_GRANULE_BYTES)
    build, tensors, plans = emitter.emit(command_bytes, image_bytes)
    end = max(t.address + _room(t, config) for t in tensors.values())
    _check_size(len(build.commands), list(tensors.values()), end - memory_base, image_bytes,
                memory_bytes, lambda: _fewer(segment, columns, config))
    image = bytearray(encode_list(build.commands))
    image += bytes(command_bytes - len(image)) + build.weights
    first_written = min(tensors[use.target].address for use in segment.uses)
    areas = (
        Area(memory_base, first_written - memory_base, False),
        Area(first_written, end - first_written, True),
    )
    shapes = segment.shapes
    return Program(
        image=bytes(image), image_address=memory_base, command_count=len(build.commands),
        inputs=tuple(tensors[i] for i in segment.inputs),
        outputs=tuple(tensors[i] for i in segment.outputs),
        input_padding=tuple(shapes[i].padding for i in segment.inputs),
        fills=tuple(fill for use in segment.uses
                    if (fill := _fill(tensors[use.target], shapes[use.target], use.linear))),
        areas=areas, macs=sum(p.macs for p in plans),
        entries=sum(p.entries for p in build.packed), fillers=sum(p.fillers for p in build.packed),
        format_bits=sum(p.format_bits for p in build.packed),
        parameter_bits=sum(p.parameter_bits for p in build.packed),
        estimated_cycles=sum(p.estimated_cycles for p in plans), layers=tuple(plans),
    )


def _fill(tensor: Tensor, shape: TensorShape, linear: LinearLayer) -> tuple[int, bytes] | None:
    """Where a tensor lies, and its bytes as they are before any job; None if it matters not."""
    constant = ~linear.weights.filled_rows
    if not constant.any():
        if not any(shape.pads):
            return None
        return tensor.address, bytes([shape.padding & 0xFF]) * tensor.length
    values = np.full((shape.channels, shape.height, shape.width, tensor.columns), shape.padding,
                     tensor.dtype)
    outputs = run_layer(linear, np.zeros((linear.inputs, 1), np.int8))
    values[constant] = outputs[constant][:, None, None]
    return tensor.address, tensor.to_memory(values, shape.padding).tobytes()


def _room(tensor: Tensor, config: CoreConfig) -> int:
    """Bytes of whole pages for a tensor; a line of its last channel may be read a little beyond."""
    beyond = 2 * max(config.bus_bytes, tensor.word_bytes) if tensor.plane > 1 else 0
    return round_up(max(tensor.length, 1) + beyond, WINDOW_GRANULE_BYTES)


def _fewer(segment: Segment, columns: int, config: CoreConfig) -> int:
    """Largest number of columns that takes less than these do; 0 if there is none."""
    strips = segment.cut(columns, config).strips
    held = config.lanes // strips
    if columns > held:
        return (columns - 1) // held * held
    half = columns // 2
    return half if half and segment.cut(half, config).strips > strips else 0


def _check_size(commands: int, tensors: Sequence[Tensor], needed: int, image_bytes: int,
                memory_bytes: int, fewer: Callable[[], int]) -> None:
    """Refuses a program that is too long or too large, and estimates what would not be."""
    first = tensors[0]
    held = first.lanes // first.strips  # columns of a group
    if commands > MAX_COMMANDS:
        raise TooManyColumns(
            f"a network must take at most {MAX_COMMANDS} commands, not {commands} as for "
            f"{first.columns} columns: run fewer columns at a time",
            min(fewer(), max(held, first.columns // 2 // held * held)),
        )
    if needed > memory_bytes:
        command_bytes = commands * COMMAND_BYTES
        fixed = image_bytes - command_bytes + len(tensors) * WINDOW_GRANULE_BYTES
        each = sum(t.group_bytes for t in tensors) + command_bytes // first.groups
        groups = max(1, (memory_bytes - fixed) // max(each, 1))
        raise TooManyColumns(
            f"the network needs {needed} bytes of memory for {first.columns} columns, and there "
            f"are {memory_bytes}: run fewer columns at a time, or open the device with more memory",
            min(fewer(), groups * held),
        )


class _Emitter:
    """Compiles a segment, once its addresses are known, and again when they are."""

    def __init__(self, segment: Segment, columns: int, config: CoreConfig, memory_base: int,
                 cache: PackedCache) -> None:
        self._segment, self._columns, self._config = segment, columns, config
        self._memory_base, self._cache = memory_base, cache
        self._decisions: dict[int, Decision] = {}
        self._cut = segment.cut(columns, config)

    def emit(self, command_bytes: int, image_bytes: int
             ) -> tuple[Builder, dict[int, Tensor], list[LayerPlan]]:
        """Lays tensors out behind an image of so many bytes, and compiles every layer."""
        tensors = self._place(self._memory_base + image_bytes)
        build = Builder(self._config, cache=self._cache, decisions=self._decisions)
        plans = []
        for i, use in enumerate(self._segment.uses):
            source, target = tensors[use.source], tensors[use.target]
            if (isinstance(use.layer, ConvLayer) and source.plane == 1
                    and use.layer.geometry.kernel == (1, 1)):
                # A map of one place is a vector, and lies in memory as such; but a strip of one
                # place may have neighbours that a larger kernel reads.
                compiler = LayerCompiler(build, i, use.layer.flat, source, target)
            elif isinstance(use.layer, ConvLayer):
                compiler = ConvCompiler(build, i, use.layer, source, target)
            else:
                compiler = LayerCompiler(build, i, use.layer, source, target, use.order)
            compiler.compile(self._memory_base + command_bytes)
            plans.append(compiler.plan())
        return build, tensors, plans

    def _place(self, address: int) -> dict[int, Tensor]:
        """Inputs first, then what the layers write; the outputs among them last."""
        segment, shapes = self._segment, self._segment.shapes
        written = [use.target for use in segment.uses]
        inside = [t for t in written if t not in segment.outputs]
        tensors = {}
        for number in (*segment.inputs, *inside, *segment.outputs):
            tensor = shapes[number].place(
                self._config, self._columns, address, self._cut.strips,
                self._cut.heights[number])
            tensors[number] = tensor
            address += _room(tensor, self._config)
        return tensors
