# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules on a device: `offload` returns a module that runs the same forward in integers.

    net = sparsemac.offload(module, "sim:", example=images)
    scores = net(images)                 # as module(images), quantized
    print(net.errors)                    # how far from the module it is on the example

Needs the extra ``torch``.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._checks import need
from .calibrate import quantize_graph
from .driver import Core, open
from .errors import ModelError
from .importers.torch import as_tensors, import_with_outputs, tensors_in

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

__all__ = ["OutputError", "offload"]

_PURPOSE = "offloading PyTorch modules"


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far an output is from that of the float module.

    Attributes
    ----------
    largest : float    Largest difference.
    mean : float       Mean difference.
    span : float       Largest size of the float module's output.
    """

    largest: float
    mean: float
    span: float

    @property
    def relative(self) -> float:
        """Largest difference as a share of the largest size [ratio]."""
        return self.largest / self.span if self.span else float(self.largest > 0)

    @classmethod
    def of(cls, found: NDArray[Any], real: NDArray[Any]) -> "OutputError":
        """Compares an output with the float module's, of the same shape."""
        apart = np.abs(found.astype(np.float64) - real.astype(np.float64))
        return cls(float(apart.max(initial=0)), float(apart.sum() / max(apart.size, 1)),
                   float(np.abs(real).max(initial=0)))


def offload(
    module: "torch.nn.Module", device: str | Core = "reference:", *, example: Any,
    calibration: Any = None, weight_bits: int = 8, per_channel: bool = True,
    max_error: float | None = None,
) -> Any:
    """Quantizes a module and returns one that runs it on a device.

    The module is read in evaluation mode and is not changed; what it is later does not matter to
    the one returned. Layers run on the device, all else on the host in float32, as does a layer
    that the device cannot run: the reason is in its node, or in ``model.on_host``.

    Parameters
    ----------
    module : torch.nn.Module
    device : str or Core     URI, as of `sparsemac.open`, or an open core, which stays the caller's.
    example : tensor, or a tuple of them    Inputs: what they are like is what later ones must be.
    calibration : tensor, or a tuple        Typical inputs, which set the ranges of activations;
                             None: the example. More samples than the example's if the module takes
                             any number of them.
    weight_bits : int        4 or 8.
    per_channel : bool       A scale for each output channel, else one for each layer.
    max_error : float        Largest relative error that is accepted on the example [ratio].

    Returns
    -------
    torch.nn.Module with these attributes:

    graph : Graph            Layers and host operations. `sparsemac.graph.run_golden` computes the
                             same integers.
    model : Model            What runs it. `core` is its core.
    errors : dict            An `OutputError` for each output of the graph, by name, on the example.
    last : Inference         Of the last call: counters, what ran where; None before.

    Its ``close`` closes the core if `offload` opened it, as does the end of a ``with`` statement.
    Gradients do not flow through it: a backward pass that needs them is a ModelError.

    Raises
    ------
    ModelError           Naming what cannot be traced, run or quantized, or an error above
                         ``max_error``; later, inputs that are not like the example.
    MissingDependency    If torch is not installed.
    """
    tensors = as_tensors("example", example)
    typical = tensors if calibration is None else as_tensors("calibration", calibration)
    float_graph, wanted = import_with_outputs(module, tensors)
    try:
        graph = quantize_graph(
            float_graph, _arrays(float_graph, typical, "calibration"), weight_bits=weight_bits,
            per_channel=per_channel)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"module {float_graph.name} cannot be quantized: {error}") from error
    core = open(device) if isinstance(device, str) else device
    if not isinstance(core, Core):
        raise TypeError(f"device must be a URI or an open Core, not {type(device).__name__}")
    try:
        offloaded = _module_class()(graph, core, core is not device, wanted)
        offloaded.measure(tensors, wanted)
        for name, error in offloaded.errors.items():
            if max_error is not None and not error.relative <= max_error:
                raise ModelError(
                    f"error of output {name!r} must be at most {max_error:.3g} of its largest "
                    f"value, not {error.relative:.3g}: more calibration, 8 bits or a scale for "
                    f"each channel bring it down")
    except BaseException:
        if core is not device:
            core.close()
        raise
    return offloaded


