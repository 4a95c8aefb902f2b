# SPDX-License-Identifier: Apache-2.0
"""Agreement with ONNX Runtime on quantized models: share of equal integers, largest difference.

Models are made at random, of QOperator and of QDQ form, with convolutions and matrix products;
model files may be named, which are fed random inputs. Each runs through the importer and the
golden model, which computes what the device does, and is compared with ONNX's reference evaluator,
and with ONNX Runtime's CPU provider: as it is, in its precise mode, and without optimizations. As
it is, its kernels for uint8 inputs and int8 weights saturate sums of two products in 16 bits on x86
processors without VNNI; that is what differs by much. Exit code 1 if a model is below the bar by
the first of these that can run it and does not saturate.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sparsemac.conv import ConvLayer
from sparsemac.errors import ModelError
from sparsemac.graph import Graph, run_golden
from sparsemac.importers.onnx import graph_of_model, load_onnx

#: Least share of equal outputs, and largest difference [steps of the output], of one model: the
#: smallest have 80 outputs, of which one may lie next to a half.
SHARE_BAR, DIFFERENCE_BAR = 0.98, 1

#: Of reals, relative to the largest: sums in float32 have no order.
REAL_TOLERANCE = 1e-5

KINDS: dict[str, dict[str, Any]] = {
    f"{form} {layer} {activation}": {"form": form, "activation": activation, **options}
    for form in ("qoperator", "qdq")
    for activation in ("uint8", "int8")
    for layer, options in {
        "conv": {}, "depthwise": {"groups": 8}, "conv1d": {"rank": 1},
        "matmul": {"conv": False}, "matmul tensor": {"conv": False, "per_channel": False},
        "powers of two": {"powers": True},
        **({"conv int4": {"weight_bits": 4}, "conv relu": {"relu": True}} if form == "qdq" else {}),
    }.items()
}


def random_model(
    rng: np.random.Generator, *, form: str, conv: bool = True, activation: str = "uint8",
    weight_bits: int = 8, per_channel: bool = True, relu: bool = False, rank: int = 2,
    groups: int = 1, powers: bool = False,
) -> tuple[onnx.ModelProto, NDArray[Any]]:
    """Makes a model of one quantized layer, and an input of it.

    Parameters
    ----------
    form : str           qoperator or qdq.
    activation : str     uint8 or int8.
    weight_bits : int    4 or 8; 4 only in QDQ.
    rank : int           Dimensions of the map.
    powers : bool        All scales are powers of two, so that sums can lie on a half exactly.
    """
    kind = np.dtype(activation)
    low, high = (100, 150) if kind == np.uint8 else (-20, 20)
    channels, outputs, places = 8, 16, (9, 11)[:rank]

    def scales(count: int | None) -> NDArray[np.float32]:
        real = np.exp(rng.uniform(-5, -3, count))
        return np.asarray(2.0 ** np.rint(np.log2(real)) if powers else real, np.float32)

    top = (1 << weight_bits - 1) - 1
    shape = (outputs, channels // groups, *[3] * rank) if conv else (4 * channels, outputs)
    weights = rng.integers(-top, top + 1, shape) * (rng.random(shape) < 0.5)
    x_scale, w_scale = scales(None), scales(outputs if per_channel else None)
    inputs = int(np.prod(shape[1:])) if conv else shape[0]
    spread = 0.4 * top * 74 * np.sqrt(inputs)
    y_scale = np.float32(float(x_scale) * float(w_scale.max()) * spread * 3 / 127)
    if powers:
        y_scale = np.float32(2.0 ** np.rint(np.log2(y_scale)))
    x_zero, y_zero = (np.array(rng.integers(low, high), kind) for _ in range(2))
    bias = rng.integers(-3000, 3000, outputs).astype(np.int32)
    x_shape = (2, channels, *places) if conv else (5, 4 * channels)
    extra = {"kernel_shape": [3] * rank, "pads": [1] * 2 * rank, "group": groups} if conv else {}
    initial = {"x_scale": x_scale, "x_zero": x_zero, "w_scale": w_scale, "y_scale": y_scale,
               "y_zero": y_zero}
    w_type = TensorProto.INT4 if weight_bits == 4 else TensorProto.INT8
    tensors = [helper.make_tensor("w", w_type, shape, weights.ravel().tolist()),
               helper.make_tensor("w_zero", w_type, w_scale.shape, [0] * w_scale.size)]
    if form == "qoperator":
        names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
        if conv:
            initial["bias"] = bias
            names.append("bias")
        nodes = [helper.make_node("QLinearConv" if conv else "QLinearMatMul", names, ["y"],
                                  **extra)]
        x = (rng.integers(0, 256, x_shape) - (0 if kind == np.uint8 else 128)).astype(kind)
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int"]),
            helper.make_node("DequantizeLinear", ["x_int", "x_scale", "x_zero"], ["x_real"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"],
                             axis=0 if conv else 1)]
        names = ["x_real", "w_real"]
        if conv:
            initial |= {"bias": bias, "bias_scale": np.float32(x_scale * w_scale)}
            nodes.append(helper.make_node("DequantizeLinear", ["bias", "bias_scale"],
                                          ["bias_real"], axis=0))
            names.append("bias_real")
        nodes.append(helper.make_node("Conv" if conv else "MatMul", names, ["sums"], **extra))
        if relu:
            nodes.append(helper.make_node("Relu", ["sums"], ["relu"]))
        nodes.append(helper.make_node(
            "QuantizeLinear", ["relu" if relu else "sums", "y_scale", "y_zero"], ["y"]))
        x = (rng.normal(0, 70, x_shape) * x_scale).astype(np.float32)
    tensors += [numpy_helper.from_array(np.asarray(a), name) for name, a in initial.items()]
    graph = helper.make_graph(
        nodes, form,
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(kind), None)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, x


def run_onnxruntime(
    model: onnx.ModelProto, inputs: dict[str, NDArray[Any]], *, optimized: bool = True,
    precise: bool = False,
) -> list[NDArray[Any]] | str:
    """Outputs of ONNX Runtime, or why there are none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL)
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(y) for y in session.run(None, inputs)]
    except Exception as error:  # its kinds are not documented
        return str(error).splitlines()[0]


