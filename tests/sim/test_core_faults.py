# SPDX-License-Identifier: Apache-2.0
"""The emitted core on the native device: command lists by hand, and every fault of the bus."""

import numpy as np
import pytest
from sparsemac.commands import Exec, Load, OutputMode, StreamFormat, encode_list
from sparsemac.config import CoreConfig
from sparsemac.devices.base import check_identity
from sparsemac.errors import DeviceTimeout
from sparsemac.registers import FaultCode, register_map
from sparsemac_sim.device import open_device
from sparsemac_sim.faults import Channel, Injection, Kind, Response
from support.bits import random_rows, write_rows

SEED = 41
CONFIG = CoreConfig(engines=2, lanes=4, act_depth=256, entry_depth=32, psum_depth=64)
COMMANDS, INPUT, WEIGHTS, OUTPUT = 0x0, 0x2000, 0x6000, 0x1_0000
ROWS, COLUMNS, POSITIONS = 13, 24, 3
WATCHDOG_CYCLES = 500


class Host:
    """A device, one layer in its memory, and the registers by name."""

    def __init__(self, device, seed=SEED):
        self.device = device
        self.map = register_map(device.config)
        rng = np.random.default_rng(seed)
        config = device.config
        self.x = rng.integers(-128, 128, (COLUMNS * POSITIONS, config.lanes)).astype(np.int8)
        self.rows = random_rows(rng, ROWS, COLUMNS, quantized=False)
        form = StreamFormat(delta_bits=3)
        streams = [
            write_rows(self.rows[e :: config.engines], delta_bits=3, quantized=False)[0]
            .beats(config.bus_width)
            for e in range(config.engines)
        ]
        rounds = max(map(len, streams))
        weights = b"".join(
            (s[k] if k < len(s) else 0).to_bytes(config.bus_bytes, "little")
            for k in range(rounds)
            for s in streams
        )
        line_bytes = COLUMNS * config.lanes
        self.commands = [
            Load(address=INPUT, destination=0, lines=POSITIONS, stride=line_bytes,
                 line_beats=line_bytes // config.bus_bytes),
            Exec(wait=1, weights=WEIGHTS, beats=rounds * config.engines, output=OUTPUT, base=0,
                 limit=COLUMNS, positions=POSITIONS, width=POSITIONS, step=COLUMNS, wrap_step=0,
                 out_step=ROWS, out_wrap_step=0, format=form, mode=OutputMode.RAW),
        ]
        device.write_memory(COMMANDS, encode_list(self.commands))
        device.write_memory(INPUT, self.x.tobytes())
        device.write_memory(WEIGHTS, weights)

    def read(self, name):
        return self.device.read_register(self.map[name].byte_offset)

    def write(self, name, value):
        self.device.write_register(self.map[name].byte_offset, value)

    def start(self):
        self.device.write_memory(OUTPUT, bytes(self.expected().nbytes))
        for i, (first, last, permission) in enumerate([(0, 0xF000, 1), (OUTPUT, 0x1_F000, 3)]):
            self.write(f"WINDOW{i}_FIRST", first)
            self.write(f"WINDOW{i}_LAST", last)
            self.write(f"WINDOW{i}_PERM", permission)
        self.write("COMMAND_ADDRESS", COMMANDS)
        self.write("COMMAND_COUNT", len(self.commands))
        self.write("WATCHDOG", WATCHDOG_CYCLES)
        self.write("IRQ_ENABLE", 1)
        self.write("STATUS", 2)
        self.write("CTRL", 1)

    def run(self):
        """Runs the list; returns the fault code."""
        self.start()
        self.device.wait_interrupt(0.1)
        return self.read("ERROR")

    def expected(self):
        """The outputs, (positions, rows, lanes) int32."""
        w = np.zeros((ROWS, COLUMNS), np.int64)
        for r, row in enumerate(self.rows):
            for offset, weight in row.entries:
                w[r, offset] += weight
        x = self.x.astype(np.int64).reshape(POSITIONS, COLUMNS, -1)
        bias = np.array([row.bias for row in self.rows])[None, :, None]
        order = np.argsort([row.out_offset for row in self.rows])
        return ((w @ x) + bias)[:, order].astype(np.int32)

    def right(self):
        want = self.expected()
        got = np.frombuffer(self.device.read_memory(OUTPUT, want.nbytes), np.int32)
        return np.array_equal(got.reshape(want.shape), want)

    def recovers(self):
        """Whether a soft reset brings back a core that runs the layer."""
        self.device.clear_injections()
        self.write("CTRL", 2)
        for _ in range(100):
            if not self.read("STATUS") & 0b1001:
                break
            self.device.step(20)
        return self.run() == FaultCode.NONE and self.right()


@pytest.fixture
def open_core(toolchain):
    devices = []

    def opened(**options):
        device = open_device("", CONFIG, memory_bytes=1 << 17, max_cycles=20_000, **options)
        devices.append(device)
        return Host(device)

    yield opened
    for device in devices:
        device.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"latency": 1}, {"latency": 200}, {"bandwidth": 1.5}, {"stall": 0.5}, {"stall": 0.97}],
    ids=str,
)
def test_c4_any_timing_of_the_memory_gives_the_same_integers(open_core, options):
    print(f"seed {SEED}")
    host = open_core(seed=SEED, **options)
    check_identity(host.device)
    assert host.run() == FaultCode.NONE
    assert host.right()
    counted = host.device.statistics
    assert counted.read_beats == host.read("READ_BEATS_LO")
    assert counted.write_beats == host.read("WRITE_BEATS_LO")
    assert counted.write_bytes == host.read("WRITE_BYTES_LO")
    assert counted.violations == 0


