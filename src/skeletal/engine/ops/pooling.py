"""Differentiable pooling on blocked maps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import computes, examples_of, flat, slots
from skeletal.engine.codegen.threads import share
from skeletal.engine.kernels import arena, elementwise, max_pool
from skeletal.engine.ops.affine import Affine, before
from skeletal.engine.ops.once import once_differentiable
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid


class Windows:
    """The windows of a pooling layer on maps of one size, as kernels take them."""

    def __init__(self, shape: Shape, source: MapGrid, target: MapGrid) -> None:
        self.source, self.target = source, target
        pixels, counts, offsets, positions = [], [0], [], []
        inside = [range(source.height), range(source.width)]
        for h in range(target.height):
            for w in range(target.width):
                pixels.append(target.at(h, w))
                for i in range(shape.kernel[0]):
                    for j in range(shape.kernel[1]):
                        at = [
                            out * shape.stride[axis] - shape.padding[axis] + step * shape.dilation[axis]
                            for axis, (out, step) in enumerate(((h, i), (w, j)))
                        ]
                        if at[0] in inside[0] and at[1] in inside[1]:
                            offsets.append(source.at(*at))
                            positions.append(i * shape.kernel[1] + j)
                counts.append(len(offsets))
        kinds = (np.int64, np.int64, np.int64, np.uint8)
        found = zip((counts, pixels, offsets, positions), kinds, strict=True)
        self.tables = tuple(np.array(numbers, kind) for numbers, kind in found)
        # Each pixel lies in one window: the gradient of the maps can be written in one go.
        places = self.tables[2]
        self.apart = len(places) == len(np.unique(places)) == source.height * source.width


class MaxPool(torch.autograd.Function):
    """`apply(x, affine, pool, examples)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, affine: Affine | None, pool: Windows, examples: int) -> Tensor:
        blocks, channels, _ = x.shape
        shape = (blocks, channels, pool.target.numbers(x.dtype)[3])
        out, chosen = arena.empty(shape, x.dtype), arena.empty(shape, torch.uint8)
        kind = flat(torch.empty(0, dtype=computes(x.dtype), device="cpu")).dtype
        share(
            max_pool.shared_max_pool, blocks * channels, slots(x), channels, before(affine, kind), slots(out),
            flat(chosen), pool.source.plane, pool.target.slots, *pool.tables, examples,
        )  # fmt: skip
        ctx.save_for_backward(chosen)
        ctx.pool = pool
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        (chosen,) = saved
        pool = ctx.pool
        blocks, channels, _ = gradient.shape
        out = arena.empty((blocks, channels, pool.source.numbers(gradient.dtype)[3]), gradient.dtype)
        arguments = slots(gradient.contiguous()), flat(chosen), slots(out), pool.source.slots, pool.target.plane
        share(max_pool.shared_max_pool_gradient, blocks * channels, *arguments, *pool.tables, int(pool.apart))
        return out, None, None, None


class GlobalMean(torch.autograd.Function):
    """`apply(x, grid, examples)` gives (examples, channels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: MapGrid, examples: int) -> Tensor:
        blocks, channels, _ = x.shape
        lanes = examples_of(x.dtype)
        means = torch.empty(blocks * channels, lanes, dtype=computes(x.dtype), device="cpu")
        share(elementwise.shared_mean, blocks * channels, flat(x), means.numpy(), grid.numbers(x.dtype))
        ctx.settings = grid, examples, x.shape
        by_example = means.view(blocks, channels, lanes).transpose(1, 2).flatten(0, 1)[:examples]
        return by_example.to(x.dtype, copy=True, memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        grid, examples, (blocks, channels, _) = ctx.settings
        lanes = examples_of(gradient.dtype)
        spread = torch.zeros(blocks * lanes, channels, dtype=computes(gradient.dtype), device="cpu")
        spread[:examples] = gradient
        spread = spread.view(blocks, lanes, channels).transpose(1, 2).reshape(blocks * channels, lanes)
        maps = grid.numbers(gradient.dtype)
        out = arena.empty((blocks, channels, maps[3]), gradient.dtype)
        share(elementwise.shared_mean_gradient, blocks * channels, spread.numpy(), flat(out), maps)
        return out, None, None
