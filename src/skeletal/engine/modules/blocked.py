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


def to_blocks(images: Tensor, halo: int, dtype: torch.dtype) -> Blocked:
    """From a tensor (N, C, H, W) to blocked maps of a type.

    Raises:
        ValueError: the tensor has another number of dimensions. (For the example batch it had four; see `lower`.)

    """
    if images.dim() != 4:
        raise ValueError(
            f"a convolution got a tensor {tuple(images.shape)}, not (N, C, H, W) as for the example batch: compile the"
            " network for a batch like this one"
        )
    grid = MapGrid(images.shape[2], images.shape[3], halo)
    return Blocked(Pack.apply(images, grid, dtype), grid, len(images))


class _StandsFor(nn.Module):
    """Runs what a layer does, with the mode and the settings that the layer has by then.

    Layers keep their own places in the network: in a tuple they are not registered again.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layers = (layer,)


class ToBlocks(_StandsFor):
    """From a tensor (N, C, H, W) to blocked maps as a sparse layer stores them."""

    def __init__(self, layer: Any, halo: int) -> None:
        super().__init__(layer)
        self.halo = halo

    def forward(self, x: Tensor) -> Blocked:
        return to_blocks(x, self.halo, self.layers[0].storage_type())


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


class Elementwise(_StandsFor):
    """A layer or function of single numbers with f(0) = 0, which keeps the zeros around the maps."""

    def forward(self, x: Blocked) -> Blocked:
        (layer,) = self.layers
        if getattr(layer, "inplace", False):  # others may still need what it reads
            layer = copy.copy(layer)
            layer.inplace = False
        return Blocked(layer(x.storage), x.grid, x.examples)


class BlockedDropout(Elementwise):
    """Dropout of blocked maps."""

    def forward(self, x: Blocked) -> Blocked:
        (layer,) = self.layers
        return super().forward(x) if layer.training and layer.p else x


class BlockedMaxPool(_StandsFor):
    """Max pooling of blocked maps; `halo` of its output."""

    def __init__(self, layer: nn.MaxPool2d, halo: int) -> None:
        super().__init__(layer)
        self.halo = halo
        self._windows: dict[tuple[MapGrid, Shape], Windows] = {}

    def forward(self, x: Blocked) -> Blocked:
        (layer,) = self.layers
        if not can_pool(layer):  # any more
            return to_blocks(layer(to_images(x)), self.halo, x.raw.dtype)
        geometry = Shape(
            _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation), 1, _pair(layer.kernel_size)
        )  # fmt: skip
        target = MapGrid(*geometry.output(x.grid.height, x.grid.width), self.halo)
        windows = recent(self._windows, (x.grid, geometry), lambda: Windows(geometry, x.grid, target))
        if x.fusion is not None:
            x.fusion.readers += 1
        return Blocked(MaxPool.apply(x.raw, x.affine, windows, x.examples), windows.target, x.examples)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockedMaxPool":
        return copy_sharing(self, memo, "_windows")


class BlockedMean(_StandsFor):
    """Adaptive average pooling of blocked maps, to a tensor: at once where it leaves one pixel."""

    def forward(self, x: Blocked) -> Tensor:
        (layer,) = self.layers
        return global_mean(x) if is_global(layer.output_size) else layer(to_images(x))


def is_global(size: Any) -> bool:
    """Whether adaptive pooling to a size leaves one pixel."""
    return size == 1 or (isinstance(size, tuple | list) and tuple(size) == (1, 1))


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
