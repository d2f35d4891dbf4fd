"""Kept values written into a dense weight, differentiably."""

from typing import Any

import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import COMPUTES, flat
from skeletal.engine.kernels import arena, sparse
from skeletal.engine.ops.calls import like


class ScatterWeights(torch.autograd.Function):
    """Kept values to a dense weight: `apply(values, positions, shape)`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(positions)
        if values.device.type != "cpu" or values.dtype not in COMPUTES:
            return values.new_zeros(shape).view(-1).index_copy(0, positions, values).view(shape)
        dense = arena.empty(shape, values.dtype).zero_()
        sparse.scatter(flat(like(values, values.dtype)), positions.numpy(), flat(dense))
        return dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        (positions,) = ctx.saved_tensors
        return gradient.reshape(-1).index_select(0, positions), None, None
