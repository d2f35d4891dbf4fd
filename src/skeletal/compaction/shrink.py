"""Make the layers of a traced network smaller."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.channels import Channels
from skeletal.compaction.rules import Map, Norm, Product
from skeletal.compaction.slices import cut

Indices = tuple[Tensor | None, ...]


def cut_modules(module: fx.GraphModule, channels: Channels) -> dict[int, Indices]:
    """Cut layers and graph down to the channels that are kept, in place.

    Returns:
        For each parameter and buffer that lost something, by the id of the uncut tensor, what it kept.

    """
    found: dict[int, Indices] = {}
    for node, rule in channels.known.rules.items():
        target = getattr(rule, "target", None)
        if target is None:
            continue
        layer: Any = module.get_submodule(target)
        outputs = channels.keep[node]
        if isinstance(rule, Product):
            inputs = channels.keep.get(rule.inputs[0], torch.ones(rule.pairs.shape[1], dtype=torch.bool))
            parts = _of_product(layer, rule, inputs, outputs)
        else:
            parts = _of_vectors(layer, rule, outputs)
        for leaf, indices in parts.items():
            old = getattr(layer, leaf)
            if old is None or all(index is None for index in indices):
                continue
            found[id(old)] = indices
            new = cut(old.detach(), indices)
            setattr(layer, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    size = {node: torch.ones(0) for node in module.graph.nodes} | channels.keep
    for rewrite in channels.known.rewrites:
        rewrite(size.__getitem__)
    module.graph.lint()
    module.recompile()
    return found


def _of_product(layer: Any, rule: Product, inputs: Tensor, outputs: Tensor) -> dict[str, Indices]:
    kept = int(inputs.sum()), int(outputs.sum())
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = kept
    else:
        layer.in_channels, layer.out_channels = kept
    across, inside = (inputs, outputs) if rule.transposed else (outputs, inputs)
    if rule.groups > 1:  # all groups that are left have kept the same of what is numbered within a group
        inside = inside.view(rule.groups, -1)
        alive = inside.any(1)
        layer.groups = int(alive.sum())
        inside = inside[alive][0]
    rest = (None,) * (layer.weight.dim() - 2)
    return {"weight": (_index(across), _index(inside), *rest), "bias": (_index(outputs),)}


def _of_vectors(layer: Any, rule: Norm | Map | Any, outputs: Tensor) -> dict[str, Indices]:
    index = _index(outputs)
    if isinstance(rule, Norm):
        layer.num_features = int(outputs.sum())
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (index,))
    if layer.weight.numel() == 1:
        return {}
    layer.num_parameters = int(outputs.sum())
    return {"weight": (index,)}


def _index(keep: Tensor) -> Tensor | None:
    return None if keep.all() else keep.nonzero().flatten()
