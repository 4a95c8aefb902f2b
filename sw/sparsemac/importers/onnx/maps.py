# SPDX-License-Identifier: Apache-2.0
"""Converters of ONNX's operators on maps: windows of convolutions and poolings, and resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...conv import Geometry
from ...errors import ModelError
from ...hostops.onnx_maps import check_size
from .build import Builder
from .model import OnnxNode
from .ops import axes_of, choice, converts, integers_of, refuse

__all__ = ["Window", "read_window"]


class Window:
    """Strides, pads, dilations and groups of a convolution or a pooling, over any axes."""

    def __init__(self, n: OnnxNode, size: Sequence[int], kernel: Sequence[int]) -> None:
        rank = len(size)
        self.kernel = list(kernel)
        self.strides = self._list(n, "strides", 1, rank)
        self.dilations = self._list(n, "dilations", 1, rank)
        self.groups = n.get("group", 1)
        if not 1 <= self.groups <= 1 << 20:
            raise ModelError(f"group of {n} must be 1 or more, not {self.groups}")
        if len(self.kernel) != rank or min(self.kernel, default=1) < 1:
            raise ModelError(f"kernel of {n} must be {rank} sizes of 1 or more, not {self.kernel}")
        auto = choice(n, "auto_pad", "NOTSET", ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
        if auto.startswith("SAME"):
            self.pads = self._same(size, auto == "SAME_LOWER")
        elif auto == "VALID":
            self.pads = [0] * (2 * rank)
        else:
            self.pads = self._list(n, "pads", 0, 2 * rank)
        for i, (s, k, d) in enumerate(zip(size, self.kernel, self.dilations, strict=True)):
            padded = s + self.pads[i] + self.pads[rank + i]
            check_size(f"padded map of {n}", [padded])
            if padded < (k - 1) * d + 1:
                raise ModelError(f"kernel of {n} must fit a padded map of {padded}, not reach over "
                                 f"{(k - 1) * d + 1}")

    @staticmethod
    def _list(n: OnnxNode, name: str, low: int, count: int) -> list[int]:
        values = n.get(name) or [low] * count
        if len(values) != count or min(values) < low:
            raise ModelError(f"{name} of {n} must be {count} integers of {low} or more, "
                             f"not {values}")
        return list(values)

    def _same(self, size: Sequence[int], lower: bool) -> list[int]:
        begins, ends = [], []
        for s, k, stride, d in zip(size, self.kernel, self.strides, self.dilations, strict=True):
            top, _, bottom, _ = Geometry.same(height=s, width=1, kernel=(k, 1), stride=(stride, 1),
                                              dilation=(d, 1), lower=lower)
            begins.append(top)
            ends.append(bottom)
        return begins + ends

    @property
    def attributes(self) -> dict[str, Any]:
        """As `float_conv` and the operations like it take them."""
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations,
                "groups": self.groups}


def read_window(b: Builder, n: OnnxNode, kernel: Sequence[int] | None = None) -> Window:
    """Reads a window; ``kernel`` is the weights' own, which an attribute must agree with."""
    shape = b.shape(n.input(0))
    if len(shape) < 3:
        raise ModelError(f"input of {n} must have at least 3 axes, not {len(shape)}")
    given = n.get("kernel_shape")
    if kernel is not None and given is not None and list(given) != list(kernel):
        raise ModelError(f"kernel_shape of {n} must be that of its weights, {list(kernel)}, "
                         f"not {list(given)}")
    chosen = kernel if kernel is not None else given
    if chosen is None:
        raise ModelError(f"kernel_shape of {n} must be given")
    return Window(n, shape[2:], chosen)


@converts("MaxPool", 1, 8, 10, 11, 12, 22)
@converts("AveragePool", 1, 7, 10, 11, 19, 22)
def _pool(b: Builder, n: OnnxNode) -> None:
    w = read_window(b, n)
    shared = {"kernel": w.kernel, "strides": w.strides, "pads": w.pads, "dilations": w.dilations,
              "ceil": bool(n.get("ceil_mode", 0))}
    if n.kind == "MaxPool":
        b.move(n, "onnx_max_pool", **shared)  # the largest integer stands for the largest real
    else:
        b.emit(n, "onnx_average_pool", [("x", b.ref(n.input(0)))], n.outputs, **shared,
               count_padding=bool(n.get("count_include_pad", 0)))


