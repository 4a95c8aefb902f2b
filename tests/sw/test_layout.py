# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac.layout import Area, Tensor, ceil_div, round_up

CONFIG = CoreConfig(lanes=4, bus_width=64)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("columns", [1, 4, 5, 9])
@pytest.mark.parametrize("channels", [0, 1, 3, 8])
def test_values_come_back_from_memory(channels, columns, raw):
    rng = np.random.default_rng(7)
    values = rng.integers(-128, 128, (channels, columns)).astype(np.int32 if raw else np.int8)
    tensor = Tensor.of(CONFIG, channels, columns, raw=raw)
    data = tensor.to_memory(values).tobytes()
    assert len(data) == tensor.length
    back = tensor.from_memory(data)
    assert back.dtype == values.dtype and back.flags.c_contiguous
    np.testing.assert_array_equal(back, values)


def test_sample_is_a_lane_of_a_group():
    tensor = Tensor.of(CONFIG, 3, 6, address=0x1000)
    values = np.arange(18, dtype=np.int8).reshape(3, 6)
    data = tensor.to_memory(values).tobytes()
    for channel in range(3):
        for n in range(6):
            at = tensor.word_address(n // 4, channel) - 0x1000 + n % 4
            assert data[at] == values[channel, n]


def test_groups_begin_with_a_beat():
    tensor = Tensor.of(CONFIG, 3, 6)
    assert tensor.pitch == 4  # two words of 4 bytes to a beat of 8
    assert tensor.group_bytes % CONFIG.bus_bytes == 0
    assert (tensor.groups, tensor.length) == (2, 32)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 2, 0, 1)])
@pytest.mark.parametrize("columns", [1, 4, 6])
def test_maps_stand_in_their_padding(columns, pads, raw):
    rng = np.random.default_rng(8)
    tensor = Tensor.of(CONFIG, 3, columns, height=5, width=7, pads=pads, address=64, raw=raw)
    assert tensor.plane % CONFIG.line_words == 0
    values = rng.integers(-128, 128, (3, 5, 7, columns)).astype(np.int32 if raw else np.int8)
    words = tensor.to_memory(values, padding=9)
    back = tensor.from_memory(words.tobytes())
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)
    flat = words.reshape(-1)
    for channel, row, column, n in [(0, 0, 0, 0), (2, 4, 6, columns - 1), (1, 3, 2, columns // 2)]:
        byte = tensor.word_address(n // 4, channel, row, column) - 64
        at = byte // tensor.dtype.itemsize + n % 4
        assert flat[at] == values[channel, row, column, n]
    inside = np.zeros(tensor.pitch, bool)
    inside[tensor.words] = True
    assert (words[:, ~inside] == 9).all()


def test_raw_words_are_four_times_as_long():
    assert Tensor.of(CONFIG, 3, 6, raw=True).length == 4 * Tensor.of(CONFIG, 3, 6).length


def test_area_ends_with_its_last_page():
    assert Area(0x3000, 0x2000, True).last_page == 0x4000
    assert Area(0x3000, 0x1000, True).last_page == 0x3000


def test_rounding():
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [round_up(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
