"""Between images (N, C, H, W) and blocked maps, differentiably."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine.grid import Grid, pack, unpack


class Pack(torch.autograd.Function):
    """Images (N, C, H, W) to a storage: `apply(images, grid)`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Grid) -> Tensor:
        ctx.settings = grid, len(images)
        return pack(images, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        return unpack(gradient.contiguous(), *ctx.settings), None


class Unpack(torch.autograd.Function):
    """A storage to images (N, C, H, W): `apply(storage, grid, examples)`."""

    @staticmethod
    def forward(ctx: Any, storage: Tensor, grid: Grid, examples: int) -> Tensor:
        ctx.grid = grid
        return unpack(storage, grid, examples)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        return pack(gradient, ctx.grid), None, None
