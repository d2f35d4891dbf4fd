"""How a weight's dimensions are read: the inputs of each output unit, whatever the layer's own order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from skeletal.core.model.weights import is_transposed_linear, stored


@dataclass(frozen=True)
class Layout:
    """Where a weight has its outputs and inputs."""

    transposed: bool = False
    """(inputs, outputs / groups, ...) instead of (outputs, inputs / groups, ...)"""
    groups: int = 1

    def units(self, weight: Tensor) -> Tensor:
        """(outputs, inputs of each, kernel positions): a linear layer has one position."""
        flat = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
        if not self.transposed:
            return flat
        return flat.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def weight(self, units: Tensor, like: Tensor) -> Tensor:
        """The inverse of `units`, in the shape of a weight."""
        if self.transposed:
            units = units.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return units.reshape(like.shape)


def layouts(model: nn.Module, names: Iterable[str]) -> dict[str, Layout]:
    """The layouts of a model's parameters, by name.

    Raises:
        ValueError: a parameter has fewer than two dimensions, and so no inputs.

    """
    parameters = dict(model.named_parameters())
    found: dict[str, Layout] = {}
    swapped: dict[int, Layout] = {}
    for module in model.modules():
        layer: Any = module
        if isinstance(module, _ConvTransposeNd):
            swapped[id(stored(module, "weight"))] = Layout(transposed=True, groups=layer.groups)
        elif is_transposed_linear(module):
            swapped[id(stored(module, "weight"))] = Layout(transposed=True)
    for name in names:
        if parameters[name].dim() < 2:
            raise ValueError(
                f"{name} {tuple(parameters[name].shape)} has no inputs to follow a pattern: leave it out of prunable"
            )
        found[name] = swapped.get(id(parameters[name]), Layout())
    return found
