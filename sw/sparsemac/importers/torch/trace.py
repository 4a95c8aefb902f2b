# SPDX-License-Identifier: Apache-2.0
"""Traces PyTorch modules: what a forward does to its inputs, as a list of calls.

Symbolic, with ``torch.fx`` (J. Reed et al., "torch.fx: Practical Program Capture and Transformation
for Deep Learning in Python", MLSys 2022), but every step also computes the example. So sizes are
numbers, a forward may look at them, and whatever does not depend on the inputs is a constant.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..._checks import need
from ...errors import ModelError

__all__ = ["PURPOSE", "check_module", "evaluating", "kind_of", "trace"]

PURPOSE = "reading PyTorch modules"


def kind_of(module: Any, kinds: Any) -> str | None:
    """Name of the class of torch.nn that a module is, if it is one of ``kinds``, else None.

    A subclass counts if its forward is that of the class; so do modules with parametrizations.
    """
    for base in type(module).__mro__:
        if base.__module__.startswith("torch.nn.modules."):
            same = type(module).forward is base.forward and "forward" not in vars(module)
            return base.__name__ if same and base.__name__ in kinds else None
    return None


def check_module(module: Any) -> None:
    """Refuses what no trace shows: hooks, parameters that do not exist yet.

    Hooks of ``torch.nn.utils`` (pruning, weight_norm, spectral_norm) pass: they make weights, which
    are read after they have run.
    """
    torch = need("torch", "torch", PURPOSE)
    prune = need("torch.nn.utils.prune", "torch", PURPOSE)
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    for path, part in module.named_modules():
        where = f"module {path!r} ({type(part).__name__})"
        for name, parameter in (*part._parameters.items(), *part._buffers.items()):
            if parameter is not None and torch.nn.parameter.is_lazy(parameter):
                raise ModelError(
                    f"{where} must have its parameter {name!r}, not one that the first call makes: "
                    f"call the module once before")
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            ours = type(hook).__module__.startswith("torch.nn.utils.")
            if not ours and not isinstance(hook, prune.BasePruningMethod):
                name = getattr(hook, "__qualname__", type(hook).__name__)
                raise ModelError(
                    f"{where} must have no hook, not {name}: a device would not call it; remove it "
                    f"before")


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode for a while, without gradients."""
    torch = need("torch", "torch", PURPOSE)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def trace(module: Any, example: tuple[Any, ...], kinds: Any) -> Any:
    """Traces a module, in evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
    example : tuple of tensors    They are changed if the module works in place.
    kinds : container of str      Modules of torch.nn that are one step; see `kind_of`.

    Returns
    -------
    torch.fx.Graph    ``meta["value"]`` of each node is what it computes on the example; constants
                      are nodes ``get_attr``.

    Raises
    ------
    ModelError    Naming the module whose forward depends on numbers or is not torch's.
    """
    tracer = _tracer_class()(example, kinds)
    try:
        return tracer.trace(module)
    except ModelError:
        raise
    except Exception as error:  # whatever the module's own code raises when it sees no numbers
        where = tracer.failed or type(module).__name__
        why = str(error) or type(error).__name__  # an assertion without a text
        raise ModelError(f"module {where} cannot be traced: {why}") from error


