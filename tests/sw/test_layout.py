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


def test_sample_is_a_lane_of_a_position():
    tensor = Tensor.of(CONFIG, 3, 6, address=0x1000)
    values = np.arange(18, dtype=np.int8).reshape(3, 6)
    data = tensor.to_memory(values).tobytes()
    for channel in range(3):
        for n in range(6):
            at = tensor.word_address(n // 4, channel) - 0x1000 + n % 4
            assert data[at] == values[channel, n]


def test_positions_begin_with_a_beat():
    tensor = Tensor.of(CONFIG, 3, 6)
    assert tensor.pitch == 4  # two words of 4 bytes to a beat of 8
    assert tensor.position_bytes % CONFIG.bus_bytes == 0
    assert (tensor.positions, tensor.length) == (2, 32)


def test_raw_words_are_four_times_as_long():
    assert Tensor.of(CONFIG, 3, 6, raw=True).length == 4 * Tensor.of(CONFIG, 3, 6).length


def test_area_ends_with_its_last_page():
    assert Area(0x3000, 0x2000, True).last_page == 0x4000
    assert Area(0x3000, 0x1000, True).last_page == 0x3000


def test_rounding():
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [round_up(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
