# SPDX-License-Identifier: Apache-2.0
"""The rewriting of a core's Verilog: what becomes of each form, and what is left alone."""

import re

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from sparsemac.config import CoreConfig
from sparsemac_hw.emit import emit_verilog
from sparsemac_sim.verilog import fast_verilog, shared_modules


class Counter(wiring.Component):
    """Counts while ``en``; ``ahead`` is the next value of a register of its own."""

    def __init__(self):
        super().__init__({"en": In(1), "byte": In(8), "count": Out(8), "ahead": Out(4),
                          "parts": Out(16), "masked": Out(8)})

    def elaborate(self, platform):
        m = Module()
        with m.If(self.en):
            m.d.sync += [self.count.eq(self.count + 1), self.parts[8:].eq(self.byte)]
        following, kept = Signal(4), Signal(4)
        m.d.comb += [following.eq(Mux(self.en, kept + 3, kept)), self.ahead.eq(following),
                     self.masked.eq(self.byte & self.en.replicate(8))]
        m.d.sync += kept.eq(following)
        return m


class Pair(wiring.Component):
    """Two counters."""

    def __init__(self):
        super().__init__({"en": In(2), "byte": In(8), "out": Out(72)})

    def elaborate(self, platform):
        m = Module()
        twins = [Counter(), Counter()]
        for i, twin in enumerate(twins):
            m.submodules[f"twin_{i}"] = twin
            m.d.comb += [twin.en.eq(self.en[i]), twin.byte.eq(self.byte)]
        m.d.comb += self.out.eq(Cat(*(Cat(t.count, t.ahead, t.parts, t.masked) for t in twins)))
        return m


@pytest.fixture(scope="module")
def counter():
    return emit_verilog(Counter(), "counter")


def test_a_register_is_assigned_where_its_next_value_is_found(counter):
    text = fast_verilog(counter)
    assert re.search(r"always @\(posedge clk\)\n    count <= \\\$\d+ ;", counter)
    assert re.search(r"always @\(posedge clk\) begin\n    if \(en\) begin\n      count <= ", text)
    assert not re.search(r"count <= count;", text)
    assert text.count("always @(posedge clk)") == counter.count("always @(posedge clk)")
    assert text.count("always @*") < counter.count("always @*")


def test_no_signal_is_lost_or_left_over(counter):
    text = fast_verilog(counter)
    for name in set(re.findall(r"\\\$\d+ ", text)):
        declared = re.findall(rf"^  (?:wire|reg) (?:\[[\d:]+\] )?{re.escape(name)};", text,
                              re.MULTILINE)
        assert len(declared) == 1, name
        assert text.count(name) > 1, name


_READ_BY_OTHERS = r"""module m(clk, en, out);
  reg [3:0] \$1 ;
  reg [3:0] q;
  always @(posedge clk)
    q <= \$1 ;
  always @* begin
    if (\$verilog_backend ) begin end
    \$1  = q;
    if (en) begin
      \$1  = 4'h3;
      \$1 [1:0] = en;
    end
  end
  assign out = \$1 ;
endmodule
"""

_FOLDED = """module m(clk, en, out);
  reg [3:0] q;
  always @(posedge clk) begin
    if (en) begin
      q <= 4'h3;
      q[1:0] <= en;
    end
  end
endmodule
"""


def test_a_next_value_that_others_read_stays():
    assert fast_verilog(_READ_BY_OTHERS) == _READ_BY_OTHERS
    assert fast_verilog(_READ_BY_OTHERS.replace("  assign out = \\$1 ;\n", "")) == _FOLDED


@pytest.mark.parametrize(("before", "after"), [
    ("assign y = { a, a, a };", "assign y = { {3{a}} };"),
    ("assign y = { \\b , \\b , \\b , c[1], c[1] };", "assign y = { {3{\\b }}, c[1], c[1] };"),
    ("assign y = a & { t[1], t[1], t[1] };", "assign y = t[1] ? a : 3'd0;"),
    ("assign y = \\b  & { \\t , \\t , \\t  };", "assign y = \\t  ? \\b  : 3'd0;"),
    ("assign y = wide & { t, t, t };", "assign y = wide & { {3{t}} };"),
    ("assign y = a & { t, t, t, u };", "assign y = a & { {3{t}}, u };"),
])
def test_repeated_bits(before, after):
    head = "module m(a);\n  wire [2:0] a;\n  wire [2:0] \\b ;\n  wire [3:0] wide;\n  "
    assert fast_verilog(f"{head}{before}\nendmodule\n") == f"{head}{after}\nendmodule\n"


def test_modules_with_several_instances_keep_their_ports(counter):
    assert shared_modules(counter) == "`verilator_config\n"
    assert shared_modules(emit_verilog(Pair(), "pair")) == "`verilator_config\n"
    control = shared_modules(emit_verilog_of_core())
    assert control.count("no_inline") == 1
    assert 'no_inline -module "sparsemac_engine"' in control
    assert 'public_flat_rd -module "sparsemac_engine" -var "i__payload"' in control
    assert '"clk"' not in control


def emit_verilog_of_core():
    from sparsemac_hw.core import Core

    config = CoreConfig(engines=2, lanes=1, depth=16, act_depth=64, entry_depth=16, psum_depth=16)
    return emit_verilog(Core(config), "sparsemac_core")
