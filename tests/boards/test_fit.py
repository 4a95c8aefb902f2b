# SPDX-License-Identifier: Apache-2.0
"""The search for a core that fits a board."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.config import CoreConfig
from sparsemac_boards.area import predict_area
from sparsemac_boards.fit import FILL, GROWTH, ROOMY, DoesNotFit, largest, resources
from sparsemac_boards.registry import BOARDS

BOARD = BOARDS["ulx3s-85f"]


def with_part(**changes):
    return replace(BOARD, part=replace(BOARD.part, **changes))


def usable(board, config, fill=FILL):
    area = predict_area(config, board.memory_bytes)
    return all(r.used <= r.usable for r in resources(board, area, fill))


PARTS = [{}, {"luts": 30_000, "flip_flops": 30_000}, {"multipliers": 28}, {"block_rams": 100},
         {"luts": 24_000, "flip_flops": 24_000, "multipliers": 28, "block_rams": 56}]


@pytest.mark.parametrize("part", PARTS)
def test_largest_fits_and_nothing_larger_does(part):
    board = with_part(**part)
    found = largest(board)
    assert usable(board, found.config)
    rng = np.random.default_rng(1)
    for _ in range(200):
        lanes = 1 << int(rng.integers(0, 7))
        engines = found.config.macs // lanes + 1
        if engines > 64:
            continue
        values = {name: int(rng.choice(GROWTH[name])) for name in ("act_depth", "bus_width")}
        try:
            larger = CoreConfig(engines=engines, lanes=lanes, psum_depth=512, entry_depth=512,
                                **{**values, "bus_width": max(64, values["bus_width"])})
        except ValueError:
            continue
        assert not usable(board, larger), larger


def test_no_deeper_activation_buffer_fits_with_as_many_multipliers():
    config = largest(BOARD).config
    assert not usable(BOARD, config.replace(act_depth=2 * config.act_depth))


def test_result_tells_what_is_used_of_what():
    found = largest(BOARD)
    used = {r.name: (r.used, r.available) for r in found.resources}
    area = predict_area(found.config, BOARD.memory_bytes)
    assert used == {
        "LUTs": (area.luts, 83640), "flip-flops": (area.flip_flops, 83640),
        "multipliers": (area.multipliers, 156), "block RAMs": (area.block_rams, 208)}
    assert all(r.usable == r.available * 85 // 100 for r in found.resources[:2])


def test_device_too_small_for_usual_buffers_gets_the_least():
    most = largest(BOARD).config
    least = largest(with_part(block_rams=43)).config
    assert most.counters and not least.counters
    assert least.act_depth < ROOMY["act_depth"]
    assert least.macs < most.macs


@pytest.mark.parametrize(("part", "message"), [
    ({"multipliers": 4}, (r"takes 5 multipliers with the system around it, 1 more than the 4 that "
     r"may be used of 4 \(nearest legal value: a device with 5\)$")),
    ({"block_rams": 32}, r"takes \d+ block RAMs .*\(nearest legal value: a device with \d+\)$"),
    ({"luts": 2000}, r"takes \d+ LUTs .* may be used of 2000 \(nearest legal value: a device"),
])
def test_nothing_fits_is_told_with_the_limit(part, message):
    with pytest.raises(DoesNotFit, match=message):
        largest(with_part(**part))


def test_fill_that_is_too_low_is_told_with_the_nearest():
    with pytest.raises(DoesNotFit, match=r"^no configuration fits ulx3s-85f: .* \(nearest legal "
                                         r"fill: \d+ %\)$") as error:
        largest(BOARD, 3)
    nearest = int(str(error.value).split()[-2])
    assert usable(BOARD, largest(BOARD, nearest).config, nearest)
    with pytest.raises(DoesNotFit):
        largest(BOARD, nearest - 1)


@pytest.mark.parametrize("fill", [0, 101, -5])
def test_fill_out_of_range_is_refused(fill):
    with pytest.raises(ValueError, match=r"^fill must be 1 to 100, not"):
        largest(BOARD, fill)
