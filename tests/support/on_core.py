# SPDX-License-Identifier: Apache-2.0
"""Lets a core stand in for the golden model, so that its tests are the core's."""

import numpy as np
from sparsemac import golden
from sparsemac.partition import Port


def replace_golden(monkeypatch, core):
    """Runs every layer that the golden model is asked for on ``core``; returns their names."""
    names = []

    def run_conv(layer, x):
        port = Port("", layer)
        names.append(layer.name)
        result = core.run(core.load(layer), port.to_device(np.ascontiguousarray(x)))
        return port.from_device(result.outputs, layer.output_shape(len(x)))

    def run_layer(layer, x):
        names.append(layer.name)
        return core.run(core.load(layer), np.ascontiguousarray(x)).outputs

    monkeypatch.setattr(golden, "run_conv", run_conv)
    monkeypatch.setattr(golden, "run_layer", run_layer)
    return names
