"""Make the layers of a traced network smaller."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.channels import Channels
from skeletal.compaction.rules.rule import Map, Norm, Product
from skeletal.compaction.slices import cut

Indices = tuple[Tensor | None, ...]


def cut_modules(module: fx.GraphModule, channels: Channels) -> dict[int, Indices]:
    """Cut layers and graph down to the channels that are kept, in place.

    Returns:
        For each parameter and buffer that lost something, by the id of the uncut tensor, what it kept (see `Slices`).

    """
    found: dict[int, Indices] = {}
    for node, rule in channels.known.rules.items():
        target = getattr(rule, "target", None)
        if target is None:
            continue
        layer: Any = module.get_submodule(target)
        outputs = _left(channels, node, len(channels.state[node]))
        if isinstance(rule, Product):
            parts = _of_product(layer, rule, _left(channels, rule.inputs[0], rule.pairs.shape[1]), outputs)
        else:
            parts = _of_vectors(layer, rule, outputs)
        for leaf, indices in parts.items():
            old = getattr(layer, leaf)
            if old is None or all(index is None for index in indices):
                continue
            found[id(old)] = indices
            new = cut(old.detach(), indices)
            setattr(layer, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    size = {node: torch.ones(0, device="cpu") for node in module.graph.nodes} | channels.keep
    for rewrite in channels.known.rewrites:
        rewrite(size.__getitem__)
    module.graph.lint()
    module.recompile()
    return found


class _Left(NamedTuple):
    """What is left of a tensor's channels."""

    keep: Tensor
    """bool"""
    zeros: Tensor
    """bool: of what is kept, the zeros that pad a width"""

    @property
    def width(self) -> int:
        return int(self.keep.sum())

    def indices(self) -> Tensor | None:
        """The channels' indices, -1 for zeros; None if all are left as they are."""
        if self.keep.all() and not self.zeros.any():
            return None
        return torch.where(self.zeros, -1, torch.arange(len(self.keep), device="cpu"))[self.keep]


def _left(channels: Channels, node: fx.Node, size: int) -> _Left:
    keep = channels.keep.get(node, torch.ones(size, dtype=torch.bool, device="cpu"))
    return _Left(keep, channels.padding.get(node, torch.zeros(size, dtype=torch.bool, device="cpu")))


def _of_product(layer: Any, rule: Product, inputs: _Left, outputs: _Left) -> dict[str, Indices]:
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs.width, outputs.width
    else:
        layer.in_channels, layer.out_channels = inputs.width, outputs.width
    across, inside = (inputs, outputs) if rule.transposed else (outputs, inputs)
    if rule.groups > 1:  # all groups that are left have kept the same of what is numbered within a group
        keep, zeros = (found.view(rule.groups, -1) for found in inside)
        alive = keep.any(1)
        layer.groups = int(alive.sum())
        inside = _Left(keep[alive][0], zeros[alive].all(0))  # not the zeros of a group that has nothing else
    rest = (None,) * (layer.weight.dim() - 2)
    return {"weight": (across.indices(), inside.indices(), *rest), "bias": (outputs.indices(),)}


def _of_vectors(layer: Any, rule: Norm | Map | Any, outputs: _Left) -> dict[str, Indices]:
    index = outputs.indices()
    if isinstance(rule, Norm):
        layer.num_features = outputs.width
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (index,))
    if layer.weight.numel() == 1:
        return {}
    layer.num_parameters = outputs.width
    return {"weight": (index,)}
