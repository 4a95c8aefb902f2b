# SPDX-License-Identifier: Apache-2.0
"""`CoreConfig`: every parameter of a core, with all constraints between them.

The same object sizes the gateware, the golden model and the driver. Its 32-bit hash is a read-only
register of the core, so a driver never talks to a core of another shape.
"""

import json
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ._checks import as_int_in, as_power_of_two

__all__ = ["SCHEMA_VERSION", "CoreConfig"]

SCHEMA_VERSION = 1

#: AXI4 (IHI 0022, A3.4.1): no burst may cross a boundary of this many bytes.
AXI_BOUNDARY_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Geometry of one sparse multiply-accumulate core.

    Peak rate is ``engines * lanes`` multiply-accumulates per cycle.

    Parameters
    ----------
    engines : int       Rows at work at once, each with its own stream of nonzeros.  1 to 64.
    lanes : int         Positions at work at once in an engine; they share each nonzero.  Power of
                        two, 1 to 128.
    depth : int         Positions per lane that one fetched row serves before the next: a row is
                        replayed from the entry buffer, so its nonzeros cross the bus once.  1 to
                        65535.
    act_depth : int     Activation buffer of each engine [words of ``lanes`` bytes].  Power of two,
                        64 to 65536.
    entry_depth : int   Entry buffer of each engine [nonzeros]: how long a row may be to be
                        replayed, and how far the stream is unpacked ahead.  Power of two, 16 to
                        4096.
    psum_depth : int    Partial sums that each engine keeps between column tiles [results].  0 or a
                        power of two, 16 to 65536.
    bus_width : int     Width of the AXI4 data bus [bits].  32, 64, 128, 256 or 512.
    acc_width : int     Width of an accumulator [bits].  16 to 32.
    fifo_depth : int    Weight FIFO of each engine [beats].  Power of two, 4 to 512.
    burst_beats : int   Longest burst that the core issues [beats].  Power of two, 1 to 256.
    windows : int       Address windows.  1 to 16.
    counters : bool     Whether the performance counters are built.
    """

    engines: int = 8
    lanes: int = 8
    depth: int = 256
    act_depth: int = 4096
    entry_depth: int = 512
    psum_depth: int = 1024
    bus_width: int = 64
    acc_width: int = 32
    fifo_depth: int = 16
    burst_beats: int = 16
    windows: int = 4
    counters: bool = True

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("engines", as_int_in("engines", self.engines, 1, 64))
        put("lanes", as_power_of_two("lanes", self.lanes, 1, 128))
        put("depth", as_int_in("depth", self.depth, 1, 65535))
        put("act_depth", as_power_of_two("act_depth", self.act_depth, 64, 65536))
        put("entry_depth", as_power_of_two("entry_depth", self.entry_depth, 16, 4096))
        if self.psum_depth != 0:
            put("psum_depth", as_power_of_two("psum_depth", self.psum_depth, 16, 65536))
        else:
            put("psum_depth", 0)
        put("bus_width", as_power_of_two("bus_width", self.bus_width, 32, 512))
        put("acc_width", as_int_in("acc_width", self.acc_width, 16, 32))
        put("fifo_depth", as_power_of_two("fifo_depth", self.fifo_depth, 4, 512))
        put("burst_beats", as_power_of_two("burst_beats", self.burst_beats, 1, 256))
        put("windows", as_int_in("windows", self.windows, 1, 16))
        if not isinstance(self.counters, bool):
            raise TypeError(f"counters must be true or false, not {self.counters!r}")
        if self.burst_beats * self.bus_bytes > AXI_BOUNDARY_BYTES:
            raise ValueError(
                f"burst_beats must be at most {AXI_BOUNDARY_BYTES // self.bus_bytes} on a "
                f"{self.bus_width}-bit bus (no AXI4 burst crosses {AXI_BOUNDARY_BYTES} bytes), "
                f"not {self.burst_beats} (nearest legal value: "
                f"{AXI_BOUNDARY_BYTES // self.bus_bytes})"
            )
        if self.fifo_depth * self.engines < 2 * self.burst_beats:
            rounds = -(-2 * self.burst_beats // self.engines)
            legal = max(4, 1 << (rounds - 1).bit_length())
            raise ValueError(
                f"fifo_depth must be at least {legal} so that {self.engines} weight FIFOs hold two "
                f"bursts of {self.burst_beats} beats, not {self.fifo_depth} "
                f"(nearest legal value: {legal})"
            )
        if self.psum_depth and self.psum_depth < self.lanes:
            raise ValueError(
                f"psum_depth must be 0 or at least the {self.lanes} lanes, not {self.psum_depth} "
                f"(nearest legal value: {max(16, self.lanes)})"
            )
        if self.act_depth < self.line_words:
            raise ValueError(
                f"act_depth must be at least {self.line_words} words, one beat of the bus, "
                f"not {self.act_depth}"
            )

    # -- derived values -------------------------------------------------------------------------

    @property
    def bus_bytes(self) -> int:
        """Bytes of one beat."""
        return self.bus_width // 8

    @property
    def macs(self) -> int:
        """Peak multiply-accumulates per cycle."""
        return self.engines * self.lanes

    @property
    def line_words(self) -> int:
        """Activation words that one beat carries; 1 if a word is a beat or more."""
        return max(1, self.bus_bytes // self.lanes)

    @property
    def word_beats(self) -> int:
        """Beats that one activation word takes; 1 if a beat carries a word or more."""
        return max(1, self.lanes // self.bus_bytes)

    @property
    def shifts(self) -> bool:
        """Whether a LOAD can move elements to the next lane: words are no longer than a beat."""
        return 1 < self.lanes <= self.bus_bytes

    @property
    def sum_buses(self) -> int:
        """Buses on which the sums of an engine's lanes leave, each with a share of the lanes.

        A row among longer ones takes at least as many cycles as a bus has lanes; four is what the
        sums of one lane must lie apart.
        """
        return min(4, max(1, self.lanes // 4))

    @property
    def shortest_row_cycles(self) -> int:
        """Cycles that a row takes at each position at least: sums leave one per bus and cycle."""
        return self.lanes // self.sum_buses

    @property
    def out_words(self) -> int:
        """Output words that the result path of an engine holds, from its lanes to the store."""
        return max(4, 128 // self.lanes)

    @property
    def address_bits(self) -> int:
        """Bits of a word address in the activation buffer."""
        return (self.act_depth - 1).bit_length()

    def out_word_bytes(self, raw: bool) -> int:
        """Bytes of one output word: ``lanes`` results of 1 byte, or of 4 bytes if ``raw``."""
        return self.lanes * (4 if raw else 1)

    # -- exchange -------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Returns all parameters and the schema version, ready for JSON or TOML."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CoreConfig":
        """Builds a configuration; unknown names and other schema versions are refused."""
        values = dict(values)
        schema = values.pop("schema", SCHEMA_VERSION)
        if schema != SCHEMA_VERSION:
            raise ValueError(f"schema must be {SCHEMA_VERSION}, not {schema!r}")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"parameter must be one of {', '.join(known)}, not {name!r}")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path) -> "CoreConfig":
        """Reads a configuration from a TOML file, flat or under a table ``[core]``."""
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} must be a TOML file: {error}") from None
        core = table.get("core", table)
        if not isinstance(core, dict):
            raise ValueError(f"[core] in {path.name} must be a table, not {core!r}")
        return cls.from_dict(core)

    def replace(self, **changes: Any) -> "CoreConfig":
        """Returns a copy with some parameters changed; all constraints are checked again."""
        return replace(self, **changes)

    @property
    def hash(self) -> int:
        """32-bit hash of all parameters: CRC-32 of the canonical JSON of `as_dict`."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return zlib.crc32(text.encode("ascii"))
