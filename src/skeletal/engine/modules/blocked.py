"""Maps as sparse layers hand them on, and what may happen to them between layers."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.engine.ops.affine import Affine, Materialize, ReluGradientFusion
from skeletal.engine.ops.images import Pack, Unpack
from skeletal.engine.ops.pooling import GlobalMean, MaxPool, Windows
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid
from skeletal.engine.plan.recent import recent


@dataclass(frozen=True)
class Blocked:
    """A batch of maps in blocks (see `grid`): what sparse layers hand on instead of a tensor (N, C, H, W)."""

    raw: Tensor
    """(blocks, channels, numbers of a plane); to be read with what is still to be done to it"""
    grid: MapGrid
    examples: int
    affine: Affine | None = None
    """what is still to be done to `raw`"""
    fusion: ReluGradientFusion | None = None
    """of maps that end with a ReLU"""

    @property
    def storage(self) -> Tensor:
        """The maps, with nothing left to be done; the result is kept, except while gradients are switched off."""
        made = self.__dict__.get("_storage")
        if made is None:
            if self.fusion is not None:
                self.fusion.readers += 1
            made = self.raw
            if self.affine is not None:
                made = Materialize.apply(self.raw, self.affine, self.grid, self.examples)
            if torch.is_grad_enabled() or not self.raw.requires_grad:
                self.__dict__["_storage"] = made
        return made


def storage_type(weights: torch.dtype, bf16: bool) -> torch.dtype:
    """The type that maps are stored in: bfloat16 under autocast to it where `bf16` allows, else the weights' type."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return torch.bfloat16 if bf16 and autocast and weights == torch.float32 else weights


class ToBlocks(nn.Module):
    """From a tensor (N, C, H, W) to blocked maps of a `storage_type`."""

    def __init__(self, halo: int, weights: torch.dtype, bf16: bool = True) -> None:
        super().__init__()
        self.halo, self.weights, self.bf16 = halo, weights, bf16

    def forward(self, x: Tensor) -> Blocked:
        grid = MapGrid(x.shape[2], x.shape[3], self.halo)
        return Blocked(Pack.apply(x, grid, storage_type(self.weights, self.bf16)), grid, len(x))


def with_halo(x: Blocked, halo: int) -> Blocked:
    """The same maps with another halo. Networks are planned so that this never happens at the planned size."""
    if x.grid.halo == halo:
        return x
    grid = MapGrid(x.grid.height, x.grid.width, halo)
    images = to_images(x)
    return Blocked(Pack.apply(images, grid, images.dtype), grid, x.examples)


def to_images(x: Blocked) -> Tensor:
    """From blocked maps to a tensor (N, C, H, W)."""
    return Unpack.apply(x.storage, x.grid, x.examples)


def global_mean(x: Blocked) -> Tensor:
    """Global average pooling: (N, C, 1, 1)."""
    return GlobalMean.apply(x.storage, x.grid, x.examples)[:, :, None, None]


def beside(x: Blocked, grid: MapGrid, examples: int) -> Blocked:
    """Maps on the grid of others.

    Raises:
        ValueError: those have another size. (For the example batch the sizes agreed; see `lower`.)

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


class BlockedMaxPool(nn.Module):
    """Max pooling of blocked maps; `halo` of its output."""

    def __init__(self, layer: nn.MaxPool2d, halo: int) -> None:
        super().__init__()
        pairs = (_pair(layer.stride), _pair(layer.padding), _pair(layer.dilation))
        self.geometry = Shape(*pairs, 1, _pair(layer.kernel_size))
        self.halo = halo
        self._windows: dict[MapGrid, Windows] = {}

    def forward(self, x: Blocked) -> Blocked:
        target = MapGrid(*self.geometry.output(x.grid.height, x.grid.width), self.halo)
        windows = recent(self._windows, x.grid, lambda: Windows(self.geometry, x.grid, target))
        if x.fusion is not None:
            x.fusion.readers += 1
        return Blocked(MaxPool.apply(x.raw, x.affine, windows, x.examples), windows.target, x.examples)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockedMaxPool":
        return copy_sharing(self, memo, "_windows")


def can_pool(layer: nn.MaxPool2d) -> bool:
    """Whether `BlockedMaxPool` can do what a layer does: each window meets the map, and its positions fit in a byte."""
    plain = not layer.ceil_mode and not layer.return_indices and _pair(layer.dilation) == (1, 1)
    return plain and math.prod(_pair(layer.kernel_size)) <= 256


def second(pair: tuple[Any, Any]) -> Any:
    """The input that a layer hands on."""
    return pair[1]


def first(pair: tuple[Any, Any]) -> Any:
    """The output of a layer."""
    return pair[0]


def copy_sharing(module: Any, memo: dict[int, Any], name: str) -> Any:
    """A deep copy that shares one attribute, which never changes once it is made."""
    new = module.__class__.__new__(module.__class__)
    memo[id(module)] = new
    for key, value in module.__dict__.items():
        new.__dict__[key] = dict(value) if key == name else copy.deepcopy(value, memo)
    return new


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
