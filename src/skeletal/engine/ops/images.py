"""Between images (N, C, H, W) and blocked maps, differentiably."""

from typing import Any

import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import COMPUTES, flat
from skeletal.engine.codegen.threads import share
from skeletal.engine.kernels import arena
from skeletal.engine.kernels.packing import shared_pack_planes
from skeletal.engine.ops.once import once_differentiable
from skeletal.engine.plan.grid import MapGrid, blocks_for, pack, unpack


class Pack(torch.autograd.Function):
    """Images (N, C, H, W) to a storage of a type: `apply(images, grid, dtype)`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: MapGrid, dtype: torch.dtype) -> Tensor:
        ctx.settings = grid, len(images), images.dtype
        if images.dtype not in COMPUTES:
            return pack(images.to(dtype), grid)
        numbers, channels = grid.numbers(dtype), images.shape[1]
        storage = arena.empty((blocks_for(len(images), dtype), channels, numbers[3]), dtype)
        found = images.detach().resolve_neg().numpy()
        share(shared_pack_planes, len(storage) * channels, found, flat(storage), numbers, channels)
        return storage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        grid, examples, dtype = ctx.settings
        return unpack(gradient.contiguous(), grid, examples).to(dtype), None, None


class Unpack(torch.autograd.Function):
    """A storage to images (N, C, H, W): `apply(storage, grid, examples)`."""

    @staticmethod
    def forward(ctx: Any, storage: Tensor, grid: MapGrid, examples: int) -> Tensor:
        ctx.grid = grid
        return unpack(storage, grid, examples)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        return pack(gradient, ctx.grid), None, None
