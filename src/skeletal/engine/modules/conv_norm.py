"""A convolution and what follows it, on blocked maps."""

from typing import Any

import torch
from torch import nn

from skeletal.engine.modules.blocked import Blocked, beside
from skeletal.engine.modules.layers import SparseConv2d
from skeletal.engine.ops import convolution as ops
from skeletal.engine.ops.batch_norm import Normalise
from skeletal.engine.ops.launch_args import Statistics


class ConvNorm(nn.Module):
    """Convolution and batch norm, then the addition of other maps and ReLU where these follow, on blocked maps.

    The layers keep their own places in the network; this only runs them, in as few passes as possible. Without
    gradients and with running statistics, everything happens while the convolution's sums are still in the cache.

    Args:
        convolution: or None, for a norm by itself.
        norm: supplies parameters, statistics and mode.
        halo: of the output.
        relu: whether it ends with one.

    """

    def __init__(self, convolution: SparseConv2d | None, norm: nn.BatchNorm2d, halo: int, relu: bool) -> None:
        super().__init__()
        self.parts: tuple[Any, Any] = (convolution, norm)  # in a tuple, so that they are not registered again
        self.halo = halo
        self.relu = relu

    def forward(self, x: Blocked, other: Blocked | None = None) -> tuple[Blocked, Blocked]:
        convolution, norm = self.parts
        if convolution is None:
            return self._alone(x, other), x
        x, plan = convolution.fit(x, self.halo)
        extra = None if other is None else beside(other, plan.target, x.examples).storage
        from_batch = norm.training or norm.running_mean is None
        statistics = self._statistics(plan.target.height * plan.target.width * x.examples, from_batch)
        numbers = convolution.values, convolution.bias, norm.weight, norm.bias, extra
        what = ops.NormalisedConvolution(plan, statistics, self.relu, x.examples, x.affine, x.fusion)
        if not from_batch and not torch.is_grad_enabled():
            return Blocked(ops.convolve_normalised(x.raw, *numbers, what), plan.target, x.examples), x
        out, affine, fusion, passed = ops.ConvolveNormalise.apply(x.raw, *numbers, what)
        return Blocked(out, plan.target, x.examples, affine, fusion), Blocked(passed, x.grid, x.examples, x.affine)

    def _alone(self, x: Blocked, other: Blocked | None) -> Blocked:
        norm = self.parts[1]
        extra = None if other is None else beside(other, x.grid, x.examples).storage
        from_batch = norm.training or norm.running_mean is None
        statistics = self._statistics(x.grid.height * x.grid.width * x.examples, from_batch)
        out = Normalise.apply(x.storage, norm.weight, norm.bias, extra, statistics, self.relu, x.grid, x.examples)
        return Blocked(out, x.grid, x.examples)

    def _statistics(self, count: int, from_batch: bool) -> Statistics:
        """What to normalise by; counts the batch."""
        norm = self.parts[1]
        if from_batch and count == 1:
            raise ValueError("batch norm over 1 value per channel in training: use a larger batch")
        rate = 0.0
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            counted = norm.num_batches_tracked
            if counted is not None:
                counted.add_(1)
            if norm.momentum is not None:
                rate = norm.momentum
            elif counted is not None:  # without a count, torch leaves such statistics as they are
                rate = 1 / float(counted)
        return Statistics(from_batch, norm.running_mean, norm.running_var, rate, norm.eps)
