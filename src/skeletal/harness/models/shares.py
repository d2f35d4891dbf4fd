"""Where a network's parameters are: one row of the paper's Table 3."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from skeletal.core.model.weights import is_bias


@dataclass(frozen=True)
class Shares:
    """Percentages of all parameters, and their number; the fields are Table 3's columns."""

    conv: float
    """weights of convolutions"""
    fully_connected: float
    """weights of linear layers"""
    batch_norm: float
    """weights of norm layers"""
    bias: float
    """biases of any layer, norm layers included"""
    prunable: float
    """conv + fully_connected"""
    total: float
    """millions of parameters"""


def parameter_shares(model: nn.Module) -> Shares:
    """Count as the paper's Table 3 does; a model on the meta device will do.

    Shared parameters count once. Other kinds (embeddings, class tokens) count in the total only.

    Raises:
        ValueError: the model has no parameters.

    """
    total = conv = linear = norm = bias = 0
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        size = parameter.numel()
        total += size
        if is_bias(name):
            bias += size
        elif isinstance(layer, _ConvNd):
            conv += size
        elif isinstance(layer, nn.Linear):
            linear += size
        elif isinstance(layer, _NormBase | nn.LayerNorm | nn.GroupNorm):
            norm += size
    if total == 0:
        raise ValueError(f"{type(model).__name__} has no parameters to count")
    percent = [100 * part / total for part in (conv, linear, norm, bias, conv + linear)]
    return Shares(*percent, total=total / 1e6)
