"""How a batch of maps lies in memory while it passes through sparse layers.

Examples are taken in blocks, and within a block they lie side by side: [block][channel][row][column][lane]. One pixel
of all examples of a block is a *cell* of `LANES` slots: 16 examples in float32 and float64 (8 without AVX-512), 32
in bfloat16, where a slot holds two (see `packed_bf16`). One step of a kernel then works on a vector of examples at one
pixel, and whatever the pattern of the weights, vectors stay whole. A map is surrounded by `halo` pixels of zeros, so
that a padded convolution reads without checking where it is; where needed, a gap of one more pixel keeps planes from
starting at the same place in the cache.

All operations rely on this and preserve it: halo, gap, and the lanes of missing examples (the batch size need not be
a multiple of a block's) hold zeros, in values and in gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import LANES, examples_of, per_slot


@dataclass(frozen=True)
class MapGrid:
    """Where the pixels of a map are; strides count slots."""

    height: int
    width: int
    halo: int

    @property
    def row(self) -> int:
        """From one row to the next."""
        return (self.width + 2 * self.halo) * LANES

    @property
    def plane(self) -> int:
        """From one channel to the next: an odd number of pixels."""
        return ((self.height + 2 * self.halo) * (self.width + 2 * self.halo) | 1) * LANES

    def at(self, row: int, column: int) -> int:
        """Where a pixel starts in its plane."""
        return (row + self.halo) * self.row + (column + self.halo) * LANES

    def inside(self, storage: Tensor) -> Tensor:
        """The pixels of a storage (blocks, channels, numbers), as a view (blocks, channels, height, width, lanes)."""
        blocks, channels, plane = storage.shape
        pair, lanes = per_slot(storage.dtype), examples_of(storage.dtype)
        strides = (channels * plane, plane, pair * self.row, lanes, 1)
        return storage.as_strided(
            (blocks, channels, self.height, self.width, lanes), strides, storage.storage_offset() + pair * self.at(0, 0)
        )

    @property
    def slots(self) -> tuple[int, int, int, int]:
        """Height, width, halo and plane, for kernels that count slots."""
        return self.height, self.width, self.halo, self.plane

    def numbers(self, dtype: torch.dtype) -> tuple[int, int, int, int]:
        """The same for kernels that count numbers of a type."""
        return self.height, self.width, self.halo, self.plane * per_slot(dtype)


def blocks_for(examples: int, dtype: torch.dtype) -> int:
    """Blocks that a batch takes."""
    return -(-examples // examples_of(dtype))


def pack(images: Tensor, grid: MapGrid) -> Tensor:
    """A storage (blocks, C, numbers of a plane) of images (N, C, H, W)."""
    examples, channels = images.shape[:2]
    storage = images.new_zeros(blocks_for(examples, images.dtype), channels, grid.numbers(images.dtype)[3])
    inside, lanes = grid.inside(storage), examples_of(images.dtype)
    whole = examples // lanes
    shape = (lanes, channels, grid.height, grid.width)
    inside[:whole].copy_(images[: whole * lanes].reshape(whole, *shape).permute(0, 2, 3, 4, 1))
    if rest := examples % lanes:
        inside[whole, ..., :rest].copy_(images[whole * lanes :].permute(1, 2, 3, 0))
    return storage


def unpack(storage: Tensor, grid: MapGrid, examples: int) -> Tensor:
    """The images (N, C, H, W) of a storage: in memory of their own, not a view, so they may be changed in place."""
    inside, lanes = grid.inside(storage), examples_of(storage.dtype)
    shape = (storage.shape[1], grid.height, grid.width)
    images = storage.new_empty(examples, *shape)
    whole = examples // lanes
    images[: whole * lanes].view(whole, lanes, *shape).copy_(inside[:whole].permute(0, 4, 1, 2, 3))
    if rest := examples % lanes:
        images[whole * lanes :].copy_(inside[whole, ..., :rest].permute(3, 0, 1, 2))
    return images
