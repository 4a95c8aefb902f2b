# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules, read as float graphs.

A module is traced and turned into a graph step by step. What no trace can show is found by running
both on the example: the graph's outputs must be the module's.
"""

import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._checks import need
from ...errors import ModelError
from ...graph import Graph, run_golden
from . import layers, math, moves  # noqa: F401  they fill the table
from .build import Builder, array_of, tensors_in
from .table import MODULES, handler_of
from .trace import PURPOSE, check_module, evaluating, kind_of, trace

if TYPE_CHECKING:
    import torch.nn  # pyright: ignore[reportMissingImports]

__all__ = ["as_tensors", "import_module", "import_with_outputs"]

_log = logging.getLogger(__name__)

#: What differing orders of summation may do to an output, as a share of the largest [ratio].
_TOLERANCE = 1e-3


def import_module(module: "torch.nn.Module", example: Any) -> Graph:
    """Reads a module as a float graph; `sparsemac.calibrate.quantize_graph` makes integers of it.

    Convolutions in one and two dimensions, fully connected layers, batch normalization (folded into
    the layer before, where there is one), masks of ``torch.nn.utils.prune`` and parametrizations,
    activations, pooling, arithmetic, and what moves elements. The module is read in evaluation mode
    and is not changed.

    Parameters
    ----------
    module : torch.nn.Module
    example : tensor, or a tuple of them    Inputs, float32 or float64.

    Returns
    -------
    Graph    Inputs have the names of ``forward``'s parameters. Batchable, of batch 1, if axis 0 of
             all inputs and outputs is one of samples that do not see one another; else of the
             example's shapes.

    Raises
    ------
    ModelError           Naming the module or function that cannot be traced or run.
    MissingDependency    If torch is not installed.
    """
    return import_with_outputs(module, as_tensors("example", example))[0]


def as_tensors(name: str, given: Any) -> tuple[Any, ...]:
    """Checks inputs of a module: a tensor, or a tuple or list of them.

    Raises
    ------
    TypeError     If they are no tensors.
    ModelError    If they are none, or hold what the graph cannot take.
    """
    torch = need("torch", "torch", PURPOSE)
    tensors = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if not tensors:
        raise ModelError(f"{name} must have at least one tensor, not none")
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name} must be a tensor or a tuple of tensors, not {type(tensor).__name__}")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ModelError(f"{name} must hold float32 or float64, not {tensor.dtype}")
        if not tensor.numel():
            raise ModelError(f"{name} must have elements, not shape {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} must hold finite values, not NaN or infinity")
    return tensors


def import_with_outputs(module: Any, example: tuple[Any, ...]) -> tuple[Graph, Any]:
    """The graph of a module, and what the module itself makes of the example."""
    fx = need("torch.fx", "torch", PURPOSE)
    module = getattr(module, "_orig_mod", module)  # of a module that torch.compile has wrapped
    check_module(module)
    with evaluating(module):
        wanted = _call(module, example)
        root = module
        if fx.Tracer().is_leaf_module(module, "") or kind_of(module, MODULES) is not None:
            # One step, in which there is nothing to trace.
            root = need("torch.nn", "torch", PURPOSE).Sequential(module)
        traced = trace(root, _copies(example), MODULES)
        arrays = tuple(map(array_of, example))
        builder = Builder(root, traced, handler_of, fx.Node)
        graph = builder.graph(type(module).__name__, arrays)
        _check_same(graph, builder.outputs, wanted)
        return _batchable(module, graph, example, wanted) or graph, wanted


def _copies(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(tensor.detach().clone() for tensor in tensors)


def _call(module: Any, example: tuple[Any, ...]) -> Any:
    """Runs a module on copies, since it may work in place."""
    try:
        return module(*_copies(example))
    except ModelError:
        raise
    except Exception as error:  # whatever a module's own code raises
        raise ModelError(
            f"example must be one that module {type(module).__name__} can run: {error}") from error


def _tensors(outputs: Any) -> list[Any]:
    return tensors_in(outputs, need("torch", "torch", PURPOSE).Tensor)


def _same(found: NDArray[Any], real: NDArray[Any]) -> bool:
    finite = np.abs(real[np.isfinite(real)])
    close = _TOLERANCE * float(finite.max(initial=0.0))
    return found.shape == real.shape and np.allclose(found, real, _TOLERANCE, close, True)


def _check_same(graph: Graph, outputs: list[NDArray[Any]], wanted: Any) -> None:
    """The proof of an import: the example's outputs."""
    for name, real, ours in zip(graph.outputs, _tensors(wanted), outputs, strict=True):
        if not _same(ours, array_of(real)):
            raise ModelError(
                f"module {graph.name} does what its trace does not show: output {name!r} on the "
                f"example must be the module's, not another (views changed in place, or a forward "
                f"that is random or depends on state)")


def _batchable(
    module: Any, graph: Graph, example: tuple[Any, ...], wanted: Any
) -> Graph | None:
    """The graph for one sample, if a batch of others computes each sample as before; else None."""
    torch = need("torch", "torch", PURPOSE)
    tensors = _tensors(wanted)
    sizes = {tensor.shape[:1] for tensor in (*example, *tensors)}
    if len(sizes) != 1 or not min(sizes):
        return None
    count = example[0].shape[0]
    more = tuple(torch.cat([x, x[:1] * 3, x[:1] * -3]) for x in example)
    try:
        one = _of_one_sample(graph, example)
        # It has warned already, when it ran on the example.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = [array_of(y) for y in _tensors(module(*_copies(more)))]
        arrays = dict(zip(one.inputs, map(array_of, more), strict=True))
        ours = run_golden(one, arrays).values()
    except Exception as error:  # a batch of another size is not for this module
        _log.info("%s runs batches of %d only: %r", graph.name, count, error)
        return None
    alike = all(
        _same(y, real) and _same(y[:count], array_of(before))
        for y, real, before in zip(ours, theirs, tensors, strict=True))
    return one if alike else None


def _of_one_sample(graph: Graph, example: tuple[Any, ...]) -> Graph:
    """The same nodes, described as they are for the first sample."""
    values = dict(graph.values)

    def note(names: tuple[str, ...], arrays: Any) -> None:
        for name, array in zip(names, arrays, strict=True):
            values[name] = replace(values[name], shape=array.shape)

    first = {name: array_of(x[:1]) for name, x in zip(graph.inputs, example, strict=True)}
    note(graph.inputs, first.values())
    one = replace(graph, values=values, batchable=True)
    run_golden(one, first, watch=lambda node, arrays: note(node.outputs, arrays))
    return one.with_nodes(graph.nodes, values)
