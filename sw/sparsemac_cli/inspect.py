# SPDX-License-Identifier: Apache-2.0
"""``sparsemac inspect``: where each node of a network would run, why, and in how many cycles."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from sparsemac.config import CoreConfig
from sparsemac.graph import Graph
from sparsemac.inference import Placement, predict
from sparsemac.precompile import samples_of

from ._network import (
    add_model_arguments,
    batch_of,
    counted,
    csr_of,
    load_network,
    operation_text,
    print_table,
    shape_text,
)
from ._report import (
    DOES_NOT_FIT,
    OK,
    Progress,
    add_config_arguments,
    add_json_argument,
    config_from,
    write_json,
)

__all__ = ["add_parser", "fallbacks", "inspect_network"]

#: Host operations whose attribute ``weight`` has an axis of outputs first.
WITH_WEIGHTS = frozenset({"float_conv", "float_linear"})

#: Host operations that multiply with weights, as a core does.
MULTIPLICATIONS = WITH_WEIGHTS | frozenset({
    "onnx_conv", "onnx_conv_integer", "onnx_gemm", "onnx_matmul",
    "onnx_matmul_integer", "onnx_qlinear_conv", "onnx_qlinear_matmul",
})


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "inspect",
        help="say where each node of a network would run, why, and in how many cycles",
        description="Lists every node of a network: what it does, how sparse it is, whether the "
        "core or the host runs it and why, its share of the multiply-accumulates, and the cycles "
        "that the compiler expects. Nothing is built or run.",
    )
    add_model_arguments(parser, "samples that run at a time")
    parser.add_argument(
        "--strict", action="store_true",
        help=f"exit with {DOES_NOT_FIT} if the host multiplies with weights: in layers that this "
        "core cannot hold, or in operations that are no layers")
    add_config_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def fallbacks(placements: Sequence[Placement]) -> list[Placement]:
    """Nodes on the host that multiply with weights, which is the core's work."""
    return [p for p in placements if p.where == "host" and
            (p.node.layer is not None or p.node.operation in MULTIPLICATIONS)]


def inspect_network(
    graph: Graph, placements: Sequence[Placement], config: CoreConfig, batch: int
) -> dict[str, Any]:
    """Returns the figures of a network, under the names of the JSON output."""
    samples = batch // samples_of(graph)
    nodes = [_node(graph, p, samples) for p in placements]
    macs = sum(node["macs"] for node in nodes)
    cycles = sum(p.cycles for p in placements)
    for node in nodes:
        node["macs_share"] = node["macs"] / macs if macs else 0.0
    nonzeros = sum(node["nonzeros"] for node in nodes)
    weights = sum(node["weights"] for node in nodes)
    on_device = sum(p.macs for p in placements if p.where == "device")
    return {
        "network": graph.name,
        "inputs": {name: shape_text(graph.values[name]) for name in graph.inputs},
        "outputs": {name: shape_text(graph.values[name]) for name in graph.outputs},
        "batch": batch,
        "batchable": graph.batchable,
        "nodes": nodes,
        "weights": weights,
        "nonzeros": nonzeros,
        "density": nonzeros / weights if weights else 0.0,
        "macs": macs,
        "device_macs_share": on_device / macs if macs else 0.0,
        "cycles": cycles,
        "utilization": on_device / (cycles * config.macs) if cycles else 0.0,
        "doorbells": len({p.doorbell for p in placements if p.where == "device"}),
        "host_fallbacks": [p.node.name for p in fallbacks(placements)],
        "config": config.as_dict(),
    }


