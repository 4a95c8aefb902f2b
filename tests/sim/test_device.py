# SPDX-License-Identifier: Apache-2.0
import _thread
import random
import threading
from pathlib import Path

import pytest
from sparsemac.config import CoreConfig
from sparsemac.devices.base import check_identity
from sparsemac.errors import DeviceBusy, DeviceClosed, DeviceError, DeviceTimeout
from sparsemac.registers import register_map
from sparsemac_hw.emit import CORE_NAME, emit_verilog
from sparsemac_sim.device import SimDevice, open_device
from sparsemac_sim.faults import Channel, Injection, Kind, Response
from sparsemac_sim.options import SimOptions
from sparsemac_sim.waves import is_complete
from support.copy_core import COPY_DISTANCE_BYTES, CopyCore

SEED = 0x5EED
BURSTS = 8
BUS, PROTO = 7, 8  # what the copying component reports in ERROR


@pytest.fixture
def open_copy(toolchain, copy_verilog, copy_config):
    devices = []

    def opened(**options):
        device = SimDevice(copy_verilog, copy_config, SimOptions(memory_bytes=1 << 20, **options))
        devices.append(device)
        return device

    yield opened
    for device in devices:
        device.close()


def offset_of(device, name):
    return register_map(device.config)[name].byte_offset


def start(device, bursts=BURSTS, address=0x1000, seed=SEED):
    """Fills the source and starts a copy; returns what must arrive."""
    size = bursts * device.config.burst_beats * device.config.bus_bytes
    data = random.Random(seed).randbytes(size)
    device.write_memory(address, data)
    device.write_register(offset_of(device, "COMMAND_ADDRESS"), address)
    device.write_register(offset_of(device, "COMMAND_COUNT"), bursts)
    device.write_register(offset_of(device, "IRQ_ENABLE"), 1)
    device.write_register(offset_of(device, "STATUS"), 2)
    device.write_register(offset_of(device, "CTRL"), 1)
    return data


def copied(device, data, address=0x1000):
    return device.read_memory(address + COPY_DISTANCE_BYTES, len(data)) == data


def error_of(device):
    return device.read_register(offset_of(device, "ERROR"))


def test_reads_identity_and_copies_through_memory(open_copy):
    device = open_copy()
    check_identity(device)
    data = start(device)
    device.wait_interrupt(1.0)
    assert copied(device, data)
    assert error_of(device) == 0
    counted = device.statistics
    beats = BURSTS * device.config.burst_beats
    assert (counted.read_bursts, counted.write_bursts) == (BURSTS, BURSTS)
    assert (counted.read_beats, counted.write_beats) == (beats, beats)
    assert counted.write_bytes == beats * device.config.bus_bytes
    assert counted.violations == 0
    assert 0 < device.last_cycles < device.cycles_total
    assert device.simulation_seconds > 0


def test_each_bus_width_moves_the_right_bytes(toolchain):
    for width in (32, 256):
        config = CoreConfig(bus_width=width, burst_beats=8, lanes=4)
        verilog = emit_verilog(CopyCore(config), CORE_NAME)
        with SimDevice(verilog, config, SimOptions(memory_bytes=1 << 20)) as device:
            data = start(device, bursts=2)
            device.wait_interrupt(1.0)
            assert copied(device, data), width


def test_latency_is_counted_from_address_to_first_beat(open_copy):
    cycles = {}
    for latency in (1, 2, 50):
        device = open_copy(latency=latency)
        start(device, bursts=1)
        device.wait_interrupt(1.0)
        cycles[latency] = device.last_cycles
    # One read and one write, each waits for its latency once.
    assert cycles[2] - cycles[1] == 2
    assert cycles[50] - cycles[1] == 2 * 49


