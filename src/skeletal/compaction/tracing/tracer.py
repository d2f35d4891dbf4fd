"""Trace a network's forward pass, module by module, and keep whole what a graph cannot hold.

A graph holds operations on tensors and nothing else. Where code switches gradients off, as `no_grad` does, operations
that do so are put into the graph. While it traces a module, the tracer looks for everything else that would be lost:
autocast regions and inference mode (the state at each operation is compared with that at the module's entry),
functions with a backward pass of their own, random numbers drawn and attributes written during the trace instead of in
every pass, hooks, modes that do more than set a flag. The innermost module that does such a thing, or that torch.fx
cannot follow, becomes one node, which calls it unchanged.
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import _has_any_global_hook

from skeletal.core.model.preserve import acts_on_mode
from skeletal.core.model.state.random_state import RandomState
from skeletal.core.model.state.snapshot import Snapshot

_CONSTANT = "_tensor_constant"  # torch.fx's name for what it attaches to the root


def drops_paths(module: nn.Module) -> bool:
    """Whether a module is torchvision's or timm's stochastic depth: tracing into it would fix its mode."""
    library = type(module).__module__.partition(".")[0]
    return (library, type(module).__name__) in {("torchvision", "StochasticDepth"), ("timm", "DropPath")}


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than run its forward pass."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether someone has set a forward pass on this module, in place of its class's."""
    return "forward" in vars(module)


def acts_as_its_class(module: nn.Module) -> bool:
    """Whether calling a module does what its class says, and nothing else."""
    return not (has_hooks(module) or has_own_forward(module) or _has_any_global_hook())


