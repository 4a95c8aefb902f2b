# SPDX-License-Identifier: Apache-2.0
"""Writes a core as Verilog, with everything that a person or a tool needs to use it.

Two runs give the same bytes, and no path of the machine is in them. Verilog loses signedness and
the configuration, so ``core.json`` stands beside ``core.v``: simulators, benches and drivers read
it.
"""

import json
import re
from pathlib import Path
from typing import Any

import sparsemac
from amaranth.back import verilog
from amaranth.lib import wiring
from sparsemac.config import CoreConfig
from sparsemac.regdocs import registers_header, registers_json, registers_markdown
from sparsemac.registers import VERSION

from .shared import SharedModules, ports_of

__all__ = ["CORE_NAME", "EMITTED_FILES", "describe", "emit", "emit_component", "emit_verilog"]

#: Name of the top module.
CORE_NAME = "sparsemac_core"

#: Names of the files that `emit` writes, in order.
EMITTED_FILES = (
    "core.v",
    "core.json",
    "registers.md",
    "registers.h",
    "registers.json",
    "files.f",
)


def emit(config: CoreConfig, directory: str | Path) -> list[Path]:
    """Writes a core of this configuration into ``directory``, which is made if it does not exist.

    ``core.v`` is the netlist with the top `CORE_NAME`; ``core.json`` its ports and configuration;
    ``registers.md``, ``.h`` and ``.json`` the register map; ``files.f`` the list of sources.

    Returns
    -------
    list of Path    The files written, in the order of `EMITTED_FILES`.
    """
    # The description of a core must not depend on whether the core itself can be imported.
    from .core import Core

    return emit_component(Core(config), config, directory)


def emit_component(
    component: wiring.Component, config: CoreConfig, directory: str | Path
) -> list[Path]:
    """Writes any component that has the ports of a core; see `emit`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "core.v": emit_verilog(component, CORE_NAME),
        "core.json": json.dumps(describe(component, config), indent=2) + "\n",
        "registers.md": registers_markdown(config),
        "registers.h": registers_header(config),
        "registers.json": registers_json(config),
        "files.f": "core.v\n",
    }
    paths = []
    for name in EMITTED_FILES:
        path = directory / name
        # Bytes, so that the files are the same on every system.
        path.write_bytes(texts[name].encode("utf-8"))
        paths.append(path)
    return paths


def emit_verilog(component: wiring.Component, name: str, family: str = "portable") -> str:
    """Returns a component as Verilog with the top module ``name``; ports are ``<member>__<port>``.

    ``family`` is one of `sparsemac_hw.shared.FAMILIES`: for any but the portable one the text has
    instances of blocks of that family, which simulators need models of.

    The default of `verilog.convert` writes absolute source paths; without them and without the
    attributes of the synthesizer the text depends on the design alone.
    """
    shared = SharedModules(family)

    def convert(component: wiring.Component, name: str) -> str:
        ports = [signal for _, _, signal in ports_of(component.signature, component)]
        return verilog.convert(component, name=name, platform=shared, ports=ports, emit_src=False,
                               strip_internal_attrs=True)

    texts = [convert(component, name)]
    done: set[str] = set()
    while waiting := [n for n in shared.components if n not in done]:
        for name in waiting:
            done.add(name)
            texts.append(convert(shared.components[name], name))
    text = "\n".join(texts)
    return _CONSTANT.sub(_wake_constant, _MEMORY_INIT.sub(_fold_memory_init, text))


#: The initial block that yosys writes for a memory: one assignment per word.
_MEMORY_INIT = re.compile(
    r"^  initial begin\n(?P<words>(?:    (?P<name>\S+ ?)\[\d+\] = \S+;\n)+)  end\n", re.MULTILINE
)


def _fold_memory_init(block: re.Match[str]) -> str:
    """Writes equal initial words as a loop: a buffer's zeros are most of the text otherwise."""
    words = re.findall(r"\[(\d+)\] = (\S+);\n", block["words"])
    values = {value for _, value in words}
    indices = [int(index) for index, _ in words]
    if len(values) > 1 or len(indices) < 8 or indices != list(range(len(indices))):
        return block[0]
    return (
        f"  initial begin : init_memory_{block.start()}\n    integer i;\n"
        f"    for (i = 0; i < {len(words)}; i = i + 1)\n"
        f"      {block['name']}[i] = {values.pop()};\n  end\n"
    )


#: A constant that yosys drives from a block: nothing in it changes, so no simulator would run it.
_CONSTANT = re.compile(
    r"^  always @\*\n"
    r"    (?P<assignment>[^\n]+ = (?:\{ )?(?:\d+'[hdb][0-9a-fx]+(?:, )?)+(?: \})?;)\n",
    re.MULTILINE,
)


def _wake_constant(block: re.Match[str]) -> str:
    """Makes the block run once, in the way that yosys itself does it for larger ones."""
    name = f"\\once${block.start()} "
    return (
        f"  reg {name} = 1'h0;\n  always @* begin\n    if ({name}) begin end\n"
        f"    {block['assignment']}\n  end\n"
    )


def describe(component: wiring.Component, config: CoreConfig) -> dict[str, Any]:
    """Returns what ``core.json`` holds: the ports with their signedness, and the configuration."""
    clocking = [
        {"name": name, "direction": "in", "width": 1, "signed": False} for name in ("clk", "rst")
    ]
    interface = component.metadata.as_json()["interface"]
    return {
        "top": CORE_NAME,
        "generator": {"name": "sparsemac", "version": sparsemac.__version__},
        "interface_version": VERSION,
        "config": config.as_dict(),
        "config_hash": config.hash,
        "ports": clocking + _ports("", interface["members"]),
    }


def _ports(prefix: str, members: dict[str, Any]) -> list[dict[str, Any]]:
    ports = []
    for name, member in members.items():
        if member["type"] == "interface":
            ports += _ports(f"{prefix}{name}__", member["members"])
            continue
        ports.append({
            "name": prefix + name,
            "direction": member["dir"],
            "width": member["width"],
            "signed": member["signed"],
        })
    return ports
