# SPDX-License-Identifier: Apache-2.0
"""Makes a layer for the device of a float layer, of what calibration found around it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .commands import OutputMode
from .conv import ConvLayer, Geometry
from .csr import as_csr
from .graph import Layer, Node
from .hostops import run_operation
from .layer import LinearLayer
from .numerics import quantize_multiplier
from .quantize import quantize_rows

__all__ = ["LayerQuantizer", "integer_limits"]

#: Biases stay below this, which leaves as much of 32 bits to the sums.
_LARGEST_BIAS = 1 << 30


def integer_limits(
    limits: tuple[float, float], scale: float, zero_point: int
) -> tuple[int, int]:
    """The clamp that ``limits`` are for integers of a scale and a zero point."""
    low, high = np.clip(np.rint(np.array(limits) / scale) + zero_point, -128, 127)
    return int(low), int(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuantizer:
    """Makes one layer, of what is known about its input and output."""

    input_scale: float
    input_zero_point: int
    output_scale: tuple[float, int]
    limits: tuple[float, float]
    mean: NDArray[np.float64]  # of the input
    weight_bits: int
    per_channel: bool

    def layer(self, node: Node) -> Layer:
        """Returns the layer that a float layer becomes; ValueError if the device has none."""
        weight = np.asarray(node.attributes["weight"], np.float64)
        given = node.attributes.get("bias")
        bias = np.zeros(len(weight)) if given is None else np.asarray(given, np.float64)
        geometry = self._geometry(node) if node.operation == "float_conv" else None
        integers, scales = self._rows(weight.reshape(len(weight), -1), bias)
        lost = weight - (integers * scales[:, None]).reshape(weight.shape)
        (moved,) = run_operation(
            node.operation, {**node.attributes, "weight": lost, "bias": None},
            (self.mean[None],), node.name)
        channel = 1 if geometry else -1
        bias = bias + np.moveaxis(moved, channel, 0).reshape(len(weight), -1).mean(1)
        linear = self._linear(node.name, integers, scales, bias)
        if geometry is None:
            return linear
        return ConvLayer(linear=linear, geometry=geometry, channels_last=False,
                         one_dimensional=weight.ndim == 3)

    def _geometry(self, node: Node) -> Geometry:
        weight, given = node.attributes["weight"], node.attributes
        rank = weight.ndim - 2
        if rank not in (1, 2):
            raise ValueError(f"a map must have 1 or 2 dimensions, not {rank}")
        strides, dilations = (
            list(given.get(name) or [1] * rank) for name in ("strides", "dilations"))
        pads = list(given.get("pads") or [0] * 2 * rank)
        if rank == 1:  # a map of height 1
            strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
        height, width = (1, *self.mean.shape[1:])[-2:]
        rows, columns = (1, *weight.shape[2:])[-2:]
        return Geometry(
            channels=self.mean.shape[0], height=height, width=width,
            kernel=(rows, columns), stride=(strides[0], strides[1]),
            dilation=(dilations[0], dilations[1]),
            padding=(pads[0], pads[1], pads[2], pads[3]), groups=given.get("groups", 1),
        )

    def _rows(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Rounds (outputs, inputs) weights; returns them and (outputs,) scales.

        A row's scale is wide enough for its bias to fit the sums, and for its sums to matter to the
        output: folded batch normalization leaves rows of next to nothing with a bias of ones.
        """
        rows = weight if self.per_channel else weight.reshape(1, -1)
        _, scales = quantize_rows(rows, self.weight_bits)
        scales = np.broadcast_to(scales, len(weight))
        unit = self.output_scale[0] / self.input_scale  # a sum of 1 is then an output of 1
        scales = np.where(weight.any(1), scales, unit)
        least = np.maximum(np.abs(bias) / self.input_scale / _LARGEST_BIAS, unit / _LARGEST_BIAS)
        scales = np.maximum(scales, least)
        top = (1 << self.weight_bits - 1) - 1
        return np.clip(np.rint(weight / scales[:, None]), -top, top).astype(np.int8), scales

    def _linear(
        self, name: str, integers: NDArray[np.int8], scales: NDArray[np.float64],
        bias: NDArray[np.float64],
    ) -> LinearLayer:
        scale, zero_point = self.output_scale
        whole = np.rint(bias / (self.input_scale * scales))
        whole -= self.input_zero_point * integers.sum(1, dtype=np.int64)
        if np.abs(whole).max(initial=0) >= 1 << 31:
            raise ValueError("biases must fit 32 bits at the scale of the sums")
        multiplier, shift = quantize_multiplier(self.input_scale * scales / scale)
        low, high = integer_limits(self.limits, scale, zero_point)
        return LinearLayer(
            weights=as_csr(integers, weight_bits=self.weight_bits), weight_bits=self.weight_bits,
            bias=whole.astype(np.int32), mode=OutputMode.DOUBLE, multiplier=multiplier, shift=shift,
            zero_point=zero_point, low=low, high=high, input_scale=self.input_scale,
            input_zero_point=self.input_zero_point, output_scale=scale, name=name,
        )
