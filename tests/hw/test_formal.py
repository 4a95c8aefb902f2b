# SPDX-License-Identifier: Apache-2.0
"""The proof helper: it tells right from wrong, reached from unreached, and names a missing tool."""

import pytest
from amaranth.hdl import Assert, Cover, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from sparsemac.errors import MissingDependency
from sparsemac_hw import formal


class Counter(wiring.Component):
    """Counts enabled cycles up to ``top`` and stays there; claims to stay below ``bound``."""

    def __init__(self, top, bound, goal=0):
        self.top, self.bound, self.goal = top, bound, goal
        super().__init__({"en": In(1)})

    def elaborate(self, platform):
        m = Module()
        count = Signal(4)
        with m.If(self.en & (count < self.top)):
            m.d.sync += count.eq(count + 1)
        m.d.comb += [
            Assert(count < self.bound, "bound"),
            Cover(count == self.goal, "goal"),
        ]
        return m


def run(tmp_path, counter, **options):
    try:
        return formal.check(counter, tmp_path, **options)
    except MissingDependency as error:
        pytest.skip(str(error))


def test_proves_what_holds_for_ever(tmp_path):
    result = run(tmp_path, Counter(5, 6))
    assert result.passed, result.log


def test_finds_a_run_that_breaks_a_claim(tmp_path):
    result = run(tmp_path, Counter(5, 5), depth=7)
    assert result.status == "FAIL" and not result.passed


def test_cover_is_reached_only_by_a_long_enough_run(tmp_path):
    assert run(tmp_path / "long", Counter(5, 6, goal=3), mode="cover", depth=5).passed
    assert run(tmp_path / "short", Counter(5, 6, goal=3), mode="cover", depth=3).status == "FAIL"


def test_missing_tool_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(formal.shutil, "which", lambda name, path: None if "z3" in name else name)
    with pytest.raises(MissingDependency, match=r"the tool 'z3'.*sparsemac\[formal\]"):
        formal.find_tools()