def test_bandwidth_is_one_budget_for_both_directions(open_copy):
    device = open_copy(latency=1, bandwidth=2.0)
    data = start(device, bursts=32)
    device.wait_interrupt(1.0)
    assert copied(device, data)
    # Nothing overlaps here, so the copy takes as long as both directions together.
    assert device.last_cycles == pytest.approx(2 * len(data) / 2.0, rel=0.1)


@pytest.mark.parametrize("stall", [0.5, 0.95])
def test_random_stalls_change_time_but_not_data(open_copy, stall):
    print(f"seed {SEED}")
    device, again = (open_copy(stall=stall, seed=SEED) for _ in range(2))
    other = open_copy(stall=stall, seed=SEED + 1)
    for each in (device, again, other):
        data = start(each)
        each.wait_interrupt(1.0)
        assert copied(each, data)
        assert each.statistics.violations == 0
    assert device.cycles_total == again.cycles_total != other.cycles_total


def test_byte_strobes_of_a_register_are_driven(open_copy):
    device = open_copy()
    address = offset_of(device, "COMMAND_ADDRESS")
    device.write_register(address, 0x1111_1111)
    device.write_register(address, 0x2222_2222, strobe=0b0101)
    assert device.read_register(address) == 0x1122_1122


def test_refused_register_is_an_error(open_copy):
    device = open_copy()
    with pytest.raises(DeviceError, match=r"read of register 0x7fc of sim: was refused \(SLVERR\)"):
        device.read_register(0x7FC)
    with pytest.raises(DeviceError, match=r"write of register 0x000 of sim: was refused"):
        device.write_register(0, 0)
    with pytest.raises(ValueError, match=r"offset must be 0 to 4095"):
        device.read_register(0x1000)
    with pytest.raises(ValueError, match=r"value must be 0 to 4294967295"):
        device.write_register(0xC, 1 << 32)


def test_memory_access_outside_is_refused(open_copy):
    device = open_copy(memory_base=0x8000_0000)
    end = 0x8000_0000 + (1 << 20)
    device.write_memory(end - 4, b"last")
    assert device.read_memory(end - 4, 4) == b"last"
    for address, length in ((0x7FFF_FFFF, 1), (end - 3, 4), (0x8000_0000, -1)):
        with pytest.raises(ValueError, match="must be inside the memory"):
            device.read_memory(address, length)
    with pytest.raises(ValueError, match="must be inside the memory"):
        device.write_memory(end - 3, b"last")


def test_bursts_outside_the_memory_answer_decerr(open_copy):
    device = open_copy(memory_base=0x10_0000)
    device.write_register(offset_of(device, "COMMAND_ADDRESS"), 0)
    device.write_register(offset_of(device, "COMMAND_COUNT"), 1)
    device.write_register(offset_of(device, "IRQ_ENABLE"), 1)
    device.write_register(offset_of(device, "CTRL"), 1)
    device.wait_interrupt(1.0)
    assert error_of(device) == BUS


@pytest.mark.parametrize("response", [Response.EXOKAY, Response.SLVERR, Response.DECERR])
@pytest.mark.parametrize("beat", [0, 3, 7])
def test_c1_a_chosen_read_beat_answers_an_error(open_copy, response, beat):
    device = open_copy()
    device.inject(Injection(kind=Kind.RESPONSE, burst=2, beat=beat, value=response))
    start(device, bursts=2)
    device.wait_interrupt(1.0)
    assert (error_of(device), device.statistics.injections_fired) == (0, 0)
    start(device, bursts=1)
    device.wait_interrupt(1.0)
    assert (error_of(device), device.statistics.injections_fired) == (BUS, 1)
    start(device)
    device.wait_interrupt(1.0)
    assert error_of(device) == 0


def test_c1_a_chosen_write_answers_an_error(open_copy):
    device = open_copy()
    device.inject(Injection(kind=Kind.RESPONSE, channel=Channel.B, burst=1, value=Response.SLVERR))
    start(device)
    device.wait_interrupt(1.0)
    assert (error_of(device), device.statistics.injections_fired) == (BUS, 1)


