# SPDX-License-Identifier: Apache-2.0
"""``fit`` as a user types it."""

import json
import tomllib

import pytest
from sparsemac.config import CoreConfig
from sparsemac_cli._report import DOES_NOT_FIT, OK, USAGE
from sparsemac_cli.main import main

pytest.importorskip("amaranth", reason="amaranth is missing: pip install 'sparsemac[ecp5]'")

FIT = ["fit", "--board", "ulx3s-85f"]


@pytest.fixture
def sine(data_dir):
    pytest.importorskip("tflite", reason="tflite is missing: pip install 'sparsemac[tflite]'")
    path = data_dir / "models" / "hello_world_int8.tflite"
    if not path.is_file():
        pytest.skip("the data folder lacks models/hello_world_int8.tflite")
    return str(path)


def test_prints_a_configuration_that_generate_takes(tmp_path, capsys):
    file, figures = tmp_path / "core.toml", tmp_path / "fit.json"
    assert main([*FIT, "-o", str(file), "--json", str(figures)]) == OK
    config = CoreConfig.from_toml(file)
    told = json.loads(figures.read_text())
    assert CoreConfig.from_dict(told["config"]) == config
    printed = capsys.readouterr().out
    assert CoreConfig.from_dict(tomllib.loads(printed)["core"]) == config
    assert told["macs_per_cycle"] == config.macs
    for name, counts in told["resources"].items():
        assert counts["used"] <= counts["usable"] <= counts["available"]
        assert f"{name:16} {counts['used']} of {counts['available']}" in printed
    assert main(["generate", "--config", str(file), "-o", str(tmp_path / "core")]) == OK
    assert (tmp_path / "core" / "core.v").is_file()


def test_tells_cycles_and_bottleneck_of_a_network(sine, tmp_path, capsys):
    figures = tmp_path / "fit.json"
    assert main([*FIT, "--network", sine, "--json", str(figures)]) == OK
    told = json.loads(figures.read_text())["network"]
    assert told["batch"] == 1 and told["host_macs"] == 0
    assert told["seconds"] == pytest.approx(told["cycles"] / 37.5e6)
    out, err = capsys.readouterr()
    assert f"{told['cycles']} for 1 sample" in out and told["bottleneck"] in out
    assert "search what fits ulx3s-85f" in err


def test_json_alone_goes_to_stdout(capsys):
    assert main([*FIT, "--json", "-"]) == OK
    assert json.loads(capsys.readouterr().out)["board"] == "ulx3s-85f"


def test_nothing_fits(capsys):
    assert main([*FIT, "--fill", "2"]) == DOES_NOT_FIT
    out, err = capsys.readouterr()
    assert out == "" and "no configuration fits ulx3s-85f" in err and "nearest legal fill" in err


@pytest.mark.parametrize(("more", "message"), [
    (["--board", "de10"], "board must be one of ulx3s-85f, not 'de10'"),
    (["--fill", "0"], "fill must be 1 to 100, not 0"),
    (["-o", "no/such/folder/core.toml"], "folder of the output file must be there"),
    (["--batch", "4"], "--batch must go with --network"),
    (["--network", "no-such-file.tflite"], "no-such-file.tflite"),
])
def test_bad_arguments_are_named(more, message, capsys):
    assert main([*FIT, *more]) == USAGE
    assert message in capsys.readouterr().err


def test_batch_that_a_network_cannot_have_is_refused(sine, capsys):
    assert main([*FIT, "--network", sine, "--batch", "0"]) == USAGE
    assert "batch must be" in capsys.readouterr().err
