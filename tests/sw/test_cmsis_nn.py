# SPDX-License-Identifier: Apache-2.0
"""CMSIS-NN's unit test vectors: every layer's integers, or a refusal that says why.

``pytest -s -k table tests/sw/test_cmsis_nn.py`` prints what became of each vector. Format of the
vectors: ``Tests/UnitTest/TestCases/TestData`` of CMSIS-NN; int4 weights lie two in a byte.
"""

import json

import numpy as np
import pytest
import sparsemac
from sparsemac import golden
from sparsemac.commands import OutputMode
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.csr import as_csr
from sparsemac.hostops import tflite
from sparsemac.layer import LinearLayer
from sparsemac.numerics import unpack_int4
from support.on_core import replace_golden

#: Vectors of operators that are neither a layer nor a host operation.
FOREIGN = {"batch_matmul": "BATCH_MATMUL", "mul": "MUL", "svdf": "SVDF"}


class Vector:
    """Integers of a configuration and arrays, by names without a prefix."""

    def __init__(self, name, config, arrays):
        self.name, self.config, self.arrays = name, config, arrays

    def __call__(self, name, default=None):
        value = self.config.get(name, default)
        assert value is not None, f"{self.name} lacks {name}"
        return int(value)

    def array(self, *names):
        """The first array of these names that there is, or None."""
        return next((self.arrays[name] for name in names if name in self.arrays), None)

    def required(self, *names):
        found = self.array(*names)
        assert found is not None, f"{self.name} lacks {names}"
        return found

    @property
    def x(self):
        return self.required("input", "input_tensor", "input1")

    @property
    def y(self):
        return self.required("output_ref", "output")

    @property
    def depthwise(self):
        return "CH_MULT" in self.config or self.name.startswith(("depthwise", "dw_"))

    def text(self, name):
        return self.config[name]

    def part(self, name):
        """A layer of a network, as a vector of its own: ``layer_2_depthwise_conv_2d``."""
        number, kind = name.removeprefix("layer_").split("_", 1)
        return Vector(kind, _without(f"{kind}_{number}_".upper(), self.config),
                      _without(f"{name}_", self.arrays))


def _without(prefix, mapping):
    return {key.removeprefix(prefix): value for key, value in mapping.items()
            if key.startswith(prefix)}


def read_vector(path):
    with np.load(path, allow_pickle=False) as archive:
        config = json.loads(str(archive["__config__"]))
        arrays = {key: archive[key] for key in archive.files if key != "__config__"}
    name = path.stem
    return Vector(name, _without(f"{name}_".upper(), config) or config,
                  _without(f"{name}_", arrays))


def linear(v, matrix, bits):
    """The layer of a matrix (outputs, inputs), the input's zero point folded into its bias."""
    outputs, zero = len(matrix), -v("INPUT_OFFSET")
    bias = v.array("biases", "bias", "input_bias")
    bias = np.zeros(outputs, np.int32) if bias is None else bias
    multiplier = v.array("output_mult", "output_multiplier")
    shift = v.array("output_shift")
    if multiplier is None or shift is None:
        multiplier = np.full(outputs, v("OUTPUT_MULTIPLIER"))
        shift = np.full(outputs, v("OUTPUT_SHIFT"))
    multiplier, shift = multiplier.astype(np.int64), shift.astype(np.int64)
    return LinearLayer(
        weights=as_csr(matrix, weight_bits=bits), weight_bits=bits, mode=OutputMode.DOUBLE,
        bias=(bias - zero * matrix.sum(1, np.int64)).astype(np.int32),
        multiplier=(multiplier << np.maximum(shift, 0)).astype(np.uint64),
        shift=np.maximum(-shift, 0), zero_point=v("OUTPUT_OFFSET"), low=v("OUT_ACTIVATION_MIN"),
        high=v("OUT_ACTIVATION_MAX"), input_zero_point=zero, name=v.name)


def weights(v, count):
    """Weights as a line of ``count``, and their width in bits."""
    data = v.required("weights", "input_weights")
    if len(data) == count:
        return data, 8
    return unpack_int4(data.view(np.uint8), count), 4


