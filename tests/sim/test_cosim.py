# SPDX-License-Identifier: Apache-2.0
"""The cocotb regression: that it passes, that it can fail, and that one number replays it."""

import argparse
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sparsemac.commands import COMMAND_BYTES, Load, Shift, decode_list
from sparsemac.config import CoreConfig
from sparsemac.conv import Geometry
from sparsemac.errors import MissingDependency
from sparsemac_cli import cosim as command
from sparsemac_sim import cosim
from sparsemac_sim.benches.jobs import Plan, make_job, random_config, random_job
from sparsemac_sim.benches.scoreboard import Check, Scoreboard
from support.layers import random_conv

SEED = 7
CONFIG = CoreConfig(
    engines=2, lanes=2, depth=5, act_depth=64, entry_depth=16, psum_depth=16, bus_width=32,
    fifo_depth=8, burst_beats=4, windows=3,
)


@pytest.fixture(scope="module")
def model(toolchain):
    """The one model that most tests share."""
    try:
        return cosim.build_model(CONFIG)
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plan():
    print(f"seed {SEED}")
    return cosim.plan_run(SEED, 3, CONFIG)


def test_random_jobs_registers_and_resets_match_the_golden_model(model, plan, tmp_path):
    results = cosim.run_plan(plan, tmp_path / "run")
    assert [r.problems for r in results if not r.passed] == []
    assert {r.bench for r in results} == set(cosim.BENCHES)
    assert sum(r.bench == "core" for r in results) == len(plan.jobs)
    assert all(r.cycles > 0 for r in results if r.bench != "axi_lite")
    assert all(r.cycles_per_second > 0 for r in results)


def test_strips_of_a_map_see_their_neighbours(model, tmp_path):
    rng = np.random.default_rng(SEED)
    layer = random_conv(rng, Geometry(channels=2, height=6, width=3, kernel=(3, 3),
                                      padding=(1, 1, 1, 1)), 3)
    x = rng.integers(-128, 128, (2, 6, 3, 1)).astype(np.int8)
    job = make_job([layer], x, CONFIG, seed=SEED, back_pressure=True)
    at = job.command_address - job.memory_base
    commands = decode_list(
        job.before[at : at + job.command_count * COMMAND_BYTES].tobytes())
    assert {c.shift for c in commands if isinstance(c, Load)} == set(Shift)
    (result,) = cosim.run_plan(
        Plan(config=CONFIG, seed=SEED, jobs=(job,)), tmp_path / "run", benches=["core"])
    assert result.passed, result.problems


def test_one_wrong_integer_of_the_golden_model_fails_the_bench(model, plan, tmp_path):
    job = plan.jobs[1]
    written = np.flatnonzero(job.after != job.before)
    wrong = job.after.copy()
    wrong[random.Random(SEED).choice(list(written))] ^= 1
    seeded = replace(plan, jobs=(plan.jobs[0], replace(job, after=wrong)))
    results = cosim.run_plan(seeded, tmp_path / "run", benches=["core"])
    assert [r.passed for r in results] == [True, False]
    assert [r.mismatches for r in results] == [0, 1]
    assert "not 0x" in results[1].problems[0]


def test_inputs_that_the_golden_model_has_not_seen_fail_the_bench(model, plan, tmp_path):
    # A bench that compared the golden model with itself would pass.
    job = max(plan.jobs, key=lambda j: j.counters["ISSUED"])
    image = job.before.copy()
    last_page = job.areas[0].address + job.areas[0].length - job.memory_base
    inputs = slice(last_page - 4096, last_page)
    image[inputs] ^= 0x55
    after = np.where(job.after == job.before, image, job.after)
    seeded = replace(plan, jobs=(replace(job, before=image, after=after),))
    results = cosim.run_plan(seeded, tmp_path / "run", benches=["core"])
    assert results[0].mismatches > 0


def test_environment_of_the_process_is_left_as_it_was(model, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    cosim.run_plan(replace(plan, jobs=()), Path("run"), benches=["axi_lite"])
    assert dict(os.environ) == before


def test_a_seed_draws_the_same_core_and_jobs_again():
    for seed in range(20):
        assert random_config(seed) == random_config(seed)
    config = random_config(SEED)
    first, again = random_job(config, SEED, 2), random_job(config, SEED, 2)
    assert first.name == again.name
    assert np.array_equal(first.before, again.before)
    assert np.array_equal(first.after, again.after)
    assert not np.array_equal(first.before, random_job(config, SEED, 3).before)


def test_a_plan_survives_its_files(plan, tmp_path):
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert loaded.config == plan.config
    for job, copy in zip(plan.jobs, loaded.jobs, strict=True):
        assert (copy.name, copy.areas, copy.counters) == (job.name, job.areas, job.counters)
        assert np.array_equal(copy.after, job.after)


def test_counters_that_do_not_add_up_are_a_problem(plan):
    job, check = plan.jobs[0], Check(bench="core", name="counters")
    counters = {**job.counters, "CYCLES": job.counters["ISSUED"], "IDLE": job.counters["ISSUED"]}
    Scoreboard.compare_counters(check, job, CONFIG, counters)
    assert check.problems == []
    Scoreboard.compare_counters(check, job, CONFIG, {**counters, "IDLE": 1, "FILLERS": -1})
    assert len(check.problems) == 2


def test_a_write_outside_the_writable_windows_is_a_problem(plan):
    job, check = plan.jobs[0], Check(bench="reset", name="windows")
    Scoreboard.compare_inputs(check, job, job.after)
    assert check.problems == []
    image = job.after.copy()
    image[-1] ^= 1
    Scoreboard.compare_inputs(check, job, image)
    assert check.problems == ["1 bytes outside the writable windows have changed"]


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("count", 0)])
def test_arguments_out_of_range_are_refused(name, value):
    arguments = {"seed": 1, "count": 1, name: value}
    with pytest.raises(ValueError, match=f"^{name} must be "):
        cosim.run_cosim(**arguments)


def test_an_unknown_bench_is_refused(plan, tmp_path):
    with pytest.raises(ValueError, match="^bench must be one of axi_lite, core, reset, not 'x'$"):
        cosim.run_plan(plan, tmp_path, benches=["x"])


def test_a_missing_make_is_named(toolchain, monkeypatch):
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "make" else found(name))
    with pytest.raises(MissingDependency, match="apt-get install make"):
        cosim.build_model(CONFIG)


@pytest.mark.slow
def test_c4_d1_random_cores_match_the_golden_model(toolchain, tmp_path):
    print(f"seed {SEED}")
    results = cosim.run_cosim(SEED, 16, directory=tmp_path)
    assert [(r.seed, r.name, r.problems) for r in results if not r.passed] == []
    assert len({r.seed for r in results}) == 4


@pytest.mark.slow
def test_the_command_writes_waves_and_json(toolchain, tmp_path, capsys):
    report = tmp_path / "report.json"
    folder = tmp_path / "out"
    arguments = ["--seed", "3", "--count", "1", "--waves", "-o", str(folder), "--json", str(report)]
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["cosim", *arguments])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 3, 1 matrices\n")
    waves = folder / "seed-3" / "dump.vcd"
    assert str(waves) in out
    assert "m_axi__araddr" in waves.read_text(encoding="ascii")
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["seed"], found["failed"], found["mismatches"]) == (3, 0, 0)
    assert {c["bench"] for c in found["checks"]} == set(cosim.BENCHES)
