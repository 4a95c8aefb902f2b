# SPDX-License-Identifier: Apache-2.0
"""Speed of the simulators: cycles per second of ``sim:`` and of the cocotb bench, side by side.

Both run the same emitted core on the same job in one call of this script, and both results are
compared with the golden model. A second core of 8 engines x 8 lanes runs on ``sim:`` alone. Builds
and the opening of devices are not timed. Exit code 1 if a result is wrong or the
ratio is below its bar.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from sparsemac.config import CoreConfig
from sparsemac.csr import as_csr
from sparsemac.layer import LinearLayer
from sparsemac.registers import register_map
from sparsemac_sim.benches.jobs import MEMORY_BYTES, Job, Plan, make_job
from sparsemac_sim.cosim import run_plan
from sparsemac_sim.device import SimDevice, open_device

#: ``sim:`` must be this many times as fast as the cocotb bench.
RATIO_BAR = 20.0
#: Cycles per second that ``sim:`` is to reach with the large core; reported, not judged.
LARGE_AIM = 300_000.0

SMALL = CoreConfig(engines=4, lanes=4, act_depth=2048)
LARGE = CoreConfig(engines=8, lanes=8)
DENSITY = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Speed of sim: and of the cocotb bench, on the same core and job.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="runs on sim:; their median counts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to FILE")
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)

    small = random_job(SMALL, 256, 64, args.seed)
    large = random_job(LARGE, 512, 512, args.seed)
    cocotb_speed, cocotb_cycles = time_cocotb(SMALL, small, args.seed)
    small_speed, small_cycles = time_native(SMALL, small, args.repeats)
    large_speed, large_cycles = time_native(LARGE, large, args.repeats)
    ratio = small_speed / cocotb_speed

    row = "{:22} {:>12} {:>10} {:>12}"
    print(row.format("core", "simulator", "cycles", "cycles/s"))
    print(row.format("4 engines x 4 lanes", "cocotb", cocotb_cycles, f"{cocotb_speed:,.0f}"))
    print(row.format("4 engines x 4 lanes", "sim:", small_cycles, f"{small_speed:,.0f}"))
    print(row.format("8 engines x 8 lanes", "sim:", large_cycles, f"{large_speed:,.0f}"))
    print(f"ratio {ratio:.1f} (bar: {RATIO_BAR:.0f}); 8 x 8 at {large_speed / LARGE_AIM:.2f} of "
          f"the {LARGE_AIM:,.0f} cycles/s that it is to reach")
    passed = ratio >= RATIO_BAR
    if args.json:
        args.json.write_text(json.dumps({
            "seed": args.seed, "cocotb_cycles_per_second": cocotb_speed,
            "sim_cycles_per_second": small_speed, "ratio": ratio, "ratio_bar": RATIO_BAR,
            "large_cycles_per_second": large_speed, "large_aim": LARGE_AIM,
            "passed": passed,
            "config": SMALL.as_dict(), "large_config": LARGE.as_dict(),
        }, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


def random_job(config: CoreConfig, size: int, columns: int, seed: int) -> Job:
    """Returns a job of one square layer at 10 % density, int8, without back-pressure."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-128, 128, (size, size)) * (rng.random((size, size)) < DENSITY)
    layer = LinearLayer.from_matrix(as_csr(dense), raw=False)
    x = rng.integers(-128, 128, (size, columns)).astype(np.int8)
    return make_job([layer], x, config, name=f"{size}x{size}, {columns} columns", seed=seed)


def time_cocotb(config: CoreConfig, job: Job, seed: int) -> tuple[float, int]:
    """Returns cycles per second of the cocotb bench, and the cycles of the job."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(config=config, seed=seed, jobs=(job,))
        (result,) = run_plan(plan, Path(folder) / "run", benches=["core"])
    if not result.passed:
        raise SystemExit("cocotb: " + "; ".join(result.problems))
    return result.cycles_per_second, result.cycles


def time_native(config: CoreConfig, job: Job, repeats: int) -> tuple[float, int]:
    """Returns the median of cycles per second of ``sim:``, and the cycles of the job."""
    speeds = []
    # The latency of cocotb's memory, so that both simulate the same waits.
    device = open_device("", config, memory_bytes=MEMORY_BYTES, latency=2)
    with device:
        for _ in range(repeats):
            device.write_memory(0, job.before.tobytes())
            start(device, job)
            before = device.simulation_seconds
            device.wait_interrupt(60.0)
            speeds.append(device.last_cycles / (device.simulation_seconds - before))
            if device.read_memory(0, MEMORY_BYTES) != job.after.tobytes():
                raise SystemExit("sim: the memory differs from the golden model's")
        return statistics.median(speeds), device.last_cycles


def start(device: SimDevice, job: Job) -> None:
    """Opens the windows of a job and rings the doorbell."""
    values = {"COMMAND_ADDRESS": job.command_address, "COMMAND_COUNT": job.command_count}
    for i, area in enumerate(job.areas):
        values |= {
            f"WINDOW{i}_FIRST": area.address, f"WINDOW{i}_LAST": area.last_page,
            f"WINDOW{i}_PERM": 3 if area.writable else 1,
        }
    registers = register_map(device.config)
    for name, value in {**values, "STATUS": 2, "IRQ_ENABLE": 1, "CTRL": 1}.items():
        device.write_register(registers[name].byte_offset, value)


if __name__ == "__main__":
    sys.exit(main())
