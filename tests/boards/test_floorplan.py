# SPDX-License-Identifier: Apache-2.0
"""Places of paired sums: by themselves and, slow, with the tools that have to accept them."""

import importlib
import re
import subprocess
from itertools import pairwise
from types import SimpleNamespace

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac_boards.floorplan import DEVICES, place_sums
from sparsemac_boards.registry import BOARDS
from sparsemac_hw.ecp5 import PairedSums
from sparsemac_hw.emit import emit_verilog

DEVICE = "LFE5U-85F"
COMMAND = re.compile(r'setattr -set BEL "X(\d+)/Y(\d+)/(MULT18|ALU54)_(\d)" c:(\S+)')


def placed(config, device=DEVICE):
    """Cells and their places."""
    commands = place_sums(config, device).split("; ")
    found = [COMMAND.fullmatch(command) for command in commands]
    return {m[5]: (int(m[1]), int(m[2]), m[3], int(m[4])) for m in found}


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_a_board_s_device_is_known_with_all_its_slices(board):
    part = BOARDS[board].part
    assert 2 * DEVICES[part.name].slices == part.multipliers


@pytest.mark.parametrize(("engines", "lanes"), [(1, 2), (1, 128), (2, 64), (8, 8), (16, 1)])
def test_each_adder_stands_beside_its_multipliers_and_none_on_another(engines, lanes):
    config = CoreConfig(engines=engines, lanes=lanes, fifo_depth=64)
    if lanes == 1:
        assert place_sums(config, DEVICE) == ""
        return
    cells = placed(config)
    assert len(set(cells.values())) == len(cells) == 3 * engines * (lanes // 2)
    for e in range(engines):
        for v in range(0, lanes, 2):
            name = f"*engine_{e}.lanes.sums_{v}"
            x, y, _, z = cells[f"{name}.multiplier_0"]
            assert cells[f"{name}.multiplier_1"] == (x + 1, y, "MULT18", z + 1)
            assert cells[f"{name}.adder"] == (x + 3, y, "ALU54", z + 3)


def test_neighbouring_lanes_stand_side_by_side():
    cells = placed(CoreConfig(engines=1, lanes=128, fifo_depth=64))
    adders = [place for name, place in cells.items() if name.endswith("adder")]
    for (x, y, *_), (next_x, next_y, *_) in pairwise(adders):
        assert (abs(next_x - x) <= 7) if next_y == y else next_x == x


def test_more_sums_than_slices_are_left_to_the_placer_to_refuse():
    assert place_sums(CoreConfig(engines=1, lanes=32, fifo_depth=64), "LFE5U-25F") == ""
    assert place_sums(CoreConfig(engines=1, lanes=16, fifo_depth=64), "LFE5U-25F")


class _Lanes(wiring.Component):
    """As many paired sums as a core of this configuration has, where it has them."""

    def __init__(self, config, depth=0):
        self._config, self._depth = config, depth
        super().__init__({"i": In(8), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        if self._depth < 2:
            inner = _Lanes(self._config, self._depth + 1)
            m.submodules[("engine_0", "lanes")[self._depth]] = inner
            m.d.comb += [inner.i.eq(self.i), self.o.eq(inner.o)]
            return m
        now, parity = self.i, Signal()
        for v in range(0, self._config.lanes, 2):
            m.submodules[f"sums_{v}"] = sums = PairedSums(20)
            later, total = Signal(8, name=f"later_{v}"), Signal(40, name=f"total_{v}")
            m.d.sync += [later.eq(now), total.eq(sums.o[0] ^ (sums.o[1] << 20))]
            m.d.comb += [a.eq(now) for a in sums.i_a]
            m.d.comb += [sums.i_b.eq(now), sums.i_starts.eq(now[0])]
            last, parity = parity, Signal(name=f"parity_{v}")
            m.d.sync += parity.eq(last ^ total.xor())
            now = later
        m.d.comb += self.o.eq(parity)
        return m


@pytest.mark.slow
@pytest.mark.parametrize(("device", "option"), [
    ("LFE5U-25F", "--25k"), ("LFE5U-45F", "--45k"), ("LFE5U-85F", "--85k")])
def test_tools_place_and_route_sums_in_every_slice(device, option, tmp_path):
    pytest.importorskip("amaranth_boards", reason="amaranth-boards is missing: sparsemac[ecp5]")
    build = importlib.import_module("sparsemac_boards.build")
    config = SimpleNamespace(engines=1, lanes=2 * DEVICES[device].slices)
    tools = build.find_tools()
    (tmp_path / "top.v").write_text(emit_verilog(_Lanes(config), "top", "ecp5"))
    script = "; ".join((
        "read_verilog top.v", build.synth_to_luts("top"), f"synth_ecp5 -top top {build.SYNTH_REST}",
        place_sums(config, device), "write_json top.json"))
    subprocess.run([tools["YOSYS"], "-q", "-p", script], cwd=tmp_path, check=True)
    subprocess.run([tools["NEXTPNR_ECP5"], option, "--json", "top.json", "--out-of-context", "-q",
                    *build.PLACE_AND_ROUTE, "--timing-allow-fail"], cwd=tmp_path, check=True)
