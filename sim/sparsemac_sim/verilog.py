# SPDX-License-Identifier: Apache-2.0
"""Rewrites a core's Verilog, without changing what it says, so that Verilator is fast with it.

The text is what yosys writes, one statement in one form. What is written otherwise is left alone.
"""

import re
from collections import Counter

__all__ = ["fast_verilog", "shared_modules", "with_random_power_up"]

_MODULE = re.compile(r"^module .*?^endmodule\n", re.DOTALL | re.MULTILINE)
_HEADER = re.compile(r"module (\\?)(\S+?)\s*\((.*?)\);\n", re.DOTALL)
_INSTANCE = re.compile(r"^  \\?(\S+) +\\?\S+ +\($", re.MULTILINE)

#: The name that yosys gives to a signal without one.
_ANONYMOUS = r"\\\$\d+ "

_REGISTER = re.compile(rf"  always @\(posedge clk\)\n    (\S+ ?) <= ({_ANONYMOUS});\n")
_NEXT = re.compile(
    rf"  always @\* begin\n    if \(\S+ \) begin end\n(    ({_ANONYMOUS}) = .*?\n)  end\n",
    re.DOTALL)
_CONCATENATION = re.compile(r"\{ ([^{}]+) \}")
_MASKED = re.compile(r"= (\S+ ?) & \{ \{(\d+)\{([^{}]+)\}\} \};")
_WIRE = re.compile(r"^  (?:wire|reg) (?:\[(\d+):0\] )?(\S+ ?);", re.MULTILINE)


def with_random_power_up(verilog: str) -> str:
    """Returns Verilog whose registers have no initial value, so that Verilator draws one.

    Memories keep theirs: what a design reads before it writes would differ from run to run.
    """
    return re.sub(r"^(  reg (?:\[\d+:\d+\] )?\S+ )\s*= \S+;$", r"\1;", verilog, flags=re.MULTILINE)


def fast_verilog(verilog: str) -> str:
    """Returns the same design in statements that Verilator evaluates faster.

    A register is assigned where its next value is found, so that a register that keeps its value
    costs a branch instead of two copies. A bit that is repeated is a replication, and a mask of
    one repeated bit a condition: Verilator would compute both bit by bit.
    """
    shorter = _CONCATENATION.sub(_with_replications, verilog)
    return _MODULE.sub(lambda module: _with_conditions(_with_folded_registers(module[0])), shorter)


def _with_folded_registers(module: str) -> str:
    """Moves the process of a next value into the register that is alone in reading it."""
    processes = {match[2]: match[1] for match in _NEXT.finditer(module)}
    uses = Counter(re.findall(_ANONYMOUS, module))
    folded: set[str] = set()

    def fold(match: re.Match[str]) -> str:
        register, name = match[1], match[2]
        body = processes.get(name)
        if body is None:
            return match[0]
        assignment = re.compile(rf"^( +){re.escape(name)}(\[[\d:]+\])? = ", re.MULTILINE)
        body, writes = re.subn(assignment, lambda m: f"{m[1]}{register}{m[2] or ''} <= ", body)
        # The others are the declaration and the register that is looked at.
        if uses[name] != writes + 2:
            return match[0]
        folded.add(name)
        # A register keeps its value without being told.
        body = body.removeprefix(f"    {register} <= {register};\n")
        return f"  always @(posedge clk) begin\n{body}  end\n"

    module = _REGISTER.sub(fold, module)
    module = _NEXT.sub(lambda match: "" if match[2] in folded else match[0], module)
    return re.sub(
        rf"^  reg (?:\[[\d:]+\] )?({_ANONYMOUS});\n",
        lambda match: "" if match[1] in folded else match[0], module, flags=re.MULTILINE)


def _with_replications(match: re.Match[str]) -> str:
    """Writes runs of three or more equal parts of a concatenation as a replication."""
    runs: list[tuple[str, int]] = []
    for part in match[1].split(", "):
        if runs and runs[-1][0] == part:
            runs[-1] = part, runs[-1][1] + 1
        else:
            runs.append((part, 1))
    parts = [f"{{{n}{{{part}}}}}" if n > 2 else ", ".join([part] * n) for part, n in runs]
    return "{ " + ", ".join(parts) + " }"


def _with_conditions(module: str) -> str:
    """Writes a signal and a repeated bit that is as wide as a choice of the signal or zero."""
    widths = {name: int(high or 0) + 1 for high, name in _WIRE.findall(module)}

    def choose(match: re.Match[str]) -> str:
        name, width, bit = match.groups()
        same = widths.get(name) == int(width)
        return f"= {bit} ? {name} : {width}'d0;" if same else match[0]

    return _MASKED.sub(choose, module)


def shared_modules(verilog: str) -> str:
    """Returns a Verilator control file that keeps each module with several instances in one piece.

    Ports that Verilator may not see through make the functions of all instances equal, and equal
    functions become one: half of the code to compile, and all of it in the processor's caches. The
    clock is no such port: it would become a trigger for each instance.
    """
    counts = Counter(_INSTANCE.findall(verilog))
    lines = ["`verilator_config"]
    for module in _MODULE.finditer(verilog):
        header = _HEADER.match(module[0])
        if header is None or counts[header[2]] < 2:
            continue
        lines.append(f'no_inline -module "{header[2]}"')
        ports = [port.strip().removeprefix("\\") for port in header[3].split(",")]
        lines += [
            f'public_flat_rd -module "{header[2]}" -var "{port}"' for port in ports
            if port != "clk"
        ]
    return "\n".join(lines) + "\n"
