# SPDX-License-Identifier: Apache-2.0
"""Small models, one for each operator that the TensorFlow Lite importer knows and its options."""

from dataclasses import replace

import numpy as np

from support.tflite_files import Model, Operator, Tensor, noise

SAME, VALID = 0, 1
NONE, RELU, RELU_N1, RELU6 = range(4)
_CONV = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1,
         "Padding": SAME, "FusedActivationFunction": NONE}


def tensor(name, shape, scale=0.05, zero_point=0, **more):
    return Tensor(name, shape, scale=[scale], zero_point=[zero_point], **more)


def integers(name, values, kind="INT32"):
    return Tensor(name, np.shape(values), kind, scale=(), data=np.asarray(values, kind.lower()))


def one(code, x, out, options=None, constants=()):
    """A model of one operator, of one input and of constants."""
    tensors = [x, *constants, out]
    return Model(tensors, [Operator(code, range(len(tensors) - 1), [len(tensors) - 1], options)])


def unary(code, shape, out_scale, out_zero, options=None, out_shape=None, kind="INT8"):
    x = tensor("x", shape, 0.0371, 3 + 128 * (kind == "UINT8"), kind=kind)
    y = tensor("y", out_shape or shape, out_scale, out_zero, kind=kind)
    return one(code, x, y, options)


def weights(name, shape, axis, dtype="int8"):
    steps = noise(f"{name} scale", shape[axis], dtype="uint8").tolist()
    scale = [0.001 + step / 18000 for step in steps]
    data = noise(name, *shape)
    if dtype == "int4":
        low = data & 15
        flat = np.append(low.ravel(), np.zeros(low.size % 2, np.int8)).view(np.uint8)
        return Tensor(name, shape, "INT4", scale, axis=axis,
                      data=(flat[::2] | flat[1::2] << 4).tobytes())
    # Pruned: three of four weights are zero.
    return Tensor(name, shape, scale=scale, axis=axis,
                  data=np.where(noise(f"{name} mask", *shape) % 4 == 0, data, 0).astype(np.int8))


def bias(name, x, w):
    scale = [x.scale[0] * s for s in w.scale]
    return Tensor(name, (len(scale),), "INT32", scale, data=noise(name, len(scale), dtype="int16")
                  .astype(np.int32))


