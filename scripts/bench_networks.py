# SPDX-License-Identifier: Apache-2.0
"""The MLPerf Tiny networks on the core: published outputs, cycles per inference, accuracy.

Every published input runs on the device with each step compared with the golden model, and its
output with the published one. Then one sample runs with a doorbell for each layer, for the
utilization per layer, and once more as it would in use, for the time that an inference takes.
Exit code 1 if an integer differs or a bar is missed.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sparsemac
from numpy.typing import NDArray
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer
from sparsemac.csr import as_csr
from sparsemac.driver import Core
from sparsemac.graph import Graph
from sparsemac.importers import load_model
from sparsemac.inference import Inference, Model, predict
from sparsemac.layer import LinearLayer

MODELS = ("kws_ref_model", "ad01_int8", "pretrainedResnet_quant", "vww_96_int8")

#: Shapes of 64 multiply-accumulates: lanes suit maps that can be cut into strips, and batches;
#: engines suit everything else.
BATCHED = CoreConfig(engines=8, lanes=8, depth=1024, act_depth=1 << 14, entry_depth=1024,
                     psum_depth=1024, bus_width=256)
SHAPES = (BATCHED, BATCHED.replace(engines=64, lanes=1, fifo_depth=64))

#: A shape with fewer engines is taken if it needs no more cycles than this share more.
TOLERANCE = 0.02

#: Utilization over the device layers that these networks must reach.
BARS = {"kws_ref_model": 0.85, "pretrainedResnet_quant": 0.85}

#: An inference may take so long on `sim:` [seconds].
SECONDS_BAR = 5.0

#: Labelled inputs, and what is taken from a pixel to get the network's integers.
LABELLED = {"kws_ref_model": ("features/kws01_mfcc_500.npz", 0),
            "pretrainedResnet_quant": ("images/cifar10_test_400.npz", 128)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The MLPerf Tiny networks on the core: published outputs, cycles, accuracy.")
    parser.add_argument("data", type=Path, metavar="DATA", help="the data folder")
    parser.add_argument("--device", default="sim:", metavar="URI")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--accuracy", action="store_true",
                        help="also run the labelled inputs, eight at a time")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to FILE")
    args = parser.parse_args()
    expected = json.loads((args.data / "golden_nets" / "expected.json").read_text())
    report: dict[str, Any] = {}
    graphs = {name: load_model(args.data / "models" / f"{name}.tflite") for name in args.models}
    suited = {name: suit(graph) for name, graph in graphs.items()}
    for config in SHAPES:
        if config not in suited.values():
            continue
        begin = time.perf_counter()
        with sparsemac.open(args.device, config) as core:
            say(f"opened {args.device} in {time.perf_counter() - begin:.1f} s")
            for name, graph in graphs.items():
                if suited[name] == config:
                    report[name] = bench(graph, core, args.data, expected)
                    show(name, report[name])
    if args.accuracy:
        with sparsemac.open(args.device, BATCHED) as core:
            for name in sorted(set(args.models) & set(LABELLED)):
                graph = load_model(args.data / "models" / f"{name}.tflite")
                figures = accuracy(Model(graph, core), args.data, *LABELLED[name])
                report[name] |= figures
                print(f"{name}: {figures['right']} of {figures['labelled']} labels right, "
                      f"{figures['right'] / figures['labelled']:.1%}, on {BATCHED.engines} engines "
                      f"x {BATCHED.lanes} lanes")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    missed = [fault for name, figures in report.items() for fault in faults(name, figures)]
    for fault in missed:
        print(f"missed: {fault}")
    return 1 if missed else 0


def suit(graph: Graph) -> CoreConfig:
    """Returns the shape that a network takes the fewest cycles on."""
    cycles = [sum(p.cycles for p in predict(graph, config)) for config in SHAPES]
    return next(config for config, taken in zip(SHAPES, cycles, strict=True)
                if taken <= min(cycles) * (1 + TOLERANCE))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bench(graph: Graph, core: Core, data: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Runs one network; returns its figures."""
    model = Model(graph, core)
    shape = graph.values[graph.inputs[0]].shape
    assert shape is not None
    cases = {name: case for name, case in expected.items()
             if case["model"] == f"{graph.name}.tflite"}
    exact = mismatches = 0
    x = np.zeros(shape, np.int8)
    for name, case in cases.items():
        x = np.fromfile(data / "golden_nets" / name, np.int8)[: x.size].reshape(shape)
        result = model.run(x, check=True)
        if result.mismatch is not None:
            mismatches += 1
            say(f"{graph.name}, {name}: {result.mismatch}")
            continue
        exact += published(case["kind"], output_of(result)) == case["expected"]
        say(f"{graph.name}: {exact} of {len(cases)} published outputs")
    say(f"{graph.name}: a doorbell for each layer")
    layers = model.run(x, per_layer=True)
    begin = time.perf_counter()
    result = model.run(x)
    seconds = time.perf_counter() - begin
    weights = [layer.linear.weights if isinstance(layer, ConvLayer) else layer.weights
               for layer in graph.layers]
    return {
        "engines": core.config.engines, "lanes": core.config.lanes,
        "published": len(cases), "exact": exact, "mismatches": mismatches,
        "cycles": result.cycles, "predicted": sum(p.cycles for p in predict(graph, core.config)),
        "dense_predicted": sum(p.cycles for p in predict(without_zeros(graph), core.config)),
        "macs": result.macs, "utilization": result.utilization,
        "doorbells": result.jobs, "seconds": seconds, "host_seconds": result.host_seconds,
        "bytes_to_device": result.bytes_to_device, "bytes_from_device": result.bytes_from_device,
        "density": sum(w.without_zeros().nnz for w in weights) / sum(np.prod(w.shape)
                                                                     for w in weights),
        "layers": [{"name": s.name, "macs": s.macs, "cycles": s.cycles,
                    "utilization": s.utilization, "stalls": lost(s.counters, core)}
                   for s in layers.steps if s.where == "device"],
    }


