# SPDX-License-Identifier: Apache-2.0
import gc
import logging
import os
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import sparsemac
from sparsemac.commands import COMMAND_BYTES
from sparsemac.config import CoreConfig
from sparsemac.driver import Core
from sparsemac.errors import (
    DeviceBusy,
    DeviceChanged,
    DeviceClosed,
    DeviceFault,
    DeviceMismatch,
    DeviceRestarted,
    DeviceTimeout,
    OutcomeUnknown,
    UnsupportedLayer,
)
from sparsemac.faults import (
    BusFault,
    CommandFault,
    PermissionFault,
    StreamFault,
    WindowFault,
    ZeroLengthFault,
)
from sparsemac.golden import run_layer, run_network
from sparsemac.layout import Area
from sparsemac.registers import FaultCode, register_map
from support.layers import random_activations, random_layer, random_matrix

SEED = 2024


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def check(core, layers, x):
    result = core.run(core.load(layers), x)
    np.testing.assert_array_equal(result.outputs, run_network(layers, x))
    return result


# -- integers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 16, 64])
@pytest.mark.parametrize("raw", [False, True])
def test_layer_equals_golden_model(core, rng, columns, raw):
    layer = random_layer(rng, 30, 40, 0.2, raw=raw)
    result = check(core, [layer], random_activations(rng, 40, columns))
    assert result.outputs.dtype == (np.int32 if raw else np.int8)
    assert result.macs == layer.weights.without_zeros().nnz * columns


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_network_equals_golden_model(core, rng, weight_bits):
    sizes = (50, 33, 17, 10)
    layers = [
        random_layer(rng, rows, cols, 0.25, weight_bits=weight_bits, raw=rows == 10)
        for cols, rows in zip(sizes, sizes[1:], strict=False)
    ]
    check(core, layers, random_activations(rng, 50, 37))


def test_columns_beyond_the_buffer_become_partial_sums(core, rng):
    layer = random_layer(rng, 40, 500, 0.1)
    result = check(core, [layer], random_activations(rng, 500, 30))
    assert result.program.layers[0].tiling.columns < 500


def test_rows_longer_than_the_entry_buffer(core, rng):
    layer = random_layer(rng, 12, 60, 0.9)
    assert layer.weights.row_lengths.max() > core.config.entry_depth
    check(core, [layer], random_activations(rng, 60, 30))


def test_random_layers_equal_golden_model(core, rng):
    for _ in range(12):
        rows, cols, columns = (int(n) for n in rng.integers(1, 70, 3))
        density = float(rng.choice([0.0, 0.05, 0.3, 1.0]))
        layer = random_layer(rng, rows, cols, density, raw=bool(rng.integers(2)),
                             bias=bool(rng.integers(2)), weight_bits=int(rng.choice([4, 8])))
        check(core, [layer], random_activations(rng, cols, columns))


def test_matmul_takes_anything_like_csr(core, rng):
    sparse = pytest.importorskip("scipy.sparse")
    dense = random_matrix(rng, 25, 30)
    x = random_activations(rng, 30, 9)
    want = dense.astype(np.int64) @ x
    for matrix in (dense, sparse.csr_matrix(dense), sparse.coo_array(dense)):
        got = core.matmul(matrix, x)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)


def test_a5_empty_shapes_and_extremes(core):
    x = np.full((3, 5), -128, np.int8)
    assert core.matmul(np.zeros((0, 3), np.int8), x).shape == (0, 5)
    assert not core.matmul(np.zeros((4, 0), np.int8), x[:0]).any()
    assert not core.matmul(np.zeros((4, 3), np.int8), x).any()
    assert core.matmul(np.array([[-128]], np.int8), x[:1]).tolist() == [[16384] * 5]


def test_samples_are_split_when_the_memory_is_small(device_uri, rng, small_config):
    layers = [random_layer(rng, 40, 60, 0.1), random_layer(rng, 10, 40, 0.2, raw=True)]
    with sparsemac.open(device_uri, small_config, memory_bytes=32 << 10) as core:
        result = check(core, layers, random_activations(rng, 60, 500))
        assert result.jobs > 1
        if result.counters:
            assert result.counters.issued >= result.macs / core.config.lanes
        with pytest.raises(UnsupportedLayer, match="bytes of memory"):
            core.load(random_layer(rng, 400, 100, 1.0))


