# SPDX-License-Identifier: Apache-2.0
"""Small graphs for tests, built one node after another."""

import numpy as np
from sparsemac.graph import Graph, Node, Value, run_golden


class GraphMaker:
    """Collects nodes; shapes and types of values are those of a golden run."""

    def __init__(self, *shape, dtype="int8", batchable=True):
        self.shape, self.dtype, self.batchable = shape, dtype, batchable
        self.nodes = []

    def layer(self, name, source, layer):
        self.nodes.append(Node(name=name, inputs=(source,), outputs=(f"{name}:0",), layer=layer))
        return f"{name}:0"

    def host(self, name, operation, *sources, **attributes):
        self.nodes.append(Node(name=name, inputs=sources, outputs=(f"{name}:0",),
                               operation=operation, attributes=attributes))
        return f"{name}:0"

    def graph(self, *outputs):
        names = ["x", *(output for node in self.nodes for output in node.outputs)]
        values = {name: Value(name=name, shape=None, dtype="int8") for name in names}
        values["x"] = Value(name="x", shape=self.shape, dtype=self.dtype)
        blank = Graph(name="test", values=values, inputs=("x",), outputs=tuple(names[1:]),
                      nodes=tuple(self.nodes), batchable=self.batchable)
        arrays = run_golden(blank, np.zeros(self.shape, self.dtype))
        values |= {name: Value(name=name, shape=array.shape, dtype=str(array.dtype))
                   for name, array in arrays.items()}
        return Graph(name="test", values=values, inputs=("x",), outputs=outputs,
                     nodes=tuple(self.nodes), batchable=self.batchable)

