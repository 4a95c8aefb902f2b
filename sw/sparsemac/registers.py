# SPDX-License-Identifier: Apache-2.0
"""The register map: one table, from which everything else is derived.

The gateware's bank, the driver's accessors, ``registers.json``, the C header and the Markdown page
all come from `register_map`; none of them states an offset of its own.

Access kinds: ``R`` read-only; ``RW``; ``RW1C`` a sticky bit that writing 1 clears; ``W1S`` a strobe
that writing 1 sets for one cycle, reading as 0. Registers are 32 bits wide, little-endian, at
multiples of 4 bytes. Counters are 64 bits in a pair ``_LO``/``_HI``: reading the low half
latches the high one.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from .config import CoreConfig

__all__ = [
    "COUNTERS",
    "MAGIC",
    "VERSION",
    "WINDOW_GRANULE_BYTES",
    "FaultCode",
    "Field",
    "Register",
    "RegisterMap",
    "register_map",
]

MAGIC = 0x434D_5053  # "SPMC", little-endian
VERSION = 0x0001_0002  # major, minor of registers, commands and stream format together

#: Windows open and close whole pages: no AXI4 burst crosses one, so one comparison covers a burst.
WINDOW_GRANULE_BYTES = 4096


class FaultCode(IntEnum):
    """Why the core stopped. ``FAULT_COMMAND``, ``FAULT_ADDRESS`` and ``FAULT_DETAIL`` say where."""

    NONE = 0
    DESC = 1  # malformed command: opcode, magic, checksum, reserved bits, unmeetable wait
    ALIGN = 2  # an address or a length is not a multiple of what it must be
    ZERO = 3  # a length of zero
    SIZE = 4  # a length or an address beyond a buffer of the core
    WINDOW = 5  # a burst outside every open window; detail: 0 read, 1 write
    PERM = 6  # a burst in a window that does not allow the direction; detail as WINDOW
    BUS = 7  # SLVERR, DECERR or EXOKAY; detail: response | write << 2
    PROTO = 8  # RLAST early or late, stray or foreign beat; detail: 0 read, 1 write
    TIMEOUT = 9  # no progress on the bus or in the core for WATCHDOG cycles
    STREAM = 10  # weight stream ends early, or rows after its end; detail: engine
    COLUMN = 11  # an entry's offset is beyond the limit of the command; detail: engine
    ROW = 12  # a row too long to be replayed from the entry buffer; detail: engine
    PSUM = 13  # more partial sums than the core keeps; detail: engine
    ABORTED = 14  # stopped by CTRL.abort


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a register: ``width`` bits from bit ``lsb``."""

    name: str
    lsb: int
    width: int
    access: str
    reset: int
    doc: str

    @property
    def mask(self) -> int:
        """Mask of the field inside its register."""
        return ((1 << self.width) - 1) << self.lsb


@dataclass(frozen=True, slots=True)
class Register:
    """One 32-bit register at ``byte_offset``."""

    name: str
    byte_offset: int
    fields: tuple[Field, ...]
    doc: str
    locked: bool = False  # writes are refused (SLVERR) while a job runs

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"register {self.name} has no field {name!r}")

    @property
    def writable(self) -> bool:
        """Whether a write can have an effect."""
        return any(f.access != "R" for f in self.fields)


#: Performance counters, in register order: (name, documentation). All but CYCLES, READ_BEATS,
#: WRITE_BEATS and WRITE_BYTES add up over the engines, so that
#: ISSUED + all STALL_* + IDLE == CYCLES * engines.
COUNTERS: tuple[tuple[str, str], ...] = (
    ("CYCLES", "Cycles from the doorbell to the interrupt."),
    ("ISSUED", "Engine cycles in which a nonzero was issued to all lanes."),
    ("STALL_COMMAND", "Engine cycles without a command to execute."),
    ("STALL_ACTIVATIONS", "Engine cycles in which a command waited for its activations."),
    ("STALL_WEIGHTS", "Engine cycles in which the entry buffer had no nonzero ready."),
    ("STALL_STORE", "Engine cycles in which results could not be taken by the store."),
    (
        "STALL_SHORT",
        "Engine cycles lost to rows shorter than the lanes: results leave one a cycle.",
    ),
    ("IDLE", "Engine cycles of an engine that has finished while others work or results drain."),
    ("FILLERS", "Filler entries read from the weight streams."),
    ("READ_BEATS", "Data beats read over the bus."),
    ("WRITE_BEATS", "Data beats written over the bus."),
    ("WRITE_BYTES", "Bytes written over the bus, by strobes."),
)


