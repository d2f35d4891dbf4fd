"""Values between a network and its cut version, by the indices that were kept along each dimension."""

from collections.abc import Mapping

import torch
from torch import Tensor

Slices = dict[str, tuple[Tensor | None, ...]]
"""per parameter and buffer, per dimension: the indices that are left, -1 for zeros that pad a width; None: all"""


def cut(value: Tensor, indices: tuple[Tensor | None, ...]) -> Tensor:
    """A copy of the part of a tensor that is left; channels stay last in memory, where they were."""
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    for dim, index in enumerate(indices):
        if index is not None:
            zeros, index = index.lt(0).nonzero().flatten(), index.clamp(min=0)
            value = value.index_select(dim, index.to(value.device)).index_fill_(dim, zeros.to(value.device), 0)
    return value.clone(memory_format=torch.channels_last if last else torch.contiguous_format)


def paste(value: Tensor, indices: tuple[Tensor | None, ...], into: Tensor) -> Tensor:
    """A copy of `into` in which the part that is left has new values: the inverse of `cut`."""
    for dim, index in enumerate(indices):
        if index is not None:
            real = index.ge(0).nonzero().flatten()
            value, index = value.index_select(dim, real.to(value.device)), index[real].to(into.device)
            rest = (*[None] * (dim + 1), *indices[dim + 1 :])
            return into.index_copy(dim, index, paste(value, rest, into.index_select(dim, index)))
    return value.to(into.device, into.dtype, copy=True)


def gather(dense: Mapping[str, Tensor], slices: Slices) -> dict[str, Tensor]:
    """The values of a cut network, taken from the original one's; other names are left out."""
    return {name: cut(value.detach(), slices[name]) for name, value in dense.items() if name in slices}


def scatter(values: Mapping[str, Tensor], slices: Slices, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of the original network, rebuilt from a cut one's; removed values come from `dense`."""
    return {
        name: paste(value.detach(), slices[name], dense[name].detach())
        for name, value in values.items()
        if name in slices
    }
