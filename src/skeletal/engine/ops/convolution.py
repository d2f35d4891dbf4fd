"""The differentiable sparse convolution on blocked maps, alone and with batch norm."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.kernels import arena
from skeletal.engine.ops.affine import Affine, ReluGradientFusion
from skeletal.engine.ops.calls import like, ones, run_convolution, run_gradients
from skeletal.engine.ops.launch_args import NormArgs, NormGradArgs, Statistics, kinds, launch_args
from skeletal.engine.ops.once import once_differentiable
from skeletal.engine.plan.plan import ConvPlan


def _entered(fusion: ReluGradientFusion | None) -> ReluGradientFusion | None:
    """A convolution reads maps with that fusion."""
    if fusion is not None:
        fusion.readers += 1
        fusion.convolutions += 1
    return fusion


def _through(relu_backward: bool, x: Tensor, gradient: Tensor | None) -> Tensor | None:
    """A gradient of x that comes from others only."""
    return gradient if gradient is None or not relu_backward else gradient.masked_fill(x <= 0, 0)


class Convolve(torch.autograd.Function):
    """A sparse convolution. It hands its input on, so that other readers send their gradient here, and adding the two
    takes no extra pass.

    `apply(x, values, bias, affine, fusion, plan, examples)` returns output, x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        affine: Affine | None,
        fusion: ReluGradientFusion | None,
        plan: ConvPlan,
        examples: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.settings = affine, _entered(fusion), plan, examples
        ctx.save_for_backward(x, values)
        scale = None if bias is None else ones(len(bias), bias.dtype)
        return run_convolution(plan, x, values, examples, affine=affine, scale=scale, shift=bias), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor | None, passed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, values = saved
        affine, fusion, plan, examples = ctx.settings
        relu_backward = fusion is not None and fusion.fuses
        if gradient is None:
            return _through(relu_backward, x, passed), *[None] * 6
        gradient = gradient.contiguous()
        passed = None if passed is None else passed.contiguous()
        wanted = ctx.needs_input_grad
        grad_x, grad_values = run_gradients(
            plan,
            gradient,
            x,
            values,
            examples,
            affine=affine,
            passed=passed,
            wanted=wanted[:2],
            relu_backward=relu_backward,
        )
        grad_bias = plan.target.inside(gradient).sum((0, 2, 3, 4), dtype=values.dtype) if wanted[2] else None
        return grad_x, grad_values, grad_bias, *[None] * 4


class NormalisedConvolution(NamedTuple):
    """A convolution with batch norm, without its tensors."""

    plan: ConvPlan
    statistics: Statistics
    relu: bool
    examples: int
    affine: Affine | None
    """what is still to be done to the input"""
    fusion: ReluGradientFusion | None
    """of the input"""

    def norm_args(self, x: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool) -> NormArgs:
        """Batch norm of its output."""
        outputs, target, statistics = self.plan.outputs, self.plan.target, self.statistics
        scale, shift = np.empty((2, outputs), kinds(x.dtype).values.dtype)
        running = statistics.running_mean, statistics.running_variance
        numbers = [like(tensor, values.dtype) for tensor in (*running, weight, bias)]
        count = self.examples * target.height * target.width
        found = np.empty((3, outputs))
        state = count, int(statistics.from_batch), float(statistics.rate), float(statistics.eps), found
        return NormArgs(numbers, state, Affine(scale, shift, relu), None, None)


def convolve_normalised(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    norm_bias: Tensor | None,
    other: Tensor | None,
    what: NormalisedConvolution,
) -> Tensor:
    """What `ConvolveNormalise` and its reader make of x, in one pass: with running statistics and without gradients."""
    norm = what.norm_args(x, values, weight, norm_bias, relu=False)._replace(mode=2)
    return run_convolution(
        what.plan, x, values, what.examples,
        affine=what.affine, shift=bias, other=other, relu=what.relu, norm=norm,
    )  # fmt: skip


class ConvolveNormalise(torch.autograd.Function):
    """A sparse convolution, batch norm, then optionally the addition of another map, then optionally ReLU.

    `apply(x, values, bias, weight, norm_bias, other, what)`, with `what` a `NormalisedConvolution`, returns output,
    what is still to be done to it, its fusion, and x, as `Convolve` does. Where another map is added, nothing remains
    to be done. Without one, the output is the convolution's, and what reads it does batch norm and ReLU: the gradient
    that comes back is that of the result (see `affine.Materialize`). So neither that result nor the gradient of the
    convolution's output is ever stored; these are most of what a step of a thin skeleton would read and write.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        norm_bias: Tensor | None,
        other: Tensor | None,
        what: NormalisedConvolution,
    ) -> tuple[Tensor, Affine | None, ReluGradientFusion | None, Tensor]:
        ctx.set_materialize_grads(False)
        plan, statistics = what.plan, what.statistics
        materialized = None
        if other is not None:
            materialized = arena.empty((x.shape[0], plan.outputs, launch_args(plan, x.dtype).planes[1]), x.dtype)
        norm = what.norm_args(x, values, weight, norm_bias, what.relu)
        norm = norm._replace(other=other, materialized=materialized)
        scale = None if bias is None else ones(len(bias), bias.dtype)
        out = run_convolution(
            plan, x, values, what.examples, affine=what.affine, scale=scale, shift=bias, norm=norm
        )  # fmt: skip
        statistics.keep(*norm.numbers[:2])
        affects_gradients = weight, None if statistics.from_batch else bias
        ctx.save_for_backward(x, values, out, materialized if what.relu else None, *affects_gradients)
        own = ReluGradientFusion() if what.relu and materialized is not None else None
        _entered(what.fusion)
        ctx.settings = what, norm.state, norm.then, other is not None, own
        return (out, norm.then, None, x) if materialized is None else (materialized, None, own, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        passed = others[-1]
        x, values, y, z, *_ = saved
        what, state, then, has_other, own = ctx.settings
        plan, fusion = what.plan, what.fusion
        relu_backward = fusion is not None and fusion.fuses
        if gradient is None:
            return _through(relu_backward, x, passed), *[None] * 6
        if own is not None and own.fuses:  # the gradient counts everywhere
            z, then = None, then._replace(relu=False)
        gradient = gradient.contiguous()
        passed = None if passed is None else passed.contiguous()
        # With ReLU; else the other's gradient is the incoming one.
        grad_other = arena.empty(tuple(y.shape), y.dtype) if has_other and then.relu else None
        grad_weight, grad_norm_bias = (torch.empty(plan.outputs, dtype=values.dtype, device="cpu") for _ in range(2))
        wanted = ctx.needs_input_grad
        norm = NormGradArgs((y, z, grad_other), state, then, (grad_weight, grad_norm_bias))
        grad_x, grad_values = run_gradients(
            plan, gradient, x, values, what.examples,
            affine=what.affine, passed=passed, wanted=wanted[:2], norm=norm, relu_backward=relu_backward,
        )  # fmt: skip
        grad_bias = None
        if wanted[2]:  # a batch's mean cancels what a bias adds
            grad_bias = torch.zeros_like(grad_norm_bias) if state[1] else grad_norm_bias * torch.from_numpy(then.scale)
        return (
            grad_x,
            grad_values,
            grad_bias,
            grad_weight if wanted[3] else None,
            grad_norm_bias if wanted[4] else None,
            gradient if has_other and not then.relu else grad_other,
            None,
        )
