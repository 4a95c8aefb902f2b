# SPDX-License-Identifier: Apache-2.0
"""Converters of ONNX's operators that run on the host: each form becomes one operation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import ModelError
from ...hostops.onnx_maps import check_size
from .build import Builder
from .model import OnnxNode, element_type

__all__ = ["CONVERTERS", "Converter", "axes_of", "choice", "converts", "integers_of", "refuse"]

Converter = Callable[[Builder, OnnxNode], None]

#: By operator and version; a version that is missing is one that is not understood.
CONVERTERS: dict[tuple[str, int], Converter] = {}


def converts(kind: str, *versions: int) -> Callable[[Converter], Converter]:
    """Enters a converter for versions of an operator."""
    def enter(converter: Converter) -> Converter:
        for version in versions:
            CONVERTERS[kind, version] = converter
        return converter
    return enter


def integers_of(b: Builder, n: OnnxNode, index: int, what: str) -> list[int] | None:
    """A constant input that is a list of integers; None if it is absent."""
    array = b.constant(n.input(index), f"{what} of {n}")
    if array is None:
        return None
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ModelError(f"{what} of {n} must be integers, not {array.dtype}{list(array.shape)}")
    return [int(v) for v in array.reshape(-1)]


def axes_of(n: OnnxNode, axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front, each named once."""
    for axis in axes:
        if not -rank <= axis < rank:
            raise ModelError(f"axis of {n} must be {-rank} to {rank - 1}, not {axis}")
    result = [axis % rank for axis in axes]
    if len(set(result)) != len(result):
        raise ModelError(f"axes of {n} must differ, not be {list(axes)}")
    return result


def choice(n: OnnxNode, name: str, default: str, allowed: Sequence[str]) -> str:
    """A text attribute that must be one of several."""
    value = n.get(name, default)
    if value not in allowed:
        raise ModelError(f"{name} of {n} must be {' or '.join(allowed)}, not {value!r}")
    return value


def refuse(n: OnnxNode, name: str, default: Any) -> None:
    """Lets an attribute only have its default."""
    if n.get(name, default) != default:
        raise ModelError(f"{name} of {n} must be {default!r}, not {n.get(name)!r}")


@converts("LogSoftmax", 1, 11, 13)
@converts("Softmax", 1, 11, 13)
def _softmax(b: Builder, n: OnnxNode) -> None:
    new = n.version >= 13
    rank = len(b.shape(n.input(0)))
    axis = axes_of(n, [n.get("axis", -1 if new else 1)], rank)[0]
    b.emit(n, "onnx_softmax", [("x", b.ref(n.input(0)))], n.outputs, axis=axis, joined=not new,
           log=n.kind == "LogSoftmax")


@converts("BatchNormalization", 6, 7, 9, 14, 15)
def _batch_normalization(b: Builder, n: OnnxNode) -> None:
    refuse(n, "training_mode", 0)
    if n.version == 6 and not n.get("is_test", 0):
        raise ModelError(f"is_test of {n} must be 1, not 0")
    refuse(n, "spatial", 1)
    names = ("x", "scale", "bias", "mean", "variance")
    b.emit(n, "onnx_batch_normalization",
           [(name, b.ref(n.input(i))) for i, name in enumerate(names)], n.outputs[:1],
           epsilon=n.get("epsilon", 1e-5))


