# SPDX-License-Identifier: Apache-2.0
"""The search for the core that is fastest for a network."""

from dataclasses import replace

import numpy as np
import pytest
from sparsemac.inference import predict
from sparsemac_boards.fit import DoesNotFit, largest
from sparsemac_boards.fit_network import fastest
from sparsemac_boards.registry import BOARDS
from support.graphs import GraphMaker
from support.layers import random_layer

BOARD = BOARDS["ulx3s-85f"]


def two_layers(batchable=True):
    rng = np.random.default_rng(5)
    net = GraphMaker(1, 96, batchable=batchable)
    out = net.layer("first", "x", random_layer(rng, 64, 96, 0.2))
    return net.graph(net.layer("second", out, random_layer(rng, 10, 64, 0.5)))


@pytest.mark.parametrize("batch", [1, 16])
def test_fastest_is_no_slower_than_the_board_or_the_largest(batch):
    graph = two_layers()
    found = fastest(BOARD, graph, batch)
    assert all(r.used <= r.usable for r in found.resources)
    for other in (BOARD.config, largest(BOARD).config):
        assert found.cycles <= sum(p.cycles for p in predict(graph, other, batch))


def test_fastest_tells_what_the_cycle_model_predicts():
    graph = two_layers()
    found = fastest(BOARD, graph, 8)
    assert found.cycles == sum(p.cycles for p in predict(graph, found.config, 8))
    shares = found.time_shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert found.host_macs == 0 and found.memory_bytes > 0


def test_fastest_uses_lanes_for_samples_only_where_there_are_some():
    assert fastest(BOARD, two_layers(), 1).config.lanes == 1
    assert fastest(BOARD, two_layers(), 64).config.lanes > 1


def test_same_question_has_the_same_answer():
    asked = [], []
    found = [fastest(BOARD, two_layers(), 4, tries=4, progress=told.append) for told in asked]
    assert found[0].config == found[1].config
    assert asked[0] == asked[1] and 1 <= len(asked[0]) <= 4


def test_nothing_fits_is_told():
    board = replace(BOARD, part=replace(BOARD.part, multipliers=4))
    with pytest.raises(DoesNotFit, match=r"takes 5 multipliers"):
        fastest(board, two_layers(), 1)


def test_network_without_a_layer_is_refused():
    net = GraphMaker(1, 8)
    graph = net.graph(net.host("r", "reshape", "x", shape=(1, 8)))
    with pytest.raises(ValueError, match=r"^network must have a layer that a core runs, test has"):
        fastest(BOARD, graph, 1)
