# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sparsemac.calibrate import quantize_graph
from sparsemac.graph import Graph, Node, Value, run_golden


def chain(shape, *steps, dtype="float32", batchable=True, outputs=None):
    """A graph of (operation, attributes) one after another, from value x0 to value xn."""
    names = [f"x{i}" for i in range(len(steps) + 1)]
    nodes = tuple(
        Node(name=f"{operation}{i}", inputs=(names[i],), outputs=(names[i + 1],),
             operation=operation, attributes=attributes)
        for i, (operation, attributes) in enumerate(steps))
    values = {name: Value(name=name, shape=None, dtype=dtype) for name in names}
    values["x0"] = Value(name="x0", shape=shape, dtype=dtype)
    return Graph(name="chain", values=values, inputs=("x0",), outputs=outputs or (names[-1],),
                 nodes=nodes, batchable=batchable)


def operations(graph):
    return [type(node.layer).__name__ if node.layer else node.operation for node in graph.nodes]


def sparse(rng, *shape, zeros=0.7):
    weight = rng.normal(size=shape)
    weight[rng.random(shape) < zeros] = 0
    return weight.astype(np.float32)


RELU = ("clamp", {"low": 0.0, "high": np.inf})


def small_cnn(rng):
    return chain(
        (1, 3, 9, 8),
        ("float_conv", {"weight": sparse(rng, 6, 3, 3, 3), "bias": rng.normal(size=6),
                        "pads": [1, 1, 1, 1], "strides": [2, 1]}),
        RELU,
        ("float_conv", {"weight": sparse(rng, 8, 3, 3, 2), "bias": None, "groups": 2,
                        "dilations": [1, 2]}),
        RELU,
        ("flatten", {"axis": 1}),
        ("float_linear", {"weight": sparse(rng, 10, 144), "bias": rng.normal(size=10)}),
    )


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


# Each of three int8 layers rounds weights by 1/254 of the largest and activations by 1/510 of their
# range; with sums of uncorrelated errors 3 % holds easily and a wrong scale, zero point or
# axis does not. int4 weights are rounded 18 times as coarsely.
@pytest.mark.parametrize(("weight_bits", "bound"), [(8, 0.03), (4, 0.3)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_integers_follow_the_float_network(weight_bits, bound, per_channel):
    rng = np.random.default_rng(1)
    graph = small_cnn(rng)
    x = rng.normal(size=(40, 3, 9, 8)).astype(np.float32)
    quantized = quantize_graph(graph, x, weight_bits=weight_bits, per_channel=per_channel)
    assert operations(quantized) == [
        "quantize", "ConvLayer", "ConvLayer", "flatten", "LinearLayer", "dequantize"]
    found, wanted = run_golden(quantized, x)["x6"], run_golden(graph, x)["x6"]
    assert found.dtype == np.float32 and found.shape == wanted.shape
    assert relative_error(found, wanted) < bound