def _node(graph: Graph, p: Placement, times: int) -> dict[str, Any]:
    node = p.node
    weights, nonzeros, macs = 0, 0, p.macs
    if node.layer is not None:
        csr = csr_of(node.layer)
        weights, nonzeros = csr.shape[0] * csr.shape[1], csr.without_zeros().nnz
    elif node.operation in WITH_WEIGHTS:
        weight, shape = node.attributes["weight"], graph.values[node.outputs[0]].shape
        weights, nonzeros = weight.size, int(np.count_nonzero(weight))
        positions = math.prod(shape) // max(1, len(weight)) if shape else 1
        macs = nonzeros * positions * times
    return {
        "name": node.name,
        "source": node.source,
        "operation": operation_text(node),
        "output": ", ".join(shape_text(graph.values[name]) for name in node.outputs),
        "weights": weights,
        "nonzeros": nonzeros,
        "density": nonzeros / weights if weights else None,
        "where": p.where,
        "reason": p.reason or _reason(p),
        "doorbell": p.doorbell,
        "macs": macs,
        "cycles": p.cycles,
        "utilization": p.utilization,
    }


def _reason(p: Placement) -> str:
    """Why a node is where it is, if nothing else says it."""
    if p.node.layer is not None:
        return "a layer"
    if p.where == "device":
        return "moves elements: the next layer reads them in its order"
    if p.node.operation in WITH_WEIGHTS:
        return "multiplies in floating point: the network is not quantized"
    if p.node.operation in MULTIPLICATIONS:
        return "its weights are not constant integers"
    return "no multiplications with weights"


def run(args: argparse.Namespace) -> int:
    """Prints the table; 4 if ``--strict`` and the host has work that is the core's."""
    progress = Progress(2)
    with progress.stage(f"read {args.model.name}"):
        graph, file = load_network(args)
    config = config_from(args, file.config if file else None)
    with progress.stage(f"plan for {config.engines} engines x {config.lanes} lanes"):
        if file and file.config == config and args.batch in (None, file.compiled.batch):
            batch, placements = file.compiled.batch, file.compiled.placements(graph)
        else:
            batch = batch_of(args.batch, graph, config)
            placements = predict(graph, config, batch)
    figures = inspect_network(graph, placements, config, batch)
    if str(args.json) != "-":
        _print(figures)
    write_json(args.json, figures)
    if args.strict and (refused := fallbacks(placements)):
        print("sparsemac: the host must not multiply with weights, but does in "
              + "; ".join(f"{p.node.name} ({p.reason or p.node.operation})" for p in refused),
              file=sys.stderr)
        return DOES_NOT_FIT
    return OK


def _print(f: dict[str, Any]) -> None:
    config = f["config"]
    rows = []
    for i, node in enumerate(f["nodes"]):
        layer = node["weights"] > 0
        device = node["where"] == "device"
        rows.append([
            str(i), node["name"], node["operation"], node["output"],
            f"{node['nonzeros'] / node['weights']:.1%}" if layer else "",
            f"device {node['doorbell']}" if device else "host",
            f"{node['macs_share']:.1%}" if layer else "",
            str(node["cycles"]) if device and layer else "",
            f"{node['utilization']:.1%}" if device and layer else "",
            node["reason"],
        ])
    print(f"{f['network']}: {_arrays(f['inputs'])} -> {_arrays(f['outputs'])}")
    print(f"{config['engines']} engines x {config['lanes']} lanes, {config['bus_width']}-bit bus; "
          f"{counted(f['batch'], 'sample')} at a time; device N: the doorbell that runs the node\n")
    print_table(["#", "node", "operation", "output", "density", "where", "MACs", "cycles",
                 "of peak", "why"], rows, 4)
    each = f["cycles"] / f["batch"]
    print(f"\nweights     {f['nonzeros']} of {f['weights']} are not zero: {f['density']:.1%}")
    print(f"MACs        {f['macs'] / f['batch']:.0f} per sample, {f['device_macs_share']:.1%} of "
          f"them on the device")
    print(f"cycles      {f['cycles']} predicted for {counted(f['batch'], 'sample')}, {each:.0f} "
          f"per sample, {f['utilization']:.1%} of the multipliers' peak")
    print(f"doorbells   {f['doorbells']}")


def _arrays(arrays: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in arrays.items())
