# SPDX-License-Identifier: Apache-2.0
"""``inspect``, ``compile`` and ``run`` as a user types them, on real networks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sparsemac.netfile as netfile
from sparsemac.graph import run_golden
from sparsemac.importers import load_model
from sparsemac.netfile import read_network_file, write_network_file
from sparsemac_cli._report import DOES_NOT_FIT, MISMATCH, OK, USAGE
from sparsemac_cli.main import main

CORE = ["--engines", "2", "--lanes", "4", "--act-depth", "1024", "--psum-depth", "256"]
REFERENCE = ["--device", "reference:"]

pytest.importorskip("tflite", reason="needs the package tflite: pip install 'sparsemac[tflite]'")


@pytest.fixture(scope="module")
def models(data_dir):
    def path(name):
        file = data_dir / "models" / name
        if not file.is_file():
            pytest.skip(f"the data folder lacks models/{name}")
        return str(file)
    return path


@pytest.fixture(scope="module")
def sine(models):
    return models("hello_world_int8.tflite")


@pytest.fixture(scope="module")
def net(sine, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "sine.smnet"
    assert main(["compile", sine, "-o", str(path), *CORE]) == OK
    return path


def samples(count, seed=1):
    return np.random.default_rng(seed).integers(-128, 128, (count, 1)).astype(np.int8)


def figures_of(command, tmp_path, code=OK):
    """Runs a command and returns its JSON."""
    out = tmp_path / "out.json"
    assert main([*map(str, command), "--json", str(out)]) == code
    return json.loads(out.read_text())


# -- inspect ------------------------------------------------------------------------------------


def test_inspect_lists_every_node(models, tmp_path, capsys):
    path = models("mnist_resnet_q.tflite")
    f = figures_of(["inspect", path, *CORE], tmp_path)
    graph = load_model(path)
    assert [n["name"] for n in f["nodes"]] == [n.name for n in graph.nodes]
    layers = [n for n in f["nodes"] if n["density"] is not None]
    assert len(layers) == 5 and all(n["where"] == "device" and n["cycles"] > 0 for n in layers)
    assert sum(n["macs_share"] for n in f["nodes"]) == pytest.approx(1)
    assert f["macs"] == 4 * 494813 and f["batch"] == 4 and f["host_fallbacks"] == []
    assert f["density"] == pytest.approx(22364 / 22572)
    assert all(n["reason"] for n in f["nodes"])
    out = capsys.readouterr().out
    for text in ("conv 3x3 /2, int8", "tflite_softmax", "linear 432 -> 10", "99.1%", "host"):
        assert text in out


def test_inspect_of_one_sample_at_a_time(sine, tmp_path):
    f = figures_of(["inspect", sine, "--batch", "1", *CORE], tmp_path)
    assert f["batch"] == 1 and f["macs"] == f["nonzeros"]


def test_inspect_json_on_stdout_is_only_that(sine, capsys):
    assert main(["inspect", sine, *CORE, "--json", "-"]) == OK
    assert json.loads(capsys.readouterr().out)["network"]


def test_inspect_strict_accepts_what_is_no_multiplication(models):
    assert main(["inspect", models("cifar10_q.tflite"), "--strict", *CORE, "--act-depth",
                 "4096"]) == OK


def test_inspect_strict_names_layers_on_the_host(models, capsys):
    small = ["--engines", "1", "--lanes", "4", "--act-depth", "64", "--psum-depth", "0"]
    path = models("ad01_int8.tflite")
    assert main(["inspect", path, *small]) == OK
    assert main(["inspect", path, "--strict", *small]) == DOES_NOT_FIT
    error = capsys.readouterr().err
    assert "must not multiply with weights" in error and "act_depth is 64" in error


def test_inspect_of_a_network_file_compiles_nothing(net, tmp_path, monkeypatch):
    import sparsemac_cli.inspect as command

    monkeypatch.setattr(command, "predict", None)
    f = figures_of(["inspect", net], tmp_path)
    assert f["batch"] == 4 and f["config"]["lanes"] == 4 and f["cycles"] > 0


def test_inspect_counts_what_a_float_network_would_multiply(models, tmp_path, capsys):
    pytest.importorskip("onnx", reason="needs the package onnx: pip install 'sparsemac[onnx]'")
    path = models("three_layer_keras.onnx")
    f = figures_of(["inspect", path, "--strict", "--batch", "2", *CORE], tmp_path, DOES_NOT_FIT)
    assert f["weights"] == 16 * 64 + 64 * 32 + 32 * 32 + 32 * 5 and f["macs"] == 2 * f["nonzeros"]
    assert f["device_macs_share"] == 0 and len(f["host_fallbacks"]) == 4
    assert "the network is not quantized" in capsys.readouterr().out


def test_inspect_of_a_matrix(tmp_path, capsys):
    np.save(tmp_path / "m.npy", np.eye(8, dtype=np.int8))
    f = figures_of(["inspect", tmp_path / "m.npy", "--weight-bits", "4", *CORE], tmp_path)
    assert f["nodes"][0]["operation"] == "linear 8 -> 8, int4" and f["density"] == 1 / 8


# -- compile ------------------------------------------------------------------------------------


def test_compile_makes_the_same_bytes(sine, net, tmp_path):
    assert main(["compile", sine, "-o", str(tmp_path / "b.smnet"), *CORE]) == OK
    assert (tmp_path / "b.smnet").read_bytes() == net.read_bytes()
    assert main(["compile", str(net), "-o", str(tmp_path / "c.smnet")]) == OK
    assert (tmp_path / "c.smnet").read_bytes() == net.read_bytes()


def test_compile_says_what_it_wrote(models, tmp_path, capsys):
    path = tmp_path / "x.smnet"
    f = figures_of(["compile", models("ad01_int8.tflite"), "-o", path, *CORE], tmp_path)
    assert f["file_bytes"] == path.stat().st_size and f["commands"] > 0
    assert "10 nodes, 1 doorbell," in capsys.readouterr().out


# -- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_run_writes_what_the_golden_model_computes(sine, net, tmp_path, count):
    x = samples(count)
    np.save(tmp_path / "x.npy", x)
    graph = load_model(sine)
    want = run_golden(graph, x)
    nonzeros = sum(layer.weights.without_zeros().nnz for layer in graph.layers)
    for model in (sine, net):
        f = figures_of(["run", model, tmp_path / "x.npy", *REFERENCE, "-o", tmp_path / "y.npy",
                        "--check", "exact", *CORE], tmp_path)
        (y,) = want.values()
        got = np.load(tmp_path / "y.npy")
        assert got.dtype == y.dtype and (got == y).all()
        assert f["samples"] == count and f["mismatch"] is None and f["golden_checksums"] == ""
        assert f["macs"] == count * nonzeros and f["cycles"] > 0
        assert f["bytes_to_device"] > 0 and f["bytes_from_device"] > 0


def test_run_of_a_network_file_compiles_nothing(net, tmp_path, monkeypatch):
    import sparsemac.driver as driver

    monkeypatch.setattr(driver, "compile_segment", None)
    np.save(tmp_path / "x.npy", samples(6))
    f = figures_of(["run", net, tmp_path / "x.npy", *REFERENCE], tmp_path)
    assert f["samples"] == 6 and f["jobs"] == 2


def test_run_on_another_core_compiles_again_and_says_so(net, tmp_path, capsys):
    f = figures_of(["run", net, *REFERENCE, "--check", "exact", "--lanes", "8"], tmp_path)
    assert f["config"]["lanes"] == 8 and f["mismatch"] is None
    assert "compiled again: the core is 2 x 8" in capsys.readouterr().err


def test_run_tells_layers_apart(models, tmp_path, capsys):
    f = figures_of(["run", models("mnist_resnet_q.tflite"), *REFERENCE, "--per-layer", *CORE],
                   tmp_path)
    device = [step for step in f["steps"] if step["where"] == "device"]
    assert len(device) == 5 and sum(step["cycles"] for step in device) == f["cycles"]
    assert all(step["counters"]["issued"] > 0 for step in device)
    assert f["samples"] == 4 and sum(step["macs"] for step in device) == 4 * 494813
    captured = capsys.readouterr()
    assert "lost to" in captured.out and "random samples from seed 1" in captured.err


def test_run_counts_useful_work_of_given_samples_only(models, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 28, 28, 1), np.int8))
    f = figures_of(["run", models("mnist_resnet_q.tflite"), tmp_path / "x.npy", *REFERENCE, *CORE],
                   tmp_path)
    assert f["macs"] == 494813 and f["outputs"]["Identity"]["shape"] == [1, 10]


@pytest.fixture
def wrong(net, tmp_path):
    """A network file whose packed weights are not those of its graph."""
    file = read_network_file(net)
    item, path = file.compiled.programs[0], tmp_path / "wrong.smnet"
    image = bytearray(item.program.image)
    x = np.arange(-128, 128, dtype=np.int8)[:, None]
    right = run_golden(file.graph, x)
    for at in range(len(image) - 1, 4096, -7):
        image[at] ^= 0x08
        program = dataclasses.replace(item.program, image=bytes(image))
        compiled = dataclasses.replace(
            file.compiled, programs=(dataclasses.replace(item, program=program),))
        write_network_file(path, file.graph, file.config, compiled)
        np.save(tmp_path / "x.npy", x)
        if main(["run", str(path), str(tmp_path / "x.npy"), *REFERENCE,
                 "-o", str(tmp_path / "y.npy")]) == OK:
            if (np.load(tmp_path / "y.npy") != next(iter(right.values()))).any():
                return path
        image[at] ^= 0x08
    raise AssertionError("no byte matters")


def test_run_names_the_first_mismatch(wrong, tmp_path, capsys):
    out = tmp_path / "never.npy"
    f = figures_of(["run", wrong, tmp_path / "x.npy", *REFERENCE, "--check", "exact", "-o", out],
                   tmp_path, MISMATCH)
    m = f["mismatch"]
    assert m["layer"] and len(m["index"]) == 2 and m["expected"] != m["got"] and m["count"] > 0
    captured = capsys.readouterr()
    assert f"differs: {m['layer']}, sample {m['index'][0]}, channel 0" in captured.out
    assert "never.npy was not written" in captured.err and not out.exists()


@pytest.mark.slow
def test_run_records_the_waveform_of_a_mismatch(wrong, tmp_path, capsys):
    fst = tmp_path / "waves.fst"
    f = figures_of(["run", wrong, tmp_path / "x.npy", "--check", "exact", "--waveform", fst],
                   tmp_path, MISMATCH)
    w = f["waveform"]
    assert fst.stat().st_size > 1000 and w["first_cycle"] <= w["cycle"] <= w["last_cycle"]
    assert f"appears at {w['address']:#x}" in capsys.readouterr().out


def test_a_changed_golden_model_is_a_mismatch(net, tmp_path, capsys):
    file = read_network_file(net)
    golden = dataclasses.replace(file.golden, nodes=("0" * 64, *file.golden.nodes[1:]))
    path = tmp_path / "old.smnet"
    path.write_bytes(netfile._to_bytes(dataclasses.replace(file, golden=golden)))
    f = figures_of(["run", path, *REFERENCE, "--check", "exact"], tmp_path, MISMATCH)
    assert f["golden_checksums"] == file.graph.nodes[0].name
    assert "differs from when the file was written" in capsys.readouterr().out


def test_run_takes_inputs_of_every_kind(sine, tmp_path):
    (tmp_path / "a.csv").write_text("0.5\n1.5\n")
    (tmp_path / "b.bin").write_bytes(b"\x05")
    f = figures_of(["run", sine, tmp_path / "a.csv", tmp_path / "b.bin", *REFERENCE, *CORE],
                   tmp_path)
    assert f["samples"] == 3


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "{net}", "--waveform", "w.fst"], "--waveform must have --check"),
    (["run", "{net}", "--waveform", "w.fst", "--check", "exact", *REFERENCE], "used on sim:"),
    (["run", "{net}", "-o", "y.txt", *REFERENCE], "must end in .npy or .npz"),
    (["run", "{net}", "none.npy", *REFERENCE], "No such file"),
    (["run", "{net}", "--batch", "0", *REFERENCE], "batch must be 1 to"),
    (["run", "{net}", "--seed", "-1", *REFERENCE], "seed must be 0 to"),
    (["run", "none.tflite"], "No such file"),
    (["inspect", "{folder}"], "model must be a file, not the folder"),
    (["compile", "{net}", "-o", "x.bin"], "must end in .smnet"),
    (["compile", "{net}", "-o", "none/x.smnet"], "folder of the output file"),
    (["run", "{bad}"], "bad.smnet: not a network file"),
])
def test_bad_usage_names_the_rule(net, tmp_path, arguments, message, capsys):
    bad = tmp_path / "bad.smnet"
    bad.write_bytes(b"nothing")
    given = [a.format(net=net, folder=tmp_path, bad=bad) for a in arguments]
    assert main(given) == USAGE
    assert message in capsys.readouterr().err


def test_interrupted_run_leaves_no_file(models, tmp_path):
    x, out = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, np.zeros((4000, 28, 28, 1), np.int8))
    out.write_bytes(b"old")
    command = [sys.executable, "-m", "sparsemac_cli.main", "run", models("mnist_resnet_q.tflite"),
               str(x), *REFERENCE, "-o", str(out), *CORE]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                               cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    seen = b""
    while b"run 4000 samples" not in seen and process.poll() is None:
        seen += os.read(process.stderr.fileno(), 4096)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (seen, errors)
    assert b"interrupted" in errors and b"Traceback" not in errors and output == b""
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npy", "y.npy"]


def test_commands_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("inspect", "compile", "run"))
