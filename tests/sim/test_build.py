# SPDX-License-Identifier: Apache-2.0
"""The builder, and the two compressors that the wave writer gets from it."""

import random
import re
import subprocess
import zlib

import pytest
from sparsemac.errors import DeviceError
from sparsemac_sim import build
from sparsemac_sim.build import BuildOptions, build_library
from sparsemac_sim.verilog import with_random_power_up
from sparsemac_sim.waves import is_complete

SEED = 0xF57


def test_a_build_is_found_again(toolchain, copy_verilog, monkeypatch):
    first = build_library(copy_verilog, BuildOptions(bus_bytes=8))
    monkeypatch.setattr(build, "_run", None)  # nothing may be called the second time
    assert build_library(copy_verilog, BuildOptions(bus_bytes=8)) == first
    assert first.is_file()
    assert [p.name for p in first.parent.iterdir()] == ["core.so"]


def test_a_failing_tool_says_why(toolchain):
    with pytest.raises(DeviceError, match=r"Verilator failed with exit code 1 .*\n.*syntax error"):
        build_library("module sparsemac_core(; endmodule\n", BuildOptions(bus_bytes=8))


def test_random_power_up_takes_initial_values_of_registers_only(copy_verilog):
    text = with_random_power_up(copy_verilog)
    assert re.search(r"^  reg \[31:0\] address = 32'd0;$", copy_verilog, re.MULTILINE)
    assert re.search(r"^  reg \[31:0\] address ;$", text, re.MULTILINE)
    assert not re.search(r"^  reg .* = ", text, re.MULTILINE)
    assert text.count("initial begin") == copy_verilog.count("initial begin") > 0
    assert text.count("assign") == copy_verilog.count("assign")


_PROGRAM = r"""
#include <cstdio>
#include <string>
#include <lz4.h>
#include <zlib.h>
int main(int, char** argv) {
    std::string in, out;
    for (int c; (c = std::getchar()) != EOF;) in.push_back(c);
    if (argv[1][0] == 'l') {
        out.resize(LZ4_compressBound(in.size()));
        out.resize(LZ4_compress_default(in.data(), out.data(), in.size(), out.size()));
    } else {
        uLongf size = compressBound(in.size());
        out.resize(size);
        if (compress2((Bytef*)out.data(), &size, (const Bytef*)in.data(), in.size(), 9)) return 1;
        out.resize(size);
    }
    std::fwrite(out.data(), 1, out.size(), stdout);
}
"""


def lz4_decompressed(data):
    """Decodes an LZ4 block, by the description of its format."""
    out, at = bytearray(), 0

    def length(nibble):
        nonlocal at
        total = nibble
        while nibble == 15:
            total += data[at]
            at += 1
            if data[at - 1] != 255:
                break
        return total

    while True:
        token = data[at]
        at += 1
        literals = length(token >> 4)
        out += data[at : at + literals]
        at += literals
        if at == len(data):
            return bytes(out)
        distance = int.from_bytes(data[at : at + 2], "little")
        at += 2
        for _ in range(4 + length(token & 15)):
            out.append(out[-distance])


def samples():
    rng = random.Random(SEED)
    yield from (b"", b"a", b"abcdefghijklm", bytes(100), bytes(70_000), rng.randbytes(200_000))
    words = [rng.randbytes(rng.randrange(1, 40)) for _ in range(50)]
    yield b"".join(rng.choice(words) for _ in range(8000))
    yield b"".join(bytes([rng.randrange(4)]) * rng.randrange(1, 700) for _ in range(500))


def test_compressors_of_the_wave_writer_are_readable(toolchain, tmp_path):
    print(f"seed {SEED}")
    (tmp_path / "main.cpp").write_text(_PROGRAM)
    _, compiler = toolchain
    native = build._NATIVE / "fst"
    command = [compiler.path, "-std=gnu++20", "-O1", f"-I{native}", "main.cpp", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    for data in samples():
        for kind, decode in (("lz4", lz4_decompressed), ("zlib", zlib.decompress)):
            arguments = [tmp_path / "main", kind]
            out = subprocess.run(arguments, input=data, capture_output=True, check=True).stdout
            assert decode(out) == data, (kind, len(data))
            if kind == "lz4" and data == bytes(70_000):
                assert len(out) < 400


def test_a_cut_file_of_waves_is_incomplete(tmp_path):
    header = b"\0" + (329).to_bytes(8, "big") + bytes(321)
    whole = header + b"\6" + (12).to_bytes(8, "big") + b"hier"
    path = tmp_path / "a.fst"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert is_complete(path) == (length == len(whole))
    assert not is_complete(tmp_path / "missing.fst")