@pytest.mark.parametrize(
    "injection",
    [
        Injection(kind=Kind.LAST_MISSING, burst=1),
        Injection(kind=Kind.LAST_LATE, burst=BURSTS - 1, value=1),
        Injection(kind=Kind.WRONG_ID, burst=1, beat=4, value=1),
        Injection(kind=Kind.EARLY_RESPONSE, channel=Channel.B, burst=1),
    ],
    ids=lambda i: i.kind.name.lower(),
)
def test_c2_protocol_faults_reach_the_core(open_copy, injection):
    device = open_copy()
    device.inject(injection)
    start(device)
    device.wait_interrupt(1.0)
    assert (error_of(device), device.statistics.injections_fired) == (PROTO, 1)


def test_c2_an_early_rlast_ends_the_burst(open_copy):
    device = open_copy(max_cycles=5000)
    device.inject(Injection(kind=Kind.LAST_EARLY, burst=1, beat=2))
    start(device)
    with pytest.raises(DeviceTimeout):
        device.wait_interrupt(1.0)
    assert error_of(device) == PROTO
    assert device.statistics.read_beats == device.config.burst_beats + 3


def test_c2_stray_beats_are_offered_when_nothing_is_outstanding(open_copy):
    # The component takes no beat that it has not asked for, so a stray one spoils the next burst.
    device = open_copy()
    device.inject(Injection(kind=Kind.STRAY, burst=1, value=9))
    start(device)
    device.wait_interrupt(1.0)
    assert (error_of(device), device.statistics.injections_fired) == (PROTO, 1)
    device = open_copy(max_cycles=5000)
    device.inject(Injection(kind=Kind.STRAY, channel=Channel.B, burst=0, value=9))
    start(device, bursts=1)
    device.wait_interrupt(1.0)
    assert (error_of(device), device.statistics.injections_fired) == (PROTO, 1)


@pytest.mark.parametrize("channel", list(Channel))
def test_c3_a_dead_channel_times_out_with_cycles_and_status(open_copy, channel):
    device = open_copy()
    device.inject(Injection(kind=Kind.DEAD, channel=channel, burst=3))
    data = start(device)
    with pytest.raises(DeviceTimeout, match=r"in 20000 cycles; STATUS is 0x1$"):
        device.wait_interrupt(0.02)
    assert device.last_cycles == 20_000
    device.clear_injections()
    device.wait_interrupt(1.0)
    assert copied(device, data)


def test_d1_hard_reset_in_the_middle_leaves_a_usable_device(open_copy):
    device = open_copy()
    for cycles in range(0, 60, 7):
        start(device)
        device.step(cycles)
        device.reset()
        assert not device.interrupt
        data = start(device, seed=SEED + cycles)
        device.wait_interrupt(1.0)
        assert copied(device, data) and error_of(device) == 0
    assert device.statistics.violations == 0


def test_d2_beats_of_before_arrive_after_a_reset_of_the_core_alone(open_copy):
    device = open_copy(latency=200)
    start(device, bursts=1)
    device.step(20)
    device.reset(bus=False)
    before = device.statistics.read_beats
    start(device, bursts=1)
    device.wait_interrupt(1.0)
    # The first beats that the component then takes were asked for before the reset.
    assert device.statistics.read_bursts == 2
    assert device.statistics.read_beats - before == device.config.burst_beats


def test_d3_a_bus_that_forgets_never_answers(open_copy):
    device = open_copy(max_cycles=5000)
    device.inject(Injection(kind=Kind.BUS_RESET, channel=Channel.AR, burst=1))
    start(device)
    with pytest.raises(DeviceTimeout):
        device.wait_interrupt(1.0)
    device.reset()
    data = start(device)
    device.wait_interrupt(1.0)
    assert copied(device, data)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_d4_random_power_up_gives_the_same_results(open_copy, seed):
    device = open_copy(random_power_up=True, seed=seed)
    check_identity(device)
    data = start(device)
    device.wait_interrupt(1.0)
    assert copied(device, data) and error_of(device) == 0