def convolution(shape, filters, out, *, depthwise=False, out_scale=0.4, dtype="int8", **options):
    x = tensor("x", shape, 0.0371, 3)
    w = weights("w", filters, 3 if depthwise else 0, dtype)
    y = tensor("y", out, out_scale, -7)
    extra = {"DepthMultiplier": filters[3] // shape[3]} if depthwise else {}
    return one("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", x, y,
               {**_CONV, **extra, **options}, [w, bias("b", x, w)])


def fully_connected(shape, filters, out, *, whole=True, **options):
    x, w = tensor("x", shape, 0.0371, 3), weights("w", filters, 0)
    if whole:
        w = replace(w, scale=w.scale[:1])
    b = bias("b", x, w)
    if whole:
        b = replace(b, shape=filters[:1], data=noise("b", filters[0], dtype="int32") >> 20)
    return one("FULLY_CONNECTED", x, tensor("y", out, 0.1, -7),
               {"FusedActivationFunction": NONE, **options}, [w, b])


def pool(code, kernel, stride, padding, out, shape=(2, 7, 9, 5), activation=NONE, kind="INT8"):
    y = tensor("y", out, 0.0371, 3 + 128 * (kind == "UINT8"), kind=kind)
    return one(code, replace(y, name="x", shape=shape), y, {
        "Padding": padding, "FilterHeight": kernel[0], "FilterWidth": kernel[1],
        "StrideH": stride[0], "StrideW": stride[1], "FusedActivationFunction": activation})


def mean(shape, axes, keep, out, out_scale=0.029):
    return one("MEAN", tensor("x", shape, 0.0371, 3), tensor("y", out, out_scale, -9),
               {"KeepDims": keep}, [integers("axes", axes)])


def add(shape, other, scales, activation=NONE):
    constant = tensor("c", other, scales[1], -11, data=noise("add", *other))
    x = tensor("x", shape, scales[0], 3)
    y = tensor("y", np.broadcast_shapes(shape, other), scales[2], 5)
    return one("ADD", x, y, {"FusedActivationFunction": activation}, [constant])


def twice(scales):
    x, m = tensor("x", (2, 4, 6), scales[0], 3), tensor("m", (2, 4, 6), scales[1], -20)
    y = tensor("y", (2, 4, 6), scales[2], 5)
    return Model([x, m, y], [
        Operator("QUANTIZE", [0], [1]),
        Operator("ADD", [0, 1], [2], {"FusedActivationFunction": NONE})])


def real(first, second):
    """Real to integer and back."""
    r = Tensor("r", (2, 50), "FLOAT32", scale=())
    q = tensor("q", (2, 50), *first)
    s = tensor("s", (2, 50), *second)
    y = Tensor("y", (2, 50), "FLOAT32", scale=())
    return Model([r, q, s, y], [Operator("QUANTIZE", [0], [1]), Operator("QUANTIZE", [1], [2]),
                                Operator("DEQUANTIZE", [2], [3])])


CASES = {
    "conv": convolution((2, 7, 9, 3), (5, 3, 3, 3), (2, 7, 9, 5)),
    "conv stride, relu": convolution((1, 7, 9, 3), (5, 3, 2, 3), (1, 4, 5, 5), StrideH=2,
                                     StrideW=2, FusedActivationFunction=RELU),
    "conv dilated, valid, relu6": convolution(
        (1, 9, 9, 2), (4, 2, 3, 2), (1, 6, 5, 4), DilationHFactor=3, DilationWFactor=2,
        Padding=VALID, FusedActivationFunction=RELU6),
    "conv 1 x 1, relu -1 to 1": convolution(
        (1, 5, 5, 4), (3, 1, 1, 4), (1, 5, 5, 3), out_scale=0.02, FusedActivationFunction=RELU_N1),
    "conv factor above 1": convolution((1, 9, 9, 1), (3, 1, 1, 1), (1, 9, 9, 3), out_scale=2e-4,
                                       dtype="int4"),
    "conv int4": convolution((1, 5, 5, 3), (5, 3, 3, 3), (1, 5, 5, 5), out_scale=0.03,
                             dtype="int4"),
    "conv grouped": convolution((1, 6, 6, 6), (9, 3, 3, 2), (1, 6, 6, 9)),
    "depthwise": convolution((2, 6, 5, 3), (1, 3, 3, 3), (2, 6, 5, 3), depthwise=True),
    "depthwise times 2": convolution((1, 6, 5, 3), (1, 3, 2, 6), (1, 3, 3, 6), depthwise=True,
                                     StrideH=2, StrideW=2),
    "depthwise dilated": convolution((1, 6, 6, 3), (1, 3, 3, 3), (1, 6, 6, 3), depthwise=True,
                                     DilationHFactor=2, DilationWFactor=2),
    "fully connected": fully_connected((3, 20), (7, 20), (3, 7)),
    "fully connected, flat": fully_connected((2, 3, 4, 5), (7, 60), (2, 7),
                                             FusedActivationFunction=RELU),
    "fully connected, axes": fully_connected((2, 3, 20), (7, 20), (2, 3, 7), KeepNumDims=True),
    "fully connected, channels": fully_connected((3, 20), (7, 20), (3, 7), whole=False),
    "average pool": pool("AVERAGE_POOL_2D", (3, 2), (2, 2), SAME, (2, 4, 5, 5)),
    "average pool valid, relu": pool("AVERAGE_POOL_2D", (3, 4), (2, 3), VALID, (2, 3, 2, 5),
                                     activation=RELU),
    "average pool uint8": pool("AVERAGE_POOL_2D", (3, 2), (1, 1), SAME, (2, 7, 9, 5),
                               kind="UINT8"),
    "max pool": pool("MAX_POOL_2D", (3, 2), (2, 2), SAME, (2, 4, 5, 5)),
    "max pool valid, relu6": pool("MAX_POOL_2D", (2, 2), (2, 2), VALID, (2, 3, 4, 5),
                                  activation=RELU6),
    "mean over the map": mean((2, 7, 9, 5), [1, 2], True, (2, 1, 1, 5)),
    "mean over the map, flat": mean((2, 7, 9, 5), [1, 2], False, (2, 5)),
    "mean over channels": mean((2, 7, 9, 5), [-1], False, (2, 7, 9)),
    "mean over all": mean((3, 11), [0, 1], True, (1, 1), 0.0371),
    "add": add((2, 4, 6), (2, 4, 6), (0.0371, 0.013, 0.045)),
    "add wide output, relu": add((2, 4, 6), (2, 4, 6), (0.0371, 1.3, 0.9), RELU),
    "add broadcast": add((2, 4, 6), (1, 6), (0.0371, 0.013, 0.045)),
    "add of two values": twice((0.0371, 0.013, 0.045)),
    "pad": one("PAD", tensor("x", (2, 3, 4, 2), 0.05, 9), tensor("y", (2, 6, 5, 2), 0.05, 9), None,
               [integers("pads", [[0, 0], [1, 2], [0, 1], [0, 0]])]),
    "reshape": one("RESHAPE", tensor("x", (2, 3, 4)), tensor("y", (2, 12)), None,
                   [integers("shape", [2, -1])]),
    "softmax": unary("SOFTMAX", (4, 10), 1 / 256, -128, {"Beta": 1.0}),
    "softmax beta": unary("SOFTMAX", (2, 3, 100), 1 / 256, -128, {"Beta": 0.31}),
    "softmax uint8": unary("SOFTMAX", (4, 10), 1 / 256, 0, {"Beta": 2.0}, kind="UINT8"),
    "relu": unary("RELU", (2, 100), 0.021, -128),
    "relu6": unary("RELU6", (2, 100), 6 / 255, -128),
    "relu wider": unary("RELU", (2, 100), 0.0371, 3),
    "requantize": unary("QUANTIZE", (2, 100), 0.0102, -4),
    "requantize wider": unary("QUANTIZE", (2, 100), 1.7, -4),
    "real": real((0.031, -4), (0.017, 20)),
}


def sample(model, name):
    """The input of a case, for the tensor that the model names first."""
    x = model.tensors[0]
    if x.kind == "FLOAT32":
        return noise(name, *x.shape, dtype="int16").astype(np.float32) / 4096
    return noise(name, *x.shape, dtype=x.kind.lower())
