# SPDX-License-Identifier: Apache-2.0
"""Proofs of the register bank, for any host: responses, locks and the interrupt."""

import pytest
from amaranth.hdl import Assert, Cat, Cover, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from sparsemac.config import CoreConfig
from sparsemac.errors import MissingDependency
from sparsemac_hw.bank import RegisterBank
from sparsemac_hw.bus import AxiLiteSignature
from sparsemac_hw.formal import check, find_tools


class ForgetfulBank(RegisterBank):
    """A bank that loses the response to a write if the host is ready for it too early."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.bus.bready):
            m.d.sync += self.bus.bvalid.eq(0)
        return m


class OpenBank(RegisterBank):
    """A bank that lets a window change under a lock."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.bus.wvalid):
            m.d.sync += self.windows[1].write.eq(1)
        return m


class Rules(wiring.Component):
    """A bank with free inputs, and what it promises."""

    def __init__(self, bank):
        self.bank = bank
        super().__init__({
            "bus": In(AxiLiteSignature(12)),
            "locked": In(1),
            "start_refused": In(1),
            "done_set": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.bank = bank = self.bank
        wiring.connect(m, wiring.flipped(self.bus), bank.bus)
        for name in ("locked", "start_refused", "done_set"):
            m.d.comb += getattr(bank, name).eq(getattr(self, name))
        self._state_responses(m)
        self._state_stability(m, "b", bank.bus.bresp)
        self._state_stability(m, "r", bank.bus.rresp, bank.bus.rdata)
        self._state_locks(m)
        m.d.comb += [
            Cover(bank.bus.bvalid & (bank.bus.bresp == 0), "written"),
            Cover(bank.bus.bvalid & (bank.bus.bresp == 2), "refused"),
            Cover(bank.bus.rvalid & (bank.bus.rdata == 0x434D_5053), "read"),
            Cover(bank.ctrl_start, "started"),
            Cover(bank.irq & bank.windows[0].write, "interrupt"),
        ]
        return m

    def _state_responses(self, m):
        """B7: a response for each transfer, none without; a ready channel whenever one is free."""
        bus = self.bank.bus
        answers = {"aw": "b", "w": "b", "ar": "r"}
        for request, answer in answers.items():
            owed = Signal(2, name=f"{request}_owed")
            asked = getattr(bus, f"{request}valid") & getattr(bus, f"{request}ready")
            answering = getattr(bus, f"{answer}valid")
            m.d.sync += owed.eq(owed + asked - (answering & getattr(bus, f"{answer}ready")))
            if request == "ar":
                m.d.comb += Assert(bus.arready == (owed == 0), "a read lost or doubled")
            else:
                free = owed == answering
                m.d.comb += Assert(getattr(bus, f"{request}ready") == free, "a write lost")
            m.d.comb += Assert(~answering | owed.any(), "a response to nothing")
            m.d.comb += Assert(owed <= 1 + (answering if answer == "b" else 0), "too many")

    def _state_stability(self, m, channel, *payload):
        """A response stays until it is taken."""
        bus = self.bank.bus
        valid = getattr(bus, f"{channel}valid")
        stalled, held = Signal(name=f"{channel}_stalled"), Signal(len(Cat(payload)))
        m.d.sync += [
            stalled.eq(valid & ~getattr(bus, f"{channel}ready") & ~ResetSignal()),
            held.eq(Cat(payload)),
        ]
        with m.If(stalled):
            m.d.comb += Assert(valid & (Cat(payload) == held), "a response withdrawn")

    def _state_locks(self, m):
        """B4, B5, B9: nothing locked changes, no start is let through, no event is cleared."""
        bank = self.bank
        locked = Cat(
            Value.cast(bank.windows), bank.command_address, bank.command_count, bank.watchdog
        )
        held, was_locked, was_set = Signal(len(locked)), Signal(), Signal()
        m.d.sync += [
            held.eq(locked),
            was_locked.eq(self.locked & ~ResetSignal()),
            was_set.eq(self.done_set & ~ResetSignal()),
        ]
        with m.If(was_locked):
            m.d.comb += Assert(locked == held, "changed under lock")
        with m.If(was_set):
            m.d.comb += Assert(bank.irq == bank.irq_enable_done, "an event was lost")
        with m.If(bank.ctrl_start):
            m.d.comb += Assert(
                ~self.start_refused & ~bank.ctrl_abort & ~bank.ctrl_soft_reset, "a start too many"
            )


@pytest.fixture(scope="module", autouse=True)
def tools():
    try:
        return find_tools()
    except MissingDependency as error:
        pytest.skip(str(error))


def test_B4_B5_B7_B9_hold_for_any_host(tmp_path):
    # A read that is under way shows by its answer: the induction is longer than that takes.
    depth = RegisterBank.READ_CYCLES + 2
    result = check(Rules(RegisterBank(CoreConfig())), tmp_path, depth=depth)
    assert result.passed, result.log


def test_host_can_reach_every_outcome(tmp_path):
    result = check(Rules(RegisterBank(CoreConfig(windows=2))), tmp_path, mode="cover",
                   depth=RegisterBank.READ_CYCLES + 5)
    assert result.passed, result.log


@pytest.mark.parametrize("faulty", [ForgetfulBank, OpenBank])
def test_proof_fails_on_a_faulty_bank(faulty, tmp_path):
    result = check(Rules(faulty(CoreConfig())), tmp_path, depth=5)
    assert result.status == "FAIL", result.log
