# SPDX-License-Identifier: Apache-2.0
"""The command-wise golden model, against sums written out as the commands define them."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.commands import CHECKSUM, COMMAND_BYTES, Exec, Load, OutputMode, encode_list
from sparsemac.config import CoreConfig
from sparsemac.csr import as_csr
from sparsemac.machine import Fault, Machine, Window
from sparsemac.numerics import requantize
from sparsemac.registers import FaultCode
from sparsemac.schedule import balance_rows
from sparsemac.stream import choose_format, pack
from support.layers import random_matrix

SEED = 31
CONFIG = CoreConfig(engines=2, lanes=4, depth=16, act_depth=128, entry_depth=16, psum_depth=64)
MEMORY_BYTES = 1 << 16
ACTIVATIONS, WEIGHTS, OUTPUT = 0x1000, 0x2000, 0x4000
OPEN = [Window(0, 3, True, False), Window(4, 15, True, True)]


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


class Bench:
    """Memory with activations and one matrix; commands that run it, to be altered."""

    def __init__(self, rng, rows=6, cols=20, density=0.3, config=CONFIG, matrix=None, fmt=None,
                 **parameters):
        self.config = config
        self.matrix = random_matrix(rng, rows, cols, density) if matrix is None else matrix
        csr = as_csr(self.matrix)
        self.memory = np.zeros(MEMORY_BYTES, np.uint8)
        self.words = rng.integers(-128, 128, (config.act_depth, config.lanes)).astype(np.int8)
        self.put(ACTIVATIONS, self.words.tobytes())
        self.bias = rng.integers(-1000, 1000, csr.shape[0]).astype(np.int32)
        rows_of = balance_rows(np.maximum(csr.row_lengths, 1), config.engines)
        packed = pack(csr, rows_of, fmt or choose_format(csr, 8), engines=config.engines,
                      bus_bytes=config.bus_bytes, bias=self.bias, **parameters)
        self.put(WEIGHTS, packed.data)
        beats = config.act_depth * config.lanes // config.bus_bytes
        self.load = Load(address=ACTIVATIONS, destination=0, line_beats=beats)
        self.exec = Exec(
            weights=WEIGHTS, beats=packed.beats, output=OUTPUT, base=0, limit=csr.shape[1],
            positions=1, width=1, step=0, wrap_step=0, out_step=0, out_wrap_step=0,
            format=packed.fmt, wait=1)
        self.machine = None

    def put(self, address, data):
        self.memory[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def run(self, *commands, windows=OPEN, address=0, count=None):
        commands = list(commands) or [self.load, self.exec]
        data = b"".join(c if isinstance(c, bytes) else c.encode() for c in commands)
        if address + len(data) <= MEMORY_BYTES:
            self.put(address, data)
        self.machine = Machine(self.config, self.memory, windows=windows)
        return self.machine.run(address, len(commands) if count is None else count)

    def sums(self, places):
        """(rows, positions, lanes) by the formula, one product after another."""
        result = np.zeros((len(self.matrix), len(places), self.config.lanes), np.int64)
        words = self.words.astype(int)
        for row, column in np.argwhere(self.matrix):
            for p, at in enumerate(places):
                result[row, p] += int(self.matrix[row, column]) * words[at + column]
        return result + self.bias[:, None, None]

    def outputs(self, count, dtype="<i4", at=OUTPUT):
        data = self.memory[at : at + count * self.config.lanes * np.dtype(dtype).itemsize]
        return data.view(dtype).reshape(count, self.config.lanes)

    def fault(self, *commands, **options):
        """Runs what must fail."""
        fault = self.run(*commands, **options)
        assert isinstance(fault, Fault)
        return fault


@pytest.fixture
def bench(rng):
    return Bench(rng)


# -- what commands mean ---------------------------------------------------------------------------


def test_raw_sums_of_one_position(bench):
    assert bench.run() is None
    np.testing.assert_array_equal(bench.outputs(6), bench.sums([0])[:, 0])


@pytest.mark.parametrize("config", [
    CoreConfig(engines=1, lanes=1, act_depth=128, bus_width=32, fifo_depth=32),
    CoreConfig(engines=3, lanes=16, act_depth=64, bus_width=64),
    CoreConfig(engines=5, lanes=2, act_depth=256, bus_width=256),
], ids=["1x1", "words of two beats", "beats of many words"])
def test_other_geometries(rng, config):
    bench = Bench(rng, config=config)
    assert bench.run() is None
    np.testing.assert_array_equal(bench.outputs(6), bench.sums([0])[:, 0])


def test_positions_step_through_the_buffer(bench):
    run = replace(bench.exec, positions=5, width=5, base=3, step=20, out_step=6)
    assert bench.run(bench.load, run) is None
    got = bench.outputs(30).reshape(5, 6, 4).transpose(1, 0, 2)
    np.testing.assert_array_equal(got, bench.sums(range(3, 103, 20)))


def test_positions_wrap_after_a_width(bench):
    run = replace(bench.exec, positions=7, width=3, step=2, wrap_step=30, out_step=6,
                  out_wrap_step=60)
    assert bench.run(bench.load, run) is None
    places, outputs = [0, 2, 4, 34, 36, 38, 68], [0, 6, 12, 72, 78, 84, 144]
    want, words = bench.sums(places), bench.outputs(150)
    for p, out in enumerate(outputs):
        np.testing.assert_array_equal(words[out : out + 6], want[:, p])
    written = np.unique(np.add.outer(outputs, np.arange(6)))
    assert not np.delete(words, written, axis=0).any()


def test_steps_may_go_backwards(bench):
    run = replace(bench.exec, output=OUTPUT + 64 * 16, positions=3, width=3, base=90,
                  step=-40, out_step=-6)
    assert bench.run(bench.load, run) is None
    got = bench.outputs(18, at=OUTPUT + 52 * 16).reshape(3, 6, 4)[::-1]
    np.testing.assert_array_equal(got.transpose(1, 0, 2), bench.sums([90, 50, 10]))


def test_convolution_needs_no_im2col(rng):
    """3 x 3 kernels over 2 channels of 6 x 8 pixels: positions are rows and columns of pixels."""
    kernels = random_matrix(rng, 3, 18, 0.5).reshape(3, 2, 3, 3)
    matrix = np.zeros((3, 2, 6, 8), np.int8)
    matrix[:, :, :3, :3] = kernels
    config = CONFIG.replace(depth=32)
    bench = Bench(rng, matrix=matrix.reshape(3, 96), config=config)
    run = replace(bench.exec, positions=24, width=6, step=1, wrap_step=3, out_step=3,
                  out_wrap_step=3)
    assert bench.run(bench.load, run) is None
    image = bench.words[:96].reshape(2, 6, 8, 4).astype(int)
    for y, x in np.ndindex(4, 6):
        patch = image[:, y : y + 3, x : x + 3]
        want = np.einsum("ocyx,cyxl->ol", kernels.astype(int), patch) + bench.bias[:, None]
        np.testing.assert_array_equal(bench.outputs(72)[3 * (6 * y + x) :][:3], want)


@pytest.mark.parametrize("mode", [OutputMode.SINGLE, OutputMode.DOUBLE])
def test_requantized_outputs_are_bytes(rng, mode):
    multiplier = rng.integers(1 << 30, 1 << 31, 6).astype(np.uint64)
    shift = rng.integers(0, 10, 6)
    bench = Bench(rng, multiplier=multiplier, shift=shift)
    run = replace(bench.exec, mode=mode, zero_point=-7, low=-90, high=80)
    assert bench.run(bench.load, run) is None
    want = requantize(bench.sums([0])[:, 0], multiplier[:, None], shift[:, None], -7, -90, 80, mode)
    np.testing.assert_array_equal(bench.outputs(6, "i1"), want)
    assert not bench.outputs(8, "i1")[6:].any()


def test_lines_are_gathered_by_their_stride(rng):
    bench = Bench(rng)
    load = Load(address=ACTIVATIONS, destination=8, line_beats=2, lines=5, stride=32)
    assert bench.run(load, replace(bench.exec, base=8)) is None
    source = bench.words.copy()
    for line in range(5):
        bench.words[8 + 4 * line :][:4] = source[8 * line :][:4]
    np.testing.assert_array_equal(bench.outputs(6), bench.sums([8])[:, 0])


def test_partial_sums_add_up_over_column_tiles(rng):
    whole = random_matrix(rng, 6, 60, 0.3)
    bench = Bench(rng, matrix=whole)
    want = bench.sums([0, 60])
    tiles = [Bench(rng, matrix=np.ascontiguousarray(whole[:, c : c + 20])) for c in (0, 20, 40)]
    commands = [bench.load]
    for i, tile in enumerate(tiles):
        address = WEIGHTS + 0x400 * i
        length = tile.exec.beats * CONFIG.bus_bytes
        bench.put(address, tile.memory[WEIGHTS : WEIGHTS + length].tobytes())
        commands.append(replace(
            tile.exec, weights=address, base=20 * i, positions=2, width=2, step=60, out_step=6,
            psum_in=i > 0, psum_out=i < 2))
    # Every tile was dealt out by its own row lengths; sums belong to places, so deal alike.
    order = balance_rows(np.ones(6, np.int64), 2)
    for i, tile in enumerate(tiles):
        csr = as_csr(tile.matrix)
        packed = pack(csr, order, commands[i + 1].format, engines=2, bus_bytes=8, bias=bench.bias)
        bench.put(WEIGHTS + 0x400 * i, packed.data)
        commands[i + 1] = replace(commands[i + 1], beats=packed.beats)
    assert bench.run(*commands) is None
    got = bench.outputs(12).reshape(2, 6, 4).transpose(1, 0, 2)
    np.testing.assert_array_equal(got, want)
    assert bench.machine.counters["WRITE_BYTES"] == 12 * 16


def test_sums_wrap_at_the_accumulator(rng):
    matrix = np.full((1, 20), 127, np.int8)
    bench = Bench(rng, matrix=matrix, config=CONFIG.replace(acc_width=16, entry_depth=32))
    bench.bias[:] = 0
    bench.words[:] = 127
    bench.put(ACTIVATIONS, bench.words.tobytes())
    assert bench.run(bench.load, replace(bench.exec, mode=OutputMode.RAW)) is None
    total = 20 * 127 * 127
    # Behind the header.
    bits = int.from_bytes(bench.memory[WEIGHTS : WEIGHTS + 8].tobytes(), "little")
    bias = (bits >> bench.exec.format.header_bits & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
    assert bench.outputs(1).tolist() == [[(total + 2**15) % 2**16 - 2**15 + bias] * 4]


def test_a4_duplicates_and_any_order_accumulate(rng):
    data, indices = np.array([100, 100, -3], np.int8), np.array([5, 5, 2])
    csr = as_csr((data, indices, np.array([0, 3]), (1, 20)))
    bench = Bench(rng, matrix=np.zeros((1, 20), np.int8))
    packed = pack(csr, [np.array([0]), np.array([], np.int64)], choose_format(csr, 8), engines=2,
                  bus_bytes=8, bias=bench.bias)
    bench.put(WEIGHTS, packed.data)
    run = replace(bench.exec, beats=packed.beats, format=packed.fmt)
    assert bench.run(bench.load, run) is None
    want = 200 * bench.words[5].astype(int) - 3 * bench.words[2].astype(int) + bench.bias[0]
    np.testing.assert_array_equal(bench.outputs(1)[0], want)


def test_a5_empty_rows_yield_their_bias(rng):
    bench = Bench(rng, matrix=np.zeros((6, 20), np.int8))
    assert bench.run() is None
    np.testing.assert_array_equal(bench.outputs(6), np.repeat(bench.bias[:, None], 4, axis=1))


def test_counters_count_what_crosses_the_bus(bench):
    assert bench.run(bench.load, replace(bench.exec, positions=3, width=3, step=20,
                                         out_step=6)) is None
    counters = bench.machine.counters
    loaded = bench.load.line_beats
    assert counters["READ_BEATS"] == 2 * COMMAND_BYTES // 8 + loaded + bench.exec.beats
    assert counters["WRITE_BYTES"] == 18 * 16 and counters["WRITE_BEATS"] == 18 * 2
    assert counters["ISSUED"] == 3 * np.maximum((bench.matrix != 0).sum(axis=1), 1).sum()
    assert counters["CYCLES"] >= counters["ISSUED"] / 2


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "field", "value", "code"), [
    ("load", "line_beats", 0, FaultCode.ZERO),
    ("load", "lines", 0, FaultCode.ZERO),
    ("load", "address", ACTIVATIONS + 4, FaultCode.ALIGN),
    ("load", "stride", 4, FaultCode.ALIGN),
    ("load", "destination", 1, FaultCode.ALIGN),
    ("load", "destination", 128, FaultCode.SIZE),
    ("load", "destination", 2, FaultCode.SIZE),
    ("load", "lines", 2, FaultCode.SIZE),
    ("load", "line_beats", 1 << 16, FaultCode.SIZE),
    ("load", "lines", 1 << 16, FaultCode.SIZE),
    ("exec", "beats", 0, FaultCode.ZERO),
    ("exec", "positions", 0, FaultCode.ZERO),
    ("exec", "width", 0, FaultCode.ZERO),
    ("exec", "limit", 0, FaultCode.ZERO),
    ("exec", "weights", WEIGHTS + 4, FaultCode.ALIGN),
    ("exec", "output", OUTPUT + 8, FaultCode.ALIGN),
    ("exec", "beats", 5, FaultCode.ALIGN),
    ("exec", "positions", 17, FaultCode.SIZE),
    ("exec", "limit", 65537, FaultCode.SIZE),
    ("exec", "base", 128, FaultCode.SIZE),
])
def test_b1_lengths_and_alignment(bench, command, field, value, code):
    commands = {"load": bench.load, "exec": bench.exec}
    commands[command] = replace(commands[command], **{field: value})
    fault = bench.fault(*commands.values())
    assert (fault.code, fault.command) == (code, list(commands).index(command))
    assert not bench.memory[OUTPUT:].any()


def test_b1_list_itself(bench):
    assert bench.fault(address=32).code == FaultCode.ALIGN
    assert bench.fault(count=0).code == FaultCode.ZERO


def test_b1_partial_sums_on_a_core_without(rng):
    bench = Bench(rng, config=CONFIG.replace(psum_depth=0))
    for flag in ("psum_in", "psum_out"):
        fault = bench.fault(bench.load, replace(bench.exec, **{flag: True}))
        assert (fault.code, fault.command) == (FaultCode.SIZE, 1)


@pytest.mark.parametrize(("command", "field", "value", "code", "address", "detail"), [
    ("load", "address", 0x2_0000, FaultCode.WINDOW, 0x2_0000, 0),
    ("exec", "weights", 0x2_0000, FaultCode.WINDOW, 0x2_0000, 0),
    ("exec", "output", 0x2_0000, FaultCode.WINDOW, 0x2_0000, 1),
    ("exec", "output", 0x3000, FaultCode.PERM, 0x3000, 1),
    ("exec", "output", 0x1_0000 - 16, FaultCode.WINDOW, 0x1_0000, 1),
])
def test_b2_accesses_outside_the_windows(bench, command, field, value, code, address, detail):
    commands = {"load": bench.load, "exec": bench.exec}
    commands[command] = replace(commands[command], **{field: value})
    fault = bench.fault(*commands.values())
    assert (fault.code, fault.command) == (code, list(commands).index(command))
    assert (fault.address >> 12, fault.detail) == (address >> 12, detail)


def test_b2_read_that_crosses_the_end_of_a_window(bench):
    load = replace(bench.load, address=0x1F00)  # its second half lies on a closed page
    fault = bench.fault(load, bench.exec, windows=[Window(0, 1, True, False)])
    assert fault == Fault(FaultCode.WINDOW, 0, 0x2000, 0)


def test_b2_addresses_that_wrap_round(bench):
    top = (1 << 32) - 64
    fault = bench.fault(replace(bench.load, address=top), windows=OPEN)
    assert (fault.code, fault.address) == (FaultCode.WINDOW, top)
    run = replace(bench.exec, positions=2, width=2, out_step=-(OUTPUT >> 4) - 7)
    fault = bench.fault(bench.load, run)
    assert (fault.code, fault.detail) == (FaultCode.WINDOW, 1)
    assert fault.address > 0xFFFF_0000


def test_b2_write_only_windows_are_not_read(bench):
    windows = [Window(0, 0, True, False), Window(1, 15, False, True)]
    assert bench.fault(windows=windows) == Fault(FaultCode.PERM, 0, ACTIVATIONS, 0)


def test_b3_overlapping_windows_allow_what_any_allows(bench):
    assert bench.run(windows=[Window(0, 15, True, False), Window(2, 6, False, True)]) is None


@pytest.mark.parametrize("windows", [
    [], [Window(15, 0, True, True)], [Window(0, 15, False, False)],
], ids=["none", "base beyond last", "no permission"])
def test_b3_closed_windows_allow_nothing(bench, windows):
    fault = bench.fault(windows=windows)
    assert fault.code == (FaultCode.PERM if windows and windows[0].last else FaultCode.WINDOW)
    assert (fault.command, fault.address) == (0, 0)


def sealed(words):
    """A command of any words, with the right checksum."""
    words = words[:15]
    words.append(int(np.bitwise_xor.reduce([*words, CHECKSUM])))
    return np.array(words, "<u4").tobytes()


@pytest.mark.parametrize(("word", "value"), [
    (0, 0x0000_5303), (0, 0x0000_5300), (0, 0x0000_5401), (0, 0x0001_5301), (1, 0x0001_0000),
], ids=["opcode 3", "opcode 0", "magic", "reserved bits", "reserved bits of wait"])
def test_b8_malformed_commands(bench, word, value):
    words = np.frombuffer(bench.load.encode(), "<u4").tolist()
    words[word] = value
    fault = bench.fault(sealed(words), bench.exec)
    assert (fault.code, fault.command) == (FaultCode.DESC, 0)


def test_b8_every_flipped_bit_of_a_command(bench):
    good = bench.exec.encode()
    for bit in range(8 * COMMAND_BYTES):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        fault = bench.fault(bench.load, bytes(bad))
        assert (fault.code, fault.command) == (FaultCode.DESC, 1)
    assert not bench.memory[OUTPUT:].any()


def test_b8_waits_that_can_never_be_met(bench):
    assert bench.fault(replace(bench.load, wait=1), bench.exec) == Fault(FaultCode.DESC, 0)
    assert bench.fault(bench.load, replace(bench.exec, wait=2)) == Fault(FaultCode.DESC, 1)


def test_a3_offset_beyond_the_limit(bench):
    width = int(np.argwhere(bench.matrix)[:, 1].max())
    assert bench.run(bench.load, replace(bench.exec, limit=width + 1)) is None
    fault = bench.fault(bench.load, replace(bench.exec, limit=width))
    assert (fault.code, fault.command) == (FaultCode.COLUMN, 1)


def test_a3_offset_beyond_the_buffer(bench):
    fault = bench.fault(bench.load, replace(bench.exec, base=120))
    assert (fault.code, fault.command) == (FaultCode.COLUMN, 1)
    fault = bench.fault(bench.load, replace(bench.exec, positions=2, width=2, step=120))
    assert fault.code == FaultCode.COLUMN
    assert not bench.memory[OUTPUT:].any()


def test_a2_stream_that_ends_early(bench):
    short = replace(bench.exec, beats=bench.exec.beats - 2)
    fault = bench.fault(bench.load, short)
    assert (fault.code, fault.command) == (FaultCode.STREAM, 1)
    bench.put(WEIGHTS, bytes(4096))  # rows without an end
    fault = bench.fault()
    assert (fault.code, fault.detail) == (FaultCode.STREAM, 0)


def test_row_too_long_to_be_replayed(rng):
    bench = Bench(rng, matrix=np.ones((1, 20), np.int8))
    assert bench.run() is None  # one position: no replay
    fault = bench.fault(bench.load, replace(bench.exec, positions=2, width=2))
    assert fault == Fault(FaultCode.ROW, 1, 0, 0)


def test_too_many_partial_sums(rng):
    bench = Bench(rng, rows=12, config=CONFIG.replace(psum_depth=16))
    fault = bench.fault(bench.load, replace(bench.exec, psum_out=True))
    assert (fault.code, fault.command) == (FaultCode.PSUM, 1)


def test_c1_memory_that_is_not_there(bench):
    windows = [Window(0, 0xFFFFF, True, True)]
    fault = bench.fault(replace(bench.load, address=0x8000_0000), windows=windows)
    assert fault == Fault(FaultCode.BUS, 0, 0x8000_0000, 3)
    fault = bench.fault(bench.load, replace(bench.exec, output=0x8000_0000), windows=windows)
    assert (fault.code, fault.command, fault.detail) == (FaultCode.BUS, 1, 3 | 4)
    assert 0 <= fault.address - 0x8000_0000 < 6 * 16


def test_first_fault_stops_the_list(bench):
    bad = replace(bench.exec, limit=1)
    assert bench.fault(bench.load, bench.exec, bad, bench.exec).command == 2
    np.testing.assert_array_equal(bench.outputs(6), bench.sums([0])[:, 0])


def test_a8_random_damage_ends_in_a_result_or_a_fault(bench, rng):
    """Whatever stands in memory, no other exception comes out and no closed page changes."""
    good = bench.memory.copy()
    commands = encode_list([bench.load, bench.exec])
    length = bench.exec.beats * CONFIG.bus_bytes
    for _ in range(150):
        bench.memory[:] = good
        for at in WEIGHTS + rng.integers(0, length, 3):
            bench.memory[at] = rng.integers(256)
        before = bench.memory.copy()
        bench.put(0, commands)
        machine = Machine(CONFIG, bench.memory, windows=[OPEN[0], Window(4, 4, True, True)])
        fault = machine.run(0, 2)
        assert fault is None or fault.command == 1
        closed = np.r_[64 * 2 : 0x4000, 0x5000:MEMORY_BYTES]
        np.testing.assert_array_equal(bench.memory[closed], before[closed])