def _tracer_class() -> Any:
    """The class of tracers; made when it is used, since its bases need torch."""
    torch = need("torch", "torch", PURPOSE)
    fx = need("torch.fx", "torch", PURPOSE)

    class Shaped(fx.Proxy):
        """A symbol whose size and type are known."""

        shape = property(lambda self: self.node.meta["value"].shape)
        ndim = property(lambda self: self.node.meta["value"].ndim)
        dtype = property(lambda self: self.node.meta["value"].dtype)
        device = property(lambda self: self.node.meta["value"].device)

        def size(self, dim: int | None = None) -> Any:
            return self.shape if dim is None else self.shape[dim]

        def dim(self) -> int:
            return self.ndim

        def numel(self) -> int:
            return self.node.meta["value"].numel()

        def __len__(self) -> int:
            return len(self.node.meta["value"])

    class Tracer(fx.Tracer):
        def __init__(self, example: tuple[Any, ...], kinds: Any) -> None:
            super().__init__()
            self.failed = ""
            self._left = list(example)
            self._kinds = kinds
            self._result: Any = None  # of the leaf module that is being called
            self._constants: dict[int, tuple[Any, Any]] = {}  # tensor and node by identity

        # What the bases ask.

        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            return (kind_of(m, self._kinds) is not None
                    or super().is_leaf_module(m, module_qualified_name))

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
            return attr_val  # parameters are numbers, not symbols

        def proxy(self, node: Any) -> Any:
            return Shaped(node, self)

        def iter(self, obj: Any) -> Any:
            value = obj.node.meta["value"]
            if isinstance(value, (tuple, list)):
                return iter([obj[i] for i in range(len(value))])
            return super().iter(obj)

        def create_arg(self, a: Any) -> Any:
            if not isinstance(a, torch.Tensor):
                return super().create_arg(a)
            if id(a) not in self._constants:
                node = self.create_node("get_attr", f"constant_{len(self._constants)}", (), {})
                node.meta["value"] = a.detach()
                self._constants[id(a)] = a, node
            return self._constants[id(a)][1]

        def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
            values = _Values()
            concrete_args, concrete_kwargs = values.of(args), values.of(kwargs)
            if not values.symbolic:
                return forward(*args, **kwargs)
            try:
                path = self.path_of_module(m)
            except NameError:
                raise ModelError(
                    f"module {type(m).__name__} must be an attribute of the module that calls it, "
                    f"or in a ModuleList or ModuleDict, not kept elsewhere") from None
            try:
                if self.is_leaf_module(m, path):
                    self._result = forward(*concrete_args, **concrete_kwargs)
                return super().call_module(m, forward, args, kwargs)
            except Exception:
                self.failed = self.failed or f"{path!r} ({type(m).__name__})"
                raise

        def create_proxy(
            self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
        ) -> Any:
            if kind == "placeholder":
                return self._placeholder(target, args)
            proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
            values = _Values()
            concrete_args, concrete_kwargs = values.of(args), values.of(kwargs)
            if kind == "call_function":
                value = target(*concrete_args, **concrete_kwargs)
            elif kind == "call_method":
                value = getattr(concrete_args[0], target)(*concrete_args[1:], **concrete_kwargs)
            else:
                value = self._result if kind == "call_module" else None
            proxy.node.meta["value"] = value
            if args and isinstance(args[0], fx.Proxy) and self._in_place(kind, target, kwargs):
                args[0].node = proxy.node  # from here on, the name means the changed values
            return proxy

        # What is ours.

        def _in_place(self, kind: str, target: Any, kwargs: Any) -> bool:
            if kind == "call_module":
                return bool(getattr(self.root.get_submodule(target), "inplace", False))
            name = target if isinstance(target, str) else getattr(target, "__name__", "")
            return (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True

        def _placeholder(self, name: str, default: Any) -> Any:
            if name.startswith("**"):
                return {}
            if name.startswith("*"):
                return tuple(self._placeholder(f"{name[1:]}_{i}", ())
                             for i in range(len(self._left)))
            if self._left:
                proxy = super().create_proxy("placeholder", name, (), {})
                proxy.node.meta["value"] = self._left.pop(0)
                return proxy
            if not default or default[0] is inspect.Parameter.empty:
                raise ModelError(
                    f"example must have a tensor for input {name!r} of "
                    f"{type(self.root).__name__}, which has no default")
            return default[0]

    class _Values:
        """Puts the example's numbers in place of symbols, and tells if there were any."""

        def __init__(self) -> None:
            self.symbolic = False

        def of(self, tree: Any) -> Any:
            if isinstance(tree, fx.Proxy):
                self.symbolic = True
                return tree.node.meta["value"]
            if isinstance(tree, slice):
                return slice(self.of(tree.start), self.of(tree.stop), self.of(tree.step))
            if isinstance(tree, dict):
                return {key: self.of(value) for key, value in tree.items()}
            if isinstance(tree, tuple) and hasattr(tree, "_fields"):
                return type(tree)(*map(self.of, tree))
            if type(tree) in (tuple, list):
                return type(tree)(map(self.of, tree))
            return tree

    return Tracer
