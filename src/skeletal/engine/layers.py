"""Layers over kept weights only. Their parameters are the kept values; the rest of a weight exists nowhere.

A layer takes two paths to the same function: *sparse*, with the kernels of this package, and *dense*, which writes the
values into a dense weight for torch's own kernels. `layer.path` switches at any time; parameters are the same.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skeletal.engine.grid import Grid, blocks_for
from skeletal.engine.ops import (
    Convolve,
    GlobalMean,
    MaxPool,
    Multiply,
    Normalise,
    Pack,
    Spread,
    Unpack,
    Windows,
    moments_of,
    run_convolution,
)
from skeletal.engine.plan import Plan, Shape

COMPUTES = (torch.float32, torch.float64)
"""What the kernels compute in."""


@dataclass(frozen=True)
class Blocked:
    """A batch of maps in blocks (see `grid`): what sparse layers hand on instead of a tensor (N, C, H, W)."""

    storage: Tensor
    """(blocks, channels, grid.plane)"""
    grid: Grid
    examples: int
    moments: Tensor | None = None
    """sum and sum of squares of each channel, where the layer before has found them on its way"""


class Sparse(nn.Module):
    """What convolution and linear layer share: values at the kept positions of a weight.

    Args:
        weight: dense, of any shape; what the mask does not keep is not read.
        mask: bool, of the same shape.
        bias: or None.

    """

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self.path = "sparse"
        self.kept = mask.flatten().nonzero().flatten()  # not a buffer: DDP would send it with every step
        requires_grad = weight.requires_grad
        self.weight = nn.Parameter(weight.detach().flatten()[self.kept].clone(), requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)

    @property
    def mask(self) -> Tensor:
        """The mask again, bool, of the shape of the dense weight."""
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool)
        mask[self.kept] = True
        return mask.view(self.shape)

    def dense_weight(self) -> Tensor:
        """The weight as a dense tensor, differentiable."""
        return Spread.apply(self.weight, self.kept.to(self.weight.device), self.shape)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.shape}, kept={self.weight.numel()}, path={self.path!r}"


class SparseConv2d(Sparse):
    """A convolution over kept weights, with all that `torch.nn.Conv2d` has except padding other than with zeros.

    Takes and returns a tensor (N, C, H, W), or `Blocked` maps, in which case it also returns its input, for others who
    read it (see `Convolve`).
    """

    def __init__(self, layer: nn.Conv2d, mask: Tensor) -> None:
        super().__init__(layer.weight, mask, layer.bias)
        padding: Any = layer.padding
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            if padding == "same" and any(r % 2 for r in reach):
                raise ValueError(f"padding='same' of an even kernel {layer.kernel_size} is not symmetric")
            padding = tuple(r // 2 for r in reach) if padding == "same" else (0, 0)
        self.geometry = Shape(layer.stride, padding, layer.dilation, layer.groups, layer.kernel_size)  # type: ignore[arg-type]
        self._plans: dict[tuple[Grid, int], Plan] = {}

    def fit(self, x: Blocked, halo: int) -> tuple[Blocked, Plan]:
        """Maps and the tables for them, with halos that suffice, `halo` at least for the output."""
        channels = self.shape[1] * self.geometry.groups
        if x.storage.shape[1] != channels:
            raise ValueError(f"a convolution of {channels} channels got maps of {x.storage.shape[1]}")
        ahead, back = self.geometry.halos(x.grid.height, x.grid.width)
        x = with_halo(x, max(x.grid.halo, ahead))
        return x, self.plan(x.grid, max(halo, back))

    def grids(self, height: int, width: int) -> tuple[Grid, Grid]:
        """Grids that suffice for maps of a size and for what it makes of them."""
        ahead, back = self.geometry.halos(height, width)
        return Grid(height, width, ahead), Grid(*self.geometry.output(height, width), back)

    def plan(self, source: Grid, halo: int) -> Plan:
        """Tables for maps on one grid, worked out once; `halo` of its output."""
        if (source, halo) not in self._plans:
            target = Grid(*self.geometry.output(source.height, source.width), halo)
            self._plans[source, halo] = Plan(self.mask, self.geometry, source, target)
        return self._plans[source, halo]

    def forward(self, x: Any, halo: int = 0, moments: bool = False) -> Any:
        if isinstance(x, Tensor):
            return self._on_images(x)
        x, plan = self.fit(x, halo)
        out, sums, passed = Convolve.apply(x.storage, self.weight, self.bias, plan, x.examples, moments)
        return Blocked(out, plan.target, x.examples, sums), Blocked(passed, x.grid, x.examples, x.moments)

    def _on_images(self, x: Tensor) -> Tensor:
        g = self.geometry
        if self.path == "dense" or x.device.type != "cpu" or x.dim() != 4:
            return F.conv2d(x, self.dense_weight(), self.bias, g.stride, g.padding, g.dilation, g.groups)
        source, target = self.grids(*x.shape[2:])
        blocked = Blocked(Pack.apply(x.to(self.weight.dtype), source), source, len(x))
        out, _ = self(blocked, target.halo)
        return Unpack.apply(out.storage, out.grid, out.examples)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseConv2d":
        return _copy_sharing(self, memo, "_plans")


class SparseLinear(Sparse):
    """A linear layer over kept weights, on tensors (..., in_features).

    A convolution in disguise: each block of examples is a pixel of a map of one row, so that the batch lies innermost.
    """

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        super().__init__(layer.weight, mask, layer.bias)
        self._plans: dict[int, Plan] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.path == "dense" or x.device.type != "cpu":
            return F.linear(x, self.dense_weight(), self.bias)
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"a linear layer of {self.shape[1]} features got a tensor {tuple(x.shape)}")
        examples = x.shape[:-1].numel()
        blocks = max(1, blocks_for(examples))
        if blocks not in self._plans:
            grid = Grid(1, blocks, 0)
            shape = Shape((1, 1), (0, 0), (1, 1), 1, (1, 1))
            self._plans[blocks] = Plan(self.mask[..., None, None], shape, grid, grid)
        plan = self._plans[blocks]
        rows = x.reshape(examples, self.shape[1]).to(self.weight.dtype)
        out = Multiply.apply(rows, self.weight, plan)
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], self.shape[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseLinear":
        return _copy_sharing(self, memo, "_plans")


def _copy_sharing(module: Any, memo: dict[int, Any], name: str) -> Any:
    """A deep copy that shares one attribute, which never changes once it is made."""
    new = module.__class__.__new__(module.__class__)
    memo[id(module)] = new
    for key, value in module.__dict__.items():
        new.__dict__[key] = dict(value) if key == name else copy.deepcopy(value, memo)
    return new


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

    def _statistics(self, x: Blocked, batch_statistics: bool) -> tuple[Tensor, Tensor]:
        norm = self.parts[1]
        if not batch_statistics:
            return norm.running_mean.double(), norm.running_var.double()
        count = x.examples * x.grid.height * x.grid.width
        if count == 1:
            raise ValueError(f"batch norm over 1 value per channel in training, of maps {x.grid}: use a larger batch")
        moments = x.moments if x.moments is not None else moments_of(x.storage, x.grid)
        mean = moments[:, 0] / count
        variance = (moments[:, 1] / count - mean * mean).clamp_(min=0)
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                rate = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
                norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), rate)
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
        dtype = x.storage.dtype
        out, _ = run_convolution(
            plan.forward, x.storage, convolution.weight, plan.outputs, plan.target, x.examples,
            scale=scale.to(dtype), shift=shift.to(dtype), other=extra, relu=self.relu,
        )  # fmt: skip
        return Blocked(out, plan.target, x.examples)


class BlockedMaxPool(nn.Module):
    """Max pooling of blocked maps; `halo` of its output."""

    def __init__(self, layer: nn.MaxPool2d, halo: int) -> None:
        super().__init__()
        pairs = (_pair(layer.stride), _pair(layer.padding), _pair(layer.dilation))
        self.geometry = Shape(*pairs, 1, _pair(layer.kernel_size))
        self.halo = halo
        self._windows: dict[Grid, Windows] = {}

    def forward(self, x: Blocked) -> Blocked:
        if x.grid not in self._windows:
            target = Grid(*self.geometry.output(x.grid.height, x.grid.width), self.halo)
            self._windows[x.grid] = Windows(self.geometry, x.grid, target)
        windows = self._windows[x.grid]
        return Blocked(MaxPool.apply(x.storage, windows), windows.target, x.examples)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockedMaxPool":
        return _copy_sharing(self, memo, "_windows")


def can_pool(layer: nn.MaxPool2d) -> bool:
    """Whether `BlockedMaxPool` can do what a layer does: each window meets the map, and its positions fit a byte."""
    plain = not layer.ceil_mode and not layer.return_indices and _pair(layer.dilation) == (1, 1)
    return plain and math.prod(_pair(layer.kernel_size)) <= 256


class ToBlocks(nn.Module):
    """From a tensor (N, C, H, W) to blocked maps, in the type of the network's weights."""

    def __init__(self, halo: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.halo, self.dtype = halo, dtype

    def forward(self, x: Tensor) -> Blocked:
        grid = Grid(x.shape[2], x.shape[3], self.halo)
        return Blocked(Pack.apply(x.to(self.dtype), grid), grid, len(x))


def with_halo(x: Blocked, halo: int) -> Blocked:
    """The same maps with another halo. Networks are planned such that this never happens at the planned size."""
    if x.grid.halo == halo:
        return x
    grid = Grid(x.grid.height, x.grid.width, halo)
    return Blocked(Pack.apply(to_images(x), grid), grid, x.examples)


def to_images(x: Blocked) -> Tensor:
    """From blocked maps to a tensor (N, C, H, W)."""
    return Unpack.apply(x.storage, x.grid, x.examples)


def global_mean(x: Blocked) -> Tensor:
    """Global average pooling: (N, C, 1, 1)."""
    return GlobalMean.apply(x.storage, x.grid, x.examples)[:, :, None, None]


def beside(x: Blocked, grid: Grid, examples: int) -> Blocked:
    """Maps on the grid of others.

    Raises:
        ValueError: those have another size. (For the example batch they had the same; see `lower`.)

    """
    sizes = [(x.examples, x.grid.height, x.grid.width), (examples, grid.height, grid.width)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"cannot combine maps of {sizes[0]} and {sizes[1]} examples, rows and columns, which were alike for the"
            " example batch: compile the network for a batch like this one"
        )
    return with_halo(x, grid.halo)


def add(one: Blocked, two: Blocked) -> Blocked:
    """Sum of maps of one size."""
    two = beside(two, one.grid, one.examples)
    return Blocked(one.storage + two.storage, one.grid, one.examples)


def concatenate(maps: Any) -> Blocked:
    """Channels of maps of one size, side by side."""
    maps = [beside(x, maps[0].grid, maps[0].examples) for x in maps]
    return Blocked(torch.cat([x.storage for x in maps], 1), maps[0].grid, maps[0].examples)


class Elementwise(nn.Module):
    """A function of single numbers with f(0) = 0, which keeps the zeros around the maps."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Blocked) -> Blocked:
        return Blocked(self.function(x.storage), x.grid, x.examples)


def second(pair: tuple[Any, Any]) -> Any:
    """The input that a layer hands on."""
    return pair[1]


def first(pair: tuple[Any, Any]) -> Any:
    """What a layer has made."""
    return pair[0]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
