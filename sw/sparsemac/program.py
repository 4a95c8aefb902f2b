# SPDX-License-Identifier: Apache-2.0
"""The compiler: layers in, a memory image with its command list out."""

from collections.abc import Sequence
from dataclasses import dataclass

from ._checks import as_int, as_int_in
from .commands import COMMAND_BYTES, OutputMode, encode_list
from .config import CoreConfig
from .emitter import Builder, LayerCompiler, LayerPlan, PackedCache
from .errors import UnsupportedLayer
from .layer import LinearLayer
from .layout import Area, Tensor, round_up
from .registers import WINDOW_GRANULE_BYTES

__all__ = ["Program", "TooManyColumns", "compile_network"]

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
    ValueError          If layers do not follow one another, or a number is out of range.
    UnsupportedLayer    If a layer cannot be tiled or a row could overflow.
    TooManyColumns      If the memory is too small, or a command list too short, for the columns.
    """
    if not layers:
        raise ValueError("layers must have at least one layer, not none")
    columns = as_int_in("columns", columns, 1, MAX_COLUMNS)
    if as_int("memory_base", memory_base) % WINDOW_GRANULE_BYTES:
        raise ValueError(
            f"memory_base must be a multiple of {WINDOW_GRANULE_BYTES}, not {memory_base:#x}"
        )
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
) -> tuple[Builder, list[Tensor], list[LayerPlan]]:
    """Lays tensors out behind an image of ``sizes`` (commands, all) and compiles every layer."""
    command_bytes, image_bytes = sizes
    tensors = []
    address = memory_base + image_bytes
    for i, count in enumerate(channels):
        raw = i > 0 and layers[i - 1].mode == OutputMode.RAW
        tensor = Tensor.of(config, count, columns, address=address, raw=raw)
        tensors.append(tensor)
        address += round_up(max(tensor.length, 1), WINDOW_GRANULE_BYTES)
    build = Builder(config, cache=cache)
    plans = []
    for i, layer in enumerate(layers):
        compiler = LayerCompiler(build, i, layer, tensors[i], tensors[i + 1])
        compiler.compile(memory_base + command_bytes)
        plans.append(compiler.plan())
    return build, tensors, plans
