# SPDX-License-Identifier: Apache-2.0
"""Parts that are emitted as Verilog modules of their own, with one reset.

Amaranth writes a module for each instance. For dozens of engines that is most of the text, and
most of the time that a simulator takes to compile it. And it resets the registers of a part with
the clock domain *or* with what clears the part: a LUT and a long wire more in front of most of
them. So emission passes a `SharedModules` as the platform: parts that are alike are instances of
one module, and its reset is what clears it. Everywhere else (Amaranth's simulator, formal checks,
builds for a board) parts are plain submodules.
"""

from collections.abc import Callable, Iterator
from typing import Any

from amaranth.hdl import ClockSignal, Const, Instance, ResetInserter, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["FAMILIES", "SharedModules", "instance_of", "ports_of"]

#: What a design can be elaborated for: anything, or an FPGA whose own blocks parts are made of.
FAMILIES = ("portable", "ecp5")


class SharedModules:
    """The modules that instances refer to; pass it as the platform.

    Parameters
    ----------
    family : str         One of `FAMILIES`; parts ask the platform for it, as they ask that of a
                         board.

    Attributes
    ----------
    components : dict    One component of each module, by name. Whoever emits the design emits
                         these too.
    """

    def __init__(self, family: str = "portable") -> None:
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
        self.family = family
        self.components: dict[str, wiring.Component] = {}


def instance_of(
    name: str, make: Callable[[], wiring.Component], clear: Signal, platform: object
) -> tuple[Any, Any]:
    """Makes a part that is reset with ``clear``.

    Parameters
    ----------
    name : str       Of the module; all parts of a name must be alike.
    make : function  Returns a new component.
    clear : Signal   From a flip-flop that the clock domain's reset sets.

    Returns
    -------
    The part's members, to connect to, and what becomes a submodule.
    """
    if not isinstance(platform, SharedModules):
        component = make()
        return component, ResetInserter(clear)(component)
    if name not in platform.components:
        platform.components[name] = make()
    signature = platform.components[name].signature
    members = signature.create()
    ports = {
        f"{'i' if flow is In else 'o'}_{port}": value
        for port, flow, value in ports_of(signature, members)
    }
    return members, Instance(name, i_clk=ClockSignal(), i_rst=clear, **ports)


def ports_of(signature: Any, members: Any) -> Iterator[tuple[str, wiring.Flow, Value]]:
    """Yields name, direction and signal of each port; a constant (a stream's ready) needs none."""
    for path, member, value in signature.flatten(members):
        if not isinstance(value, Const):
            yield "__".join(map(str, path)), member.flow, Value.cast(value)
