# SPDX-License-Identifier: Apache-2.0
"""Whole networks on a core: layers on the device, the rest on the host, each told apart.

    with sparsemac.open("sim:") as core:
        model = Model(load_model("network.tflite"), core)
        outputs = model.run(x).outputs

Every run of consecutive device layers is one doorbell; see `sparsemac.partition`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .config import CoreConfig
from .conv import ConvLayer
from .cycles import MemoryModel, predict_cycles
from .driver import Core, Network
from .errors import UnsupportedLayer
from .graph import Graph, Layer, Node, run_node
from .partition import DeviceStage, HostStage, Port, Stage, columns_of, partition
from .program import compile_segment
from .result import Counters

__all__ = ["Inference", "Mismatch", "Model", "Placement", "StepReport", "predict"]

#: Called with steps done, steps in all, and the name of the next one.
Progress = Callable[[int, int, str], None]

Arrays = dict[str, NDArray[Any]]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mismatch:
    """Where a device first differed from the golden model.

    Attributes
    ----------
    layer : str           Name of the layer.
    index : tuple         Where in its output array: sample first, other axes as the array has them.
    expected, got : int
    count : int           Elements of that array that differ.
    size : int            Elements of the array.
    node : Node           The layer's node.
    inputs : array        What it was given, for who wants to run it again.
    """

    layer: str
    index: tuple[int, ...]
    expected: int
    got: int
    count: int
    size: int
    node: Node = field(repr=False)
    inputs: NDArray[Any] = field(repr=False)

    def __str__(self) -> str:
        names = ("sample", *_axis_names(self.node, len(self.index)))
        where = ", ".join(f"{n} {i}" for n, i in zip(names, self.index, strict=True))
        return (f"{self.layer}, {where}: {self.got}, not {self.expected} "
                f"({self.count} of {self.size} values differ)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One host operation, or one doorbell for each job of a run of layers.

    Attributes
    ----------
    name : str
    nodes : tuple of str     Names of the nodes that it computed.
    where : str              "device" or "host".
    seconds : float          Wall time.
    counters : Counters      None on the host, and of a core without counters.
    macs : int               Useful multiply-accumulates on the device.
    cycles : int             From doorbell to interrupt, of all jobs.
    estimated_cycles : int   What the compiler expected.
    utilization : float      Share of the core's peak.
    jobs : int               Doorbells.
    bytes_to_device, bytes_from_device : int
    """

    name: str
    nodes: tuple[str, ...]
    where: str
    seconds: float
    counters: Counters | None = None
    macs: int = 0
    cycles: int = 0
    estimated_cycles: int = 0
    utilization: float = 0.0
    jobs: int = 0
    bytes_to_device: int = 0
    bytes_from_device: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inference:
    """What a run of a network returns.

    Attributes
    ----------
    outputs : dict of name to array
    steps : tuple of StepReport
    mismatch : Mismatch    Of a checked run: the first difference from the golden model, or None.
    config : CoreConfig    The core.
    """

    outputs: Arrays
    steps: tuple[StepReport, ...]
    mismatch: Mismatch | None
    config: CoreConfig

    def _total(self, name: str, where: str = "device") -> Any:
        return sum(getattr(step, name) for step in self.steps if step.where == where)

    @property
    def host_seconds(self) -> float:
        """Wall time of host operations."""
        return self._total("seconds", "host")

    @property
    def device_seconds(self) -> float:
        """Wall time of device steps, transfers included."""
        return self._total("seconds")

    @property
    def cycles(self) -> int:
        """Device cycles, from doorbell to interrupt."""
        return self._total("cycles")

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates on the device."""
        return self._total("macs")

    @property
    def utilization(self) -> float:
        """Useful multiply-accumulates as a share of the core's peak, over all device steps."""
        return self.macs / (self.cycles * self.config.macs) if self.cycles else 0.0

    @property
    def jobs(self) -> int:
        """Doorbells."""
        return self._total("jobs")

    @property
    def bytes_to_device(self) -> int:
        """Commands, weights and inputs that the host wrote."""
        return self._total("bytes_to_device")

    @property
    def bytes_from_device(self) -> int:
        """Outputs that the host read."""
        return self._total("bytes_from_device")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Where a node runs, and what it will take.

    Attributes
    ----------
    node : Node
    where : str            "device" or "host".
    reason : str           Why on the host.
    doorbell : int         Which of the device steps, counted from 0; -1 on the host.
    macs : int             Useful multiply-accumulates of a layer, wherever it runs.
    cycles : int           Predicted; 0 on the host.
    utilization : float    Predicted share of the core's peak.
    """

    node: Node
    where: str
    reason: str = ""
    doorbell: int = -1
    macs: int = 0
    cycles: int = 0
    utilization: float = 0.0


class Model:
    """A network on a core.

    Attributes
    ----------
    graph : Graph
    core : Core
    """

    def __init__(self, graph: Graph, core: Core) -> None:
        self.graph = graph
        self.core = core
        self._plans: dict[bool, _Plan[Network]] = {}
        self._single: dict[str, Network] = {}
        _ = self._plan(per_layer=False)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What runs where, in order."""
        return self._plan(per_layer=False).stages

    @property
    def on_host(self) -> Mapping[str, str]:
        """Layers that the core cannot run, by name, with the reason."""
        return self._plan(per_layer=False).reasons

    def _plan(self, *, per_layer: bool) -> "_Plan[Network]":
        if per_layer not in self._plans:
            self._plans[per_layer] = _plan(
                self.graph, lambda stage: self.core.load(stage.segment), per_layer)
        return self._plans[per_layer]

    def run(
        self, inputs: Any, *, per_layer: bool = False, check: bool = False,
        progress: Progress | None = None,
    ) -> Inference:
        """Runs the network.

        Parameters
        ----------
        inputs : array, or a mapping of names to arrays    See `Graph.input_arrays`.
        per_layer : bool     A doorbell for each layer, so that its counters are its own.
        check : bool         Compares each device step with the golden model, given what the step
                             was given; stops at the first that differs.
        progress : function  Called before each step, and at the end.

        Raises
        ------
        ValueError, TypeError    Of inputs that the network cannot take.
        DeviceError              Whatever the core or the way to it reports.
        """
        graph, plan = self.graph, self._plan(per_layer=per_layer)
        arrays = graph.input_arrays(inputs)
        last_use = {name: i for i, stage in enumerate(plan.stages) for name in _reads(stage)}
        reports, mismatch = [], None
        for i, (stage, network) in enumerate(zip(plan.stages, plan.networks, strict=True)):
            name = _name(stage)
            if progress is not None:
                progress(i, len(plan.stages), name)
            if network is None:
                assert isinstance(stage, HostStage)
                reports.append(_run_on_host(stage, arrays))
            else:
                assert isinstance(stage, DeviceStage)
                reports.append(self._run_on_device(stage, network, arrays))
                mismatch = self._compare(stage, arrays) if check else None
                if mismatch is not None:
                    break
            for value in _reads(stage):
                if last_use[value] == i and value not in graph.outputs:
                    del arrays[value]
        if progress is not None:
            progress(len(plan.stages), len(plan.stages), "done")
        outputs = {name: arrays[name] for name in graph.outputs if name in arrays}
        return Inference(outputs=outputs, steps=tuple(reports), mismatch=mismatch,
                         config=self.core.config)

    def _run_on_device(self, stage: DeviceStage, network: Network, arrays: Arrays) -> StepReport:
        begin = time.perf_counter()
        result = self.core.run(network, [p.to_device(arrays[p.value]) for p in stage.inputs])
        for port, y in zip(stage.outputs, result.all_outputs, strict=True):
            arrays[port.value] = port.from_device(y, self._shape(port, stage, arrays))
        return StepReport(
            name=_name(stage), nodes=tuple(node.name for node in (*stage.nodes, *stage.moves)),
            where="device", seconds=time.perf_counter() - begin, counters=result.counters,
            macs=result.macs, cycles=result.cycles, estimated_cycles=result.estimated_cycles,
            utilization=result.utilization, jobs=result.jobs,
            bytes_to_device=result.bytes_to_device, bytes_from_device=result.bytes_from_device)

    def _shape(self, port: Port, stage: DeviceStage, arrays: Arrays) -> tuple[int, ...]:
        """Shape of an output; of an array whose shape shows only now, from its layer's input."""
        shape = self.graph.values[port.value].shape
        if shape is not None:
            return shape
        return (*arrays[stage.inputs[0].value].shape[:-1], port.layer.outputs)

    # -- against the golden model ---------------------------------------------------------------

    def _compare(self, stage: DeviceStage, arrays: Arrays) -> Mismatch | None:
        """Compares a step with the golden model; on a difference looks for the layer."""
        golden = {port.value: arrays[port.value] for port in stage.inputs}
        given = {}
        for node in _in_order(self.graph, (*stage.nodes, *stage.moves)):
            given[node.name] = golden[node.inputs[0]]
            golden.update(zip(node.outputs, run_node(node, golden), strict=True))
        differing = [port for port in stage.outputs
                     if not np.array_equal(arrays[port.value], golden[port.value])]
        if not differing:
            return None
        for node in stage.nodes:
            x, want = given[node.name], golden[node.outputs[0]]
            got = self._run_single(node, x, want.shape)
            if not np.array_equal(got, want):
                return _mismatch(node, x, want, got)
        # Each layer alone is right: the fault shows only where one follows another.
        value = differing[0].value
        node = next(node for node in stage.nodes if node.outputs[0] == value)
        return _mismatch(node, given[node.name], golden[value], arrays[value])

    def _run_single(self, node: Node, x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        assert node.layer is not None
        if node.name not in self._single:
            self._single[node.name] = self.core.load(node.layer)
        source, target = Port(node.inputs[0], node.layer), Port(node.outputs[0], node.layer)
        result = self.core.run(self._single[node.name], source.to_device(x))
        return target.from_device(result.outputs, shape)


def predict(
    graph: Graph, config: CoreConfig, batch: int | None = None,
    memory: MemoryModel | None = None,
) -> tuple[Placement, ...]:
    """Tells where each node runs on a core, and how many cycles it will take.

    Parameters
    ----------
    graph : Graph
    config : CoreConfig
    batch : int            Samples at once. None: as many as the network was made for.
    memory : MemoryModel   None: the default one; see `sparsemac.cycles`.

    Returns
    -------
    tuple of Placement     One for each node of the graph, in its order.
    """
    samples = [shape[0] for name in graph.inputs if (shape := graph.values[name].shape)]
    made_for = max(samples[0] if samples else 1, 1)

    def columns(stage: DeviceStage) -> int:
        own = columns_of(graph, stage.nodes[0]) or 1
        return own * batch // made_for if batch and graph.batchable else own

    plan = _plan(graph, lambda s: compile_segment(s.segment, max(columns(s), 1), config), False)
    placed: dict[str, Placement] = {}
    doorbell = 0
    for stage, program in zip(plan.stages, plan.networks, strict=True):
        if isinstance(stage, HostStage):
            node = stage.node
            reason = plan.reasons.get(node.name, node.reason)
            macs = _macs(node.layer) * (columns_of(graph, node) or 1) if node.layer else 0
            placed[node.name] = Placement(node=node, where="host", reason=reason, macs=macs)
            continue
        assert program is not None
        predicted = predict_cycles(program, config, memory)
        for node, layer, own in zip(stage.nodes, program.layers, predicted.layers, strict=True):
            cycles = own.cycles
            placed[node.name] = Placement(
                node=node, where="device", doorbell=doorbell, macs=layer.macs, cycles=cycles,
                utilization=layer.macs / (cycles * config.macs) if cycles else 0.0)
        for node in stage.moves:
            placed[node.name] = Placement(node=node, where="device", doorbell=doorbell)
        doorbell += 1
    return tuple(placed[node.name] for node in graph.nodes)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan(Generic[T]):
    """Stages, what each compiled to (None on the host), and why layers are on the host."""

    stages: tuple[Stage, ...]
    networks: tuple[T | None, ...]
    reasons: Mapping[str, str]


def _plan(graph: Graph, load: Callable[[DeviceStage], T], per_layer: bool) -> _Plan[T]:
    """Finds stages that the core can run.

    Layers that do not fit together get a doorbell each; one that does not fit alone goes to the
    host.
    """
    reasons: dict[str, str] = {}
    apart = {node.name for node in graph.nodes if per_layer and node.layer is not None}
    loaded: dict[tuple[str, ...], T] = {}
    while True:
        stages = partition(graph, on_host=reasons, apart=apart)
        networks: list[T | None] = []
        for stage in stages:
            if isinstance(stage, HostStage):
                networks.append(None)
                continue
            names = tuple(node.name for node in stage.nodes)
            try:
                if names not in loaded:
                    loaded[names] = load(stage)
            except UnsupportedLayer as error:
                if len(names) > 1:
                    apart |= set(names)
                else:
                    reasons[stage.nodes[0].name] = str(error)
                break
            networks.append(loaded[names])
        else:
            return _Plan(stages, tuple(networks), reasons)


def _run_on_host(stage: HostStage, arrays: Arrays) -> StepReport:
    begin = time.perf_counter()
    node = stage.node
    arrays.update(zip(node.outputs, run_node(node, arrays), strict=True))
    return StepReport(name=node.name, nodes=(node.name,), where="host",
                      seconds=time.perf_counter() - begin)


def _name(stage: Stage) -> str:
    if isinstance(stage, HostStage):
        return stage.node.name
    names = [node.name for node in stage.nodes]
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)} layers)"


def _reads(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage, HostStage):
        return stage.node.inputs
    return tuple(port.value for port in stage.inputs)


def _in_order(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    names = {node.name for node in nodes}
    return [node for node in graph.nodes if node.name in names]


def _macs(layer: Layer) -> int:
    """Useful multiply-accumulates of a column."""
    return layer.macs if isinstance(layer, ConvLayer) else layer.weights.without_zeros().nnz


def _mismatch(
    node: Node, x: NDArray[Any], expected: NDArray[Any], got: NDArray[Any]
) -> Mismatch:
    differs = expected != got
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(differs)), differs.shape))
    return Mismatch(
        layer=node.name, index=index, expected=int(expected[index]), got=int(got[index]),
        count=int(differs.sum()), size=differs.size, node=node, inputs=x)


def _axis_names(node: Node, axes: int) -> tuple[str, ...]:
    """Names of the axes of a layer's output, but the first."""
    layer = node.layer
    if not isinstance(layer, ConvLayer):
        return (*("position",) * (axes - 2), "channel")[:axes - 1]
    place = ("position",) if layer.one_dimensional else ("row", "column")
    return (*place, "channel") if layer.channels_last else ("channel", *place)
