"""Exact global top-k over all layers: selection, neither sorting nor a threshold."""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def top(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest of a flat vector of scores; among equals the first positions win.

    A threshold alone would keep every tie, and a full sort costs several times more. So: find the k-th
    largest value by selection, keep what is above it, then as many of its equals, in order of position,
    as are still missing. Always exactly `count`. (`kthvalue` would select, too, but takes quadratic time on
    descending scores.)

    Args:
        scores: shape (n,), without NaN; -inf marks what must not be kept before anything else.
        count: how many to keep, between 0 and n.

    Returns:
        A bool tensor of shape (n,).

    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    below = len(scores) - count
    if count <= below:
        threshold = scores.topk(count, sorted=False).values.min()
    else:
        threshold = scores.topk(below + 1, largest=False, sorted=False).values.max()
    keep = scores > threshold
    missing = count - int(keep.sum())
    keep[(scores == threshold).nonzero().flatten()[:missing]] = True
    return keep


def flatten(tensors: Tensors) -> Tensor:
    """One vector of all entries, layer after layer, on the first tensor's device."""
    device = next(iter(tensors.values())).device
    return torch.cat([tensor.reshape(-1).to(device) for tensor in tensors.values()])


def unflatten(flat: Tensor, like: Tensors) -> Tensors:
    """The inverse of `flatten`: pieces with the names, shapes and devices of `like`."""
    pieces = flat.split([tensor.numel() for tensor in like.values()])
    return {
        name: piece.reshape(tensor.shape).to(tensor.device)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }
