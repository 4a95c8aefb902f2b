# SPDX-License-Identifier: Apache-2.0
"""Parts that a design has many of: emitted as one Verilog module with many instances.

Amaranth writes a module for each instance. For dozens of engines that is most of the text, and
most of the time that a simulator takes to compile it; so emission passes a `SharedModules` as the
platform. Everywhere else (Amaranth's simulator, formal checks, builds for a board) parts are plain
submodules.
"""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import ClockSignal, Instance, ResetInserter, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["FAMILIES", "SharedModules", "instance_of"]

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
    """Makes a part that is reset with its clock domain and with ``clear``.

    Parameters
    ----------
    name : str       Of the module; all parts of a name must be alike.
    make : function  Returns a new component.

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
        f"{'i' if member.flow is In else 'o'}_{'__'.join(map(str, path))}": value
        for path, member, value in signature.flatten(members)
    }
    return members, Instance(name, i_clk=ClockSignal(), i_rst=ResetSignal() | clear, **ports)