def test_a_broken_axi_rule_is_reported(toolchain, copy_config):
    verilog = emit_verilog(CopyCore(copy_config, bad_address=True), CORE_NAME)
    with SimDevice(verilog, copy_config, SimOptions(memory_bytes=1 << 20)) as device:
        device.write_register(offset_of(device, "COMMAND_COUNT"), 1)
        device.write_register(offset_of(device, "IRQ_ENABLE"), 1)
        device.write_register(offset_of(device, "CTRL"), 1)
        with pytest.raises(DeviceError, match=r"AXI4: burst crosses 4096 bytes at .* 0x00000fe8"):
            device.wait_interrupt(1.0)


def test_f1_ctrl_c_comes_back_soon_and_leaves_the_device_usable(open_copy):
    device = open_copy()
    device.inject(Injection(kind=Kind.DEAD, channel=Channel.AR))
    data = start(device)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        device.wait_interrupt(3600.0)
    timer.join()
    assert device.last_cycles > 0
    device.clear_injections()
    device.wait_interrupt(1.0)
    assert copied(device, data)


def test_f4_second_thread_is_refused_while_one_runs(open_copy):
    device = open_copy()
    seen = []

    def other():
        try:
            device.read_register(0)
        except DeviceBusy as error:
            seen.append(str(error))

    thread = threading.Thread(target=other)
    with device._simulation():
        thread.start()
        thread.join()
    assert seen == ["sim: is in use by another thread"]
    other()
    assert len(seen) == 1


def test_f4_use_after_close_is_refused_and_close_is_idempotent(open_copy):
    device = open_copy()
    device.close()
    device.close()
    for use in (
        lambda: device.read_register(0),
        lambda: device.write_register(0xC, 1),
        lambda: device.read_memory(0, 1),
        lambda: device.write_memory(0, b"x"),
        lambda: device.wait_interrupt(1.0),
        lambda: device.reset(),
        lambda: device.statistics,
    ):
        with pytest.raises(DeviceClosed, match="sim: is closed"):
            use()


def test_negative_timeout_is_refused(open_copy):
    device = open_copy()
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout must be at least 0"):
            device.wait_interrupt(timeout)


def test_f6_waves_cover_the_window_and_nothing_else(open_copy, tmp_path):
    sizes = {}
    for first, end in ((0, None), (100, 200), (0, 1 << 40)):
        path = tmp_path / f"{first}_{end}.fst"
        device = open_copy(waves=path, wave_from=first, wave_to=end)
        data = start(device)
        device.wait_interrupt(1.0)
        assert copied(device, data)
        device.close()
        assert is_complete(path)
        sizes[first, end] = path.stat().st_size
    assert sizes[100, 200] < sizes[0, None] == sizes[0, 1 << 40]


def test_f6_waves_that_cannot_be_written_are_dropped_with_a_warning(open_copy, tmp_path, caplog):
    device = open_copy(waves=tmp_path / "missing" / "a.fst")
    assert "no waves" in caplog.text
    data = start(device)
    device.wait_interrupt(1.0)
    assert copied(device, data)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_f6_a_full_disc_drops_the_waves_with_a_warning(open_copy, caplog):
    device = open_copy(waves="/dev/full")
    data = start(device)
    device.wait_interrupt(1.0)
    assert copied(device, data)
    device.close()
    assert "incomplete" in caplog.text


def test_f6_waves_that_never_began_are_named(open_copy, tmp_path, caplog):
    device = open_copy(waves=tmp_path / "a.fst", wave_from=1 << 40)
    device.close()
    assert "cycle 1099511627776 was not reached" in caplog.text


def test_open_device_names_a_wrong_option_before_building():
    with pytest.raises(ValueError, match=r"option must be one of .*latency.*, not 'speed'"):
        open_device("?speed=1")
