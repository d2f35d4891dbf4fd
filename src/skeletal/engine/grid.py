"""How a batch of maps lies in memory while it passes through sparse layers.

Examples are taken in blocks of `LANES`, and within a block they lie side by side: [block][channel][row][column][lane].
One step of a kernel then works on a vector of examples at one pixel, and whatever the pattern of the weights, vectors
stay whole. A map is surrounded by `halo` pixels of zeros, so that a padded convolution reads without asking
where it is; one more gap of a pixel where it is needed keeps planes from starting at the same place of the cache.

What all operations rely on and keep: halo, gap, and the lanes of examples that are not there (the batch size need not
be a multiple of `LANES`) hold zeros, in values and in gradients.
"""

from dataclasses import dataclass

from torch import Tensor

from skeletal.engine.tiles import LANES


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a map are; strides count elements."""

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
        """The pixels of a storage (blocks, channels, plane), as a view (blocks, channels, height, width, lanes)."""
        blocks, channels, plane = storage.shape
        strides = (channels * plane, plane, self.row, LANES, 1)
        return storage.as_strided(
            (blocks, channels, self.height, self.width, LANES), strides, storage.storage_offset() + self.at(0, 0)
        )


def blocks_for(examples: int) -> int:
    """Blocks that a batch takes."""
    return -(-examples // LANES)


def pack(images: Tensor, grid: Grid) -> Tensor:
    """A storage (blocks, C, grid.plane) of images (N, C, H, W)."""
    examples, channels = images.shape[:2]
    storage = images.new_zeros(blocks_for(examples), channels, grid.plane)
    inside = grid.inside(storage)
    whole = examples // LANES
    shape = (LANES, channels, grid.height, grid.width)
    inside[:whole].copy_(images[: whole * LANES].reshape(whole, *shape).permute(0, 2, 3, 4, 1))
    if rest := examples % LANES:
        inside[whole, ..., :rest].copy_(images[whole * LANES :].permute(1, 2, 3, 0))
    return storage


def unpack(storage: Tensor, grid: Grid, examples: int) -> Tensor:
    """The images (N, C, H, W) of a storage: memory of their own, and no view, so that they may be changed in place."""
    inside = grid.inside(storage)
    shape = (storage.shape[1], grid.height, grid.width)
    images = storage.new_empty(examples, *shape)
    whole = examples // LANES
    images[: whole * LANES].view(whole, LANES, *shape).copy_(inside[:whole].permute(0, 4, 1, 2, 3))
    if rest := examples % LANES:
        images[whole * LANES :].copy_(inside[whole, ..., :rest].permute(3, 0, 1, 2))
    return images
