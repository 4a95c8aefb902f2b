# SPDX-License-Identifier: Apache-2.0
"""Compiles a network before it is run, and gives a core the programs of a network file."""

from dataclasses import dataclass

from .config import CoreConfig
from .conv import ConvLayer
from .cycles import predict_cycles
from .driver import Core, open
from .errors import ModelError
from .graph import Graph, Node
from .inference import Model, Placement
from .partition import DeviceStage, columns_of
from .program import Program
from .registers import VERSION
from .segment import Segment

__all__ = ["Compiled", "Placed", "SegmentProgram", "compile_graph", "preload", "samples_of"]

#: The nodes of a segment, and its columns.
Key = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentProgram:
    """A program, and what it computes.

    Attributes
    ----------
    nodes : tuple of str    Names of the nodes whose layers it computes.
    columns : int           Samples that it takes.
    program : Program
    """

    nodes: tuple[str, ...]
    columns: int
    program: Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a node runs; see `sparsemac.inference.Placement`."""

    where: str
    reason: str
    doorbell: int
    macs: int
    cycles: int
    utilization: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """A network compiled for a core.

    Attributes
    ----------
    core_version : int    Of registers, commands and streams: the core's register VERSION.
    memory_base : int     First byte address of the device's memory.
    batch : int           Samples that run at a time.
    programs : tuple of SegmentProgram
    placed : tuple of Placed    One for each node of the graph.
    """

    core_version: int
    memory_base: int
    batch: int
    programs: tuple[SegmentProgram, ...]
    placed: tuple[Placed, ...]

    def placements(self, graph: Graph) -> tuple[Placement, ...]:
        """What `sparsemac.inference.predict` tells of the batch."""
        return tuple(
            Placement(node=node, where=p.where, reason=p.reason, doorbell=p.doorbell, macs=p.macs,
                      cycles=p.cycles, utilization=p.utilization)
            for node, p in zip(graph.nodes, self.placed, strict=True))


class _Store:
    """Programs by what they compute, where a core looks for them before it compiles."""

    def __init__(self, graph: Graph, core: Core) -> None:
        self.programs: dict[Key, Program] = {}
        self._core = core
        self._names: dict[int, str] = {}
        for node in graph.nodes:
            if node.layer is not None:
                self._names.setdefault(id(node.layer), node.name)
        core.find_program, core.on_program = self._find, self._add

    def _key(self, segment: Segment, columns: int) -> Key:
        return tuple(self._names.get(id(use.layer), "") for use in segment.uses), columns

    def _find(self, segment: Segment, columns: int) -> Program | None:
        program = self.programs.get(self._key(segment, columns))
        fits = program is not None and _fits(program, segment, columns, self._core)
        return program if fits else None

    def _add(self, segment: Segment, columns: int, program: Program) -> None:
        self.programs[self._key(segment, columns)] = program


def _fits(program: Program, segment: Segment, columns: int, core: Core) -> bool:
    """Whether a program has the tensors of a segment, and the memory that it takes is there."""
    shapes = segment.shapes
    cut = segment.cut(columns, core.config)
    for numbers, tensors in ((segment.inputs, program.inputs),
                             (segment.outputs, program.outputs)):
        if len(numbers) != len(tensors):
            return False
        for number, tensor in zip(numbers, tensors, strict=True):
            place = shapes[number].place(
                core.config, columns, tensor.address, cut.strips, cut.heights[number])
            if place != tensor:
                return False
    if program.input_padding != tuple(shapes[i].padding for i in segment.inputs):
        return False
    device = core.device
    return program.end <= device.memory_base + device.memory_bytes


def compile_graph(graph: Graph, config: CoreConfig, batch: int) -> Compiled:
    """Compiles a network for a core.

    Parameters
    ----------
    graph : Graph
    config : CoreConfig
    batch : int    Samples that run at a time, a multiple of those that the graph was made for.
    """
    with open("reference:", config) as core:
        store = _Store(graph, core)
        model = Model(graph, core)
        used: dict[Key, Program] = {}
        placed: dict[str, Placed] = {}
        doorbell = 0
        times = batch // samples_of(graph) if graph.batchable else 1
        for stage in model.stages:
            if not isinstance(stage, DeviceStage):
                continue
            columns = (columns_of(graph, stage.nodes[0]) or 1) * times
            network = core.load(stage.segment)
            jobs = network.split(columns)
            programs = [network.compile(n) for n in jobs]
            predicted = {id(p): predict_cycles(p, config).layers for p in programs}
            for i, node in enumerate(stage.nodes):
                macs = sum(program.layers[i].macs for program in programs)
                cycles = sum(predicted[id(program)][i].cycles for program in programs)
                placed[node.name] = Placed(
                    where="device", reason="", doorbell=doorbell, macs=macs, cycles=cycles,
                    utilization=macs / (cycles * config.macs) if cycles else 0.0)
            for node in stage.moves:
                placed[node.name] = Placed(where="device", reason="", doorbell=doorbell, macs=0,
                                           cycles=0, utilization=0.0)
            names = tuple(node.name for node in stage.nodes)
            used |= {key: program for key, program in store.programs.items() if key[0] == names}
            doorbell += 1
        for node in graph.nodes:
            placed.setdefault(node.name, Placed(
                where="host", reason=model.on_host.get(node.name, node.reason), doorbell=-1,
                macs=_macs(graph, node) * times, cycles=0, utilization=0.0))
        return Compiled(
            core_version=VERSION, memory_base=core.device.memory_base, batch=batch,
            programs=tuple(SegmentProgram(nodes=names, columns=columns, program=program)
                           for (names, columns), program in used.items()),
            placed=tuple(placed[node.name] for node in graph.nodes))


def samples_of(graph: Graph) -> int:
    """Samples that a graph was made for: what a batch is a multiple of."""
    shapes = [graph.values[name].shape for name in graph.inputs]
    return max(next((shape[0] for shape in shapes if shape), 1), 1) if graph.batchable else 1


def _macs(graph: Graph, node: Node) -> int:
    """Useful multiply-accumulates of a layer."""
    if node.layer is None:
        return 0
    macs = (node.layer.macs if isinstance(node.layer, ConvLayer)
            else node.layer.weights.without_zeros().nnz)
    return macs * (columns_of(graph, node) or 1)


def preload(core: Core, graph: Graph, compiled: Compiled, config: CoreConfig) -> str:
    """Makes a core take programs from a network file where it would compile them.

    Parameters
    ----------
    core : Core
    graph : Graph             Of the file.
    compiled : Compiled, config : CoreConfig    Of the file.

    Returns
    -------
    str    Why nothing of it can be used, and everything is compiled; empty if it is used.

    Raises
    ------
    ModelError    If a program would leave its own memory.
    """
    if core.config != config:
        return (f"the core is {core.config.engines} x {core.config.lanes} (hash "
                f"{core.config.hash:#010x}), not the one that the network was compiled for, "
                f"{config.engines} x {config.lanes} (hash {config.hash:#010x})")
    if compiled.core_version != VERSION:
        return f"the core has version {VERSION:#x}, not {compiled.core_version:#x}"
    if compiled.memory_base != core.device.memory_base:
        return (f"memory begins at {core.device.memory_base:#x}, not at "
                f"{compiled.memory_base:#x}")
    for item in compiled.programs:
        _check_memory(item, compiled.memory_base)
    store = _Store(graph, core)
    store.programs.update({(item.nodes, item.columns): item.program for item in compiled.programs})
    return ""


def _check_memory(item: SegmentProgram, first: int) -> None:
    """Refuses a program that reads or writes outside its areas."""
    program = item.program
    where = f"program of {', '.join(item.nodes)}"
    if len(program.areas) != 2 or program.areas[0].writable or not program.areas[1].writable:
        raise ModelError(f"{where} must have an area to read and one to write")
    read, write = program.areas
    spans = [(program.image_address, len(program.image), read), (read.address, read.length, read),
             *((t.address, t.length, read) for t in program.inputs),
             *((t.address, t.length, write) for t in program.outputs),
             *((address, len(data), write) for address, data in program.fills)]
    for address, length, area in spans:
        if not (first <= area.address <= address <= address + length <= area.address + area.length):
            raise ModelError(f"{where} must keep to its areas, not use {length} bytes at "
                             f"{address:#x}")
    if read.address + read.length > write.address or program.command_count < 1:
        raise ModelError(f"areas of {where} must not overlap")
