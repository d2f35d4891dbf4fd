"""Run a network with the layers that are to be pruned replaced."""

from collections.abc import Callable, Container, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Forward = Callable[[Tensor], Tensor]


@contextmanager
def layers_replaced(
    model: nn.Module, weights: Container[str], forward_of: Callable[[Any, str], Forward], method: str
) -> Generator[None]:
    """Let `forward_of(layer, name of its weight)` run in place of each linear layer and convolution of the weights.

    Raises:
        ValueError: a weight belongs to something else; names it and the method.

    """
    names = {id(weight): name for name, weight in model.named_parameters() if name in weights}
    changed: list[Any] = []
    try:
        for path, module in model.named_modules():
            for leaf, weight in module._parameters.items():
                if (name := names.get(id(weight))) is None:
                    continue
                known = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
                if not known or leaf != "weight":
                    raise ValueError(
                        f"{method} walks through linear layers and convolutions, and {path}.{leaf} is of"
                        f" {type(module).__name__}: leave it out with prunable="
                    )
                module.forward = forward_of(module, name)
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward
