# SPDX-License-Identifier: Apache-2.0
"""What moves or chooses elements in PyTorch, as steps of a graph.

Shapes stay free of the number of samples wherever axis 0 can be told from the others: it is kept,
or it is what remains.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from .build import Builder, Symbol
from .table import handles, module

__all__ = ["axis_of", "pad_axes"]

#: Behind the end of every axis.
_END = (1 << 31) - 1


def _integers(values: Sequence[Any]) -> list[int]:
    """Sizes or axes, given one by one or as one sequence."""
    if len(values) == 1 and isinstance(values[0], (tuple, list)):
        values = values[0]
    return [int(value) for value in values]


def axis_of(b: Builder, axis: int, rank: int) -> int:
    """An axis counted from the first one."""
    if not -max(rank, 1) <= axis < max(rank, 1):
        raise b.refuse(f"axis {axis} of {rank}")
    return axis % max(rank, 1)


def _reshape(b: Builder, x: Symbol, shape: Sequence[int]) -> Symbol:
    """Reshapes to sizes without -1."""
    shape = list(shape)
    if tuple(shape) == x.shape:
        return x
    if shape:
        same = bool(x.shape) and shape[0] == x.shape[0]
        shape[0] = shape[0] if 0 in shape else 0 if same else -1
    return b.emit("reshape", x, shape=shape)


@handles("view", "reshape")
def _view(b: Builder, input: Symbol, *shape: Any, **named: Any) -> Symbol:
    if "shape" in named:
        shape = (named["shape"],)
    if shape and not isinstance(shape[0], (int, tuple, list)):
        raise b.refuse(f"a view as {shape[0]} (only sizes can)")
    sizes = _integers(shape)
    if -1 in sizes:
        sizes[sizes.index(-1)] = input.array.size // max(-prod(sizes), 1)
    return _reshape(b, input, sizes)


@handles("flatten")
def _flatten(b: Builder, input: Symbol, start_dim: int = 0, end_dim: int = -1) -> Symbol:
    rank = input.array.ndim
    first, last = axis_of(b, start_dim, rank), axis_of(b, end_dim, rank)
    shape = input.shape or (1,)
    return _reshape(b, input, [*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]])


@handles("unflatten")
def _unflatten(b: Builder, input: Symbol, dim: int, unflattened_size: Any = None,
               *, sizes: Any = None) -> Symbol:
    parts = list(unflattened_size if sizes is None else sizes)
    axis = axis_of(b, dim, input.array.ndim)
    if -1 in parts:
        parts[parts.index(-1)] = input.shape[axis] // max(-prod(parts), 1)
    return _reshape(b, input, [*input.shape[:axis], *parts, *input.shape[axis + 1 :]])


@handles("permute")
def _permute(b: Builder, input: Symbol, *axes: Any, **named: Any) -> Symbol:
    order = _integers((named["dims"],) if "dims" in named else axes)
    return b.emit("transpose", input, axes=[axis_of(b, a, input.array.ndim) for a in order])


@handles("transpose", "swapaxes", "swapdims")
def _transpose(b: Builder, input: Symbol, dim0: int, dim1: int) -> Symbol:
    order = list(range(input.array.ndim))
    first, second = axis_of(b, dim0, len(order)), axis_of(b, dim1, len(order))
    order[first], order[second] = order[second], order[first]
    return b.emit("transpose", input, axes=order)


@handles("t")
def _transpose_matrix(b: Builder, input: Symbol) -> Symbol:
    return b.emit("transpose", input, axes=list(range(input.array.ndim))[::-1])


@handles("getattr")
def _attribute(b: Builder, input: Symbol, name: str) -> Symbol:
    if name == "T":
        return _transpose_matrix(b, input)
    if name == "mT":
        return _transpose(b, input, -2, -1)
    if name == "data":
        return input
    raise b.refuse(f"attribute {name!r}")


@handles("squeeze")
def _squeeze(b: Builder, input: Symbol, dim: Any = None) -> Symbol:
    rank = input.array.ndim
    asked = range(rank) if dim is None else _integers((dim,))
    axes = [a for a in (axis_of(b, axis, rank) for axis in asked) if input.shape[a] == 1]
    return b.emit("onnx_squeeze", input, axes=axes) if axes else input


@handles("unsqueeze")
def _unsqueeze(b: Builder, input: Symbol, dim: int) -> Symbol:
    return b.emit("onnx_unsqueeze", input, axes=[axis_of(b, dim, input.array.ndim + 1)])


@handles("cat", "concat", "concatenate")
def _concat(b: Builder, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    return b.emit("onnx_concat", *b.symbols(*tensors), axis=dim)


@handles("stack")
def _stack(b: Builder, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    parts = b.symbols(*tensors)
    axis = axis_of(b, dim, parts[0].array.ndim + 1)
    return b.emit(
        "onnx_concat", *(b.emit("onnx_unsqueeze", part, axes=[axis]) for part in parts), axis=axis)


def _slice(b: Builder, x: Symbol, axis: int, start: int, end: int, step: int = 1) -> Symbol:
    return b.emit("onnx_slice", x, starts=[start], ends=[end], axes=[axis], steps=[step])


@handles("chunk")
def _chunk(b: Builder, input: Symbol, chunks: int, dim: int = 0) -> tuple[Symbol, ...]:
    axis = axis_of(b, dim, input.array.ndim)
    return _split(b, input, -(-input.shape[axis] // chunks), axis)


@handles("split")
def _split(b: Builder, tensor: Symbol, size: Any, dim: int = 0) -> tuple[Symbol, ...]:
    axis = axis_of(b, dim, tensor.array.ndim)
    total = tensor.shape[axis]
    ends = (np.cumsum(size).tolist() if isinstance(size, (tuple, list))
            else [min(end, total) for end in range(size, total + size, size)])
    return tuple(_slice(b, tensor, axis, start, end)
                 for start, end in zip([0, *ends[:-1]], ends, strict=True))


@handles("narrow")
def _narrow(b: Builder, input: Symbol, dim: int, start: int, length: int) -> Symbol:
    first = start % input.shape[dim]
    return _slice(b, input, axis_of(b, dim, input.array.ndim), first, first + length)


@handles("select")
def _select(b: Builder, input: Symbol, dim: int, index: int) -> Symbol:
    axis = axis_of(b, dim, input.array.ndim)
    piece = _slice(b, input, axis, index, index + 1 if index != -1 else _END)
    return b.emit("onnx_squeeze", piece, axes=[axis])


@handles("getitem")
def _getitem(b: Builder, input: Any, index: Any) -> Any:
    if not isinstance(input, Symbol):
        return input[index]
    cuts = list(index) if isinstance(index, tuple) else [index]
    for cut in cuts:
        if type(cut) not in (int, slice, type(None), type(...)):
            raise b.refuse(f"an index of {type(cut).__name__} (only int, slice, None and ... can)")
    missing = input.array.ndim - sum(isinstance(cut, (int, slice)) for cut in cuts)
    if Ellipsis in cuts:
        at = cuts.index(Ellipsis)
        cuts[at : at + 1] = [slice(None)] * missing
    x, axis = input, 0
    for cut in cuts:
        if cut is None:
            x = _unsqueeze(b, x, axis)
        elif isinstance(cut, int):
            x = _select(b, x, axis, cut)
            continue
        elif cut != slice(None):
            x = _slice(b, x, axis, cut.start or 0, _END if cut.stop is None else cut.stop,
                       cut.step or 1)
        axis += 1
    return x


@handles("pixel_shuffle")
def _pixel_shuffle(b: Builder, input: Symbol, upscale_factor: int) -> Symbol:
    r, (channels, height, width) = upscale_factor, input.shape[-3:]
    before, rank = input.shape[:-3], input.array.ndim - 3
    x = _reshape(b, input, [*before, channels // r**2, r, r, height, width])
    order = [*range(rank), *(rank + axis for axis in (0, 3, 1, 4, 2))]
    x = b.emit("transpose", x, axes=order)
    return _reshape(b, x, [*before, channels // r**2, height * r, width * r])


@handles("glu")
def _gated(b: Builder, input: Symbol, dim: int = -1) -> Symbol:
    values, gates = _chunk(b, input, 2, dim)
    gates = b.emit("onnx_elementwise", gates, function="sigmoid")
    return b.emit("onnx_elementwise", values, gates, function="mul")


def pad_axes(
    b: Builder, x: Symbol, pads: Sequence[tuple[int, int]], mode: str, value: float = 0.0
) -> Symbol:
    """Pads (before, after) of each axis; negative ones cut elements off."""
    for axis, (before, after) in enumerate(pads):
        if min(before, after) < 0:
            x = _slice(b, x, axis, max(-before, 0), min(after, 0) or _END)
    pads = [(max(before, 0), max(after, 0)) for before, after in pads]
    if not any(map(any, pads)):
        return x
    if mode == "constant":
        return b.emit("pad", x, pads=pads, value=value)
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in modes:
        raise b.refuse(f"padding mode {mode!r} (only constant, {', '.join(modes)} can)")
    return b.emit("onnx_pad", x, pads=pads, mode=modes[mode])


@handles("pad")
def _pad(
    b: Builder, input: Symbol, pad: Sequence[int], mode: str = "constant",
    value: float | None = None,
) -> Symbol:
    around = [(0, 0)] * input.array.ndim
    for i in range(len(pad) // 2):  # the last axis comes first
        around[-1 - i] = (int(pad[2 * i]), int(pad[2 * i + 1]))
    return pad_axes(b, input, around, mode, value or 0.0)


@handles("padding with a value")
def _pad_module(b: Builder, input: Symbol, padding: Any, value: float = 0.0) -> Symbol:
    return _pad(b, input, padding, "constant", value)


@handles("padding with zeros")
def _zero_pad_module(b: Builder, input: Symbol, padding: Any) -> Symbol:
    return _pad(b, input, padding)


@handles("interpolate")
def _interpolate(
    b: Builder, input: Symbol, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Symbol:
    if mode not in ("nearest", "linear", "bilinear") or antialias:
        raise b.refuse(f"mode {mode!r}, antialias {antialias} (only nearest, linear and bilinear, "
                       f"without antialias, can)")
    before, after = input.shape[2:], tuple(b.node.meta["value"].shape[2:])
    scales = [out / size for out, size in zip(after, before, strict=True)]
    if scale_factor is not None and not recompute_scale_factor:
        given = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor]
        scales = [float(s) for s in (given * len(before) if len(given) == 1 else given)]
    coordinates = ("asymmetric" if mode == "nearest" else
                   "align_corners" if align_corners else "half_pixel")
    return b.emit(
        "onnx_resize", input, sizes=[-1, -1, *after], scales=[1.0, 1.0, *scales],
        mode="nearest" if mode == "nearest" else "linear", coordinates=coordinates, nearest="floor")


module("Flatten", "flatten", "start_dim", "end_dim")
module("GLU", "glu", "dim")
module("PixelShuffle", "pixel_shuffle", "upscale_factor")
module("Unflatten", "unflatten", "dim", "unflattened_size")
module("ConstantPad1d ConstantPad2d", "padding with a value", "padding", "value")
module("ZeroPad1d ZeroPad2d", "padding with zeros", "padding")
module("Upsample", "interpolate", "size", "scale_factor", "mode", "align_corners",
       "recompute_scale_factor")
