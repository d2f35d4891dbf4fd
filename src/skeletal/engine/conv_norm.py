"""A convolution and what follows it, on blocked maps."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skeletal.engine.blocked import Blocked, beside
from skeletal.engine.convolution import run_convolution
from skeletal.engine.layers import SparseConv2d
from skeletal.engine.norm import Normalise, moments_of, silent
from skeletal.engine.slots import computes


class ConvNorm(nn.Module):
    """Convolution, batch norm, and where they follow the addition of other maps and ReLU, on blocked maps.

    The layers keep their own places in the network; this only runs them, in as few passes as it takes. Without
    gradients and with running statistics, everything happens while the convolution's sums are still in the cache.

    Args:
        convolution: or None, for a norm of its own.
        norm: its parameters, statistics and mode count.
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
        batch_statistics = norm.training or norm.running_mean is None
        if convolution is not None and not batch_statistics and not torch.is_grad_enabled():
            return self._in_one(x, other), x
        passed = x
        if convolution is not None:
            x, passed = convolution(x, self.halo, moments=batch_statistics)
        mean, variance = self._statistics(x, batch_statistics)
        extra = None if other is None else beside(other, x.grid, x.examples).storage
        out = Normalise.apply(
            x.storage, norm.weight, norm.bias, extra, mean, variance, batch_statistics, norm.eps, self.relu,
            x.grid, x.examples,
        )  # fmt: skip
        return Blocked(out, x.grid, x.examples), passed

    @silent
    def _statistics(self, x: Blocked, batch_statistics: bool) -> tuple[np.ndarray, np.ndarray]:
        norm = self.parts[1]
        if not batch_statistics:
            return norm.running_mean.double().numpy(), norm.running_var.double().numpy()
        count = x.examples * x.grid.height * x.grid.width
        if count == 1:
            raise ValueError(f"batch norm over 1 value per channel in training, of maps {x.grid}: use a larger batch")
        moments = (x.moments if x.moments is not None else moments_of(x.storage, x.grid)).numpy()
        mean = moments[:, 0] / count
        variance = np.maximum(moments[:, 1] / count - mean * mean, 0)
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                rate = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
                for running, found in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
                    running.lerp_(torch.from_numpy(found).to(running.dtype), rate)
        return mean, variance

    def _in_one(self, x: Blocked, other: Blocked | None) -> Blocked:
        convolution, norm = self.parts
        x, plan = convolution.fit(x, self.halo)
        extra = None if other is None else beside(other, plan.target, x.examples).storage
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        start = 0.0 if convolution.bias is None else convolution.bias.double()
        shift = (start - norm.running_mean.double()) * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        dtype = computes(x.storage.dtype)
        out, _ = run_convolution(
            plan.forward, x.storage, convolution.weight, plan.outputs, plan.target, x.examples,
            scale=scale.to(dtype), shift=shift.to(dtype), other=extra, relu=self.relu,
        )  # fmt: skip
        return Blocked(out, plan.target, x.examples)
