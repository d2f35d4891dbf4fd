"""Which layers read a constant: what stands at their input although nothing has entered the network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from skeletal.core.model.tensors import Tensors

_LAYERS: tuple[Callable[..., Tensor], ...] = (
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


class ReadAtZero(TorchFunctionMode):
    """Notes what linear layers and convolutions read, in the order of their calls, where every input is 0.

    A sigmoid makes 1/2 of nothing. What comes from it is no path from the input, though it has a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _is_layer(func, args):
            self.read.append(args[0].detach())
        return func(*args, **kwargs or {})


class BeyondConstants(TorchFunctionMode):
    """Outputs and signals are as ever, but the gradient of a layer's weight is that of what differs from a constant.

    Args:
        constant: what each call reads where nothing enters the network. From the first call on that does not fit it,
            gradients are as ever, too.

    """

    def __init__(self, constant: list[Tensor]) -> None:
        super().__init__()
        self._constant = iter(constant)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_layer(func, args):
            return func(*args, **kwargs)
        read, weight, *others = args
        constant = next(self._constant, None)
        if constant is None or constant.shape != read.shape:  # it takes another way where its inputs are 0
            self._constant = iter(())
            return func(*args, **kwargs)
        own = func((read - constant).detach(), weight, *others, **kwargs)
        return func(read, weight.detach(), *others, **kwargs) + (own - own.detach())


def _is_layer(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    return func in _LAYERS and len(args) > 1 and args[0].layout == torch.strided


def without_inputs(model: nn.Module, state: Tensors) -> Tensors:
    """A state in which nothing that counts as an input is left: embeddings and parameters of a network's own are 0."""
    own = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or not type(module).__module__.startswith("torch.nn."):
            own |= {f"{path}.{leaf}".lstrip(".") for leaf in module._parameters}
    return {name: torch.zeros_like(value) if name in own else value for name, value in state.items()}