def fully_connected(v):
    inputs = v("ACCUMULATION_DEPTH", v("IN_CH"))
    outputs = v("DST_SIZE") // v("INPUT_BATCHES")
    data, bits = weights(v, outputs * inputs)
    return linear(v, data.reshape(outputs, inputs), bits)


def convolution(v):
    """A convolution, or a depthwise one, whose weights lie as (rows, columns, channels)."""
    channels, outputs = v("IN_CH"), v("OUT_CH")
    kernel, stride, dilation = (
        (v(f"{key}_Y", 1), v(f"{key}_X", 1)) for key in ("FILTER", "STRIDE", "DILATION"))
    group = 1 if v.depthwise else v("FILTER_CH", channels)
    data, bits = weights(v, outputs * group * kernel[0] * kernel[1])
    if v.depthwise:
        matrix = data.reshape(-1, outputs).T
    else:
        matrix = data.reshape(outputs, *kernel, group).transpose(0, 3, 1, 2).reshape(outputs, -1)
    height, width, before = v("INPUT_H"), v("INPUT_W"), (v("PAD_Y"), v("PAD_X"))
    sizes = zip((v("OUTPUT_H"), v("OUTPUT_W")), stride, kernel, dilation, (height, width), before,
                strict=True)
    after = [max((out - 1) * s + (k - 1) * d + 1 - n - pad, 0) for out, s, k, d, n, pad in sizes]
    geometry = Geometry(
        channels=channels, height=height, width=width, kernel=kernel, stride=stride,
        dilation=dilation, padding=(*before, *after), groups=channels // group)
    layer = ConvLayer(linear=linear(v, matrix, bits), geometry=geometry)
    assert layer.output_shape(1)[1:3] == (v("OUTPUT_H"), v("OUTPUT_W"))
    return layer


def run_convolution(v, x):
    layer = convolution(v)
    return golden.run_conv(layer, x.reshape(-1, *layer.input_shape(1)[1:]))


def run_fully_connected(v, x):
    layer = fully_connected(v)
    return golden.run_layer(layer, np.ascontiguousarray(x.reshape(-1, layer.inputs).T)).T


def run_pool(v, x):
    operation = tflite.tflite_max_pool if v.name.startswith("max") else tflite.tflite_average_pool
    shape = (-1, *(v("INPUT_" + axis) for axis in "HWC"))
    return operation(
        x.reshape(shape), kernel=[v("FILTER_H"), v("FILTER_W")],
        stride=[v("STRIDE_H"), v("STRIDE_W")], padding=v.text("PAD"),
        low=v("ACTIVATION_MIN"), high=v("ACTIVATION_MAX"))


def run_softmax(v, x):
    return tflite.tflite_softmax(
        x.reshape(v("NUM_ROWS"), v("ROW_SIZE")), multiplier=v("INPUT_MULT"),
        shift=v("INPUT_LEFT_SHIFT"), diff_min=v("DIFF_MIN"))


def run_add(v, x):
    return tflite.tflite_add(
        x, v.required("input2"), left_shift=v("LEFT_SHIFT"),
        zero_points=[-v(f"INPUT{i}_OFFSET") for i in (1, 2)],
        multipliers=[v(f"INPUT{i}_MULT") for i in (1, 2)],
        shifts=[v(f"INPUT{i}_SHIFT") for i in (1, 2)], output_multiplier=v("OUTPUT_MULT"),
        output_shift=v("OUTPUT_SHIFT"), zero_point=v("OUTPUT_OFFSET"),
        low=v("OUT_ACTIVATION_MIN"), high=v("OUT_ACTIVATION_MAX"))


def run_ds_cnn(v, x):
    """The keyword network DS-CNN-S: ten layers, a pooling over the whole map and a softmax."""
    for i in range(1, 10):
        kind = "conv_2d" if i % 2 else "depthwise_conv_2d"
        x = run_convolution(v.part(f"layer_{i}_{kind}"), x)
    x = tflite.tflite_average_pool(
        x, kernel=x.shape[1:3], stride=[1, 1], padding="VALID", low=-128, high=127)
    part = v.part("layer_12_fully_connected")
    # The table exchanges inputs and outputs here.
    part.config |= {"ACCUMULATION_DEPTH": part("OUT_CH"), "DST_SIZE": part("IN_CH")}
    x = run_fully_connected(part, x)
    soft = v.part("layer_13_softmax")
    return tflite.tflite_softmax(
        x, multiplier=soft("MULT"), shift=soft("SHIFT"), diff_min=soft("DIFF_MIN"))


def kind_of(v):
    """The operator's name and what runs it; None: no layer and no host operation does."""
    for prefix, name in FOREIGN.items():
        if v.name.startswith(prefix):
            return name, None
    for prefix, name, run in (
            ("add", "ADD", run_add), ("avg", "AVERAGE_POOL_2D", run_pool),
            ("max", "MAX_POOL_2D", run_pool), ("softmax", "SOFTMAX", run_softmax),
            ("ds_cnn", "a network", run_ds_cnn), ("fully_connected", "FULLY_CONNECTED",
                                                  run_fully_connected),
            ("fc_", "FULLY_CONNECTED", run_fully_connected)):
        if v.name.startswith(prefix):
            return name, run
    return ("DEPTHWISE_CONV_2D" if v.depthwise else "CONV_2D"), run_convolution


def refusal(v, run):
    """Why a vector cannot run, or an empty text."""
    if run is None:
        return "operator has no layer and no host operation"
    if v.x.dtype != np.int8:
        return f"{8 * v.x.dtype.itemsize}-bit activations"
    if v("FILTER_OFFSET", 0):
        return "weights with a zero point: a pruned weight would not be zero"
    return ""


def outcomes(folder):
    """Runs all vectors: (name, operator, "exact", "differs in ..." or "refused: ...") of each."""
    rows = []
    for path in sorted(folder.glob("*.npz")):
        v = read_vector(path)
        kind, run = kind_of(v)
        if reason := refusal(v, run):
            rows.append((v.name, kind, f"refused: {reason}"))
            continue
        assert run is not None
        got = run(v, v.x).reshape(v.y.shape)
        wrong = int((got != v.y).sum())
        rows.append((v.name, kind, f"differs in {wrong} of {got.size}" if wrong else "exact"))
    return rows


@pytest.fixture(scope="module")
def vectors(data_dir):
    folder = data_dir / "cmsis_nn"
    if not folder.is_dir():
        pytest.skip("the data folder lacks cmsis_nn")
    return folder


def test_table_of_vectors_is_exact_or_refused(vectors):
    rows = outcomes(vectors)
    print()
    for name, kind, outcome in rows:
        print(f"{name:60} {kind:18} {outcome}")
    exact = [name for name, _, outcome in rows if outcome == "exact"]
    refused = [name for name, _, outcome in rows if outcome.startswith("refused: ")]
    print(f"{len(exact)} exact, {len(refused)} refused, of {len(rows)}")
    assert len(exact) + len(refused) == len(rows)
    assert len(exact) >= 68


@pytest.mark.slow
def test_simulated_core_gives_the_same(vectors, monkeypatch):
    with sparsemac.open("sim:") as core:
        names = replace_golden(monkeypatch, core)
        rows = outcomes(vectors)
    assert [row for row in rows if row[2].startswith("differs")] == []
    assert len(names) >= 50


@pytest.mark.parametrize("name", [
    "int16xint8", "int16xint8xint32_1", "dw_int16xint8", "fully_connected_int16"])
def test_layers_refuse_16_bit_activations(vectors, name):
    v = read_vector(vectors / f"{name}.npz")
    _, run = kind_of(v)
    assert run is not None
    with pytest.raises(ValueError, match=r"low must be -128 to 127, not -"):
        run(v, v.x)
    v.config |= {"OUT_ACTIVATION_MIN": -128, "OUT_ACTIVATION_MAX": 127}
    with pytest.raises(TypeError, match=r"inputs of .* must be int8, not int16"):
        run(v, v.x)
