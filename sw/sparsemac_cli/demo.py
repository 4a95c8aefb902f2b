# SPDX-License-Identifier: Apache-2.0
"""``sparsemac demo``: a pruned network on the simulated core, compared integer by integer."""

import argparse
import time
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np
import sparsemac
from numpy.typing import NDArray
from sparsemac.commands import OutputMode
from sparsemac.config import CoreConfig
from sparsemac.csr import Csr
from sparsemac.golden import run_network
from sparsemac.layer import LinearLayer, load_network
from sparsemac.quantize import quantize_input

from ._report import (
    MISMATCH,
    OK,
    Progress,
    add_config_arguments,
    add_json_argument,
    config_from,
    stalls_text,
    write_json,
)

__all__ = ["add_parser", "load_demo"]

#: The dense network takes ten times as long, for each image alike: so many of them do.
DENSE_IMAGES = 128

#: A core that a large ECP5 holds, with room for the whole test set in flight.
DEMO_CONFIG = CoreConfig(engines=8, lanes=8, bus_width=128, act_depth=4096)


@dataclass(frozen=True, slots=True)
class Demo:
    """What ships with the package.

    Attributes
    ----------
    layers : list of LinearLayer       int4 weights, int8 activations.
    images : (64, n) float             Pixels, 0 to 1.
    labels : (n,) uint8
    accuracy_float : float             Of the pruned network before quantization.
    """

    layers: list[LinearLayer]
    images: NDArray[np.float64]
    labels: NDArray[np.uint8]
    accuracy_float: float


def load_demo() -> Demo:
    """Reads the packed network and the test split."""
    data = resources.files("sparsemac_cli") / "data"
    with resources.as_file(data / "digits.npz") as path:
        layers, extras = load_network(path)
    with resources.as_file(data / "digits_test.npz") as path, np.load(path) as test:
        images, labels = test["images"] / extras["pixel_max"], test["labels"]
    return Demo(layers, images.T.astype(np.float64), labels, extras["accuracy_float"])


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="run the shipped network on the simulated core, bit-exactly",
        description="Takes the pruned, quantized digits classifier that ships with the package, "
        "generates a core, builds its simulator, runs the whole test set on it, and compares every "
        "integer with the golden model. Exit code 1 if one differs.",
    )
    add_config_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def dense(layer: LinearLayer) -> LinearLayer:
    """The same layer with every weight stored and multiplied: pruned ones become 1.

    What the core does with a dense layer of this shape; the outputs mean nothing.
    """
    filled = layer.weights.to_dense()
    filled[filled == 0] = 1
    rows, columns = filled.shape
    weights = Csr(
        (rows, columns),
        np.arange(rows + 1, dtype=np.int64) * columns,
        np.tile(np.arange(columns, dtype=np.int64), rows),
        filled.astype(np.int8).ravel(),
    )
    return replace(layer, weights=weights)


def _accuracy(outputs: NDArray[Any], labels: NDArray[np.uint8]) -> float:
    return float((outputs.argmax(0) == labels).mean())


def run(args: argparse.Namespace) -> int:
    """Runs the demo and prints its figures."""
    began = time.monotonic()
    config = config_from(args, DEMO_CONFIG)
    progress = Progress(5)
    with progress.stage("load the pruned network and its test set"):
        demo = load_demo()
        x = quantize_input(demo.images, demo.layers[0])
    with progress.stage(
        f"generate a core of {config.engines} engines x {config.lanes} lanes and "
        "build its simulator"
    ):
        core = sparsemac.open("sim:", config)
    with core:
        with progress.stage(f"run {x.shape[1]} images on the core"):
            network = core.load(demo.layers)
            result = core.run(network, x)
        with progress.stage("compare every integer with the golden model"):
            golden = run_network(demo.layers, x)
            mismatches = int((result.outputs != golden).sum())
        images = x.shape[1]
        few = min(images, DENSE_IMAGES)
        with progress.stage(f"run the same network dense on the same core, {few} images"):
            reference = core.run(core.load([dense(layer) for layer in demo.layers]), x[:, :few])
    weights = sum(layer.inputs * layer.outputs for layer in demo.layers)
    density = sum(layer.weights.nnz for layer in demo.layers) / weights
    speedup = reference.cycles / few / (result.cycles / images)
    figures = {
        "images": images,
        "mismatches": mismatches,
        "accuracy_core": _accuracy(result.outputs, demo.labels),
        "accuracy_golden": _accuracy(golden, demo.labels),
        "accuracy_float": demo.accuracy_float,
        "density": density,
        "cycles_per_inference": result.cycles / images,
        "dense_cycles_per_inference": reference.cycles / few,
        "speedup": speedup,
        "ideal_speedup": 1 / density,
        "speedup_fraction": speedup * density,
        "utilization": result.utilization,
        "dense_utilization": reference.utilization,
        "macs": result.macs,
        "cycles": result.cycles,
        "stalls": result.stalls,
        "seconds": time.monotonic() - began,
        "config": config.as_dict(),
    }
    _print(figures, demo.layers)
    write_json(args.json, figures)
    return MISMATCH if mismatches else OK


def _print(f: dict[str, Any], layers: list[LinearLayer]) -> None:
    shape = "-".join(str(n) for n in [layers[0].inputs, *(layer.outputs for layer in layers)])
    bits = layers[0].weight_bits
    double = all(layer.mode == OutputMode.DOUBLE for layer in layers)
    print(
        f"network              {shape}, int{bits} weights, int8 activations, {f['density']:.1%} of "
        "the weights kept" + ("" if double else ", raw outputs")
    )
    print(
        f"integers             {f['mismatches']} of {f['images'] * layers[-1].outputs} differ from "
        "the golden model"
    )
    print(
        f"accuracy             core {f['accuracy_core']:.2%}, golden {f['accuracy_golden']:.2%}, "
        f"float {f['accuracy_float']:.2%} on {f['images']} images"
    )
    print(
        f"cycles per inference {f['cycles_per_inference']:.0f}, dense "
        f"{f['dense_cycles_per_inference']:.0f}"
    )
    print(
        f"speed-up             {f['speedup']:.2f} of an ideal {f['ideal_speedup']:.2f} "
        f"(1 / density): {f['speedup_fraction']:.0%}"
    )
    print(
        f"utilization          {f['utilization']:.1%} of {f['config']['engines']} x "
        f"{f['config']['lanes']} multipliers; dense {f['dense_utilization']:.1%}"
    )
    print(f"lost to              {stalls_text(f['stalls'])}")
    print(f"seconds              {f['seconds']:.1f}")
    print("next                 sparsemac bench --help, to run your own matrices")
