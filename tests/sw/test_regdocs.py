# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil
import subprocess

import pytest
from sparsemac.config import CoreConfig
from sparsemac.regdocs import registers_header, registers_json, registers_markdown
from sparsemac.registers import FaultCode, register_map

CONFIGS = [CoreConfig(), CoreConfig(counters=False, windows=1, psum_depth=0)]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_holds_every_register_and_field(config):
    document = json.loads(registers_json(config))
    registers = register_map(config)
    assert [r["name"] for r in document["registers"]] == [r.name for r in registers]
    for got in document["registers"]:
        want = registers[got["name"]]
        assert got["byte_offset"] == want.byte_offset
        names = ("name", "lsb", "width", "access", "reset", "doc")
        assert got["fields"] == [{n: getattr(f, n) for n in names} for f in want.fields]
    assert document["config_hash"] == config.hash
    assert document["fault_codes"] == {code.name: int(code) for code in FaultCode}


@pytest.mark.parametrize("config", CONFIGS)
def test_header_defines_each_offset_and_mask_once(config):
    text = registers_header(config)
    defines = re.findall(r"^#define (SPARSEMAC_\w+) (\S+)$", text, re.M)
    values = {name: int(value.rstrip("u"), 0) for name, value in defines}
    assert len(values) == len(defines)
    for register in register_map(config):
        assert values[f"SPARSEMAC_{register.name}"] == register.byte_offset
        for field in register.fields:
            name = f"SPARSEMAC_{register.name}_{field.name.upper()}"
            assert values[f"{name}_MASK"] == field.mask
            assert values[f"{name}_LSB"] == field.lsb


def test_header_compiles_as_c(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    (tmp_path / "registers.h").write_text(registers_header(CoreConfig()))
    (tmp_path / "use.c").write_text(
        '#include "registers.h"\n#include "registers.h"\n'
        "_Static_assert(SPARSEMAC_CTRL_START_MASK == 1u, \"\");\n"
    )
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "use.c"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_markdown_rows_all_have_seven_cells():
    text = registers_markdown(CoreConfig())
    table = text[text.index("| offset") : text.index("## Fault codes")].strip().splitlines()
    for row in table:
        assert len(re.findall(r"(?<!\\)\|", row)) == 8, row
    for register in register_map(CoreConfig()):
        assert f"**{register.name}**" in text


def test_pages_differ_with_the_configuration():
    one, other = CONFIGS
    for page in (registers_json, registers_header, registers_markdown):
        assert page(one) == page(CoreConfig())
        assert page(one) != page(other)
