"""Write a network's forward pass down, module by module, and keep whole what a graph cannot hold.

A graph holds operations on tensors and nothing else. While a module's forward pass is written down, this looks at what
would be lost: gradients or autocast switched (each operation is compared with the state at the module's entry), random
numbers drawn and attributes written right now instead of in every pass, hooks, modes that do more than a flag. The
innermost module that does such a thing, or that torch.fx cannot follow, becomes one node which calls it as it is.
"""

import inspect
from typing import Any

import torch
from torch import fx, nn

from skeletal.core.model.preserve import acts_on_mode
from skeletal.core.model.random_state import RandomState
from skeletal.core.model.snapshot import Snapshot

_CONSTANT = "_tensor_constant"  # how torch.fx calls what it hangs on the root


def drops_paths(module: nn.Module) -> bool:
    """Whether a module is torchvision's or timm's stochastic depth: tracing into it would fix its mode."""
    library = type(module).__module__.partition(".")[0]
    return (library, type(module).__name__) in {("torchvision", "StochasticDepth"), ("timm", "DropPath")}


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than run its forward pass."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _with_activation(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation, or was, until a trace took it to pieces."""
    fused = type(module).__module__.startswith("timm.") and type(module).__name__ == "BatchNormAct2d"
    return fused or (type(module) is nn.BatchNorm2d and {"drop", "act"} <= module._modules.keys())


class Refusal(BaseException):  # not an Exception, which the model's own code might catch
    """What a forward pass does that a graph cannot hold, as a verb and its object."""


def reason_of(error: BaseException) -> str:
    """Why a module cannot be written down, as a verb and its object."""
    if isinstance(error, Refusal):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"cannot be traced ({type(error).__name__}: {first})"


class Tracer(fx.Tracer):
    """Traces a network in the mode it is in.

    Args:
        whole: by name, the modules to keep whole, and why; those found on the way are added.

    """

    proxy_buffer_attributes = True  # what is made of buffers is made when the graph runs

    def __init__(self, whole: dict[str, str]) -> None:
        super().__init__()
        self.whole = whole
        self._surroundings = [_surroundings()]
        self._owners = [""]

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Write down a network's forward pass.

        Raises:
            Refusal: the network itself, and not only a part of it, does what a graph cannot hold.
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

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node."""
        return module_qualified_name in self.whole or drops_paths(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Write down what a module does, or, if that does not work, that it is called."""
        self._check_surroundings()
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path) and not _with_activation(m):
            if path not in self.whole and kwargs and not has_hooks(m):
                bound = inspect.signature(m.forward).bind(*args, **kwargs)
                args, kwargs = bound.args, bound.kwargs  # `input=x` is `x`
            return super().call_module(m, forward, args, kwargs)
        if why := more_than_its_forward(m):
            self.whole[path] = why
            return super().call_module(m, forward, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        randomness, stack = RandomState(), list(self.module_stack.items())
        self._surroundings.append(_surroundings())
        self._owners.append(path)
        try:
            result = self._into(m, forward, args, kwargs)
            self._check(m, randomness)
            return result
        except (Exception, Refusal) as error:
            self._undo(last, randomness, stack)
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
        """Write down one operation, and in which module it stands."""
        self._check_surroundings()
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self._owners[-1]
        if node.op == "call_module" and (why := self.whole.get(str(node.target))):
            node.meta["whole"] = why
        return node

    def _module_getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return super()._module_getattr(attr, attr_val, {})  # a node that is undone must not come back from a cache

    def _check_surroundings(self) -> None:
        if (now := _surroundings()) != self._surroundings[-1]:
            raise Refusal(_switched(self._surroundings[-1], now))

    def _check(self, module: nn.Module, randomness: RandomState) -> None:
        """Whether a module has done something while it was traced that it would have to do in every pass."""
        self._check_surroundings()
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
        torch.set_grad_enabled(self._surroundings[-1][0])
        self._restore(self.root)

    def _restore(self, root: nn.Module) -> None:
        constants = {name: value for name, value in root.__dict__.items() if name.startswith(_CONSTANT)}
        self._before.restore()
        root.__dict__.update(constants)


def more_than_its_forward(module: nn.Module) -> str:
    """What calling a module, or setting its mode, does beside running its forward pass; "" if nothing."""
    if has_hooks(module):
        return "has hooks"
    if acts_on_mode(module):
        return "has a train() or eval() of its own"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule"
    return ""


def _surroundings() -> tuple[Any, ...]:
    """What an operation's result depends on beside its arguments."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    kinds = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), depth, *kinds


def _switched(before: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    if before[:2] != now[:2]:
        if now[0] and not now[1]:
            return "switches gradients on"
        return "switches gradients off (no_grad, inference_mode or an autograd.Function)"
    return "has an autocast region"
