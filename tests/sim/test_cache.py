# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sparsemac.errors import DeviceError
from sparsemac_sim.cache import cache_folder, cached, content_hash


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEMAC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_own_variable_goes_before_the_common_one(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("SPARSEMAC_CACHE", raising=False)
    assert cache_folder() == Path("/x/sparsemac")
    monkeypatch.setenv("SPARSEMAC_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("SPARSEMAC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sparsemac"


def test_hash_depends_on_where_parts_end():
    assert content_hash(["ab", "c"]) != content_hash(["a", "bc"])
    assert content_hash(["ab"]) == content_hash([b"ab"])


def test_makes_an_entry_once(folder):
    made = []

    def make(work):
        made.append(work)
        (work / "a").write_text("x")

    first = cached("kind/key", make)
    assert first == cached("kind/key", make) == folder / "kind" / "key"
    assert len(made) == 1
    assert (first / "a").read_text() == "x"
    assert not made[0].exists()


def test_a_failed_or_interrupted_build_leaves_nothing(folder):
    def fail(work):
        (work / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("kind/key", fail)
    left = [p.name for p in (folder / "kind").iterdir()]
    assert left == [".key.lock"]
    assert cached("kind/key", lambda work: None).is_dir()


_SLOW = """
import sys, time
from pathlib import Path
from sparsemac_sim.cache import cached
def make(work):
    with Path(sys.argv[1]).open("a") as log:
        log.write("made\\n")
    time.sleep(0.5)
print(cached("kind/key", make).is_dir())
"""


def test_a_second_process_waits_for_the_first(folder, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", _SLOW, str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "True\n")
    assert log.read_text() == "made\n"


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEMAC_CACHE", str(tmp_path / "file"))
    start = time.perf_counter()
    with pytest.raises(DeviceError, match="set SPARSEMAC_CACHE to a folder that can be written"):
        cached("kind/key", lambda work: None)
    assert time.perf_counter() - start < 1
