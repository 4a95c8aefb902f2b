# SPDX-License-Identifier: Apache-2.0
import json
import re
import subprocess
import sys

from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac_hw.bus import Axi4Signature, AxiLiteSignature
from sparsemac_hw.core import Core
from sparsemac_hw.emit import (
    _CONSTANT,
    CORE_NAME,
    EMITTED_FILES,
    _wake_constant,
    emit,
    emit_component,
    emit_verilog,
)
from sparsemac_hw.shared import instance_of
from sparsemac_hw.testing import simulate

SMALL = CoreConfig(engines=2, lanes=2, act_depth=64, entry_depth=16, psum_depth=16, bus_width=32)


class Ports(wiring.Component):
    """Has the ports of a core, a signed one, and two memories."""

    def __init__(self, width=64, init=()):
        self.init = list(init)
        super().__init__({
            "s_axil": In(AxiLiteSignature(12)),
            "m_axi": Out(Axi4Signature(width)),
            "irq": Out(1),
            "offset": In(signed(5)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=32, depth=16, init=self.init)
        read = memory.read_port()
        m.d.comb += [read.addr.eq(self.s_axil.araddr), self.s_axil.rdata.eq(read.data)]
        m.d.sync += self.irq.eq(self.offset < 0)
        return m


def test_writes_every_file_and_makes_the_folder(tmp_path):
    paths = emit_component(Ports(), SMALL, tmp_path / "a" / "b")
    assert [p.name for p in paths] == list(EMITTED_FILES)
    assert all(p.stat().st_size for p in paths)
    assert (tmp_path / "a" / "b" / "files.f").read_text() == "core.v\n"


def test_json_keeps_signedness_direction_and_width(tmp_path):
    emit_component(Ports(128), SMALL, tmp_path)
    document = json.loads((tmp_path / "core.json").read_text())
    ports = {p["name"]: (p["direction"], p["width"], p["signed"]) for p in document["ports"]}
    assert ports["offset"] == ("in", 5, True)
    assert ports["clk"] == ports["rst"] == ("in", 1, False)
    assert ports["m_axi__rdata"] == ("in", 128, False)
    assert ports["m_axi__awaddr"] == ("out", 32, False)
    assert ports["s_axil__awaddr"] == ("in", 12, False)
    assert document["config_hash"] == SMALL.hash
    assert CoreConfig.from_dict(document["config"]) == SMALL
    text = (tmp_path / "core.v").read_text()
    assert f"module {CORE_NAME}(" in text
    for name in ports:
        assert name in text


def test_folds_equal_initial_words_and_keeps_others():
    zeros = emit_verilog(Ports(), "top")
    assert "for (i = 0; i < 16; i = i + 1)" in zeros
    assert "[3] = " not in zeros
    words = emit_verilog(Ports(init=range(16)), "top")
    assert "[3] = 32'd3;" in words
    assert "for (i" not in words


class Constant(wiring.Component):
    """Drives some bits of a signal by a constant, the others not."""

    def __init__(self):
        super().__init__({"i": In(4), "o": Out(8), "held": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.o[4:].eq(self.i), self.o[:4].eq(5)]
        m.d.sync += self.held.eq(self.i[0])
        return m


def test_no_block_waits_for_a_constant_to_change():
    blocks = re.findall(r"always @\*\n +(.*);", emit_verilog(Constant(), "top"))
    assert not [block for block in blocks if re.search(r"= \d+'h", block)]
    text = "module top();\n  always @*\n    \\o.x [7:4] = 4'h5;\nendmodule\n"
    woken = _CONSTANT.sub(_wake_constant, text)
    assert woken.splitlines()[1:6] == [
        "  reg \\once$14  = 1'h0;",
        "  always @* begin",
        "    if (\\once$14 ) begin end",
        "    \\o.x [7:4] = 4'h5;",
        "  end",
    ]


class Part(wiring.Component):
    """Counts while it is enabled; has an array among its members."""

    def __init__(self):
        super().__init__({"enable": In(1).array(2), "count": Out(4)})

    def elaborate(self, platform):
        m = Module()
        with m.If(self.enable[0] & self.enable[1]):
            m.d.sync += self.count.eq(self.count + 1)
        return m


class Many(wiring.Component):
    """Three parts, cleared together."""

    def __init__(self):
        super().__init__({"enable": In(2), "clear": In(1), "counts": Out(12)})

    def elaborate(self, platform):
        m = Module()
        for i in range(3):
            part, m.submodules[f"part_{i}"] = instance_of("part", Part, self.clear, platform)
            m.d.comb += [part.enable[0].eq(self.enable[0]), part.enable[1].eq(self.enable[1]),
                         self.counts[4 * i : 4 * i + 4].eq(part.count)]
        return m


def test_parts_are_emitted_once():
    text = emit_verilog(Many(), "top")
    assert len(re.findall(r"^module part\(", text, re.M)) == 1
    assert len(re.findall(r"^  part part_\d \(", text, re.M)) == 3
    assert text.count(".enable__1(") == 3
    core = emit_verilog(Core(SMALL.replace(engines=3)), CORE_NAME)
    assert len(re.findall(r"^  sparsemac_engine engine_\d \(", core, re.M)) == 3
    assert len(re.findall(r"^module sparsemac_engine\(", core, re.M)) == 1


def test_parts_are_cleared_in_the_simulator():
    dut = Many()

    async def bench(ctx):
        ctx.set(dut.enable, 3)
        await ctx.tick().repeat(5)
        assert ctx.get(dut.counts) == 0x555
        ctx.set(dut.clear, 1)
        await ctx.tick()
        assert ctx.get(dut.counts) == 0

    simulate(dut, bench)


_TWICE = """
import json, sys
from sparsemac.config import CoreConfig
from sparsemac_hw.emit import emit
emit(CoreConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def test_two_processes_emit_the_same_bytes_without_a_path(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    emit(SMALL, one)
    # Another process has another hash seed and other object addresses.
    arguments = [sys.executable, "-c", _TWICE, json.dumps(SMALL.as_dict()), str(two)]
    subprocess.run(arguments, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    for name in EMITTED_FILES:
        data = (one / name).read_bytes()
        assert data == (two / name).read_bytes(), name
        assert str(tmp_path).encode() not in data
        assert b"site-packages" not in data and b".py" not in data, name
