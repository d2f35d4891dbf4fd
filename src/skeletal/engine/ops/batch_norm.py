"""Differentiable batch norm on blocked maps, with the addition and the ReLU that may follow it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import computes, flat, slots
from skeletal.engine.codegen.threads import share
from skeletal.engine.kernels import arena, elementwise, fused_batch_norm
from skeletal.engine.ops.calls import like
from skeletal.engine.ops.launch_args import Statistics
from skeletal.engine.ops.once import once_differentiable
from skeletal.engine.plan.grid import MapGrid

_NO_MOMENTS = np.empty((0, 0, 2))


class Normalise(torch.autograd.Function):
    """Batch norm, then optionally the addition of another map, then optionally ReLU, with no convolution before it.

    `apply(x, weight, bias, other, statistics, relu, grid, examples)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor | None,
        statistics: Statistics,
        relu: bool,
        grid: MapGrid,
        examples: int,
    ) -> Tensor:
        kind = np.float64 if x.dtype == torch.float64 else np.float32
        blocks, channels, _ = x.shape
        count = examples * grid.height * grid.width
        numbers, (scale, shift) = np.empty((3, channels)), np.empty((2, channels), kind)
        none = torch.empty(0, dtype=computes(x.dtype), device="cpu")
        by_channel = statistics.running_mean, statistics.running_variance, weight, bias
        mean, variance, factor, then = (like(tensor, none.dtype) for tensor in by_channel)
        fused_batch_norm.factors(
            _moments(x, grid) if statistics.from_batch else _NO_MOMENTS, count, int(statistics.from_batch),
            flat(mean, none), flat(variance, none), statistics.rate,
            statistics.eps, flat(factor, none), flat(then, none), flat(None, none), numbers, scale, shift,
        )  # fmt: skip
        statistics.keep(mean, variance)
        out = arena.empty(tuple(x.shape), x.dtype)
        share(
            elementwise.shared_scale_shift, blocks * channels, slots(x), slots(out), grid.slots, channels,
            scale, shift, slots(other, x), int(relu), examples,
        )  # fmt: skip
        ctx.settings = statistics.from_batch, relu, grid, examples, scale, shift, numbers, count
        ctx.save_for_backward(x, out if relu and other is not None else None, weight)
        ctx.has_other = other is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, out, _ = saved
        from_batch, relu, grid, examples, scale, shift, numbers, count = ctx.settings
        gradient = gradient.contiguous()
        blocks, channels, _ = x.shape
        units = blocks * channels
        sums = np.empty((units, 2))
        share(
            elementwise.shared_reduce_gradient, units, flat(x), flat(out, x), flat(gradient), grid.numbers(x.dtype),
            channels, scale, shift, int(relu), sums,
        )  # fmt: skip
        x_factor, constant, grad_weight, grad_bias = np.empty((4, channels), scale.dtype)
        fused_batch_norm.slopes(sums, count, int(from_batch), numbers, x_factor, constant, grad_weight, grad_bias)
        grad_x = arena.empty(tuple(x.shape), x.dtype)
        apart = ctx.has_other and relu  # else the other's gradient is the incoming one
        grad_other = arena.empty(tuple(x.shape), x.dtype) if apart else None
        share(
            elementwise.shared_apply_gradient, units, slots(x), slots(out, x), slots(gradient), slots(grad_x),
            slots(grad_other, x), grid.slots, channels, scale, shift, int(relu), scale, x_factor, constant, examples,
        )  # fmt: skip
        if ctx.has_other and not relu:
            grad_other = gradient
        return (
            grad_x,
            torch.from_numpy(grad_weight) if ctx.needs_input_grad[1] else None,
            torch.from_numpy(grad_bias) if ctx.needs_input_grad[2] else None,
            grad_other,
            *[None] * 4,
        )


def _moments(x: Tensor, grid: MapGrid) -> np.ndarray:
    """Sum and sum of squares of each plane, (blocks, channels, 2)."""
    blocks, channels, _ = x.shape
    sums = np.empty((blocks * channels, 2))
    share(elementwise.shared_moments, blocks * channels, flat(x), grid.numbers(x.dtype), channels, sums)
    return sums.reshape(blocks, channels, 2)
