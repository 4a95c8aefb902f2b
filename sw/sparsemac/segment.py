# SPDX-License-Identifier: Apache-2.0
"""What is compiled together: layers between tensors, run with one doorbell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .commands import OutputMode
from .config import CoreConfig
from .conv import ConvLayer
from .errors import UnsupportedLayer
from .layer import LinearLayer
from .layout import Tensor, ceil_div, round_up

__all__ = ["Cut", "Segment", "TensorShape", "Use"]


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A layer, and the numbers of the tensors that it reads and writes.

    Attributes
    ----------
    layer : LinearLayer or ConvLayer
    source, target : int
    order : (inputs,) int64    Of a LinearLayer that reads a map: which element of the map, counted
                               by channel, row, column, is each of its inputs.  None: they are in
                               this order.
    """

    layer: LinearLayer | ConvLayer
    source: int
    target: int
    order: NDArray[np.int64] | None = None

    @property
    def linear(self) -> LinearLayer:
        """The layer, or the linear layer that a convolution applies to each patch."""
        return self.layer.linear if isinstance(self.layer, ConvLayer) else self.layer


@dataclass(frozen=True, slots=True)
class TensorShape:
    """What a tensor holds; see `sparsemac.layout.Tensor`.

    Attributes
    ----------
    channels, height, width : int
    raw : bool
    pads : (top, left, bottom, right)    The most that any reader wants.
    padding : int                        What stands there.
    """

    channels: int
    height: int = 1
    width: int = 1
    raw: bool = False
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding: int = 0

    @property
    def elements(self) -> int:
        """Elements of one sample."""
        return self.channels * self.height * self.width

    def place(self, config: CoreConfig, columns: int, address: int, strips: int = 1,
              strip_height: int | None = None) -> Tensor:
        """Lays the tensor out at an address."""
        return Tensor.of(config, self.channels, columns, height=self.height, width=self.width,
                         pads=self.pads, address=address, raw=self.raw, strips=strips,
                         strip_height=strip_height)


def _written(layer: LinearLayer | ConvLayer) -> TensorShape:
    if isinstance(layer, ConvLayer):
        g = layer.geometry
        return TensorShape(layer.outputs, g.out_height, g.out_width,
                           layer.linear.mode == OutputMode.RAW)
    return TensorShape(layer.outputs, raw=layer.mode == OutputMode.RAW)


def _read(layer: LinearLayer | ConvLayer) -> TensorShape:
    if isinstance(layer, ConvLayer):
        g = layer.geometry
        return TensorShape(g.channels, g.height, g.width)
    return TensorShape(layer.inputs)


