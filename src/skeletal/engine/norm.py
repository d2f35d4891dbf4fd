"""Differentiable batch norm on blocked maps, with the addition and the ReLU that may follow it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine import arena, elementwise
from skeletal.engine.grid import Grid
from skeletal.engine.slots import flat, slots
from skeletal.engine.threads import share

silent = np.errstate(all="ignore")
"""for numpy's part: a network that diverges has infinities and NaN, about which torch does not warn either"""


class Normalise(torch.autograd.Function):
    """Batch norm, then optionally the addition of another map, then optionally ReLU.

    `apply(x, weight, bias, other, mean, variance, batch_statistics, eps, relu, grid, examples)`; mean and variance are
    numpy's, float64, of the batch if `batch_statistics`, which the gradient then goes through.
    """

    @staticmethod
    @silent
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor | None,
        mean: np.ndarray,
        variance: np.ndarray,
        batch_statistics: bool,
        eps: float,
        relu: bool,
        grid: Grid,
        examples: int,
    ) -> Tensor:
        # Numbers of a channel are few: numpy's own cost is a fraction of torch's.
        kind = np.float64 if x.dtype == torch.float64 else np.float32
        inverse = 1 / np.sqrt(variance + eps)
        exact = inverse if weight is None else flat(weight).astype(np.float64) * inverse
        scale = exact.astype(kind)
        shift = (-mean * exact if bias is None else flat(bias).astype(np.float64) - mean * exact).astype(kind)
        out = arena.empty(tuple(x.shape), x.dtype)
        blocks, channels, _ = x.shape
        share(
            elementwise.shared_scale_shift, blocks * channels, slots(x), slots(out), grid.slots, channels,
            scale, shift, slots(other, x), int(relu), examples,
        )  # fmt: skip
        ctx.settings = batch_statistics, relu, grid, examples, scale, shift, mean, inverse, exact
        ctx.save_for_backward(x, out if relu and other is not None else None)
        ctx.has_other = other is not None
        return out

    @staticmethod
    @once_differentiable
    @silent
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, out = ctx.saved_tensors
        batch_statistics, relu, grid, examples, scale, shift, mean, inverse, exact = ctx.settings
        gradient = gradient.contiguous()
        blocks, channels, _ = x.shape
        units = blocks * channels
        sums = np.empty((units, 2))
        share(
            elementwise.shared_reduce_gradient, units, flat(x), flat(out, x), flat(gradient), grid.numbers(x.dtype),
            channels, scale, shift, int(relu), sums,
        )  # fmt: skip
        total, product = torch.from_numpy(sums).view(blocks, channels, 2).sum(0).numpy().T
        of_weight = (product - mean * total) * inverse
        by_x, constant = np.zeros_like(exact), np.zeros_like(exact)
        if batch_statistics:
            count = examples * grid.height * grid.width
            by_x = -exact * inverse * of_weight / count
            constant = -exact * total / count - by_x * mean
        of_x = arena.empty(tuple(x.shape), x.dtype)
        apart = ctx.has_other and relu  # else the other's gradient is the one that came in
        of_other = arena.empty(tuple(x.shape), x.dtype) if apart else None
        share(
            elementwise.shared_apply_gradient, units, slots(x), slots(out, x), slots(gradient), slots(of_x),
            slots(of_other, x), grid.slots, channels, scale, shift, int(relu),
            scale, by_x.astype(scale.dtype), constant.astype(scale.dtype), examples,
        )  # fmt: skip
        if ctx.has_other and not relu:
            of_other = gradient
        return (
            of_x,
            torch.from_numpy(of_weight.astype(scale.dtype)) if ctx.needs_input_grad[1] else None,
            torch.from_numpy(total.astype(scale.dtype)) if ctx.needs_input_grad[2] else None,
            of_other,
            *[None] * 7,
        )


def moments_of(x: Tensor, grid: Grid) -> Tensor:
    """Sum and sum of squares of each channel, (channels, 2), float64."""
    blocks, channels, _ = x.shape
    sums = np.empty((blocks * channels, 2))
    share(elementwise.shared_moments, blocks * channels, flat(x), grid.numbers(x.dtype), channels, sums)
    return torch.from_numpy(sums).view(blocks, channels, 2).sum(0)