def _word(
    name: str, offset: int, access: str, doc: str, reset: int = 0, locked: bool = False
) -> Register:
    return Register(name, offset, (Field("value", 0, 32, access, reset, doc),), doc, locked)


class RegisterMap:
    """All registers of a core, by name and in order of their offsets."""

    def __init__(self, registers: tuple[Register, ...]) -> None:
        self.registers = registers
        self._by_name = {r.name: r for r in registers}
        offsets = [r.byte_offset for r in registers]
        if sorted(set(offsets)) != offsets:
            raise ValueError("registers must stand in order of distinct offsets")

    def __getitem__(self, name: str) -> Register:
        return self._by_name[name]

    def __iter__(self):  # noqa: ANN204 - an iterator over Register
        return iter(self.registers)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name


@cache
def register_map(config: CoreConfig) -> RegisterMap:
    """Returns the register map of a core with this configuration."""

    def f(name: str, lsb: int, width: int, access: str, doc: str, reset: int = 0) -> Field:
        return Field(name, lsb, width, access, reset, doc)

    log2 = int.bit_length
    registers = [
        _word("MAGIC", 0x00, "R", "Identifies a Sparsemac core: 'SPMC'.", MAGIC),
        _word(
            "VERSION",
            0x04,
            "R",
            "Version of the programming interface, major << 16 | minor.",
            VERSION,
        ),
        _word("CONFIG_HASH", 0x08, "R", "CRC-32 of the configuration.", config.hash),
        Register(
            "CTRL",
            0x0C,
            (
                f(
                    "start",
                    0,
                    1,
                    "W1S",
                    "Doorbell: run COMMAND_COUNT commands from COMMAND_ADDRESS.",
                ),
                f(
                    "soft_reset",
                    1,
                    1,
                    "W1S",
                    "Return to idle from any state; beats still to come are dropped.",
                ),
                f(
                    "abort",
                    2,
                    1,
                    "W1S",
                    "Stop the job after outstanding bursts; it ends with fault ABORTED.",
                ),
            ),
            "Control strobes. A start while busy or draining answers SLVERR; REJECTED counts it.",
        ),
        Register(
            "STATUS",
            0x10,
            (
                f("busy", 0, 1, "R", "A job is running."),
                f(
                    "done",
                    1,
                    1,
                    "RW1C",
                    "A job has ended, well or with a fault. Drives the interrupt.",
                ),
                f("fault", 2, 1, "R", "ERROR.code is not 0."),
                f("draining", 3, 1, "R", "Beats of an earlier epoch are still outstanding."),
                f(
                    "wedged",
                    4,
                    1,
                    "R",
                    "The bus has not answered: a VALID cannot be withdrawn. Needs a bus reset.",
                ),
            ),
            "State of the core.",
        ),
        Register(
            "ERROR",
            0x14,
            (
                f(
                    "code",
                    0,
                    8,
                    "R",
                    "Fault code; 0 none. The first of a job is kept; start clears it.",
                ),
            ),
            "Sticky fault code.",
        ),
        _word("FAULT_COMMAND", 0x18, "R", "Index of the command at fault."),
        _word("FAULT_ADDRESS", 0x1C, "R", "Byte address of the access at fault."),
        _word("FAULT_DETAIL", 0x20, "R", "Engine, direction or response, as the code defines."),
        _word("FAULT_COUNT", 0x24, "R", "Faults since reset."),
        Register(
            "IRQ_ENABLE",
            0x28,
            (f("done", 0, 1, "RW", "Raise the interrupt while STATUS.done."),),
            "Interrupt enable.",
        ),
        _word(
            "COMMAND_ADDRESS",
            0x2C,
            "RW",
            "Byte address of the command list, a multiple of 64.",
            locked=True,
        ),
        Register(
            "COMMAND_COUNT",
            0x30,
            (f("value", 0, 16, "RW", "Commands in the list, 1 to 65535."),),
            "Length of the command list.",
            locked=True,
        ),
        _word(
            "WATCHDOG",
            0x34,
            "RW",
            "Cycles without progress before fault TIMEOUT; 0 switches it off.",
            1 << 20,
            locked=True,
        ),
        Register(
            "REJECTED",
            0x38,
            (
                f(
                    "count",
                    0,
                    16,
                    "R",
                    "Register writes and reads that were answered SLVERR, modulo 2**16.",
                ),
            ),
            "Refused accesses.",
        ),
        Register(
            "STALE",
            0x3C,
            (
                f(
                    "count",
                    0,
                    16,
                    "R",
                    "Beats dropped: of an earlier epoch, or of nothing; modulo 2**16.",
                ),
            ),
            "Dropped beats.",
        ),
        Register(
            "GEOMETRY0",
            0x40,
            (
                f("engines", 0, 8, "R", "Engines.", config.engines),
                f("lanes", 8, 8, "R", "Lanes.", config.lanes),
                f("bus_bytes", 16, 8, "R", "Bytes of a beat.", config.bus_bytes),
                f("acc_width", 24, 8, "R", "Accumulator bits.", config.acc_width),
            ),
            "Geometry.",
        ),
        Register(
            "GEOMETRY1",
            0x44,
            (
                f(
                    "act_depth_log2",
                    0,
                    8,
                    "R",
                    "log2 of the activation buffer [words].",
                    log2(config.act_depth) - 1,
                ),
                f(
                    "entry_depth_log2",
                    8,
                    8,
                    "R",
                    "log2 of the entry buffer [nonzeros].",
                    log2(config.entry_depth) - 1,
                ),
                f(
                    "psum_depth_log2",
                    16,
                    8,
                    "R",
                    "log2 of the partial sums; 255: none.",
                    log2(config.psum_depth) - 1 if config.psum_depth else 255,
                ),
                f("windows", 24, 8, "R", "Address windows.", config.windows),
            ),
            "Geometry.",
        ),
        Register(
            "GEOMETRY2",
            0x48,
            (f("depth", 0, 16, "R", "Positions per lane of a command.", config.depth),),
            "Geometry.",
        ),
    ]
    if config.counters:
        offset = 0x80
        for name, doc in COUNTERS:
            registers.append(
                _word(f"{name}_LO", offset, "R", doc + " Low half; latches the high half.")
            )
            registers.append(_word(f"{name}_HI", offset + 4, "R", doc + " High half."))
            offset += 8
    for i in range(config.windows):
        base = 0x100 + 16 * i
        registers += [
            Register(
                f"WINDOW{i}_FIRST",
                base,
                (f("page", 12, 20, "RW", "First page of the window."),),
                "First byte address, a multiple of 4096.",
                True,
            ),
            Register(
                f"WINDOW{i}_LAST",
                base + 4,
                (f("page", 12, 20, "RW", "Last page of the window."),),
                "Address of the last page; the window ends with its last byte.",
                True,
            ),
            Register(
                f"WINDOW{i}_PERM",
                base + 8,
                (
                    f("read", 0, 1, "RW", "Reads are allowed."),
                    f("write", 1, 1, "RW", "Writes are allowed."),
                ),
                "Permissions; 0 closes the window, as after reset.",
                True,
            ),
        ]
    return RegisterMap(tuple(registers))
