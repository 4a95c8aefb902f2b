# SPDX-License-Identifier: Apache-2.0
"""Cycle model against simulation: predicted and counted cycles of layers, side by side.

Every layer is compiled once, run on ``sim:`` and given to `sparsemac.cycles.predict_cycles` with
the timing of the same memory. Exit code 1 if a layer of more than 10,000 cycles is off by more than
1 %, or a smaller one by more than 3 %.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sparsemac
from sparsemac.commands import OutputMode
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.csr import as_csr
from sparsemac.cycles import MemoryModel, predict_cycles
from sparsemac.layer import LinearLayer
from sparsemac.matrices import random_values, read_matrix

#: Layers of more cycles than this are held to the tighter bar.
LARGE_CYCLES = 10_000
LARGE_BAR, SMALL_BAR = 0.01, 0.03

CONFIGS = {
    "2x4": CoreConfig(engines=2, lanes=4, act_depth=1024, entry_depth=128),
    "4x4": CoreConfig(engines=4, lanes=4, act_depth=2048),
    "8x8": CoreConfig(engines=8, lanes=8, bus_width=256),
    "16x1": CoreConfig(engines=16, lanes=1, bus_width=512, act_depth=16384),
    "3x16": CoreConfig(engines=3, lanes=16, bus_width=32, burst_beats=8, act_depth=1024),
}

#: Timing of the memory, as options of ``sim:``.
MEMORIES: dict[str, dict[str, Any]] = {
    "20": {"latency": 20},
    "5": {"latency": 5},
    "100": {"latency": 100},
    "8 B": {"latency": 30, "bandwidth": 8.0},
    "24 B": {"latency": 30, "bandwidth": 24.0},
}

CONVOLUTIONS = {
    "3x3": (Geometry(channels=8, height=12, width=12, kernel=(3, 3), padding=(1, 1, 1, 1)), 16),
    "1x1": (Geometry(channels=24, height=8, width=8, kernel=(1, 1)), 32),
    "depthwise": (Geometry(channels=16, height=12, width=12, kernel=(3, 3), groups=16,
                           padding=(1, 1, 1, 1)), 16),
    "strided": (Geometry(channels=6, height=17, width=15, kernel=(3, 3), stride=(2, 2),
                         padding=(1, 1, 1, 1)), 12),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A layer, the columns that it is run on, the core and its memory."""

    name: str
    layer: LinearLayer | ConvLayer
    columns: int
    config: str
    memory: str


def random_layer(rng: np.random.Generator, rows: int, columns: int, density: float,
                 weight_bits: int = 8, *, raw: bool = False) -> LinearLayer:
    """Returns a layer of random weights at random places."""
    high = 1 << weight_bits - 1
    dense = rng.integers(-high, high, (rows, columns)) * (rng.random((rows, columns)) < density)
    return quantized(as_csr(dense.astype(np.int8), weight_bits=weight_bits), rng, weight_bits, raw)


def quantized(weights: Any, rng: np.random.Generator, weight_bits: int, raw: bool) -> LinearLayer:
    """Returns a layer with biases, of raw sums or requantized row by row."""
    rows = weights.shape[0]
    bias = rng.integers(-1000, 1000, rows).astype(np.int32)
    if raw:
        return LinearLayer(weights=weights, weight_bits=weight_bits, bias=bias)
    return LinearLayer(
        weights=weights, weight_bits=weight_bits, bias=bias, mode=OutputMode.SINGLE,
        multiplier=rng.integers(1 << 30, 1 << 31, rows).astype(np.uint64),
        shift=rng.integers(3, 12, rows))


