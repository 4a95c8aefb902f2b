# SPDX-License-Identifier: Apache-2.0
"""How well the core is used: utilization, bus, speed-up, stream size, from real runs on ``sim:``.

Each figure comes from a job that ran from doorbell to interrupt, and whose results were compared
with the golden model. Matrices are made from a seed or read from a folder of real ones. Exit code
1 if a result is wrong or a figure misses its bar.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sparsemac
from sparsemac import golden
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.csr import Csr, as_csr
from sparsemac.driver import Core, Layer
from sparsemac.graph import Graph, Node, Value
from sparsemac.inference import Model
from sparsemac.layer import LinearLayer
from sparsemac.matrices import quantize_matrix, random_values, read_matrix
from sparsemac.program import compile_network
from sparsemac.schedule import balance_rows
from sparsemac.stream import choose_format, entropy_bound_bits, pack

#: The bars; a utilization bar by the highest density that it holds for: 0.05, or close to it.
VECTOR_BARS = {0.06: 0.92, 1.0: 0.95}
BATCH_BAR, CONV_BAR, DENSE_BAR, BUS_BAR, SPEEDUP_BAR = 0.95, 0.95, 0.90, 0.95, 0.90
SIZE_BAR, PACK_BAR, SPEED_BAR, RATE_BAR = 1.10, 0.2, 300_000.0, 15.0

#: Layers with more nonzeros than this are judged by `BATCH_BAR`.
LARGE_LAYER = 40_000

#: Cores: many engines of one lane on a bus that never limits, the same on one that does; 8 x 8 with
#: memory that rarely limits, which is judged, and as it is by default.
VECTOR_CORE = CoreConfig(engines=16, lanes=1, bus_width=512)
NARROW_CORE = CoreConfig(engines=16, lanes=1)
SQUARE_CORE = CoreConfig()
ROOMY_CORE = CoreConfig(bus_width=256, act_depth=16384, psum_depth=4096)
#: 128 multiply-accumulates, as ``bench_area.py 1x128`` measures their clock.
RATE_CORE = CoreConfig(engines=1, lanes=128, act_depth=2048, fifo_depth=32)
SQUARES = {"roomy": ROOMY_CORE, "default": SQUARE_CORE}

DENSITIES = (0.5, 0.2, 0.1, 0.05)

#: Channels of the convolutions of the network that is run dense and pruned.
NETWORK = (64, 64, 128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number, and what it has to reach.

    Attributes
    ----------
    section, case : str
    value : float
    bar : float        None: reported, not judged.
    most : bool        The bar is the most, not the least.
    detail : dict      What it came from.
    """

    section: str
    case: str
    value: float
    bar: float | None = None
    most: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it reaches its bar."""
        return self.bar is None or (
            self.value <= self.bar if self.most else self.value >= self.bar)


class Bench:
    """Runs layers on cores of one kind of device; a core stays open until another is wanted."""

    def __init__(self, device: str, data: Path, seed: int, clock_mhz: float = 0.0) -> None:
        self.device, self.data, self.seed = device, data, seed
        self.clock_mhz = clock_mhz
        self.mismatches = 0
        self._core: Core | None = None
        self._key: tuple[Any, ...] = ()

    def core(self, config: CoreConfig, **options: Any) -> Core:
        """Returns an open core."""
        key = (config, tuple(options.items()))
        if key != self._key or self._core is None:
            self.close()
            simulated = self.device.startswith("sim")
            self._core = sparsemac.open(self.device, config, **(options if simulated else {}))
            self._key = key
        return self._core

    def close(self) -> None:
        """Closes the core that is open."""
        if self._core is not None:
            self._core.close()
            self._core = None

    def rng(self, *key: int) -> np.random.Generator:
        """A generator of its own for each case."""
        return np.random.default_rng([self.seed, *key])

    def run(self, core: Core, layer: Layer, columns: int) -> tuple[float, dict[str, Any]]:
        """Runs one layer and checks it; returns its utilization, and counts."""
        shape: tuple[int, ...] = (layer.linear.inputs,) if isinstance(layer, ConvLayer) else (
            layer.inputs,)
        if isinstance(layer, ConvLayer):
            g = layer.geometry
            shape = (g.channels, g.height, g.width)
        x = self.rng(9).integers(-128, 128, (*shape, columns)).astype(np.int8)
        network = core.load(layer)
        result = core.run(network, x)
        if isinstance(layer, ConvLayer):
            expected = golden.run_conv(
                replace(layer, channels_last=False), np.moveaxis(x, -1, 0))
            expected = np.moveaxis(expected, 0, -1)
        else:
            expected = golden.run_layer(layer, x)
        wrong = int((result.outputs != expected).sum())
        self.mismatches += wrong
        seconds = getattr(core.device, "simulation_seconds", 0.0)
        return result.utilization, {
            "cycles": result.cycles, "estimated_cycles": result.estimated_cycles,
            "macs": result.macs, "mismatches": wrong,
            "tiling": str(result.program.layers[0].tiling),
            "commands": result.program.command_count, "fillers": result.program.fillers,
            "stalls": {k: round(v, 4) for k, v in result.stalls.items()},
            "read_beats": result.counters.read_beats if result.counters else 0,
            "write_beats": result.counters.write_beats if result.counters else 0,
            "simulation_seconds": seconds,
        }

    # -- what is run ----------------------------------------------------------------------------

    def matrix(self, rows: int, columns: int, density: float, weight_bits: int = 8) -> Csr:
        """A random matrix; every weight that is there is other than zero."""
        rng = self.rng(rows, columns, round(1000 * density))
        top = (1 << weight_bits - 1) - 1
        values = rng.integers(1, top + 1, (rows, columns)) * rng.choice([-1, 1], (rows, columns))
        return as_csr(values * (rng.random((rows, columns)) < density), weight_bits=weight_bits)

    def files(self, folder: str, pattern: str, weight_bits: int = 8
              ) -> Iterator[tuple[str, Csr]]:
        """Real matrices of a folder; patterns get random weights."""
        for path in sorted((self.data / folder).glob(pattern)):
            matrix = read_matrix(path)
            if matrix.values is None:
                yield path.stem, random_values(matrix, weight_bits, self.seed)
            else:
                yield path.stem, quantize_matrix(matrix, weight_bits)[0].without_zeros()

    def suite(self, weight_bits: int = 8) -> Iterator[tuple[str, Csr]]:
        """Matrices of all densities: made from the seed, and real ones."""
        for density in DENSITIES:
            for columns in (4096, 33288):
                yield (f"512 x {columns} at {density}",
                       self.matrix(512, columns, density, weight_bits))
        yield from self.files("dlmc", "*.smtx", weight_bits)


def layer_of(csr: Csr, name: str, weight_bits: int = 8) -> LinearLayer:
    """A layer with int8 outputs."""
    return LinearLayer.from_matrix(csr, weight_bits=weight_bits, raw=False, name=name)


def conv_of(csr: Csr, channels: int, side: int, kernel: int, name: str,
            stride: int = 1) -> ConvLayer:
    """A square convolution whose output is as large as its input, or half of it."""
    pad = kernel // 2
    geometry = Geometry(channels=channels, height=side, width=side, kernel=(kernel, kernel),
                        stride=(stride, stride), padding=(pad, pad, pad, pad))
    return ConvLayer(linear=layer_of(csr, name), geometry=geometry)


def vector(bench: Bench) -> Iterator[Figure]:
    """Matrix times vector: 16 engines of one lane, memory not limiting."""
    core = bench.core(VECTOR_CORE)
    for name, csr in bench.suite():
        density = csr.nnz / (csr.shape[0] * csr.shape[1])
        value, detail = bench.run(core, layer_of(csr, name), 1)
        bar = next(b for most, b in VECTOR_BARS.items() if density <= most)
        judged = csr.nnz > LARGE_LAYER
        yield Figure(section="vector", case=name, value=value, bar=bar if judged else None,
                     detail={"nonzeros": csr.nnz, **detail})


def batch(bench: Bench) -> Iterator[Figure]:
    """Real layers over 64 columns on 8 engines x 8 lanes."""
    for kind, config in SQUARES.items():
        core = bench.core(config)
        for name, csr in bench.files("dlmc", "*.smtx"):
            value, detail = bench.run(core, layer_of(csr, name), 64)
            judged = kind == "roomy" and csr.nnz > LARGE_LAYER
            yield Figure(section="batch", case=f"{name} {kind}", value=value,
                         bar=BATCH_BAR if judged else None, detail={"nonzeros": csr.nnz, **detail})


def convolution(bench: Bench) -> Iterator[Figure]:
    """AlexNet's pruned convolutions, and dense ones of 64 channels, on 8 engines x 8 lanes."""
    layers = [(conv_of(csr, csr.shape[1] // 9, 13, 3, name), CONV_BAR)
              for name, csr in bench.files("mtx", "conv*.mtx")]
    layers += [(conv_of(bench.matrix(64, 64 * k * k, 1.0), 64, 32, k, f"dense {k} x {k}"),
                DENSE_BAR) for k in (3, 1)]
    for kind, config in SQUARES.items():
        core = bench.core(config)
        for layer, bar in layers:
            for columns in (8, 1):
                value, detail = bench.run(core, layer, columns)
                yield Figure(section="convolution", case=f"{layer.name} batch {columns} {kind}",
                             value=value, bar=bar if (kind, columns) == ("roomy", 8) else None,
                             detail=detail)


def bus(bench: Bench) -> Iterator[Figure]:
    """Data beats used, when memory limits: a narrow bus, and a slow memory behind a wide one."""
    csr = bench.matrix(512, 4096, 0.2)
    _, detail = bench.run(bench.core(NARROW_CORE), layer_of(csr, "narrow"), 1)
    yield Figure(section="bus", case="16 engines on 64 bits", bar=BUS_BAR, detail=detail,
                 value=detail["read_beats"] / max(detail["cycles"], 1))
    rate = 16
    _, detail = bench.run(bench.core(VECTOR_CORE, bandwidth=float(rate)), layer_of(csr, "slow"), 1)
    moved = (detail["read_beats"] + detail["write_beats"]) * VECTOR_CORE.bus_bytes
    yield Figure(section="bus", case=f"{rate} bytes a cycle behind 512 bits", bar=BUS_BAR,
                 value=moved / max(detail["cycles"] * rate, 1), detail=detail)


def cnn(bench: Bench, density: float) -> Graph:
    """A network of 3x3 convolutions, every second one of stride 2, and a classifier."""
    layers: list[Layer] = []
    channels, side = 3, 32
    for i, outputs in enumerate(NETWORK):
        # The first layer sees colours and stays dense, as it does when networks are pruned.
        csr = bench.matrix(outputs, channels * 9, density if i else 1.0)
        stride = 1 + i % 2
        layers.append(conv_of(csr, channels, side, 3, f"conv{i}", stride))
        channels, side = outputs, side // stride
    layers.append(layer_of(bench.matrix(10, channels * side * side, density), "classifier"))
    values, nodes, name = {}, [], "x"
    values[name] = Value(name=name, shape=(1, 32, 32, 3), dtype="int8")
    for layer in layers:
        if not isinstance(layer, ConvLayer):
            values["flat"] = Value(name="flat", shape=(1, channels * side * side), dtype="int8")
            nodes.append(Node(name="flatten", inputs=(name,), outputs=("flat",),
                              operation="reshape", attributes={"shape": (-1, layer.inputs)}))
            name = "flat"
        shape = layer.output_shape(1) if isinstance(layer, ConvLayer) else (1, layer.outputs)
        out = f"{layer.name} out"
        values[out] = Value(name=out, shape=shape, dtype="int8")
        nodes.append(Node(name=layer.name, inputs=(name,), outputs=(out,), layer=layer))
        name = out
    return Graph(name=f"density {density}", values=values, inputs=("x",), outputs=(name,),
                 nodes=tuple(nodes), batchable=True)


def speedup(bench: Bench) -> Iterator[Figure]:
    """A whole pruned network against the same network dense, on 8 engines x 8 lanes."""
    core = bench.core(SQUARE_CORE)
    x = bench.rng(8).integers(-128, 128, (8, 32, 32, 3)).astype(np.int8)
    ran = {}
    for density in (1.0, 0.2, 0.1):
        result = Model(cnn(bench, density), core).run(x, check=True)
        bench.mismatches += result.mismatch is not None
        ran[density] = result
        detail = {"cycles": result.cycles, "macs": result.macs,
                  "utilization": result.utilization, "mismatch": str(result.mismatch or "")}
        if density == 1.0:
            continue
        dense = ran[1.0]
        work = dense.macs / result.macs  # 1 / density of the whole
        faster = dense.cycles / max(result.cycles, 1)
        yield Figure(section="speedup", case=f"convolutions at density {density}", bar=SPEEDUP_BAR,
                     value=faster / work, detail={
                         "speedup": faster, "work": work, "dense_cycles": dense.cycles,
                         "dense_utilization": dense.utilization, **detail})


def size(bench: Bench) -> Iterator[Figure]:
    """Bits of a nonzero, everything in, against the entropy of positions and values."""
    for bits in (8, 4):
        shares = []
        for name, csr in bench.suite(bits):
            program = compile_network([LinearLayer.from_matrix(csr, weight_bits=bits)], 64,
                                      SQUARE_CORE)
            took, least = program.format_bits / csr.nnz, entropy_bound_bits(csr)
            shares.append(took / least)
            yield Figure(section="size", case=f"int{bits} {name}", value=took / least,
                         detail={"bits": took, "bound": least})
        yield Figure(section="size", case=f"int{bits} mean", value=float(np.mean(shares)),
                     bar=SIZE_BAR, most=True)


def packing(bench: Bench) -> Iterator[Figure]:
    """Seconds of a million nonzeros: the streams alone, and from layer to program."""
    config = SQUARE_CORE
    for density in (0.5, 0.1):
        csr = bench.matrix(2048, 4096, density)
        rows = balance_rows(csr.row_lengths, config.engines)
        layer = layer_of(csr, "pack")

        def streams(csr: Csr = csr, rows: list[Any] = rows) -> object:
            return pack(csr, rows, choose_format(csr, 8), engines=config.engines,
                        bus_bytes=config.bus_bytes)

        def program(layer: LinearLayer = layer) -> object:
            return compile_network([layer], 64, config)

        for name, make, bar in (("streams", streams, PACK_BAR), ("program", program, None)):
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                make()
                seconds.append(time.perf_counter() - start)
            yield Figure(section="packing", case=f"{name} of 2048 x 4096 at {density}", bar=bar,
                         most=True, value=min(seconds) / csr.nnz * 1e6,
                         detail={"nonzeros": csr.nnz})


def speed(bench: Bench) -> Iterator[Figure]:
    """Simulated cycles per second at 64 multiply-accumulates: the more engines, the fewer."""
    layer = layer_of(bench.matrix(512, 512, 0.2), "speed")
    for engines in (8, 4, 2):
        core = bench.core(SQUARE_CORE.replace(engines=engines, lanes=64 // engines))
        before = getattr(core.device, "simulation_seconds", 0.0)
        _, detail = bench.run(core, layer, 64)
        seconds = detail["simulation_seconds"] - before
        yield Figure(section="speed", case=f"{engines} engines x {64 // engines} lanes",
                     bar=SPEED_BAR, detail=detail,
                     value=detail["cycles"] / seconds if seconds else 0.0)


def rate(bench: Bench) -> Iterator[Figure]:
    """GMAC/s of 128 multiply-accumulates at 90 % zeros, with the clock of --clock-mhz."""
    layer = layer_of(bench.matrix(2048, 2048, 0.1), "rate")
    _, detail = bench.run(bench.core(RATE_CORE), layer, 128)
    per_cycle = detail["macs"] / max(detail["cycles"], 1)
    yield Figure(section="rate", case="1 x 128, MACs a cycle", value=per_cycle, detail=detail)
    if bench.clock_mhz:
        yield Figure(section="rate", case=f"1 x 128 at {bench.clock_mhz} MHz, GMAC/s",
                     bar=RATE_BAR, value=per_cycle * bench.clock_mhz / 1000)


SECTIONS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "size": size, "packing": packing, "vector": vector, "bus": bus, "batch": batch,
    "convolution": convolution, "speedup": speedup, "speed": speed, "rate": rate,
}

#: Sections whose figures are cycles: they need a device that has them.
COUNTED = ("vector", "bus", "batch", "convolution", "speedup", "speed", "rate")


def main() -> int:
    here = Path(__file__).resolve().parent.parent
    data = Path(os.environ.get("SPARSEMAC_DATA", here.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(
        description="Utilization, bus, speed-up and stream size of the core, from real runs.")
    parser.add_argument("sections", nargs="*", metavar="section",
                        help=f"what to measure: {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--device", default="sim:", help="without cycles, only results are checked")
    parser.add_argument("--data", type=Path, default=data, help="folder with dlmc/ and mtx/")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clock-mhz", type=float, default=0.0, metavar="MHZ",
                        help="clock of a 1x128 core (bench_area.py): rate tells GMAC/s")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to FILE")
    args = parser.parse_args()
    if unknown := [s for s in args.sections if s not in SECTIONS]:
        parser.error(f"section must be one of {', '.join(SECTIONS)}, not {unknown[0]!r}")
    if not (args.data / "dlmc").is_dir():
        parser.error(f"no folder dlmc in {args.data} (SPARSEMAC_DATA or --data names another)")
    bench = Bench(args.device, args.data, args.seed, args.clock_mhz)
    figures = measure(bench, args.sections or list(SECTIONS))
    missed = [f for f in figures if not f.passed]
    print(f"seed {args.seed}: {bench.mismatches} mismatches, {len(missed)} of "
          f"{sum(f.bar is not None for f in figures)} bars missed")
    if args.json:
        args.json.write_text(json.dumps({
            "seed": args.seed, "device": args.device, "mismatches": bench.mismatches,
            "figures": [{**asdict(f), "passed": f.passed} for f in figures],
        }, indent=2) + "\n", encoding="utf-8")
    return 1 if bench.mismatches or missed else 0


def measure(bench: Bench, sections: list[str]) -> list[Figure]:
    """Runs sections and prints each figure as it comes."""
    figures: list[Figure] = []
    try:
        for name in sections:
            print(f"# {name}: {SECTIONS[name].__doc__}", file=sys.stderr, flush=True)
            for figure in SECTIONS[name](bench):
                if name in COUNTED and not bench.device.startswith("sim"):
                    figure = replace(figure, bar=None)
                figures.append(figure)
                mark = "" if figure.bar is None else "ok" if figure.passed else "MISSED"
                bar = "" if figure.bar is None else f"{'<=' if figure.most else '>='} {figure.bar}"
                print(f"{name:12} {figure.case[-60:]:60} {figure.value:10.4f} {bar:8} {mark}",
                      flush=True)
    finally:
        bench.close()
    return figures


if __name__ == "__main__":
    sys.exit(main())