def test_runs_without_counters(device_uri, rng, small_config):
    if device_uri != "reference:":
        pytest.skip("one more core to build")
    layer = random_layer(rng, 10, 20)
    with sparsemac.open(device_uri, small_config.replace(counters=False)) as core:
        result = check(core, [layer], random_activations(rng, 20, 4))
    assert result.counters is None
    assert (result.cycles, result.utilization, result.bytes_read) == (0, 0.0, 0)


def test_one_window_is_enough(rng, small_config):
    layer = random_layer(rng, 10, 20)
    with sparsemac.open("reference:", small_config.replace(windows=1)) as core:
        check(core, [layer], random_activations(rng, 20, 4))


def test_memory_need_not_begin_at_zero(rng, small_config):
    layer = random_layer(rng, 30, 200, 0.1)
    with sparsemac.open("reference:", small_config, memory_base=0x8000_0000) as core:
        check(core, [layer], random_activations(rng, 200, 20))


def test_counters_account_for_every_engine_cycle(core, rng):
    result = check(core, [random_layer(rng, 40, 50)], random_activations(rng, 50, 40))
    counted = result.counters
    assert 0 < result.utilization <= 1
    assert result.bytes_written >= result.outputs.size
    if core.uri == "reference:":
        return  # no stall is modelled there
    stalls = sum(getattr(counted, name) for name in result.stalls)
    assert counted.issued + stalls == counted.cycles * core.config.engines
    assert sum(result.stalls.values()) < 1


def test_networks_take_turns(core, rng):
    a, b = random_layer(rng, 20, 30), random_layer(rng, 25, 30)
    first, second = core.load(a), core.load(b)
    x = random_activations(rng, 30, 10)
    for _ in range(2):
        np.testing.assert_array_equal(core.run(first, x).outputs, run_layer(a, x))
        np.testing.assert_array_equal(core.run(second, x).outputs, run_layer(b, x))


# -- arguments ------------------------------------------------------------------------------------


def test_inputs_are_copied_whatever_their_layout(core, rng):
    layer = random_layer(rng, 10, 20)
    wide = random_activations(rng, 40, 14)
    for x in (wide[::2, ::2], np.asfortranarray(wide[:20]), wide[:20].astype(np.int64)):
        before = x.copy()
        x.flags.writeable = False
        result = core.run(core.load(layer), x)
        np.testing.assert_array_equal(result.outputs, run_layer(layer, x.astype(np.int8)))
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(("x", "error", "text"), [
    ([[1, 2]], TypeError, r"x must be an array of int8, not list"),
    (np.zeros((20, 3)), TypeError, r"x must hold int8 values, not float64"),
    (np.zeros((20, 3), bool), TypeError, r"x must hold int8 values, not bool"),
    (np.zeros(20, np.int8), ValueError, r"x must have shape \(20, columns\), not \(20,\)"),
    (np.zeros((19, 3), np.int8), ValueError, r"x must have shape \(20, columns\), not \(19, 3\)"),
    (np.zeros((20, 0), np.int8), ValueError, r"x must have at least one column, not 0"),
    (np.full((20, 1), 128), ValueError, r"x must hold values of -128 to 127, not 128 to 128"),
])
def test_a9_wrong_activations_are_refused(rng, x, error, text):
    with sparsemac.open() as core:
        network = core.load(random_layer(rng, 10, 20))
        with pytest.raises(error, match=text):
            core.run(network, x)


def test_wrong_networks_are_refused(rng):
    layer, other = random_layer(rng, 10, 20), random_layer(rng, 5, 11, name="other")
    with sparsemac.open() as core, sparsemac.open() as another:
        with pytest.raises(ValueError, match="other must take the 10 outputs of layer, not 11"):
            core.load([layer, other])
        with pytest.raises(ValueError, match="at least one layer"):
            core.load([])
        with pytest.raises(TypeError, match="must be LinearLayer or ConvLayer, not int"):
            core.load([layer, 3])
        with pytest.raises(TypeError, match="what load returned, not LinearLayer"):
            core.run(layer, random_activations(rng, 20, 1))
        with pytest.raises(ValueError, match="loaded by this core"):
            another.run(core.load(layer), random_activations(rng, 20, 1))