def without_zeros(graph: Graph) -> Graph:
    """The same network with no weight zero: what pruning saves is the difference."""

    def filled(layer: LinearLayer) -> LinearLayer:
        dense = layer.weights.to_dense()
        return replace(layer, weights=as_csr(np.where(dense == 0, 1, dense).astype(np.int8)))

    nodes = []
    for node in graph.nodes:
        layer = node.layer
        if isinstance(layer, ConvLayer):
            layer = replace(layer, linear=filled(layer.linear))
        elif layer is not None:
            layer = filled(layer)
        nodes.append(replace(node, layer=layer))
    return graph.with_nodes(nodes, graph.values)


def lost(counters: sparsemac.Counters | None, core: Core) -> dict[str, float]:
    """Shares of engine cycles in which nothing was issued, by cause."""
    if counters is None or not counters.cycles:
        return {}
    total = counters.cycles * core.config.engines
    return {name: value / total for name, value in counters.as_dict().items()
            if name.startswith("stall") or name == "idle"}


def output_of(result: Inference) -> NDArray[Any]:
    (output,) = result.outputs.values()
    return output.reshape(-1)


def published(kind: str, output: NDArray[Any]) -> Any:
    """What the tables give of an output; see the data's description."""
    if kind.startswith("xor32"):
        words = output.astype(np.int64) << 8 * (np.arange(output.size) % 4)
        return int(np.bitwise_xor.reduce(words & 0xFFFFFFFF))
    if kind == "output[1]-output[0]":
        return int(output[1]) - int(output[0])
    return output.tolist()


def accuracy(model: Model, data: Path, file: str, offset: int) -> dict[str, Any]:
    """Runs labelled inputs, one batch after another."""
    arrays = np.load(data / file)
    x, y = arrays["x"], arrays["y"]
    if offset:
        x = (x.astype(np.int16) - offset).astype(np.int8)
    shape = model.graph.values[model.graph.inputs[0]].shape
    assert shape is not None
    x = x.reshape(-1, *shape[1:])
    right = 0
    for first in range(0, len(x), 40):
        (output,) = model.run(x[first : first + 40]).outputs.values()
        right += int((output.reshape(len(output), -1).argmax(1) == y[first : first + 40]).sum())
        say(f"{model.graph.name}: {min(first + 40, len(x))} of {len(x)} labelled inputs")
    return {"labelled": len(x), "right": right}


def show(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name}: {figures['exact']} of {figures['published']} published outputs exact, "
          f"{figures['mismatches']} mismatches; density {figures['density']:.3f}; "
          f"{figures['engines']} engines x {figures['lanes']} lanes")
    print(f"  {figures['cycles']:,} cycles per inference in {figures['doorbells']} doorbells "
          f"({figures['predicted']:,} predicted), utilization {figures['utilization']:.3f}; "
          f"{figures['seconds']:.2f} s, {figures['host_seconds']:.3f} s of them on the host")
    print(f"  with all weights kept: {figures['dense_predicted']:,} cycles predicted, "
          f"{figures['dense_predicted'] / figures['predicted']:.2f} times as many")
    for layer in figures["layers"]:
        worst: Sequence[Any] = sorted(layer["stalls"].items(), key=lambda i: -i[1])[:2]
        why = ", ".join(f"{cause} {share:.1%}" for cause, share in worst)
        print(f"  {layer['name'][:44]:44} {layer['macs']:>9,} MACs {layer['cycles']:>8,} cycles "
              f"{layer['utilization']:.3f}  {why}")


def faults(name: str, figures: dict[str, Any]) -> list[str]:
    """The bars that a network missed."""
    missed = []
    if figures["mismatches"] or figures["exact"] < figures["published"]:
        missed.append(f"{name}: {figures['exact']} of {figures['published']} published outputs, "
                      f"{figures['mismatches']} mismatches")
    if figures["cycles"] and figures["utilization"] < BARS.get(name, 0.0):
        missed.append(f"{name}: utilization {figures['utilization']:.3f} (bar: {BARS[name]:.2f})")
    if figures["seconds"] > SECONDS_BAR:
        missed.append(f"{name}: {figures['seconds']:.1f} s (bar: {SECONDS_BAR:.0f} s)")
    return missed


if __name__ == "__main__":
    sys.exit(main())