def _with_activation(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation, or was until a trace took it apart."""
    fused = type(module).__module__.startswith("timm.") and type(module).__name__ == "BatchNormAct2d"
    return fused or (type(module) is nn.BatchNorm2d and {"drop", "act"} <= module._modules.keys())


class Refusal(BaseException):  # not an Exception, which the model's own code might catch
    """What a forward pass does that a graph cannot hold, as a verb and its object."""


def reason_of(error: BaseException) -> str:
    """Why a module cannot be traced, as a verb and its object."""
    if isinstance(error, Refusal):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"cannot be traced ({type(error).__name__}: {first})"


class Tracer(fx.Tracer):
    """Traces a network in the mode it is in.

    Args:
        whole: by name, the modules to keep whole, and why; those found on the way are added. None when torch.fx reads
            a pickled graph, which it traces again: parts already taken apart are not taken apart a second time.
        options: arguments of the network that have a value instead of a placeholder.

    """

    proxy_buffer_attributes = True  # what is made of buffers is made when the graph runs

    def __init__(self, whole: dict[str, str] | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._options = options or {}
        self.whole = whole if whole is not None else {}
        self._first_time = whole is not None
        self._surroundings = [_surroundings()]
        self._owners = [""]
        self._gradients = True  # as the last node has left them

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a network's forward pass.

        Raises:
            Refusal: the network itself, and not only a part of it, does something that a graph cannot hold.
            Exception: whatever its code raises where tensors have no values.

        """
        self._before = Snapshot(root)
        randomness = RandomState()
        try:
            graph = super().trace(root, concrete_args)
            self._check(root, randomness)
            return graph
        finally:
            self._restore(root)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """What the network's forward pass is called with."""
        function, arguments = super().create_args_for_root(*args, **kwargs)
        return function, [
            self._options.get(str(one.node.target), one) if isinstance(one, fx.Proxy) else one for one in arguments
        ]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node."""
        return module_qualified_name in self.whole or drops_paths(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record what a module does or, if that does not work, that it is called."""
        self._check_surroundings()
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path) and not (self._first_time and _with_activation(m)):
            if path not in self.whole and has_own_forward(m):
                self.whole[path] = "has a forward() of its own"
            if path not in self.whole and kwargs and not has_hooks(m):
                bound = inspect.signature(m.forward).bind(*args, **kwargs)
                args, kwargs = bound.args, bound.kwargs  # `input=x` is `x`
            return super().call_module(m, forward, args, kwargs)
        if why := more_than_its_forward(m):
            self.whole[path] = why
            return super().call_module(m, forward, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        randomness, stack = RandomState(), list(self.module_stack.items())
        gradients = self._gradients, torch.is_grad_enabled()
        self._surroundings.append(_surroundings())
        self._owners.append(path)
        try:
            result = self._into(m, forward, args, kwargs)
            self._check(m, randomness, gradients[1])
            return result
        except (Exception, Refusal) as error:
            self._undo(last, randomness, stack)
            self._gradients = gradients[0]
            torch.set_grad_enabled(gradients[1])
            self.whole[path] = reason_of(error)
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._surroundings.pop()
            self._owners.pop()

    def _into(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if _with_activation(m):  # three operations, of which the first is a batch norm like others
            m.__class__ = nn.BatchNorm2d
            normed = super().call_module(m, nn.BatchNorm2d.forward.__get__(m), args, kwargs)
            return m.get_submodule("act")(m.get_submodule("drop")(normed))
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operation and the module it belongs to."""
        self._check_surroundings()
        self._follow_gradients()
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self._owners[-1]
        if node.op == "call_module" and (why := self.whole.get(str(node.target))):
            node.meta["whole"] = why
        return node

    def _module_getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        written: Any = super()
        return written._module_getattr(attr, attr_val, {})  # a node that is undone must not come back from a cache

    def _follow_gradients(self) -> None:
        """Switch gradients off, or back to what they were, in the graph where the model's code has done so."""
        if (now := torch.is_grad_enabled()) == self._gradients:
            return
        if not now and _in_a_function():
            raise Refusal("applies an autograd.Function")
        self._gradients = now
        if now:
            self._write_down(torch._C._set_grad_enabled, self._outside)
        else:
            self._outside = self._write_down(torch.is_grad_enabled)
            self._write_down(torch._C._set_grad_enabled, False)

    def _write_down(self, function: Any, *args: Any) -> fx.Node:
        node = super().create_node("call_function", function, args, {})
        node.meta["owner"] = self._owners[-1]
        return node

    def _check_surroundings(self) -> None:
        before, now = self._surroundings[-1], _surroundings()
        if before[1:] != now[1:]:
            raise Refusal("has an autocast region" if before[1] == now[1] else "enters inference mode")

    def _check(self, module: nn.Module, randomness: RandomState, gradients: bool = True) -> None:
        """Whether a module has done something while it was traced that it would have to do in every pass."""
        self._check_surroundings()
        if torch.is_grad_enabled() != gradients:
            raise Refusal("leaves gradients switched off")
        if RandomState() != randomness:
            raise Refusal("draws random numbers that are no tensors of the batch's size")
        for name, part in module.named_modules():
            written = self._before.written(part, but=_CONSTANT)
            if written is not None:
                raise Refusal(f"writes to {f'{name}.' if name else ''}{written} itself")

    def _undo(self, last: fx.Node | None, randomness: RandomState, stack: list[Any]) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
        self.module_stack.clear()
        self.module_stack.update(stack)
        randomness.restore()
        self._restore(self.root)

    def _restore(self, root: nn.Module) -> None:
        constants = {name: value for name, value in root.__dict__.items() if name.startswith(_CONSTANT)}
        self._before.restore()
        root.__dict__.update(constants)


def more_than_its_forward(module: nn.Module) -> str:
    """What calling a module, or setting its mode, does besides running its forward pass; "" if nothing."""
    if has_hooks(module):
        return "has hooks"
    if acts_on_mode(module):
        return "has a train() or eval() of its own"
    if type(module).set_extra_state is not nn.Module.set_extra_state:  # a setting that may be loaded later
        return "has an extra state of its own"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule"
    return ""


def _in_a_function() -> bool:
    """Whether the code that is running is the forward pass of an autograd.Function."""
    kinds, codes = [torch.autograd.Function], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if (function := kind.__dict__.get("forward")) is not None:
            codes.add(getattr(getattr(function, "__func__", function), "__code__", None))
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _surroundings() -> tuple[Any, ...]:
    """What an operation's result depends on besides its arguments."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    kinds = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), depth, *kinds
