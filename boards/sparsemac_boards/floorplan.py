# SPDX-License-Identifier: Apache-2.0
"""Where the DSP slices of a core's paired sums stand on an ECP5.

nextpnr's electrostatic placer does not keep an adder beside its two multipliers unless all three
are told where to stand. They stand in the middle rows of slices, in the order of the lanes: along
one row, and back along the next. What travels from lane to lane so has a short way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sparsemac.config import CoreConfig

__all__ = ["DEVICES", "place_sums"]


@dataclass(frozen=True, slots=True)
class DspRows:
    """The DSP slices of a device, as Project Trellis' grids of tiles have them.

    Attributes
    ----------
    rows : tuple of int       Rows of tiles with DSP blocks.
    columns : tuple of int    Where blocks begin in each; a block has two slices.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def slices(self) -> int:
        """How many there are."""
        return len(self.rows) * len(self.columns) * 2

    def walk(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yields the place of each of so many slices in the middle: column, row, index in block."""
        per_row = len(self.columns) * 2
        needed = -(-count // per_row)
        first = (len(self.rows) - needed) // 2
        places = []
        for k, row in enumerate(self.rows[first : first + needed]):
            along = [(column + 4 * half, row, 4 * half) for column in self.columns
                     for half in range(2)]
            places += along[::-1] if k % 2 else along
        skipped = (len(places) - count) // 2
        yield from places[skipped : skipped + count]


DEVICES = {
    "LFE5U-25F": DspRows((13,), (4, 13, 22, 33, 42, 51, 60)),
    "LFE5U-45F": DspRows((22, 46), (4, 13, 22, 31, 42, 51, 60, 69, 78)),
    "LFE5U-85F": DspRows((10, 34, 58), (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)),
}


def place_sums(config: CoreConfig, device: str) -> str:
    """Returns yosys' commands that tell nextpnr where a flattened design's paired sums stand.

    If the device has fewer slices, nothing is told: nextpnr says best what does not fit.

    Parameters
    ----------
    config : CoreConfig    Of the core somewhere in the design, made of an ECP5's blocks.
    device : str           One of `DEVICES`.
    """
    pairs = [f"*engine_{e}.lanes.sums_{v}" for e in range(config.engines)
             for v in range(0, config.lanes - 1, 2)]
    sites = DEVICES[device]
    if len(pairs) > sites.slices:
        return ""
    commands = []
    for pair, (x, y, z) in zip(pairs, sites.walk(len(pairs)), strict=True):
        for cell, place in (("multiplier_0", f"X{x}/Y{y}/MULT18_{z}"),
                            ("multiplier_1", f"X{x + 1}/Y{y}/MULT18_{z + 1}"),
                            ("adder", f"X{x + 3}/Y{y}/ALU54_{z + 3}")):
            commands.append(f'setattr -set BEL "{place}" c:{pair}.{cell}')
    return "; ".join(commands)