def cases(seed: int, folder: Path | None) -> Iterator[Case]:
    """Yields what is compared: random layers, convolutions, and pruned layers from a folder."""
    rng = np.random.default_rng(seed)
    for config in CONFIGS:
        for weight_bits, raw in ((8, False), (4, True)):
            kind = f"int{weight_bits} {'raw' if raw else 'requantized'}"
            for columns in (1, 16, 64):
                for rows, inputs, density in ((48, 64, 0.5), (256, 256, 0.1), (300, 500, 0.02)):
                    layer = random_layer(rng, rows, inputs, density, weight_bits, raw=raw)
                    name = f"{rows}x{inputs} {density:.0%} {kind}"
                    yield Case(name, layer, columns, config, "20")
        layer = random_layer(rng, 200, 300, 0.15)
        for memory in MEMORIES:
            for columns in (1, 32):
                yield Case("200x300 15% int8 requantized", layer, columns, config, memory)
        wide = random_layer(rng, 40, 3 * CONFIGS[config].act_depth, 0.05)
        yield Case(f"40x{wide.weights.shape[1]} 5% partial sums", wide, 8, config, "20")
        for name, (geometry, outputs) in CONVOLUTIONS.items():
            linear = random_layer(rng, outputs, geometry.patch, 0.5)
            layer = ConvLayer(linear=replace(linear, input_zero_point=-3), geometry=geometry)
            for memory in ("20", "100", "8 B"):
                yield Case(f"convolution {name}", layer, 8, config, memory)
    for path in sorted(folder.glob("*.smtx")) if folder else ():
        weights = random_values(read_matrix(path), 8, seed)
        for config in ("8x8", "16x1"):
            for columns in (1, 16, 64):
                yield Case(path.stem, quantized(weights, rng, 8, False), columns, config, "20")


def main() -> int:
    parser = argparse.ArgumentParser(description="Cycle model against simulation.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dlmc", metavar="FOLDER", type=Path, help="pruned layers, *.smtx")
    parser.add_argument("--config", choices=CONFIGS, action="append", help="only on this core")
    parser.add_argument("--match", default="", help="only layers with this in their names")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to FILE")
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)

    row = "{:50.50} {:>7} {:>5} {:>6} {:>9} {:>9} {:>8} {:>7}"
    print(row.format("layer", "columns", "core", "memory", "predicted", "simulated", "error",
                     "seconds"))
    rows = []
    for case in cases(args.seed, args.dlmc):
        if args.match in case.name and (not args.config or case.config in args.config):
            rows.append(found := compare(case))
            print(row.format(case.name, case.columns, case.config, case.memory,
                             found["predicted"], found["simulated"], f"{found['error']:+.2%}",
                             f"{found['seconds']:.2f}"), "" if found["passed"] else "above the bar",
                  flush=True)
    for large in (True, False):
        errors = [abs(r["error"]) for r in rows if (r["simulated"] > LARGE_CYCLES) == large]
        if errors:
            print(f"{len(errors)} layers {'above' if large else 'up to'} {LARGE_CYCLES} cycles: "
                  f"worst {max(errors):.2%}, mean {np.mean(errors):.2%} "
                  f"(bar: {LARGE_BAR if large else SMALL_BAR:.0%})")
    passed = bool(rows) and all(r["passed"] for r in rows)
    if args.json:
        args.json.write_text(json.dumps({
            "seed": args.seed, "large_bar": LARGE_BAR, "small_bar": SMALL_BAR,
            "large_cycles": LARGE_CYCLES, "passed": passed, "layers": rows,
            "configs": {name: config.as_dict() for name, config in CONFIGS.items()},
        }, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


def compare(case: Case) -> dict[str, Any]:
    """Runs a layer on ``sim:`` and predicts it."""
    config, options = CONFIGS[case.config], MEMORIES[case.memory]
    with sparsemac.open("sim:", config, **options) as core:
        network = core.load(case.layer)
        shape = network.segment.shapes[network.segment.inputs[0]]
        maps = (shape.height, shape.width) if shape.height * shape.width > 1 else ()
        result = core.run(network, np.ones((shape.channels, *maps, case.columns), np.int8))
    assert result.counters is not None and result.jobs == 1
    begin = time.perf_counter()
    memory = MemoryModel(latency=options["latency"], bytes_per_cycle=options.get("bandwidth"))
    estimate = predict_cycles(result.program, config, memory)
    seconds = time.perf_counter() - begin
    simulated = result.counters.cycles
    error = estimate.cycles / simulated - 1
    bar = LARGE_BAR if simulated > LARGE_CYCLES else SMALL_BAR
    return {
        "layer": case.name, "columns": case.columns, "config": case.config, "memory": case.memory,
        "predicted": estimate.cycles, "simulated": simulated, "error": error,
        "passed": abs(error) <= bar, "seconds": seconds,
        "predicted_counters": estimate.counters.as_dict(),
        "simulated_counters": result.counters.as_dict(),
    }


if __name__ == "__main__":
    sys.exit(main())
