# SPDX-License-Identifier: Apache-2.0
"""What can be made to go wrong on the bus of a simulated core.

An `Injection` is armed on a device before a run and fires once, except that a channel that is
`DEAD` stays so until the injections are cleared. Bursts are counted from the moment of arming,
reads and writes apart, in the order in which their addresses are taken.
"""

from dataclasses import dataclass
from enum import IntEnum

from sparsemac._checks import as_int_in

__all__ = ["Channel", "Injection", "Kind", "Response"]


class Channel(IntEnum):
    """The five channels of AXI4."""

    AR = 0
    R = 1
    AW = 2
    W = 3
    B = 4
    ALL = 5


class Response(IntEnum):
    """Responses of AXI4 (ARM IHI 0022, A3.4.4)."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


class Kind(IntEnum):
    """What goes wrong; `Channel` R or B unless it says more."""

    RESPONSE = 1  # R: `beat` of `burst` answers `value`; B: write `burst` answers `value`
    LAST_EARLY = 2  # R: RLAST comes with `beat`, and the burst ends there
    LAST_LATE = 3  # R: `value` beats too many, RLAST on the last of them
    LAST_MISSING = 4  # R: no RLAST
    WRONG_ID = 5  # R: the identifier of `beat` is exclusive-ored with `value`; B: of the response
    STRAY = 6  # R, B: a beat with identifier `value`, once nothing is outstanding and the next
    #            burst would be `burst`
    EARLY_RESPONSE = 7  # B: the response comes when the address is taken, before WLAST
    DEAD = 8  # any: the channel stops at `beat` of `burst` until the injections are cleared
    BUS_RESET = 9  # AR, AW: everything outstanding is forgotten when address `burst` is taken


_READ_ONLY = (Kind.LAST_EARLY, Kind.LAST_LATE, Kind.LAST_MISSING)
_ANSWERS = (Channel.R, Channel.B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One fault of the bus.

    Parameters
    ----------
    kind : Kind         What goes wrong.
    channel : Channel   Where.
    burst : int         In which burst from now on; 0 is the next whose address is taken.
    beat : int          At which beat of it, where the kind speaks of beats.
    value : int         Response, mask of the identifier or number of beats, as the kind says.
    """

    kind: Kind
    channel: Channel = Channel.R
    burst: int = 0
    beat: int = 0
    value: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "channel", Channel(self.channel))
        for name, high in (("burst", (1 << 62) - 1), ("beat", 511), ("value", 255)):
            object.__setattr__(self, name, as_int_in(name, getattr(self, name), 0, high))
        allowed = self._channels()
        if self.channel not in allowed:
            names = ", ".join(channel.name for channel in allowed)
            raise ValueError(
                f"channel of {self.kind.name} must be one of {names}, not {self.channel.name}"
            )

    def _channels(self) -> tuple[Channel, ...]:
        if self.kind in _READ_ONLY:
            return (Channel.R,)
        if self.kind == Kind.EARLY_RESPONSE:
            return (Channel.B,)
        if self.kind == Kind.BUS_RESET:
            return (Channel.AR, Channel.AW)
        return tuple(Channel) if self.kind == Kind.DEAD else _ANSWERS
