"""How a weight's dimensions are read: the inputs of each output unit, whatever the layer's own order."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from skeletal.core.model.weights import is_transposed_linear, stored, weights_and_biases


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
        ValueError: a parameter has fewer than two dimensions, and so no inputs; or two layers read it in two ways.

    """
    parameters = dict(model.named_parameters())
    found: dict[str, Layout] = {}
    read: dict[int, set[Layout]] = {}
    for module in model.modules():
        for leaf in weights_and_biases(module)[0]:
            read.setdefault(id(stored(module, leaf)), set()).add(_layout(module))
    for name in names:
        if parameters[name].dim() < 2:
            raise ValueError(
                f"{name} {tuple(parameters[name].shape)} has no inputs to follow a pattern: leave it out of prunable"
            )
        ways = read.get(id(parameters[name]), {Layout()})
        if len(ways) > 1:
            raise ValueError(
                f"{name} {tuple(parameters[name].shape)} is the weight of several layers, of which one reads it"
                " transposed: no pattern holds for both; leave it out of prunable"
            )
        (found[name],) = ways
    return found


def _layout(module: nn.Module) -> Layout:
    if isinstance(module, _ConvTransposeNd):
        return Layout(transposed=True, groups=module.groups)
    return Layout(transposed=is_transposed_linear(module))
