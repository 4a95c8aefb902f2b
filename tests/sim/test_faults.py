# SPDX-License-Identifier: Apache-2.0
import pytest
from sparsemac_sim.faults import Channel, Injection, Kind


@pytest.mark.parametrize(
    ("kind", "channel"),
    [
        (Kind.LAST_EARLY, Channel.B),
        (Kind.EARLY_RESPONSE, Channel.R),
        (Kind.BUS_RESET, Channel.W),
        (Kind.RESPONSE, Channel.AW),
        (Kind.STRAY, Channel.ALL),
    ],
)
def test_kinds_refuse_channels_that_they_do_not_know(kind, channel):
    with pytest.raises(ValueError, match=rf"channel of {kind.name} must be one of .*, not"):
        Injection(kind=kind, channel=channel)


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="beat must be 0 to 511, not -1"):
        Injection(kind=Kind.RESPONSE, beat=-1)
    with pytest.raises(TypeError, match="burst must be an integer"):
        Injection(kind=Kind.RESPONSE, burst=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Injection(kind=99)  # type: ignore[arg-type]


def test_every_channel_can_die():
    for channel in Channel:
        assert Injection(kind=Kind.DEAD, channel=channel).channel == channel