@converts("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
@converts("Dropout", 7, 10, 12, 13, 22)
def _identity(b: Builder, n: OnnxNode) -> None:
    if n.kind == "Dropout" and n.input(2):
        training = b.constant(n.input(2), f"training_mode of {n}")
        if training is not None and training.any():
            raise ModelError(f"training_mode of {n} must be false, not true")
    b.move(n, "onnx_identity")


@converts("Constant", 1, 9, 11, 12, 13, 19, 21, 23, 24, 25)
def _constant(b: Builder, n: OnnxNode) -> None:
    if len(n.attributes) != 1:
        raise ModelError(f"{n} must have one value, not {len(n.attributes)}")
    (name, value), = n.attributes.items()
    kinds = {"value": None, "value_float": "float32", "value_floats": "float32",
             "value_int": "int64", "value_ints": "int64"}
    if name not in kinds:
        raise ModelError(f"value of {n} must be a tensor or numbers, not {name}")
    b.set_constant(n.outputs[0], value if kinds[name] is None else np.asarray(value, kinds[name]))


@converts("ConstantOfShape", 9, 20, 21, 23, 24, 25)
def _constant_of_shape(b: Builder, n: OnnxNode) -> None:
    shape = integers_of(b, n, 0, "shape") or []
    check_size(f"result of {n}", shape)
    value = n.get("value", np.zeros(1, np.float32))
    b.set_constant(n.outputs[0], np.full(shape, value.reshape(())))


@converts("Shape", 1, 13, 15, 19, 21, 23, 24, 25)
def _shape(b: Builder, n: OnnxNode) -> None:
    shape = b.shape(n.input(0))
    b.set_constant(n.outputs[0], np.asarray(shape[n.get("start", 0):n.get("end")], np.int64))


@converts("Cast", 6, 9, 13, 19, 21, 23, 24, 25, 28)
def _cast(b: Builder, n: OnnxNode) -> None:
    dtype = element_type(n.get("to", 0), f"result of {n}")
    if np.dtype(dtype) == b.dtype(n.input(0)):
        b.move(n, "onnx_identity")
        return
    b.emit(n, "onnx_cast", [("x", b.ref(n.input(0)))], n.outputs, dtype=dtype)


@converts("CastLike", 15, 19, 21, 23, 24, 25)
def _cast_like(b: Builder, n: OnnxNode) -> None:
    dtype = b.dtype(n.input(1))
    if dtype == b.dtype(n.input(0)):
        b.move(n, "onnx_identity")
        return
    b.emit(n, "onnx_cast", [("x", b.ref(n.input(0)))], n.outputs, dtype=dtype.name)


@converts("Size", 1, 13, 19, 21, 23, 24, 25)
def _size(b: Builder, n: OnnxNode) -> None:
    b.set_constant(n.outputs[0], np.asarray(np.prod(b.shape(n.input(0)), dtype=np.int64)))


@converts("Range", 11, 27)
def _range(b: Builder, n: OnnxNode) -> None:
    given = [b.constant(n.input(i), f"{what} of {n}") for i, what in
             enumerate(("start", "limit", "delta"))]
    if any(a is None or a.size != 1 for a in given):
        raise ModelError(f"start, limit and delta of {n} must be numbers")
    start, limit, delta = (a.reshape(()) for a in given if a is not None)
    if not delta or not np.isfinite([float(start), float(limit), float(delta)]).all():
        raise ModelError(f"delta of {n} must not be 0, and all must be finite")
    count = max(int(np.ceil((float(limit) - float(start)) / float(delta))), 0)
    check_size(f"result of {n}", [count])
    b.set_constant(n.outputs[0], (start + np.arange(count).astype(start.dtype) * delta))


@converts("Expand", 8, 13)
def _expand(b: Builder, n: OnnxNode) -> None:
    target = integers_of(b, n, 1, "shape")
    if target is None or min(target, default=0) < 0:
        raise ModelError(f"shape of {n} must be sizes of 0 or more, not {target}")
    shape = np.broadcast_shapes(b.shape(n.input(0)), tuple(target))
    check_size(f"result of {n}", shape)
    b.emit(n, "onnx_expand", [("x", b.ref(n.input(0)))], n.outputs, shape=list(shape))


@converts("Tile", 6, 13)
def _tile(b: Builder, n: OnnxNode) -> None:
    shape, repeats = b.shape(n.input(0)), integers_of(b, n, 1, "repeats")
    if repeats is None or len(repeats) != len(shape) or min(repeats, default=0) < 0:
        raise ModelError(f"repeats of {n} must be {len(shape)} of 0 or more, not {repeats}")
    check_size(f"result of {n}", [s * r for s, r in zip(shape, repeats, strict=True)])
    b.emit(n, "onnx_tile", [("x", b.ref(n.input(0)))], n.outputs, repeats=repeats)


@converts("InstanceNormalization", 6, 22)
def _instance_normalization(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    if rank < 3:
        raise ModelError(f"input of {n} must have at least 3 axes, not {rank}")
    scale, bias = (b.constant(n.input(i), f"scale and bias of {n}") for i in (1, 2))
    shape = (-1, *[1] * (rank - 2))
    if scale is None or bias is None:
        raise ModelError(f"scale and bias of {n} must be given")
    b.emit(n, "onnx_normalization",
           [("x", b.ref(n.input(0))), ("scale", scale.reshape(shape)),
            ("bias", bias.reshape(shape))], n.outputs,
           axes=list(range(2, rank)), epsilon=n.get("epsilon", 1e-5))


@converts("LayerNormalization", 17)
@converts("RMSNormalization", 23)
def _layer_normalization(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    refuse(n, "stash_type", 1)
    if any(n.outputs[1:]):
        raise ModelError(f"{n} must have one output: its mean and deviation are not computed")
    axis = axes_of(n, [n.get("axis", -1)], rank)[0]
    b.emit(n, "onnx_normalization",
           [("x", b.ref(n.input(0))), ("scale", b.ref(n.input(1))), ("bias", b.ref(n.input(2)))],
           n.outputs[:1], axes=list(range(axis, rank)), epsilon=n.get("epsilon", 1e-5),
           centre=n.kind == "LayerNormalization")


@converts("Reshape", 5, 13, 14, 19, 21, 23, 24, 25)
def _reshape(b: Builder, n: OnnxNode) -> None:
    target = integers_of(b, n, 1, "shape")
    if target is None:
        raise ModelError(f"shape of {n} must be given")
    shape = b.shape(n.input(0))
    if n.get("allowzero", 0) and 0 in target:
        raise ModelError(f"shape of {n} must have no size of 0, not {target}")
    if any(size == 0 and i >= len(shape) for i, size in enumerate(target)):
        raise ModelError(f"shape of {n} must keep axes that the input has, not {target}")
    sizes = [shape[i] if size == 0 else size for i, size in enumerate(target)]
    known = int(np.prod([s for s in sizes if s != -1], dtype=np.int64))
    total = int(np.prod(shape, dtype=np.int64))
    if sizes.count(-1) > 1 or min(sizes, default=1) < -1 or known <= 0 or total % known:
        raise ModelError(f"shape of {n} must fit {list(shape)}, not {target}")
    sizes = [total // known if size == -1 else size for size in sizes]
    if n.input(1) in b.of_batch and sizes.count(shape[0] if shape else 0) != 1:
        b.one_batch = True  # which of them is the batch?
    if sizes and shape and sizes[0] == shape[0]:
        sizes[0] = -1  # any batch
    b.move(n, "reshape", shape=sizes)


@converts("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def _flatten(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    axis = n.get("axis", 1)
    if not -rank <= axis <= rank:
        raise ModelError(f"axis of {n} must be {-rank} to {rank}, not {axis}")
    b.move(n, "flatten", axis=axis + rank if axis < 0 else axis)


@converts("Transpose", 1, 13, 21, 23, 24, 25)
def _transpose(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    axes = axes_of(n, n.get("perm", list(range(rank))[::-1]), rank)
    if len(axes) != rank:
        raise ModelError(f"perm of {n} must name {rank} axes, not {axes}")
    b.move(n, "transpose", axes=axes)


@converts("Squeeze", 1, 11, 13, 21, 23, 24, 25)
def _squeeze(b: Builder, n: OnnxNode) -> None:
    shape = b.shape(n.input(0))
    axes = integers_of(b, n, 1, "axes") if n.version >= 13 else n.get("axes")
    if axes is None:
        axes = [i for i, size in enumerate(shape) if size == 1]
    b.move(n, "onnx_squeeze", axes=axes_of(n, axes, len(shape)))


@converts("Unsqueeze", 1, 11, 13, 21, 23, 24, 25)
def _unsqueeze(b: Builder, n: OnnxNode) -> None:
    axes = integers_of(b, n, 1, "axes") if n.version >= 13 else n.get("axes")
    if axes is None:
        raise ModelError(f"axes of {n} must be given")
    rank = len(b.shape(n.input(0))) + len(axes)
    b.move(n, "onnx_unsqueeze", axes=axes_of(n, axes, rank))


@converts("Concat", 4, 11, 13)
def _concat(b: Builder, n: OnnxNode) -> None:
    axis = axes_of(n, [n.get("axis", 0)], len(b.shape(n.input(0))))[0]
    twins = [b.twins.get(name) for name in n.inputs]
    first = twins[0]
    if first is not None and all(
        t is not None and (t.scale, t.zero_point) == (first.scale, first.zero_point)
        for t in twins
    ):
        joined = b.fresh(f"{n.outputs[0]}:int8")
        b.emit(n, "onnx_concat", [("", t.name) for t in twins if t is not None], [joined],
               axis=axis)
        b.expand_twin(n, type(first)(name=joined, scale=first.scale,
                                     zero_point=first.zero_point), n.outputs[0])
        return
    b.emit(n, "onnx_concat", [("", b.ref(name)) for name in n.inputs], n.outputs, axis=axis)


@converts("Slice", 1, 10, 11, 13)
def _slice(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    if n.version == 1:
        starts, ends, axes, steps = n.get("starts"), n.get("ends"), n.get("axes"), None
    else:
        starts, ends, axes, steps = (integers_of(b, n, i + 1, what) for i, what in
                                     enumerate(("starts", "ends", "axes", "steps")))
    if starts is None or ends is None:
        raise ModelError(f"starts and ends of {n} must be given")
    axes = axes_of(n, list(range(len(starts))) if axes is None else axes, rank)
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ModelError(f"starts, ends, axes and steps of {n} must be as many, steps not 0")
    b.move(n, "onnx_slice", starts=starts, ends=ends, axes=axes, steps=steps)


@converts("Split", 2, 11, 13, 18)
def _split(b: Builder, n: OnnxNode) -> None:
    shape = b.shape(n.input(0))
    axis = axes_of(n, [n.get("axis", 0)], len(shape))[0]
    sizes = integers_of(b, n, 1, "split") if n.version >= 13 else n.get("split")
    if sizes is None:
        part = -(-shape[axis] // len(n.outputs))
        sizes = [min(part, max(shape[axis] - i * part, 0)) for i in range(len(n.outputs))]
    if len(sizes) != len(n.outputs) or sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ModelError(f"split of {n} must cut {shape[axis]} into {len(n.outputs)}, not {sizes}")
    at = 0
    for output, size in zip(n.outputs, sizes, strict=True):
        piece = OnnxNode(name=n.name, kind=n.kind, domain=n.domain, version=n.version,
                         inputs=n.inputs[:1], outputs=(output,))
        b.move(piece, "onnx_slice", starts=[at], ends=[at + size], axes=[axis], steps=[1])
        at += size


@converts("Gather", 1, 11, 13)
def _gather(b: Builder, n: OnnxNode) -> None:
    shape = b.shape(n.input(0))
    axis = axes_of(n, [n.get("axis", 0)], len(shape))[0]
    indices = b.ref(n.input(1))
    if isinstance(indices, np.ndarray) and indices.size:
        size = shape[axis]
        if indices.min() < -size or indices.max() >= size:
            raise ModelError(f"indices of {n} must be {-size} to {size - 1}, not "
                             f"{indices.min()} to {indices.max()}")
    if isinstance(indices, np.ndarray) and isinstance(b.ref(n.input(0)), str):
        b.move(n, "onnx_gather", indices=indices, axis=axis)
        return
    b.emit(n, "onnx_gather", [("x", b.ref(n.input(0))), ("indices", indices)], n.outputs,
           axis=axis)


@converts("Pad", 2, 11, 13, 18, 19, 21, 23, 24, 25)
def _pad(b: Builder, n: OnnxNode) -> None:
    shape = b.shape(n.input(0))
    mode = choice(n, "mode", "constant", ("constant", "edge", "reflect", "wrap"))
    if n.version == 2:
        pads, value, axes = n.get("pads"), np.float32(n.get("value", 0.0)), None
    else:
        pads = integers_of(b, n, 1, "pads")
        given = b.constant(n.input(2), f"value of {n}")
        value = given.reshape(-1)[0] if given is not None and given.size else 0
        axes = integers_of(b, n, 3, "axes")
    axes = axes_of(n, list(range(len(shape))) if axes is None else axes, len(shape))
    if pads is None or len(pads) != 2 * len(axes):
        raise ModelError(f"pads of {n} must be two for each of {len(axes)} axes")
    if min(pads, default=0) < 0:
        raise ModelError(f"pads of {n} must be 0 or more, not {min(pads)}")
    around = [[0, 0] for _ in shape]
    for i, axis in enumerate(axes):
        around[axis] = [pads[i], pads[len(axes) + i]]
    check_size(f"result of {n}", [s + sum(p) for s, p in zip(shape, around, strict=True)])
    if mode == "constant":
        b.emit(n, "pad", [("x", b.ref(n.input(0)))], n.outputs, pads=around, value=value.item()
               if isinstance(value, np.generic) else value)
    else:
        b.move(n, "onnx_pad", pads=around, mode=mode)


@converts("ReduceL1", 1, 11, 13, 18)
@converts("ReduceL2", 1, 11, 13, 18)
@converts("ReduceLogSum", 1, 11, 13, 18, 28)
@converts("ReduceLogSumExp", 1, 11, 13, 18, 28)
@converts("ReduceMax", 1, 11, 12, 13, 18, 20)
@converts("ReduceMean", 1, 11, 13, 18)
@converts("ReduceMin", 1, 11, 12, 13, 18, 20)
@converts("ReduceProd", 1, 11, 13, 18)
@converts("ReduceSum", 1, 11, 13)
@converts("ReduceSumSquare", 1, 11, 13, 18)
def _reduce(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    as_input = n.version >= (13 if n.kind == "ReduceSum" else 18)
    axes = integers_of(b, n, 1, "axes") if as_input else n.get("axes")
    if not axes:
        if n.get("noop_with_empty_axes", 0):
            b.move(n, "onnx_identity")
            return
        axes = list(range(rank))
    b.emit(n, "onnx_reduce", [("x", b.ref(n.input(0)))], n.outputs,
           function=n.kind[len("Reduce"):].lower(), axes=axes_of(n, axes, rank),
           keepdims=bool(n.get("keepdims", 1)))


@converts("ArgMax", 1, 11, 12, 13)
@converts("ArgMin", 1, 11, 12, 13)
def _argmax(b: Builder, n: OnnxNode) -> None:
    axis = axes_of(n, [n.get("axis", 0)], len(b.shape(n.input(0))))[0]
    b.emit(n, "onnx_argmax", [("x", b.ref(n.input(0)))], n.outputs, axis=axis,
           keepdims=bool(n.get("keepdims", 1)), last=bool(n.get("select_last_index", 0)),
           least=n.kind == "ArgMin")
