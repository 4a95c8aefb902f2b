# SPDX-License-Identifier: Apache-2.0
"""The serial device: on a pseudo-terminal, with a model of the board at its other end."""

import os
import threading
import time
import tty

import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac.devices import uart
from sparsemac.devices.base import check_identity
from sparsemac.devices.reference import open_device as open_reference
from sparsemac.driver import Core
from sparsemac.errors import (
    DeviceClosed,
    DeviceError,
    DeviceMismatch,
    DeviceRestarted,
    DeviceTimeout,
    LinkError,
    MissingDependency,
)
from sparsemac.golden import run_network
from sparsemac.link import LinkClient, LinkOp, LinkStatus
from sparsemac.registers import register_map
from support.layers import random_activations, random_layer
from support.link_model import FaultyLine, LinkModel, Rates

SEED = 17
CONFIG = CoreConfig(engines=2, lanes=4, act_depth=256, psum_depth=256)
MEMORY_BYTES = 1 << 16
STATUS = register_map(CONFIG)["STATUS"].byte_offset


class BoardModel(LinkModel):
    """The device's side of the link in front of the reference device."""

    def __init__(self, config=CONFIG):
        super().__init__(memory=bytearray(MEMORY_BYTES))
        self.core = open_reference("", config, memory_bytes=MEMORY_BYTES)

    def _execute(self, request):
        at, length = request.address, request.length
        registers = {LinkOp.READ_REGISTER, LinkOp.WRITE_REGISTER}
        if request.op in registers and request.session == self.session:
            try:
                if request.op == LinkOp.READ_REGISTER:
                    self.registers[at] = self.core.read_register(at)
                else:
                    self.core.write_register(at, int.from_bytes(request.data, "little"))
            except DeviceError:
                return LinkStatus.SLVERR, b""
        if request.op == LinkOp.INTERRUPT:
            try:
                self.core.wait_interrupt(0)
                self.interrupt = True
            except DeviceTimeout:
                self.interrupt = False
        if request.op == LinkOp.READ_MEMORY:
            self.memory[at : at + length] = self.core.read_memory(at, length)
        answer = super()._execute(request)
        if request.op == LinkOp.WRITE_MEMORY and answer[0] == LinkStatus.OK:
            self.core.write_memory(at, request.data)
        return answer


def open_model(rates=None, config=CONFIG, model=None):
    """A `UartDevice` on a line in memory; no time passes on it."""
    line = FaultyLine(model or BoardModel(), rates, SEED)
    client = LinkClient(line, timeout=0.01, retries=60)
    client.hello()
    return uart.UartDevice("uart:model", config, client)


@pytest.fixture
def terminal():
    """(path, model) of a board model behind a pseudo-terminal."""
    pytest.importorskip("serial", reason="uart: needs pyserial: pip install 'sparsemac[uart]'")
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    model, stop = BoardModel(), threading.Event()

    def serve():
        while not stop.is_set():
            try:
                data = os.read(master, 4096)
                if reply := model.feed(data):
                    os.write(master, reply)
            except BlockingIOError:
                time.sleep(0.0005)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield os.ttyname(slave), model
    stop.set()
    thread.join()
    os.close(master)
    os.close(slave)


# -- on a terminal --------------------------------------------------------------------------------


def test_registers_and_memory_over_a_terminal(terminal):
    path, _ = terminal
    with uart.open_device(path, CONFIG, timeout=0.5) as device:
        assert (device.uri, device.memory_bytes) == (f"uart:{path}", MEMORY_BYTES)
        check_identity(device)
        data = np.random.default_rng(SEED).integers(0, 256, 3000).astype(np.uint8).tobytes()
        device.write_memory(37, data)
        assert device.read_memory(37, len(data)) == data


def test_layer_over_a_terminal_is_bit_exact(terminal):
    rng = np.random.default_rng(SEED)
    layer = random_layer(rng, 20, 30)
    x = random_activations(rng, 30, 8)
    with Core(uart.open_device(terminal[0], CONFIG, timeout=0.5)) as core:
        np.testing.assert_array_equal(core.run(core.load(layer), x).outputs,
                                      run_network([layer], x))


def test_f4_port_in_use_is_refused(terminal):
    path, _ = terminal
    with (
        uart.open_device(path, CONFIG, timeout=0.5),
        pytest.raises(LinkError, match=f"serial port {path} cannot be opened"),
    ):
        uart.open_device(path, CONFIG)


