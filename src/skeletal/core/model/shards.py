"""Weights sharded across processes, as FSDP2 (`fully_shard`) does: every rank has a part of each weight."""

import sys
from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`. Does not import its module, which is slow: if nobody has, the answer is no."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Tensor:
    """The part that lies in this process, sharing its memory; all of an ordinary tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor, on every rank. Every rank has to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_like(tensor: Tensor, weight: Any) -> Tensor:
    """The part of a whole tensor, which every rank has, that corresponds to `local(weight)`; nothing is sent."""
    if not is_sharded(weight):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(weight.device)
    return distribute_tensor(placed, weight.device_mesh, weight.placements, src_data_rank=None).to_local()