def test_f5_unsupported_layers_name_the_limit(rng):
    raw = random_layer(rng, 10, 20, raw=True, name="middle")
    with sparsemac.open("reference:", CoreConfig(act_depth=64, psum_depth=0)) as core:
        with pytest.raises(UnsupportedLayer, match="middle must have int8 outputs, as end follows"):
            core.load([raw, random_layer(rng, 5, 10, name="end")])
        with pytest.raises(UnsupportedLayer, match="act_depth is 64.*psum_depth is 0"):
            core.load(random_layer(rng, 5, 65))
    with (
        sparsemac.open("reference:", CoreConfig(acc_width=16)) as core,
        pytest.raises(UnsupportedLayer, match="must fit 16 bits, but row 0 can reach"),
    ):
        core.load(np.full((1, 20), 127, np.int8))


@pytest.mark.parametrize("uri", ["nothing:", "reference", "", "foo:bar"])
def test_unknown_devices_are_refused(uri):
    with pytest.raises(ValueError, match=r"uri must begin with one of .*'reference:'.*, not"):
        sparsemac.open(uri)


def test_wrong_configurations_are_refused(tmp_path):
    with pytest.raises(TypeError, match="config must be a CoreConfig or the path"):
        sparsemac.open("reference:", 3)
    path = tmp_path / "core.toml"
    path.write_text("[core]\nengines = 2\nlanes = 4\n")
    with sparsemac.open("reference:", path) as core:
        assert (core.config.engines, core.config.lanes) == (2, 4)


# -- identity -------------------------------------------------------------------------------------


def pretend(monkeypatch, device, name, value):
    """Lets a register of a device read as ``value``."""
    offset, real = register_map(device.config)[name].byte_offset, device.read_register
    monkeypatch.setattr(
        device, "read_register", lambda o: value if o == offset else real(o))


def test_device_of_another_shape_is_refused(core, monkeypatch):
    pretend(monkeypatch, core.device, "CONFIG_HASH", 123)
    monkeypatch.setattr(core.device, "close", lambda: None)
    with pytest.raises(DeviceMismatch, match="CONFIG_HASH of .* must be 0x.*, not 0x0000007b"):
        Core(core.device)


def test_d6_another_bitstream_is_noticed_before_a_job(core, rng, monkeypatch):
    network = core.load(random_layer(rng, 10, 20))
    pretend(monkeypatch, core.device, "CONFIG_HASH", 123)
    with pytest.raises(DeviceChanged, match="another core was loaded"):
        core.run(network, random_activations(rng, 20, 1))


# -- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def job(core, rng):
    """A network, its input, and a check that it still runs."""
    layer = random_layer(rng, 30, 40)
    network, x = core.load(layer), random_activations(rng, 40, 20)

    def works():
        np.testing.assert_array_equal(core.run(network, x).outputs, run_layer(layer, x))

    works()
    return network, x, works


def damage(core, network, offset, data):
    """Overwrites a part of the image that is in memory."""
    core.device.write_memory(network.compile(20).image_address + offset, data)


def test_b8_damaged_command_is_a_fault_and_the_job_runs_again(core, job):
    network, x, works = job
    damage(core, network, COMMAND_BYTES + 8, b"\xff")
    with pytest.raises(CommandFault, match=r"fault DESC at command 1.*layer, 20 columns") as caught:
        core.run(network, x)
    assert (caught.value.code, caught.value.command) == (FaultCode.DESC, 1)
    works()


def test_a2_damaged_weights_are_a_fault_and_the_job_runs_again(core, job):
    network, x, works = job
    damage(core, network, 4096, bytes(2048))
    with pytest.raises(StreamFault, match="Remedy: "):
        core.run(network, x)
    works()


def run_list(core, address, count=1, areas=()):
    return core._session.run(address, count, areas, 5.0, "test")


def test_b2_closed_windows_stop_the_core(core, job):
    _, _, works = job
    with pytest.raises(WindowFault) as caught:
        run_list(core, 0)
    assert caught.value.detail == 0
    works()


