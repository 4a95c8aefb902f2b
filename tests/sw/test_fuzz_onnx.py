# SPDX-License-Identifier: Apache-2.0
"""Damaged ONNX files: each is read or refused with `ModelError`, soon and in little memory.

Files are damaged in two ways: bytes of the file, and fields of the message, of which the second
still parse. What is read is also run, which must give outputs or a `HostOperationError`.
"""

import random
import resource
import time

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install 'sparsemac[onnx]'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from sparsemac.errors import ModelError  # noqa: E402
from sparsemac.graph import run_golden  # noqa: E402
from sparsemac.hostops import HostOperationError  # noqa: E402
from sparsemac.importers import load_model  # noqa: E402

#: Of one file [s], with room for a busy machine; growth of the process over all [bytes].
SECONDS, GROWTH = 20, 1 << 30

SIZES = (0, 1, -1, 2, 3, 7, 255, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 62) + 1,
         -(1 << 63))
REALS = (0.0, -1.0, float("nan"), float("inf"), 1e-40, 3e38, 0.5)


def seed_model(rng):
    """A small network with most kinds of operators: convolutions, QDQ, QONNX, shapes."""
    weights = {
        "w1": rng.integers(-8, 8, (4, 2, 3, 3)).astype(np.int8),
        "w2": rng.integers(-127, 128, (6, 36)).astype(np.int8),
        "w3": rng.normal(0, 1, (6, 5)).astype(np.float32), "s": np.float32(0.05),
        "z": np.int8(3), "z0": np.int8(0), "f0": np.float32(0), "bits": np.float32(4),
        "b1": rng.integers(-99, 99, 4).astype(np.int32), "minus": np.array([-1]),
        "zero": np.array([0]), "half": np.array([1, 1, 0.5, 0.5], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "b5": rng.normal(0, 1, 5).astype(np.float32)}
    quant = {"domain": "onnx.brevitas", "signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["q"]), ("DequantizeLinear", ["q", "s", "z"], ["d"]),
        ("DequantizeLinear", ["w1", "s", "z0"], ["w1d"]),
        ("DequantizeLinear", ["b1", "s"], ["b1d"]),
        ("Conv", ["d", "w1d", "b1d"], ["c"], {"pads": [1, 1, 1, 1], "group": 1}),
        ("Relu", ["c"], ["r"]), ("QuantizeLinear", ["r", "s", "z"], ["q1"]),
        ("DequantizeLinear", ["q1", "s", "z"], ["d1"]),
        ("MaxPool", ["d1"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("Pad", ["p", "pads"], ["p1"]), ("Resize", ["p1", "", "half"], ["p2"]),
        ("AveragePool", ["p1"], ["p3"], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        ("Slice", ["p1", "zero", "minus", "minus"], ["p4"]), ("Shape", ["p"], ["shape"]),
        ("Gather", ["shape", "zero"], ["n"]), ("Concat", ["n", "minus"], ["t"], {"axis": 0}),
        ("Reshape", ["p", "t"], ["flat"]), ("DequantizeLinear", ["w2", "s", "z0"], ["w2d"]),
        ("Gemm", ["flat", "w2d"], ["g"], {"transB": 1, "alpha": 1.0}),
        ("Quant", ["g", "s", "f0", "bits"], ["gq"], quant),
        ("Quant", ["w3", "s", "f0", "bits"], ["w3q"], quant), ("MatMul", ["gq", "w3q"], ["m"]),
        ("Add", ["m", "b5"], ["a"]), ("Softmax", ["a"], ["y"], {"axis": 1}),
        ("ReduceMean", ["p2"], ["y2"], {"axes": [1], "keepdims": 0}),
        ("Transpose", ["p3"], ["y3"], {"perm": [0, 2, 3, 1]}),
        ("Split", ["p4"], ["y4", "y5"], {"axis": 1})]
    graph = helper.make_graph(
        [helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes], "seed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
         for name in ("y", "y2", "y3", "y4", "y5")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()])
    return helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid("", 13), helper.make_opsetid("onnx.brevitas", 1)])


def fields_of(message, found):
    """All scalar fields of a message, as functions that replace one."""
    for field, value in message.ListFields():
        repeated = not isinstance(value, (str, bytes, int, float)) and hasattr(value, "__len__")
        kind = field.cpp_type
        if kind == field.CPPTYPE_MESSAGE:
            for item in (value if repeated else [value]):
                fields_of(item, found)
            if repeated:
                found.append((value, None, "list"))
        elif repeated:
            found += [(value, i, kind) for i in range(min(len(value), 8))]
        else:
            found.append((message, field.name, kind))


def damage_field(model, rng, names):
    """Changes one field of a message."""
    found = []
    fields_of(model, found)
    owner, key, kind = rng.choice(found)
    if kind == "list":
        at = rng.randrange(len(owner))
        if rng.random() < 0.5:
            del owner[at]
        else:
            owner.add().CopyFrom(owner[at])
        return
    old = owner[key] if isinstance(key, int) else getattr(owner, key)
    if isinstance(old, str):
        new = rng.choice([*names, "", old + "x"])
    elif isinstance(old, bytes):
        new = bytearray(old)
        if new and rng.random() < 0.7:
            new[rng.randrange(len(new))] = rng.choice((0, 1, 127, 128, 255))
            new = bytes(new)
        else:
            new = bytes(new[: rng.randrange(len(new) + 1)])
    elif isinstance(old, float):
        new = rng.choice(REALS)
    else:
        new = rng.choice((*SIZES, old + 1, old - 1))
    try:
        if isinstance(key, int):
            owner[key] = new
        else:
            setattr(owner, key, new)
    except ValueError:  # out of the field's range
        pass


def damage_bytes(data, rng):
    """Changes, drops or repeats bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, way = rng.randrange(len(data)), rng.random()
        if way < 0.6:
            data[at] = rng.choice((rng.randrange(256), data[at] ^ 1 << rng.randrange(8)))
        elif way < 0.8:
            del data[at : at + rng.choice((1, 4, 100))]
        elif way < 0.9:
            data[at:at] = data[at : at + rng.choice((1, 4, 100))]
        else:
            del data[at:]
        if not data:
            return b""
    return bytes(data)


def fuzz(folder, count, seed):
    """Reads ``count`` damaged files; returns how many were read, refused and run."""
    rng = random.Random(seed)
    model = seed_model(np.random.default_rng(seed))
    data = model.SerializeToString()
    names = sorted({name for node in model.graph.node for name in (*node.input, node.op_type)})
    path = folder / "damaged.onnx"
    outcome = {"read": 0, "refused": 0, "run": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        if i % 2:
            path.write_bytes(damage_bytes(data, rng))
        else:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            for _ in range(rng.choice((1, 1, 2, 3))):
                damage_field(copy, rng, names)
            path.write_bytes(copy.SerializeToString())
        start = time.monotonic()
        kind = read_and_run(path)
        assert time.monotonic() - start < SECONDS, f"seed {seed}, file {i} took too long"
        outcome["refused" if kind == "refused" else "read"] += 1
        outcome["run"] += kind == "run"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < GROWTH, f"the process grew by {grown >> 10} MiB"
    return outcome


def read_and_run(path):
    try:
        graph = load_model(path)
    except ModelError as error:
        assert str(error)
        return "refused"
    rng = np.random.default_rng(0)
    inputs = {}
    for name in graph.inputs:
        value = graph.values[name]
        inputs[name] = rng.normal(0, 1, value.shape).astype(value.dtype)
    try:
        run_golden(graph, inputs)
    except HostOperationError:
        return "stopped"
    return "run"


def test_the_undamaged_model_runs(tmp_path):
    path = tmp_path / "seed.onnx"
    path.write_bytes(seed_model(np.random.default_rng(1)).SerializeToString())
    assert read_and_run(path) == "run"
    graph = load_model(path)
    assert len(graph.layers) == 3


def test_damaged_files(tmp_path):
    outcome = fuzz(tmp_path, 60, seed=1)
    assert outcome["refused"] >= 20 and outcome["run"] >= 5, outcome


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_many_damaged_files(tmp_path, seed):
    outcome = fuzz(tmp_path, 600, seed)
    print(f"seed {seed}: {outcome}")
    assert outcome["refused"] >= 200 and outcome["run"] >= 30, outcome