def test_nobody_at_the_port_is_a_link_error_and_frees_it(terminal):
    path, model = terminal
    model.feed, real = lambda data: b"", model.feed
    with pytest.raises(LinkError, match="HELLO at 0x0 failed: no sound reply to 2 tries"):
        uart.open_device(path, CONFIG, timeout=0.02, retries=1)
    model.feed = real
    uart.open_device(path, CONFIG, timeout=0.5).close()


# -- in memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [None, Rates(0.001, 0.001, 0.001, 0.001)],
                         ids=["clean", "faulty"])
def test_e1_network_over_a_line_is_bit_exact(rates):
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    layers = [random_layer(rng, 20, 40), random_layer(rng, 10, 20, raw=True)]
    device = open_model(rates)
    with Core(device) as core:
        network = core.load(layers)
        for columns in (1, 9):
            x = random_activations(rng, 40, columns)
            np.testing.assert_array_equal(core.run(network, x).outputs, run_network(layers, x))
    assert (device.link.repeated > 0) == (rates is not None)


def test_e5_board_that_restarts_ends_the_job_with_that_error():
    rng = np.random.default_rng(SEED)
    layer, x = random_layer(rng, 20, 40), random_activations(rng, 40, 4)
    model = BoardModel()
    device = open_model(model=model)
    with Core(device) as core:
        network = core.load(layer)
        model.restart()
        with pytest.raises(DeviceRestarted):
            core.run(network, x)
        device.link.hello()
        np.testing.assert_array_equal(core.run(network, x).outputs, run_network([layer], x))


def test_core_of_another_configuration_is_refused():
    with pytest.raises(DeviceMismatch, match="CONFIG_HASH of uart:model must be"):
        Core(open_model(config=CONFIG.replace(engines=3)))


def test_interrupt_that_never_comes_is_a_timeout_with_status(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(uart.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(uart.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    device = open_model()
    with pytest.raises(DeviceTimeout, match=r"no interrupt within 0.5 s \(STATUS 0x0\)"):
        device.wait_interrupt(0.5)
    assert 0.5 < now[0] < 0.6


def test_b6_refused_register_is_a_device_error():
    device = open_model()
    with pytest.raises(DeviceError, match="READ_REGISTER at 0xffc answered SLVERR"):
        device.read_register(0xFFC)
    assert device.read_register(STATUS) == 0


@pytest.mark.parametrize(("address", "length"), [
    (-4, 4), (MEMORY_BYTES, 4), (MEMORY_BYTES - 2, 4), (8, -4)])
def test_memory_accesses_beyond_its_ends_are_refused(address, length):
    device = open_model()
    with pytest.raises(ValueError, match=r"memory accesses must lie in 0x0\.\.0x10000, not"):
        device.read_memory(address, length)
    if length > 0:
        with pytest.raises(ValueError, match="memory accesses must lie in"):
            device.write_memory(address, bytes(length))


def test_f4_closed_device_says_so_and_closes_twice():
    device = open_model()
    device.close()
    device.close()
    for call in (lambda: device.read_register(0), lambda: device.write_register(0, 0),
                 lambda: device.read_memory(0, 4), lambda: device.write_memory(0, bytes(4)),
                 lambda: device.wait_interrupt(0)):
        with pytest.raises(DeviceClosed, match="uart:model is closed"):
            call()


# -- opening --------------------------------------------------------------------------------------


def test_port_must_be_named():
    with pytest.raises(ValueError, match="must be 'uart:PORT', for example"):
        uart.open_device("")


@pytest.mark.parametrize(("options", "text"), [
    ({"baud": 0}, "baud must be 300 to 12000000, not 0"),
    ({"retries": -1}, "retries must be 0 to 1000, not -1"),
    ({"timeout": 0}, "timeout must be more than 0 s, not 0"),
    ({"timeout": float("nan")}, "timeout must be more than 0 s, not nan"),
])
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        uart.open_device("/dev/null", CONFIG, **options)


def test_port_that_is_not_there_is_a_link_error(tmp_path):
    pytest.importorskip("serial", reason="uart: needs pyserial: pip install 'sparsemac[uart]'")
    with pytest.raises(LinkError, match="serial port .*nothing cannot be opened"):
        uart.open_device(str(tmp_path / "nothing"))
    file = tmp_path / "file"
    file.write_bytes(b"no terminal")
    with pytest.raises(LinkError, match="serial port .*file cannot be opened"):
        uart.open_device(str(file))


def test_missing_pyserial_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sparsemac\[uart\]'"):
        uart.open_device("/dev/ttyUSB0")
