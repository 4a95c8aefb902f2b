# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from sparsemac.config import CoreConfig
from sparsemac_hw.sums import SumQueue
from sparsemac_hw.testing import simulate

WORDS = 4


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_puts_sums_in_lane_order_whatever_the_distance_of_rows(lanes):
    seed = lanes
    print("seed", seed)
    rng = random.Random(seed)
    config = CoreConfig(engines=1, lanes=lanes, fifo_depth=64)
    dut = SumQueue(config, WORDS)
    group, buses = config.shortest_row_cycles, config.sum_buses
    # Sum k of a row leaves its bus k cycles behind the row's end: lane v is v cycles late.
    events, order, cycle, left = {}, [], 0, [0] * WORDS
    for _ in range(40):
        # Never more rows under way than there is room for: one result leaves per cycle.
        cycle = max(cycle + rng.randrange(group, 2 * lanes + 1), left[-WORDS])
        left.append(max(left[-1], cycle + 2) + lanes)
        for v in range(lanes):
            value = rng.randrange(-(1 << 31), 1 << 31)
            events.setdefault(cycle + v, []).append((v // group, value))
            order.append(value)
    got = []

    async def drive(ctx):
        for now in range(cycle + 4 * lanes + 8):
            for b in range(buses):
                ctx.set(dut.i_valid[b], 0)
            for b, value in events.get(now, []):
                ctx.set(dut.i_valid[b], 1)
                ctx.set(dut.i_acc[b], value)
            *_, valid, acc = await ctx.tick().sample(dut.o_valid, dut.o_acc)
            if valid:
                got.append(acc)

    simulate(dut, drive)
    assert got == order