def test_b2_read_only_outputs_stop_the_core(core, job):
    network, _, works = job
    program = network.compile(20)
    sealed = [replace(area, writable=False) for area in program.areas]
    with pytest.raises(PermissionFault) as caught:
        run_list(core, program.image_address, program.command_count, sealed)
    first = program.areas[1].address
    assert first <= caught.value.address < first + program.areas[1].length
    works()


def test_e5_restarted_device_gets_its_image_again(core, job, monkeypatch):
    network, x, works = job
    wait = core.device.wait_interrupt
    with monkeypatch.context() as patch:
        def restart(timeout):
            wait(timeout)
            core.device.write_memory(core.device.memory_base, bytes(core.device.memory_bytes))
            raise DeviceRestarted("the device restarted, and has lost its memory")

        patch.setattr(core.device, "wait_interrupt", restart)
        with pytest.raises(DeviceRestarted):
            core.run(network, x)
    works()


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("register", ["CTRL", "COMMAND_ADDRESS", "WINDOW0_PERM"])
def test_e4_state_is_read_again_when_a_write_may_be_lost(
    core, job, monkeypatch, register, carried_out
):
    network, x, works = job
    offset = register_map(core.config)[register].byte_offset
    write, lost = core.device.write_register, []

    def write_register(at, value):
        if at == offset and not lost:
            lost.append(at)
            if carried_out:
                write(at, value)
            raise OutcomeUnknown("a write may or may not have been carried out")
        write(at, value)

    monkeypatch.setattr(core.device, "write_register", write_register)
    with pytest.raises(OutcomeUnknown):
        core.run(network, x)
    assert core._session.read("STATUS", "busy") == 0
    works()


def test_e4_memory_is_written_again_when_a_write_may_be_lost(core, job, monkeypatch):
    network, x, works = job
    other = core.load(random_layer(np.random.default_rng(1), 30, 40))
    with monkeypatch.context() as patch:
        def write_memory(address, data):
            raise OutcomeUnknown("a write may or may not have been carried out")

        patch.setattr(core.device, "write_memory", write_memory)
        for lost in (other, network):
            with pytest.raises(OutcomeUnknown):
                core.run(lost, x)
    works()


def test_images_of_several_networks_stay_in_memory(core, rng):
    layers = [random_layer(rng, 30, 40), random_layer(rng, 20, 50)]
    networks = [core.load(layer) for layer in layers]
    inputs = [random_activations(rng, 40, 6), random_activations(rng, 50, 6)]
    sent = []
    for _ in range(2):
        for network, layer, x in zip(networks, layers, inputs, strict=True):
            result = core.run(network, x)
            np.testing.assert_array_equal(result.outputs, run_layer(layer, x))
            sent.append(result.bytes_to_device)
    for first, again, network in zip(sent[:2], sent[2:], networks, strict=True):
        program = network.compile(6)
        assert again == program.input.length
        assert first == again + len(program.image)
    assert result.bytes_from_device == networks[1].compile(6).output.length


def test_image_is_written_again_when_another_took_its_place(device_uri, rng, small_config):
    layers = [random_layer(rng, 60, 70, 0.5), random_layer(rng, 60, 80, 0.5)]
    with sparsemac.open(device_uri, small_config, memory_bytes=24 << 10) as core:
        networks = [core.load(layer) for layer in layers]
        for _ in range(2):
            for network, layer in zip(networks, layers, strict=True):
                x = random_activations(rng, layer.inputs, 6)
                np.testing.assert_array_equal(core.run(network, x).outputs, run_layer(layer, x))


def test_b1_empty_list_is_a_fault(core, job):
    with pytest.raises(ZeroLengthFault):
        run_list(core, 0, 0)
    job[2]()


def test_c1_list_outside_the_memory_is_a_bus_fault(core, job):
    end = core.device.memory_base + core.device.memory_bytes
    with pytest.raises(BusFault) as caught:
        run_list(core, end, 1, [Area(end, 4096, False)])
    assert caught.value.address == end
    job[2]()


def test_timeout_names_status_and_layer(core, job, monkeypatch):
    network, x, works = job

    def late(timeout):
        raise DeviceTimeout(f"no interrupt in {timeout} s")

    with monkeypatch.context() as patch:
        patch.setattr(core.device, "wait_interrupt", late)
        core.timeout = 0.5
        with pytest.raises(DeviceTimeout, match=r"0.5 s \(layer, 20 columns; STATUS 0x"):
            core.run(network, x)
    works()


# -- host -----------------------------------------------------------------------------------------


def test_f1_interrupted_run_leaves_the_core_usable(core, job, monkeypatch):
    network, x, works = job
    real, calls = core.device.wait_interrupt, []

    def wait(timeout):
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(core.device, "wait_interrupt", wait)
        with pytest.raises(KeyboardInterrupt):
            core.run(network, x)
    assert not core._session.read("STATUS", "busy")
    assert core._session.read("WINDOW0_PERM") == 0
    works()


def start_only(core, network, columns):
    """Rings the doorbell and walks away, as a process that is killed."""
    program = network.compile(columns)
    session = core._session
    session._open_windows(program.areas)
    session.write("COMMAND_ADDRESS", program.image_address)
    session.write("COMMAND_COUNT", program.command_count)
    session.strobe("CTRL", "start")
    if not session.read("STATUS", "busy"):
        pytest.skip(f"jobs of {core.uri} end before start returns")


def test_f2_open_recovers_a_core_that_was_left_running(core, job, caplog):
    network, x, _ = job
    start_only(core, network, 20)
    with caplog.at_level(logging.WARNING):
        again = Core(core.device)
    assert "busy with a job of someone else: aborted" in caplog.text
    np.testing.assert_array_equal(
        again.run(again.load(network.layers), x).outputs, run_network(network.layers, x))


def test_b5_busy_core_is_not_started_again(core, job):
    network, x, works = job
    start_only(core, network, 20)
    with pytest.raises(DeviceBusy, match="busy with another job"):
        core.run(network, x)
    core.reset()
    works()


def test_f3_layers_stay_alive_while_they_run(core, rng, monkeypatch):
    layer = random_layer(rng, 10, 20)
    x = random_activations(rng, 20, 5)
    want, alive = run_layer(layer, x), []
    weights = weakref.ref(layer.weights.data)
    real = core.device.wait_interrupt

    def wait(timeout):
        gc.collect()
        alive.append(weights() is not None)
        x[:] = 0  # the caller may do as he likes with his array
        real(timeout)

    monkeypatch.setattr(core.device, "wait_interrupt", wait)
    loaded = core.load([layer])
    del layer
    np.testing.assert_array_equal(core.run(loaded, x).outputs, want)
    assert alive == [True]


def test_f4_second_thread_gets_device_busy(core, job, monkeypatch):
    network, x, works = job
    entered, leave = threading.Event(), threading.Event()
    real, failures = core.device.wait_interrupt, []

    def wait(timeout):
        entered.set()
        leave.wait(10)
        real(timeout)

    def other():
        try:
            works()
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    monkeypatch.setattr(core.device, "wait_interrupt", wait)
    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert entered.wait(10)
        for call in (lambda: core.run(network, x), core.close, core.reset):
            with pytest.raises(DeviceBusy, match="in use by another thread"):
                call()
    finally:
        leave.set()
        thread.join()
    assert not failures
    works()


def test_f4_forked_process_does_not_touch_the_device(core, job, monkeypatch):
    network, x, works = job
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(DeviceBusy, match="belongs to process"):
            core.run(network, x)
    works()


def test_f4_closed_device_says_so_and_closes_twice(small_config, rng):
    core = sparsemac.open("reference:", small_config)
    network = core.load(random_layer(rng, 10, 20))
    core.close()
    core.close()
    for call in (lambda: core.run(network, random_activations(rng, 20, 1)),
                 lambda: core.load(network.layers), core.reset):
        with pytest.raises(DeviceClosed, match="reference: is closed"):
            call()
    assert "closed" in repr(core)


def test_outputs_exist_only_after_success(core, job):
    network, x, _ = job
    damage(core, network, 0, bytes(COMMAND_BYTES))
    outputs = None
    with pytest.raises(DeviceFault):
        outputs = core.run(network, x).outputs
    assert outputs is None
