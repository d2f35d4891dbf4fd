"""Exact global top-k over all layers: selection, neither sorting nor a threshold."""

import math

import torch
from torch import Tensor

from skeletal.core.model.tensors import Tensors

SAMPLE = 2**16  # scores looked at to guess where the k-th lies


def _bracket(scores: Tensor, count: int) -> tuple[Tensor, int] | None:
    """The scores among which the `count`-th largest lies, and its rank there; None where a sample misleads.

    A sample puts the k-th between two bounds, a pass over all scores proves that it is there, and one percent of them
    remains. Scores in an unlucky order cost only that pass.
    """
    stride = len(scores) // SAMPLE
    if stride < 8:
        return None
    sample = scores[::stride].sort(descending=True).values
    share = count / len(scores)
    rank, spread = share * len(sample), 5 * math.sqrt(len(sample) * share * (1 - share)) + 1
    first, last = math.floor(rank - spread), math.ceil(rank + spread)
    within = scores > sample[last] if last < len(sample) else torch.ones_like(scores, dtype=torch.bool)
    if first >= 0:
        above = scores > sample[first]
        within &= ~above
        count -= int(above.count_nonzero())
    candidates = scores[within]
    return (candidates, count) if 0 < count <= len(candidates) else None


def _kth_largest(scores: Tensor, count: int) -> Tensor:
    below = len(scores) - count
    if count <= below:
        return scores.topk(count, sorted=False).values.min()
    return scores.topk(below + 1, largest=False, sorted=False).values.max()


def top(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest of a flat vector of scores; among equals the first positions win.

    A threshold alone would keep every tie, and a full sort costs several times as much. So: find the k-th
    largest value by selection, keep everything above it, then fill up with values equal to it, in order of
    position. Always exactly `count`. (`kthvalue` would also select, but takes quadratic time on
    descending scores.)

    Args:
        scores: shape (n,), without NaN; -inf marks entries to keep only after all others.
        count: how many to keep, between 0 and n.

    Returns:
        A bool tensor of shape (n,).

    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    candidates, rank = _bracket(scores, count) or (scores, count)
    threshold = _kth_largest(candidates, rank)
    missing = rank - int((candidates > threshold).count_nonzero())
    if missing == int((candidates == threshold).count_nonzero()):
        return scores >= threshold
    keep = scores > threshold
    keep[(scores == threshold).nonzero().flatten()[:missing]] = True
    return keep


def gather(tensors: Tensors, places: Tensors) -> Tensor:
    """One vector of the entries at some places of each flattened tensor, on the first tensor's device."""
    device = next(iter(tensors.values())).device
    return torch.cat([tensor.flatten()[places[name].to(tensor.device)].to(device) for name, tensor in tensors.items()])


def scatter(chosen: Tensor, places: Tensors, like: Tensors) -> Tensors:
    """Bool tensors like some others, True at the chosen ones of the places that `gather` looked at."""
    found = {}
    pieces = chosen.split([len(at) for at in places.values()])
    for (name, at), piece in zip(places.items(), pieces, strict=True):
        flat = torch.zeros_like(like[name], dtype=torch.bool).flatten()
        found[name] = flat.scatter_(0, at, piece.to(at.device)).view(like[name].shape)
    return found
