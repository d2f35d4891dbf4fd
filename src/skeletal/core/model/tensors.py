"""Tensors by parameter name, and operations on all of them at once."""

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def widen(tensor: Tensor) -> Tensor:
    """At least float32: products of half-precision weights and gradients underflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def not_finite(tensors: Tensors) -> str | None:
    """The name of the first tensor that holds NaN or infinity, if one does. A GPU is waited for once, not for each."""
    # A sum cannot hide them, and is cheaper than checking every one.
    sums = [tensor.sum() for tensor in tensors.values()]
    if not sums:
        return None
    suspects = torch.stack([torch.isfinite(total).to(sums[0].device) for total in sums]).logical_not().tolist()
    found = (name for name, suspect in zip(tensors, suspects, strict=True) if suspect)
    return next((name for name in found if not torch.isfinite(tensors[name]).all()), None)


def counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many entries of each tensor are not zero. A GPU is waited for once, not for each."""
    found = [tensor.count_nonzero() for tensor in tensors.values()]
    numbers = torch.stack([number.to(found[0].device) for number in found]).tolist() if found else []
    return dict(zip(tensors, numbers, strict=True))


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