def _arrays(graph: Any, tensors: tuple[Any, ...], what: str) -> dict[str, NDArray[Any]]:
    """Inputs by name, which must be like the graph's."""
    if len(tensors) != len(graph.inputs):
        raise ModelError(f"{what} must be {len(graph.inputs)} tensors ({', '.join(graph.inputs)} "
                         f"of {graph.name}), not {len(tensors)}")
    arrays = {name: tensor.detach().cpu().numpy()
              for name, tensor in zip(graph.inputs, tensors, strict=True)}
    try:
        return graph.input_arrays(arrays)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what} must be like the example of {graph.name}: {error}") from error


def _rebuilt(tree: Any, tensor: type, leaves: Iterator[Any]) -> Any:
    """Puts others in place of the tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, tensor):
        return next(leaves)
    if isinstance(tree, Mapping):
        return {key: _rebuilt(part, tensor, leaves) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = [_rebuilt(part, tensor, leaves) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


@functools.cache
def _module_class() -> Any:
    """The class of offloaded modules; made when it is used, since its base is torch's."""
    torch = need("torch", "torch", _PURPOSE)
    from .inference import Model

    class Run(torch.autograd.Function):
        """Runs a model; tells a backward pass that it stops here."""

        @staticmethod
        def forward(ctx: Any, run: Any, *tensors: Any) -> Any:
            return run(tensors)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise ModelError("an offloaded module must have no gradients asked of it, as its "
                             "integers have none: call it under torch.no_grad()")

    class OffloadedModule(torch.nn.Module):
        """A module that runs on a device; see `offload`."""

        def __init__(self, graph: Any, core: Core, owned: bool, template: Any) -> None:
            super().__init__()
            self.graph, self.core = graph, core
            self.model = Model(graph, core)
            self.errors: dict[str, OutputError] = {}
            self.last: Any = None
            self._owned = owned
            self._template = template
            self._types = [leaf.dtype for leaf in tensors_in(template, torch.Tensor)]

        def forward(self, *inputs: Any, **named: Any) -> Any:
            tensors = as_tensors("inputs", self._in_order(inputs, named))
            outputs = Run.apply(self._run, *tensors)
            return _rebuilt(self._template, torch.Tensor, iter(outputs))

        def _in_order(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
            missing = self.graph.inputs[len(inputs):]
            for name in named:
                if name not in missing:
                    raise ModelError(f"inputs must be {', '.join(self.graph.inputs)} of "
                                     f"{self.graph.name}, each once, not {name!r}")
            return (*inputs, *(named[name] for name in missing if name in named))

        def _run(self, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
            arrays = _arrays(self.graph, tensors, "inputs")
            self.last = self.model.run(arrays)
            return tuple(
                torch.from_numpy(np.array(self.last.outputs[name])).to(
                    dtype=dtype, device=tensors[0].device)
                for name, dtype in zip(self.graph.outputs, self._types, strict=True))

        def measure(self, tensors: tuple[Any, ...], wanted: Any) -> dict[str, OutputError]:
            """Compares outputs of inputs with the float module's; sets and returns ``errors``."""
            real = tensors_in(wanted, torch.Tensor)
            self.errors = {
                name: OutputError.of(ours.cpu().numpy(), theirs.detach().cpu().numpy())
                for name, ours, theirs in zip(self.graph.outputs, self._run(tensors), real,
                                              strict=True)}
            return self.errors

        def extra_repr(self) -> str:
            on_device = len(self.graph.layers) - len(self.model.on_host)
            return (f"{self.graph.name}, {on_device} layers on {self.core.uri}, " +
                    ", ".join(f"{name}: error {error.relative:.2g}"
                              for name, error in self.errors.items()))

        def close(self) -> None:
            """Closes the core, if it was opened for this module."""
            if self._owned:
                self.core.close()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exc: object) -> None:
            self.close()

    return OffloadedModule
