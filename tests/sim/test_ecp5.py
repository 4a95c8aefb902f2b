# SPDX-License-Identifier: Apache-2.0
"""A core made of an ECP5's blocks, twins in their place, against the portable one."""

import numpy as np
import sparsemac
import sparsemac_sim.device as device
from sparsemac.config import CoreConfig
from sparsemac_boards.area import predict_area
from sparsemac_hw.core import Core
from sparsemac_hw.emit import CORE_NAME, emit_verilog
from support.ecp5_twins import ECP5, WithTwins
from support.layers import random_activations, random_layer


class TwinCore(Core):
    """A core for an ECP5 that a simulator can run."""

    def elaborate(self, platform):
        self.twins = WithTwins(super().elaborate(ECP5))
        return self.twins


def test_same_results_in_the_same_cycles(toolchain, tmp_path, monkeypatch):
    config = CoreConfig(engines=1, lanes=8, act_depth=256, fifo_depth=32)
    rng = np.random.default_rng(5)
    layers = [random_layer(rng, 40, 60, 0.3), random_layer(rng, 24, 40, 0.5, weight_bits=4)]
    x = random_activations(rng, 60, 20)

    def run():
        with sparsemac.open("sim:", config) as core:
            result = core.run(core.load(layers), x)
        return result.outputs, result.cycles

    outputs, cycles = run()
    core = TwinCore(config)
    (tmp_path / "core.v").write_text(emit_verilog(core, CORE_NAME))
    monkeypatch.setattr(device, "core_files", lambda config: tmp_path)
    special_outputs, special_cycles = run()
    assert core.twins.replaced.count("MULT18X18D") == config.macs + 4 * config.engines
    assert core.twins.replaced.count("DP16KD") == predict_area(config).block_rams
    np.testing.assert_array_equal(special_outputs, outputs)
    assert special_cycles == cycles
