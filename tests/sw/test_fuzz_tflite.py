# SPDX-License-Identifier: Apache-2.0
"""Damaged TensorFlow Lite files: each loads or raises ModelError, soon, and in little memory."""

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from sparsemac.errors import ModelError
from sparsemac.graph import run_golden
from sparsemac.hostops import HostOperationError
from sparsemac.importers import load_model

resource = pytest.importorskip("resource", reason="needs a system that limits memory")
pytest.importorskip("tflite", reason="needs the package tflite: pip install 'sparsemac[tflite]'")

from support.tflite_cases import CASES  # noqa: E402

#: Integers that offsets, lengths and shapes break at.
EDGES = (0, 1, -1, 2, 4, 127, 128, 255, 256, 32767, 65535, 65536, 1 << 20, 1 << 24, (1 << 28) - 1,
         1 << 28, (1 << 31) - 1, -(1 << 31), 0x7F800000, 0x7FC00000)

#: Of address space, more than before [bytes]. No file here has a megabyte.
MEMORY = 1 << 30

#: To read one file [seconds].
PATIENCE = 5.0

#: Values of a graph that loads and is run [elements].
SMALL = 1 << 18


def mutated(data, rng):
    """One damaged copy: a few bytes, a few words, a cut, or a piece put somewhere else."""
    out = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randint(1, 4)):
            struct.pack_into("<i", out, rng.randrange(len(out) // 4) * 4, rng.choice(EDGES))
    elif kind == 2:
        at = rng.randrange(len(out) // 4) * 4
        value, = struct.unpack_from("<i", out, at)
        value = (value + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8))) & 0xFFFFFFFF
        struct.pack_into("<I", out, at, value)
    elif kind == 3:
        del out[rng.randrange(len(out)):]
    else:
        length = rng.randint(1, 64)
        source, target = (rng.randrange(max(len(out) - length, 1)) for _ in range(2))
        out[target:target + length] = out[source:source + length]
    return bytes(out)


@pytest.fixture
def little_memory():
    """Lets the process have `MEMORY` more than it has; what needs more gets a MemoryError."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("needs a system that tells a process its address space")
    now = int(statm.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def survives(path, data):
    """Reads a file, and runs what loads if it is small; says whether it loaded."""
    path.write_bytes(data)
    start = time.monotonic()
    try:
        graph = load_model(path)
    except ModelError as error:
        assert len(str(error)) < 2000
        return False
    finally:
        assert time.monotonic() - start < PATIENCE
    shapes = [value.shape or () for value in graph.values.values()]
    if sum(int(np.prod(s, dtype=np.int64)) for s in shapes) < SMALL:
        inputs = {name: np.ones(graph.values[name].shape or (), graph.values[name].dtype)
                  for name in graph.inputs}
        try:
            outputs = run_golden(graph, inputs)
        except HostOperationError:
            return True
        for name, array in outputs.items():
            assert array.shape == graph.values[name].shape
            assert array.dtype == graph.values[name].dtype
    return True


def fuzz(folder, bases, count, seed):
    rng = random.Random(seed)
    loaded = 0
    for i in range(count):
        base = bases[i % len(bases)]
        data = mutated(base, rng)
        try:
            loaded += survives(folder / "model.tflite", data)
        except Exception as error:
            (folder / "broken.tflite").write_bytes(data)
            raise AssertionError(f"seed {seed}, file {i}: {error!r}; {folder}/broken.tflite") \
                from error
    print(f"seed {seed}: {loaded} of {count} damaged files load")
    return loaded


def test_damaged_files_load_or_are_refused(tmp_path, little_memory):
    bases = [model.to_bytes() for model in CASES.values()]
    assert 0 < fuzz(tmp_path, bases, 2 * len(bases), seed=1) < 2 * len(bases)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_damaged_files_load_or_are_refused(tmp_path, little_memory, seed):
    fuzz(tmp_path, [model.to_bytes() for model in CASES.values()], 2000, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "hello_world_int8", "micro_speech_quantized", "kws_ref_model", "mnist_resnet_q"])
def test_damaged_published_files_load_or_are_refused(tmp_path, data_dir, little_memory, name):
    path = data_dir / "models" / f"{name}.tflite"
    if not path.is_file():
        pytest.skip(f"the data folder lacks models/{name}.tflite")
    fuzz(tmp_path, [path.read_bytes()], 300, seed=7)
