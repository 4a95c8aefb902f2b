# SPDX-License-Identifier: Apache-2.0
"""The boards there are, and the core that suits each."""

from dataclasses import dataclass

from sparsemac.config import CoreConfig

__all__ = ["BOARDS", "Board", "Part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What an FPGA has.

    Attributes
    ----------
    name : str
    luts, flip_flops, multipliers, block_rams : int    As nextpnr's report counts them.
    """

    name: str
    luts: int
    flip_flops: int
    multipliers: int
    block_rams: int


#: As nextpnr's database counts (Lattice FPGA-DS-02012, table 1.1, rounds the LUTs to 84,000).
LFE5U_85F = Part(
    name="LFE5U-85F", luts=83_640, flip_flops=83_640, multipliers=156, block_rams=208)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What a board's build needs to know.

    Attributes
    ----------
    name : str
    config : CoreConfig     The core that it holds.
    memory_bytes : int      On-chip memory.
    clock_hz : int          Clock of the core, from the board's PLL.
    baud : int              Rate of the serial line.
    platform : str          Class of `amaranth_boards` as ``module:class``.
    part : Part
    """

    name: str
    config: CoreConfig
    memory_bytes: int
    clock_hz: int
    baud: int
    platform: str
    part: Part

    @property
    def divisor(self) -> int:
        """Cycles of a bit on the serial line."""
        return round(self.clock_hz / self.baud)


BOARDS = {
    board.name: board
    for board in (
        Board(
            name="ulx3s-85f",
            config=CoreConfig(engines=2, lanes=8, act_depth=2048, entry_depth=512, psum_depth=512),
            memory_bytes=1 << 16,
            clock_hz=37_500_000,
            baud=1_000_000,
            platform="amaranth_boards.ulx3s:ULX3S_85F_Platform",
            part=LFE5U_85F,
        ),
    )
}
