# SPDX-License-Identifier: Apache-2.0
"""The PLL's dividers."""

import pytest

pytest.importorskip("amaranth_boards", reason="amaranth-boards is missing: sparsemac[ecp5]")

from sparsemac_boards.ulx3s import OSCILLATOR_HZ, VCO_HZ, pll_dividers  # noqa: E402


def test_every_clock_that_the_dividers_can_make_is_made_or_refused():
    for clock_hz in range(12_500_000, 400_000_001, 12_500_000):
        try:
            reference, feedback, output = pll_dividers(clock_hz)
        except ValueError as error:
            assert "nearest legal value" in str(error)
            continue
        assert OSCILLATOR_HZ * feedback == clock_hz * reference
        assert VCO_HZ[0] <= clock_hz * output <= VCO_HZ[1]
        assert 1 <= output <= 128


@pytest.mark.parametrize("clock_hz", [12_500_000, 37_500_000, 50_000_000, 100_000_000])
def test_pll_makes_the_clock_within_its_limits(clock_hz):
    reference, feedback, output = pll_dividers(clock_hz)
    assert OSCILLATOR_HZ * feedback == clock_hz * reference
    assert VCO_HZ[0] <= clock_hz * output <= VCO_HZ[1]


def test_pll_refuses_a_clock_that_it_cannot_make_and_names_the_nearest():
    with pytest.raises(ValueError, match=r"not 40000000 \(nearest legal value: 37500000\)$"):
        pll_dividers(40_000_000)