@converts("GlobalAveragePool", 1, 22)
@converts("GlobalMaxPool", 1, 22)
def _global_pool(b: Builder, n: OnnxNode) -> None:
    rank = len(b.shape(n.input(0)))
    if rank < 3:
        raise ModelError(f"input of {n} must have at least 3 axes, not {rank}")
    b.emit(n, "onnx_reduce", [("x", b.ref(n.input(0)))], n.outputs,
           function="max" if n.kind == "GlobalMaxPool" else "mean", axes=list(range(2, rank)),
           keepdims=True)


@converts("DepthToSpace", 1, 11, 13, 28)
@converts("SpaceToDepth", 1, 13, 28)
def _depth_space(b: Builder, n: OnnxNode) -> None:
    shape, block = b.shape(n.input(0)), n.get("blocksize", 0)
    if len(shape) != 4 or not 1 <= block <= 1 << 16:
        raise ModelError(f"{n} must have an input of 4 axes and a blocksize of 1 or more, "
                         f"not {len(shape)} and {block}")
    mode, back = choice(n, "mode", "DCR", ("DCR", "CRD")), n.kind == "SpaceToDepth"
    whole = (shape[2] % block, shape[3] % block) if back else (shape[1] % (block * block), 0)
    if any(whole):
        raise ModelError(f"blocksize of {n} must divide {list(shape)}, not be {block}")
    b.move(n, "onnx_depth_space", block=block, mode=mode, back=back)


_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
                "asymmetric")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@converts("Resize", 11, 13, 18, 19)
def _resize(b: Builder, n: OnnxNode) -> None:
    refuse(n, "antialias", 0)
    refuse(n, "exclude_outside", 0)
    refuse(n, "keep_aspect_ratio_policy", "stretch")
    scales = b.constant(n.input(2), f"scales of {n}")
    sizes = integers_of(b, n, 3, "sizes")
    _resize_to(b, n, scales if scales is not None and scales.size else None, sizes,
               choice(n, "coordinate_transformation_mode", "half_pixel", _COORDINATES),
               choice(n, "nearest_mode", "round_prefer_floor", _NEAREST))


@converts("Resize", 10)
@converts("Upsample", 9)
def _resize_10(b: Builder, n: OnnxNode) -> None:
    scales = b.constant(n.input(1), f"scales of {n}")
    if scales is None or (scales < 1).any():
        raise ModelError(f"scales of {n} must be 1 or more: version {n.version} does not say how "
                         f"it rounds when it makes a map smaller")
    _resize_to(b, n, scales, None, "asymmetric", "floor")


def _resize_to(
    b: Builder, n: OnnxNode, scales: NDArray[Any] | None, sizes: list[int] | None,
    coordinates: str, nearest: str,
) -> None:
    mode = choice(n, "mode", "nearest", ("nearest", "linear"))
    shape = b.shape(n.input(0))
    axes = axes_of(n, n.get("axes") or list(range(len(shape))), len(shape))
    if (scales is None) == (sizes is None):
        raise ModelError(f"{n} must have scales or sizes, one of them")
    count = len(sizes) if sizes is not None else len(scales) if scales is not None else 0
    if count != len(axes):
        raise ModelError(f"scales or sizes of {n} must be {len(axes)}, not {count}")
    factors, outs = [1.0] * len(shape), [-1] * len(shape)
    for i, axis in enumerate(axes):
        factor = float(scales[i]) if scales is not None else 0.0
        if scales is not None and not (np.isfinite(factor) and 0 < factor <= 1 << 16):
            raise ModelError(f"scales of {n} must be positive and at most 65536, not {factor}")
        out = int(shape[axis] * factor) if sizes is None else sizes[i]
        if out < 1:
            raise ModelError(f"sizes of {n} must be 1 or more, not {out}")
        if out != shape[axis] or factor not in (0.0, 1.0):
            factors[axis], outs[axis] = factor or out / shape[axis], out
    attributes = {"sizes": outs, "scales": factors, "mode": mode, "coordinates": coordinates,
                  "nearest": nearest}
    if mode == "nearest":
        b.move(n, "onnx_resize", **attributes)
    else:
        b.emit(n, "onnx_resize", [("x", b.ref(n.input(0)))], n.outputs, **attributes)
