# SPDX-License-Identifier: Apache-2.0
"""The register map for people and for other languages: Markdown, a C header and JSON.

All three are derived from `sparsemac.registers.register_map`, so none of them can disagree with the
gateware or the driver.
"""

import json
from typing import Any

from .config import CoreConfig
from .registers import MAGIC, VERSION, WINDOW_GRANULE_BYTES, FaultCode, Register, register_map

__all__ = ["registers_header", "registers_json", "registers_markdown"]

_PREFIX = "SPARSEMAC"

_RULES = """\
Registers are 32 bits wide, little-endian, at multiples of 4 bytes. Unknown addresses, writes to
read-only registers and writes to locked registers while a job runs answer SLVERR and change
nothing. Reserved bits read 0."""

_ACCESS = """\
Access: R read-only; RW read and write; RW1C sticky, writing 1 clears; W1S a strobe that writing 1
sets for one cycle, reads 0."""


def registers_json(config: CoreConfig) -> str:
    """Returns the map as JSON: ``registers`` and ``fault_codes``, both in numeric order."""
    document: dict[str, Any] = {
        "version": VERSION,
        "config_hash": config.hash,
        "register_bits": 32,
        "window_granule_bytes": WINDOW_GRANULE_BYTES,
        "registers": [_register_dict(register) for register in register_map(config)],
        "fault_codes": {code.name: code.value for code in FaultCode},
    }
    return json.dumps(document, indent=2) + "\n"


def _register_dict(register: Register) -> dict[str, Any]:
    return {
        "name": register.name,
        "byte_offset": register.byte_offset,
        "locked": register.locked,
        "doc": register.doc,
        "fields": [
            {
                "name": field.name,
                "lsb": field.lsb,
                "width": field.width,
                "access": field.access,
                "reset": field.reset,
                "doc": field.doc,
            }
            for field in register.fields
        ],
    }


def registers_header(config: CoreConfig) -> str:
    """Returns the map as a C header: offsets, and mask and position of each field."""
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        "/* Register map of a Sparsemac core; generated, do not edit. */",
        f"#ifndef {_PREFIX}_REGISTERS_H",
        f"#define {_PREFIX}_REGISTERS_H",
        "",
        _define("MAGIC_VALUE", f"{MAGIC:#010x}u"),
        _define("VERSION_VALUE", f"{VERSION:#010x}u"),
        _define("CONFIG_HASH_VALUE", f"{config.hash:#010x}u"),
        _define("WINDOW_GRANULE_BYTES", f"{WINDOW_GRANULE_BYTES}u"),
    ]
    for register in register_map(config):
        lines += ["", f"/* {register.doc} */"]
        lines.append(_define(register.name, f"{register.byte_offset:#05x}u"))
        for field in register.fields:
            name = f"{register.name}_{field.name.upper()}"
            lines.append(_define(f"{name}_MASK", f"{field.mask:#010x}u"))
            lines.append(_define(f"{name}_LSB", str(field.lsb)))
    lines += ["", "/* Values of ERROR.code. */"]
    lines += [_define(f"FAULT_{code.name}", f"{code.value}u") for code in FaultCode]
    lines += ["", "#endif"]
    return "\n".join(lines) + "\n"


def _define(name: str, value: str) -> str:
    return f"#define {_PREFIX}_{name} {value}"


def registers_markdown(config: CoreConfig) -> str:
    """Returns the map as a Markdown page: one table of registers, one of fields for each."""
    version = f"{VERSION >> 16}.{VERSION & 0xFFFF}"
    lines = ["# Registers", "", _RULES, "", _ACCESS, ""]
    lines += [f"Configuration hash: `{config.hash:#010x}`. Interface version: {version}.", ""]
    lines += ["| offset | register | bits | field | access | reset | meaning |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for register in register_map(config):
        lines += _register_rows(register)
    lines += ["", "## Fault codes", "", "| code | name |", "|---|---|"]
    lines += [f"| {code.value} | {code.name} |" for code in FaultCode]
    return "\n".join(lines) + "\n"


def _register_rows(register: Register) -> list[str]:
    offset, name = f"`{register.byte_offset:#05x}`", f"**{register.name}**"
    doc = register.doc + (" Locked while a job runs." if register.locked else "")
    rows = [_row(offset, name, "", "", "", "", doc)]
    for field in register.fields:
        top = field.lsb + field.width - 1
        bits = str(top) if field.width == 1 else f"{top}:{field.lsb}"
        rows.append(_row("", "", bits, field.name, field.access, f"`{field.reset:#x}`", field.doc))
    return rows


def _row(*cells: str) -> str:
    # A bar inside a cell would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
