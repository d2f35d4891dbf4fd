"""Kept values written into a dense weight, differentiably."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine.codegen.packed_bf16 import COMPUTES, flat
from skeletal.engine.kernels import arena, sparse


class Spread(torch.autograd.Function):
    """Kept values to a dense weight: `apply(values, kept, shape)`, with `kept` the positions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(kept)
        if values.device.type != "cpu" or values.dtype not in COMPUTES:
            return values.new_zeros(shape).view(-1).index_copy(0, kept, values).view(shape)
        dense = arena.empty(shape, values.dtype).zero_()
        sparse.put(flat(values), kept.numpy(), flat(dense))
        return dense

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        (kept,) = ctx.saved_tensors
        return gradient.reshape(-1).index_select(0, kept), None, None