def run_reference(
    model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]
) -> list[NDArray[Any]] | str:
    """Outputs of ONNX's reference evaluator, or why there are none."""
    try:
        return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, inputs)]
    except Exception as error:  # what an operator's NumPy raises
        return f"{type(error).__name__}: {error}"


def agreement(
    got: list[NDArray[Any]], want: list[NDArray[Any]] | str
) -> dict[str, Any]:
    """Share of equal numbers, and the largest difference, of all outputs together.

    Reals count as equal within `REAL_TOLERANCE` of the largest of their output.
    """
    if isinstance(want, str):
        return {"refused": want}
    differences, near = [], []
    for a, b in zip(got, want, strict=True):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).ravel()
        top = np.abs(b.astype(np.float64)).max(initial=0)
        differences.append(difference)
        near.append(difference <= (REAL_TOLERANCE * top if b.dtype.kind == "f" else 0))
    return {"equal": float(np.concatenate(near).mean()),
            "largest": float(np.concatenate(differences).max(initial=0))}


def random_inputs(graph: Graph, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Normal reals, uniform integers."""
    inputs = {}
    for name in graph.inputs:
        value = graph.values[name]
        kind = np.dtype(value.dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            low, high = max(limits.min, -128), min(limits.max, 255)
            inputs[name] = rng.integers(low, high + 1, value.shape).astype(kind)
        else:
            inputs[name] = rng.normal(0, 1, value.shape).astype(kind)
    return inputs


def compare(
    model: onnx.ModelProto, inputs: dict[str, NDArray[Any]], graph: Graph
) -> dict[str, Any]:
    """All figures of one model."""
    results = run_golden(graph, inputs)
    got = [results[output.name] for output in model.graph.output]
    return {
        "layers": len(graph.layers),
        "rounded on the device": sum(
            (layer.linear if isinstance(layer, ConvLayer) else layer).multiplier is not None
            for layer in graph.layers),
        "reference": agreement(got, run_reference(model, inputs)),
        "onnxruntime": agreement(got, run_onnxruntime(model, inputs)),
        "precise": agreement(got, run_onnxruntime(model, inputs, precise=True)),
        "not optimized": agreement(got, run_onnxruntime(model, inputs, optimized=False)),
    }


def passes(figures: dict[str, Any]) -> bool:
    """Whether a model meets the bar, if any runtime can run it."""
    for name in ("reference", "precise", "not optimized"):
        if "equal" in (judge := figures[name]):
            return judge["equal"] >= SHARE_BAR and judge["largest"] <= DIFFERENCE_BAR
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Agreement with ONNX Runtime.")
    parser.add_argument("models", nargs="*", type=Path, help="model files, besides random models")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5, help="random models of each kind")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    rng = np.random.default_rng(args.seed)
    rows: list[dict[str, Any]] = []
    for kind, options in KINDS.items():
        for _ in range(args.count):
            model, x = random_model(rng, **options)
            rows.append({"model": kind, **compare(model, {"x": x}, graph_of_model(model))})
    for path in args.models:
        if not path.is_file():
            parser.error(f"models must be files, not {path}")
        try:
            graph = load_onnx(path)
            model = onnx.load(path)
        except ModelError as error:
            print(f"refused: {error}", file=sys.stderr)
            continue
        rows.append({"model": path.name, **compare(model, random_inputs(graph, rng), graph)})
    if args.json:
        print(json.dumps({"seed": args.seed, "models": rows}, indent=2))
    else:
        for name in dict.fromkeys(row["model"] for row in rows):
            print(summary(name, [row for row in rows if row["model"] == name]))
    return 0 if all(passes(row) for row in rows) else 1


def summary(name: str, rows: list[dict[str, Any]]) -> str:
    """One line for all models of a kind."""
    text = [f"{name:30}"]
    for key in ("reference", "onnxruntime", "precise", "not optimized"):
        known = [row[key] for row in rows if "equal" in row[key]]
        text.append(f"{key}: " + (
            f"{np.mean([k['equal'] for k in known]):7.3%}, largest "
            f"{max(k['largest'] for k in known):g}" if known else "cannot run it"))
    rounded = sum(row["rounded on the device"] for row in rows)
    text.append(f"rounded on the device: {rounded}/{sum(row['layers'] for row in rows)}")
    for why in sorted({row[key]["refused"].splitlines()[0] for row in rows
                       for key in ("reference", "onnxruntime") if "refused" in row[key]}):
        text.append(f"\n{'':30}{why}")
    return "  ".join(text)


if __name__ == "__main__":
    sys.exit(main())
