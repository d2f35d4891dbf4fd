"""Tensors by parameter name, and operations on all of them at once."""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def widen(tensor: Tensor) -> Tensor:
    """At least float32: products of half-precision weights and gradients underflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; a sum cannot hide them, and is cheaper than checking every one."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


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
