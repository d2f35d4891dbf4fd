"""The tables of a convolution that keeps many weights: for the matrix unit, in blocks of 32 x 32 channels.

Where at least one weight in ten is kept, leaving out the others saves less than the matrix unit gains (see `amx`). A
*block* holds all weights between 32 output and 32 input channels at one position of the kernel, pruned ones as zeros.
A convolution is then a list of blocks: those with at least one kept weight.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.plan.coordinates import Weights
from skeletal.engine.plan.grid import MapGrid
from skeletal.engine.plan.tiling import Tiling

_BITS = 5
SIDE = 1 << _BITS
"""Channels to a side."""
HELD = SIDE * LANES
"""Slots of that many channels at a pixel."""
STAGED = 16
"""Channels that are laid out together."""


@dataclass(frozen=True)
class WeightBlocks:
    """How the kernels of `kernels.blocks` see one direction of a plan; see there, and `tiling.Tiling`."""

    order: np.ndarray
    """of kept weights, as positions in the order of the mask, block by block"""
    starts: np.ndarray
    """(blocks + 1,): where each begins in `order`"""
    positions: np.ndarray
    """of each of them among the numbers of all blocks"""
    offsets: np.ndarray
    """(blocks,): where each reads relative to the pixel that it adds to, in slots of a line buffer"""
    pointers: np.ndarray
    """(phases, sides + 1): where the blocks of each 32 output channels begin"""
    tiles: np.ndarray
    """(bands, 5), what each makes: rows, columns, phase, first pixel of the source, start in the target in slots"""
    bands: np.ndarray
    """see `tiling.Tiling`"""
    strides: tuple[int, int, int, int]
    """x_row and x_column in pixels, out_row and out_column in slots"""
    grid: MapGrid
    """of the source"""
    inputs: int
    outputs: int
    reach: int
    """rows of the source that are needed at once, at most"""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.offsets)

    @property
    def pixel(self) -> int:
        """Slots of a pixel in a line buffer, with all channels."""
        return pixel_of(self.inputs)

    @property
    def row(self) -> int:
        """Slots of a row in a line buffer."""
        return self.grid.row // LANES * self.pixel

    @cached_property
    def cells(self) -> int:
        """The most pixels that a band makes."""
        return int((self.tiles[:, 0] * self.tiles[:, 1]).max(initial=0))

    @property
    def rows(self) -> int:
        """Of a line buffer: where bands overlap, a few more than needed, so that it need not be moved for each."""
        return min(self.grid.height + 2 * self.grid.halo, self.reach + 2 * (self.reach > self.tall))

    @property
    def tall(self) -> int:
        """The most rows of a tile."""
        return int(self.tiles[:, 0].max(initial=1))

    @property
    def room(self) -> int:
        """Numbers of memory that `kernels.blocks.convolve_blocks` takes a line buffer from."""
        return 2 * (self.rows * self.row + STAGED * self.grid.width * LANES + SIDE * self._channel_sums)

    @property
    def _channel_sums(self) -> int:
        """Sums of an output channel of a band."""
        return self.cells * 2 * LANES

    @property
    def numbers(self) -> int:
        """Of all blocks."""
        return self.count * SIDE * SIDE

    def memory(self, kind: Any) -> np.ndarray:
        """For weights as the kernels take them, two in a slot."""
        return np.empty(self.numbers // 2, np.int32)

    @cached_property
    def packed(self) -> tuple[Any, ...]:
        """As kernels take them, the order of the weights first."""
        order = self.order, self.starts, self.positions
        sizes = self.outputs, self.pixel, self.row, self.rows, self._channel_sums
        return order, self.offsets, self.pointers, self.tiles, self.bands, self.strides, sizes


def rooms_back(forward: WeightBlocks, back: WeightBlocks) -> tuple[int, int]:
    """Numbers of memory that `kernels.blocks.gradients_of_blocks` takes its two line buffers from."""
    stage = STAGED * max(forward.grid.width, back.grid.width) * LANES
    ahead = forward.cells * HELD + stage + SIDE * back.cells * 2 * LANES
    return 2 * (back.rows * back.row + ahead), 2 * forward.rows * forward.row


def pixel_of(channels: int) -> int:
    """Slots of a pixel in a line buffer, with that many channels."""
    return -(-channels // SIDE) * HELD


def block_tables(weights: Weights, sources: int, tiling: Tiling, grid: MapGrid, reach: int) -> WeightBlocks:
    """Sort kept weights into blocks.

    Args:
        weights: of a direction.
        sources: how many channels are read.
        tiling: of the output.
        grid: of what is read.
        reach: see `WeightBlocks`.

    """
    order, phase, channel, source, down, right, channels = weights
    sides, inside, pixel = -(-channels // SIDE), -(-sources // SIDE), pixel_of(sources)
    shift = down * (grid.row // LANES) + right  # in pixels
    low = int(shift.min(initial=0))
    shift -= low
    shifts = np.flatnonzero(np.bincount(shift, minlength=1))
    number = np.zeros(shifts[-1] + 1 if len(shifts) else 1, np.int32)
    number[shifts] = np.arange(len(shifts))
    key = ((phase * sides + (channel >> _BITS)) * inside + (source >> _BITS)) * len(shifts) + number[shift]
    counts = np.bincount(key, minlength=1)
    # Few bits make for a fast sort.
    sort = np.argsort(key.astype(np.uint16) if len(counts) <= 2**16 else key, kind="stable")
    found = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[found])])
    positions = np.repeat(np.arange(len(found), dtype=np.int32) << 2 * _BITS, counts[found])
    positions |= (((channel & SIDE - 1) << _BITS) | (source & SIDE - 1))[sort]
    pair, at = found // max(1, len(shifts)), shifts[found % max(1, len(shifts))] + low
    edges = np.searchsorted(pair // inside, np.arange(tiling.phases * sides + 1))
    x_row, x_column, out_row, out_column = tiling.strides
    return WeightBlocks(
        order[sort],
        starts,
        positions,
        at * pixel + pair % inside * HELD,
        np.stack([edges[i * sides : (i + 1) * sides + 1] for i in range(tiling.phases)]),
        _tiles(tiling),
        tiling.bands,
        (x_row // LANES, x_column // LANES, out_row, out_column),
        grid,
        sources,
        channels,
        reach,
    )


def _tiles(tiling: Tiling) -> np.ndarray:
    """One tile per band."""
    found = []
    for first, last, top, bottom, *_ in tiling.bands.tolist():
        _, phase, start, target, _ = tiling.tiles[first]
        pixels = int(tiling.tiles[first:last, 4].sum())
        found.append((bottom - top, pixels // (bottom - top), phase, start // LANES, target))
    return np.array(found, np.int64).reshape(-1, 5)
