"""Give weights back to layers that a mask has emptied."""

import heapq
import operator

import torch
from torch import Tensor, nn

from skeletal.core.masks.mask import Mask
from skeletal.core.masks.match import matching_parameters
from skeletal.core.masks.selection import top
from skeletal.core.model.tensors import widen


def repair(mask: Mask, model: nn.Module, at_least: int = 1) -> Mask:
    """Give every layer some weights, at the same total. Opt in to it: no score has asked for those weights.

    A layer with fewer than `at_least` weights gets the largest of its pruned ones by |θ| (all, if the layer is
    smaller). The same number is removed, one by one, each time from the layer that has most, smallest |θ| first. Ties
    go to the first layer and, among equal |θ|, the first position is kept.

    Args:
        mask: is not changed.
        model: for its weights θ, best those from before the mask was attached (it sets pruned ones to 0).
        at_least: per layer.

    Returns:
        A new mask with the old one's metadata and, in `metadata["repaired"]`, the number of weights added by layer
        name, empty if there was nothing to do. If there was, `metadata["connected"]` is None, not known.

    Raises:
        MaskError: the mask belongs to another model.
        ValueError: the mask has a pattern; fewer weights are kept than all layers need together; or `at_least` is below
            1.

    """
    at_least = operator.index(at_least)
    if at_least < 1:
        raise ValueError(f"at_least is {at_least}; it has to be at least 1")
    if pattern := mask.metadata.get("pattern"):
        raise ValueError(
            f"the mask has the pattern {pattern}, which single weights would break: prune to a higher density"
        )
    parameters = matching_parameters(dict(mask), model)
    counts = {name: int(keep.sum()) for name, keep in mask.items()}
    needs = {name: min(at_least, keep.numel()) for name, keep in mask.items()}
    if sum(needs.values()) > mask.kept:
        raise ValueError(
            f"at_least={at_least} in each of {len(mask)} layers takes {sum(needs.values()):,} weights,"
            f" but only {mask.kept:,} are kept: prune to a higher density or ask for fewer"
        )
    added = {name: need - counts[name] for name, need in needs.items() if need > counts[name]}
    order = list(mask)
    richest = [(-counts[name], i) for i, name in enumerate(order) if counts[name] > needs[name]]
    heapq.heapify(richest)
    counts |= {name: needs[name] for name in added}
    for _ in range(sum(added.values())):
        _, i = heapq.heappop(richest)
        counts[order[i]] -= 1
        if counts[order[i]] > needs[order[i]]:
            heapq.heappush(richest, (-counts[order[i]], i))
    tensors = {name: _resize(keep, parameters[name], counts[name]) for name, keep in mask.items()}
    unknown = {"connected": None} if added else {}
    return Mask(tensors, mask.metadata | unknown | {"repaired": added})


def _resize(keep: Tensor, weight: Tensor, count: int) -> Tensor:
    """Add the largest of the pruned, or take the smallest of the kept, until `count` are kept."""
    size = widen(weight.detach()).abs().cpu()
    growing = count > int(keep.sum())
    size = size.masked_fill(keep, torch.inf) if growing else size.masked_fill(~keep, -1.0)
    return top(size.flatten(), count).view(keep.shape)
