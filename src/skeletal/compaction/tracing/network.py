"""A network as a graph of its operations, and a module like others."""

import inspect
from typing import Any

import torch
from torch import fx, nn


class Traced(nn.Module):
    """Stands for a module whose operations a graph has taken over.

    Attributes of the module, such as a temperature, are fixed in the operations: nothing would read a value written to
    them now.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_taken_over", ()):
            raise AttributeError(
                f"`{name}` would not be read any more: the operations of this network were written down with its value;"
                " set it on the original model, and compact or compile that again"
            )
        super().__setattr__(name, value)

    def take_over(self, original: nn.Module) -> None:
        """From now on, refuse to set attributes of the original that this module does not have itself."""
        names = original.__dict__.get("_taken_over")
        if names is None:
            names = {name for name in dir(original) if not _is_method(original, name)}
        self.__dict__["_taken_over"] = frozenset(names).difference(dir(self))


def _is_method(module: nn.Module, name: str) -> bool:
    """Whether an attribute is a method, a function or a part; properties are not run, as they may raise or compute."""
    if name in module._modules:
        return True
    found = inspect.getattr_static(module, name, None)
    return callable(found) or isinstance(found, classmethod)


class GraphNetwork(Traced, fx.GraphModule):
    """A `torch.fx.GraphModule` with a length, which leaves gradients switched on or off as they were.

    `torch.compile` wraps a module in one that has a `__len__`. `if network:` and `network or other` call it, and it
    raises "TypeError: GraphModule does not support len()" if the wrapped module has none.
    """

    def __len__(self) -> int:
        """How many modules it has, itself included."""
        return sum(1 for _ in self.modules())

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What the original returns. Its graph may switch gradients off; an error in between must not leave them so."""
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            return super().__call__(*arguments, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphNetwork":
        new: Any = super().__deepcopy__(memo)
        new.__dict__["_taken_over"] = self.__dict__["_taken_over"]
        return new


class Inlined(Traced):
    """What is left of a module whose operations a graph calls itself: a place for its parts."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """Nothing calls it.

        Raises:
            RuntimeError: always.

        """
        raise RuntimeError("this module's operations are part of the network's graph; call the network")

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "a hook here would never run, as the network's graph calls this module's operations and not the module:"
            " register it before compacting or compiling, which then keeps the module whole, or on one of its layers"
        )

    register_forward_hook = register_forward_pre_hook = _refuse
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _refuse
