# SPDX-License-Identifier: Apache-2.0
"""Scales of TensorFlow Lite tensors, and the integers that its kernels make of them.

In the floating-point types that ``tensorflow/lite/kernels/kernel_util.cc`` and the kernels' Prepare
functions use, since the last bit of a multiplier can depend on them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .file import FileOperator, FileTensor

__all__ = [
    "activation_range",
    "add_attributes",
    "check_bias_scale",
    "check_same_scale",
    "check_scales",
    "fixed_point",
    "fused_range",
    "layer_factors",
    "quantization",
    "softmax_attributes",
    "why_not",
]

#: Scales of a pooling's input and output may differ by this, as in ``pooling.cc``.
_NEAR = 1e-6

#: Bits to the left of a factor: an int8 difference with them fits 32 bits.
_MAX_LEFT_SHIFT = 16

_ADD_LEFT_SHIFT = 20
_SOFTMAX_INTEGER_BITS = 5

_ACTIVATIONS = {
    0: ("NONE", None, None), 1: ("RELU", 0.0, None), 2: ("RELU_N1_TO_1", -1.0, 1.0),
    3: ("RELU6", 0.0, 6.0), 4: ("TANH", None, None), 5: ("SIGN_BIT", None, None),
}


def why_not(tensor: FileTensor) -> str:
    """Says why a tensor cannot be where int8 must stand."""
    must = f"{tensor.name!r} must be int8 or uint8, not {tensor.dtype}"
    if tensor.dtype in ("float32", "FLOAT16", "FLOAT64", "BFLOAT16"):
        return f"{must}: this is a float model and must be quantized first"
    if tensor.dtype == "int16":
        return f"{must}: 16-bit activations are not supported"
    return must


def check_scales(tensor: FileTensor) -> None:
    """Refuses scales that mean nothing."""
    for scale in tensor.scale:
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale of {tensor.name!r} must be positive and finite, not {scale}")


def quantization(tensor: FileTensor) -> tuple[float, int]:
    """Returns the one scale and zero point of an int8 tensor, or of a uint8 tensor as int8."""
    if len(tensor.scale) != 1:
        raise ValueError(f"scales of {tensor.name!r} must be 1, not {len(tensor.scale)}: "
                         f"it is not quantized as a whole")
    check_scales(tensor)
    zero_point = int(tensor.zero_point[0]) - 128 * (tensor.dtype == "uint8")
    if not -128 <= zero_point <= 127:
        raise ValueError(f"zero point of {tensor.name!r} must be in the range of {tensor.dtype}, "
                         f"not {tensor.zero_point[0]}")
    return float(tensor.scale[0]), zero_point


def check_same_scale(x: FileTensor, y: FileTensor) -> None:
    """Refuses an operator that moves integers between tensors that read them differently."""
    (x_scale, x_zero), (y_scale, y_zero) = quantization(x), quantization(y)
    if x.dtype != y.dtype or x_zero != y_zero or abs(x_scale - y_scale) > _NEAR:
        raise ValueError(f"{y.name!r} must have the type, scale and zero point of {x.name!r}, "
                         f"{x.dtype}, {x_scale:g}, {x_zero}, not {y.dtype}, {y_scale:g}, {y_zero}")


def layer_factors(
    x: FileTensor, weights: FileTensor, y: FileTensor, *, float_product: bool
) -> NDArray[np.float64]:
    """Returns ``scale of x * scales of the weights / scale of y``, (1,) or (outputs,).

    PopulateConvolutionQuantizationParams multiplies in double, GetQuantizedConvolutionMultipler
    (uint8, and a fully connected operator with one scale) multiplies in float.
    """
    kind = np.float32 if float_product else np.float64
    with np.errstate(over="ignore", under="ignore"):
        product = kind(x.scale[0]) * weights.scale.astype(kind)
        return product.astype(np.float64) / np.float64(y.scale[0])


def check_bias_scale(bias: FileTensor, factors: NDArray[np.float64], y: FileTensor) -> None:
    """Refuses a bias in another scale than the sums, as GetQuantizedConvolutionMultipler does."""
    if len(bias.scale) != 1:
        raise ValueError(f"scales of bias {bias.name!r} must be 1, not {len(bias.scale)}")
    error = abs(factors[0] - float(bias.scale[0]) / float(y.scale[0]))
    if not error <= 0.02:
        raise ValueError(f"scale of bias {bias.name!r} must be that of the products, "
                         f"{factors[0] * float(y.scale[0]):g}, not {float(bias.scale[0]):g}")


def activation_range(kind: int, scale: float, zero_point: int) -> tuple[int, int]:
    """Returns what an activation leaves of int8: CalculateActivationRangeQuantized."""
    name, lowest, highest = _ACTIVATIONS.get(kind, (str(kind), None, None))
    if name not in ("NONE", "RELU", "RELU_N1_TO_1", "RELU6"):
        raise ValueError(
            f"fused activation must be NONE, RELU, RELU_N1_TO_1 or RELU6, not {name}")
    low = -128 if lowest is None else max(-128, zero_point + _steps(lowest, scale))
    high = 127 if highest is None else min(127, zero_point + _steps(highest, scale))
    return low, high


def fused_range(operator: FileOperator, out: FileTensor) -> tuple[int, int]:
    """Returns what the activation that is fused into an operator leaves of its int8 output."""
    return activation_range(operator.option("FusedActivationFunction"), *quantization(out))


def _steps(real: float, scale: float) -> int:
    """``round(real / scale)`` in float, halves away from zero; bounded, as int8 will be."""
    with np.errstate(over="ignore"):
        quotient = float(np.float32(real) / np.float32(scale))
    bounded = min(max(quotient, -1e6), 1e6)
    return int(math.copysign(math.floor(abs(bounded) + 0.5), bounded))


def fixed_point(factor: float) -> tuple[int, int]:
    """Returns multiplier and shift of a factor: QuantizeMultiplier; above 0 shifts left."""
    if not (math.isfinite(factor) and 0 < factor < 1 << _MAX_LEFT_SHIFT):
        raise ValueError(
            f"a scale factor must be above 0 and below {1 << _MAX_LEFT_SHIFT}, not {factor!r}")
    return _fixed_point(factor)


def _fixed_point(factor: float) -> tuple[int, int]:
    significand, shift = math.frexp(factor)
    multiplier = math.floor(significand * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier >> 1, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def add_attributes(x: FileTensor, y: FileTensor, out: FileTensor) -> dict[str, object]:
    """Returns what `tflite_add` needs: ``AddOp``'s Prepare for 8 bits."""
    pairs = [quantization(x), quantization(y)]
    out_scale, zero_point = quantization(out)
    twice = 2 * max(scale for scale, _ in pairs)
    factors = [_fixed_point(scale / twice) for scale, _ in pairs]
    factor = twice / ((1 << _ADD_LEFT_SHIFT) * out_scale)
    if not 0 < factor < 1:
        raise ValueError(f"scale of {out.name!r} must be above {twice / (1 << _ADD_LEFT_SHIFT):g} "
                         f"for operands of these scales, not {out_scale:g}")
    multiplier, shift = _fixed_point(factor)
    return {
        "left_shift": _ADD_LEFT_SHIFT, "zero_points": [zero for _, zero in pairs],
        "multipliers": [m for m, _ in factors], "shifts": [s for _, s in factors],
        "output_multiplier": multiplier, "output_shift": shift, "zero_point": zero_point,
    }


def softmax_attributes(x: FileTensor, y: FileTensor, beta: float) -> dict[str, int]:
    """Returns what `tflite_softmax` needs: PreprocessSoftmaxScaling, CalculateInputRadius."""
    (x_scale, _), (y_scale, y_zero) = quantization(x), quantization(y)
    if (y_scale, y_zero) != (1 / 256, -128):
        raise ValueError(f"{y.name!r} must have scale 1/256 and its lowest integer as zero point, "
                         f"not {y_scale:g}, {y_zero}")
    fraction = 1 << 31 - _SOFTMAX_INTEGER_BITS
    factor = min(beta * x_scale * fraction, (1 << 31) - 1.0)
    if not factor > 1:
        raise ValueError(f"beta times the scale of {x.name!r} must be above {1 / fraction:g}, "
                         f"not {beta * x_scale:g}")
    multiplier, shift = _fixed_point(factor)
    radius = ((1 << _SOFTMAX_INTEGER_BITS) - 1) * fraction / (1 << shift)
    return {"multiplier": multiplier, "shift": shift, "diff_min": -math.floor(radius)}