@dataclass(frozen=True, slots=True)
class Cut:
    """How maps are cut into strips: how many, and by tensor how high they are."""

    strips: int
    heights: dict[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Layers in an order in which they can run.

    Attributes
    ----------
    uses : tuple of Use
    inputs, outputs : tuple of int    Tensors that the host writes, and those that it reads.
    shapes : dict of TensorShape      Of all tensors.

    Raises
    ------
    ValueError          If layers do not fit the tensors between them.
    UnsupportedLayer    If a layer reads int32.
    """

    uses: tuple[Use, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def chain(cls, layers: Sequence[LinearLayer | ConvLayer]) -> "Segment":
        """Layers one after another."""
        if not layers:
            raise ValueError("layers must have at least one layer, not none")
        uses = tuple(Use(layer, i, i + 1) for i, layer in enumerate(layers))
        return cls(uses, (0,), (len(layers),))

    def __post_init__(self) -> None:
        if not self.uses:
            raise ValueError("layers must have at least one layer, not none")
        _ = self.shapes

    @property
    def name(self) -> str:
        """Names of the layers."""
        return ", ".join(use.linear.name for use in self.uses)

    @property
    def shapes(self) -> dict[int, TensorShape]:
        """Shapes of all tensors by number: as written, with the padding that readers want."""
        shapes: dict[int, TensorShape] = {}
        makers: dict[int, str] = {}
        for use in self.uses:
            want = _read(use.layer)
            have = shapes.get(use.source, want)
            self._check_source(use, have, want, makers.get(use.source, "the input"))
            shapes[use.source] = _with_padding(have, use)
            if use.target in shapes:
                raise ValueError(f"tensor {use.target} must be written once, before it is read")
            shapes[use.target] = _written(use.layer)
            makers[use.target] = use.linear.name
        return shapes

    def cut(self, columns: int, config: CoreConfig) -> Cut:
        """Decides into how many strips maps are cut, so that few samples use all lanes.

        Into as many as make the least work: multiply-accumulates of one lane, over all groups.
        """
        best = Cut(1, {number: shape.height for number, shape in self.shapes.items()})
        least = ceil_div(columns, config.lanes) * self._work(best.heights)
        strips = 2
        while config.shifts and strips <= config.lanes:
            heights = self._strip_heights(strips)
            if heights is not None:
                work = ceil_div(columns * strips, config.lanes) * self._work(heights)
                if work < least:
                    best, least = Cut(strips, heights), work
            strips *= 2
        return best

    def _work(self, heights: dict[int, int]) -> float:
        work = 0.0
        for use in self.uses:
            macs, height = use.linear.weights.nnz, 1
            if isinstance(use.layer, ConvLayer):
                macs, height = use.layer.macs, use.layer.geometry.out_height
            work += macs * heights[use.target] / height
        return work

    def _strip_heights(self, strips: int) -> dict[int, int] | None:
        """Rows of a strip of each tensor; None if the maps cannot be cut so.

        A strip of what a convolution reads is its stride times as high as one of what it writes.
        """
        root: dict[int, int] = {}  # of each tensor, the first one that leads to it
        steps: dict[int, int] = {}  # rows of its root that one of its rows stands for
        for use in self.uses:
            if not isinstance(use.layer, ConvLayer):
                return None
            first = root.setdefault(use.source, use.source)
            step = steps.setdefault(use.source, 1)
            root[use.target], steps[use.target] = first, step * use.layer.geometry.stride[0]
        shapes, heights = self.shapes, {}
        for first in set(root.values()):
            chain = [number for number in root if root[number] == first]
            least = max(steps[n] * ceil_div(shapes[n].height, strips) for n in chain)
            rows = round_up(least, math.lcm(*(steps[n] for n in chain)))
            heights |= {n: rows // steps[n] for n in chain}
        for use in self.uses:
            assert isinstance(use.layer, ConvLayer)
            if use.layer.geometry.strip(heights[use.source]) is None:
                return None
        return heights

    def _check_source(self, use: Use, have: TensorShape, want: TensorShape, maker: str) -> None:
        name = use.linear.name
        if have.raw:
            raise UnsupportedLayer(f"{maker} must have int8 outputs, as {name} follows it")
        if isinstance(use.layer, ConvLayer):
            fits = (have.channels, have.height, have.width) == (
                want.channels, want.height, want.width)
        else:
            fits = have.elements == want.channels
        if not fits:
            raise ValueError(
                f"{name} must take the {_text(have)} outputs of {maker}, not {_text(want)}")


def _text(shape: TensorShape) -> str:
    if shape.height * shape.width == 1:
        return str(shape.channels)
    return f"{shape.channels} x {shape.height} x {shape.width}"


def _with_padding(shape: TensorShape, use: Use) -> TensorShape:
    """Adds the padding that a convolution wants."""
    if not isinstance(use.layer, ConvLayer) or not any(use.layer.geometry.padding):
        return shape
    pads = use.layer.geometry.padding
    value = use.linear.input_zero_point
    if any(shape.pads) and shape.padding != value:
        raise ValueError(
            f"{use.linear.name} must have the input zero point of the other readers of its input, "
            f"{shape.padding}, not {value}"
        )
    most = tuple(max(a, b) for a, b in zip(shape.pads, pads, strict=True))
    return TensorShape(shape.channels, shape.height, shape.width, shape.raw,
                       most, value)  # type: ignore[arg-type]