@pytest.mark.parametrize("response", [Response.EXOKAY, Response.SLVERR, Response.DECERR])
@pytest.mark.parametrize("beat", [0, 3, 7])
def test_c1_error_on_a_read_beat_stops_the_job(open_core, response, beat):
    for burst in range(3):
        host = open_core()
        host.device.inject(Injection(kind=Kind.RESPONSE, burst=burst, beat=beat, value=response))
        assert host.run() == FaultCode.BUS, burst
        assert host.read("FAULT_DETAIL") == response
        assert host.device.statistics.violations == 0
        assert host.recovers()


@pytest.mark.parametrize("response", [Response.EXOKAY, Response.SLVERR, Response.DECERR])
def test_c1_error_on_a_write_stops_the_job(open_core, response):
    host = open_core()
    host.device.inject(
        Injection(kind=Kind.RESPONSE, channel=Channel.B, burst=2, value=response)
    )
    assert host.run() == FaultCode.BUS
    assert host.read("FAULT_DETAIL") == response | 1 << 2
    assert host.recovers()


@pytest.mark.parametrize("burst", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Kind.LAST_EARLY, {"beat": 2}),
        (Kind.LAST_LATE, {"value": 1}),
        (Kind.LAST_MISSING, {}),
        (Kind.WRONG_ID, {"beat": 1, "value": 8}),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_c2_broken_protocol_ends_in_a_fault_and_a_usable_core(open_core, kind, options, burst):
    host = open_core()
    host.device.inject(Injection(kind=kind, burst=burst, **options))
    assert host.run() in (FaultCode.PROTO, FaultCode.TIMEOUT)
    host.device.clear_injections()
    host.device.reset()
    assert host.run() == FaultCode.NONE and host.right()


@pytest.mark.parametrize("channel", [Channel.AR, Channel.R, Channel.AW, Channel.W, Channel.B])
@pytest.mark.parametrize("burst", [0, 2])
def test_c3_a_channel_that_dies_times_out(open_core, channel, burst):
    host = open_core()
    host.device.inject(Injection(kind=Kind.DEAD, channel=channel, burst=burst))
    assert host.run() == FaultCode.TIMEOUT
    assert host.device.last_cycles < 20_000
    assert host.recovers()


def test_d1_reset_at_any_moment_leaves_a_usable_core(open_core):
    host = open_core(latency=30)
    for cycles in range(0, 260, 13):
        host.start()
        host.device.step(cycles)
        host.device.reset()
        assert host.read("STATUS") == 0
        assert host.run() == FaultCode.NONE and host.right(), cycles


def test_d2_beats_of_an_earlier_epoch_are_dropped_after_a_soft_reset(open_core):
    host = open_core(latency=100)
    for cycles in (5, 50, 120, 150, 300):
        host.start()
        host.device.step(cycles)
        assert host.recovers(), cycles
    assert host.device.statistics.violations == 0


def test_d3_a_bus_that_forgets_ends_in_a_fault_and_a_usable_core(open_core):
    host = open_core()
    host.device.inject(Injection(kind=Kind.BUS_RESET, channel=Channel.AR, burst=2))
    # What the core asks for afterwards is answered, and taken for what was forgotten.
    assert host.run() in (FaultCode.TIMEOUT, FaultCode.PROTO)
    host.device.reset()
    assert host.run() == FaultCode.NONE and host.right()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_d4_random_power_up_changes_nothing(open_core, seed):
    host = open_core(random_power_up=True, seed=seed)
    assert host.device.statistics.read_bursts == 0
    assert host.run() == FaultCode.NONE and host.right()


def test_timeout_of_the_host_names_status(open_core):
    host = open_core()
    host.device.inject(Injection(kind=Kind.DEAD, channel=Channel.R))
    host.start()
    with pytest.raises(DeviceTimeout, match=r"in 100 cycles; STATUS is 0x1$"):
        host.device.wait_interrupt(100e-6)
