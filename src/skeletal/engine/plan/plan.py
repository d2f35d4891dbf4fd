"""The tables of a sparse convolution: all that depends on shapes and on the mask, worked out once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from skeletal.engine.codegen import amx
from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.plan.coordinates import Weights, coordinates, weights, weights_back
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid
from skeletal.engine.plan.tiling import Tiling, reach_back, tiling, tiling_back
from skeletal.engine.plan.weight_blocks import SIDE, WeightBlocks, block_tables, rooms_back

_WINDOW = 24 * 1024  # bytes of inputs that a tile may read and still find in a 32 to 48 KiB cache at its next channel
_WORTH = 12  # kept weights of an output channel in a part, below which resuming its sums costs more than it saves
_FULL = 0.08  # share of a block's weights kept, from which on blocks are faster (`benchmarks/weight_blocks.py`)


@dataclass(frozen=True)
class Tables:
    """What the kernels read; see `sparse.convolve`."""

    offsets: np.ndarray
    pointers: np.ndarray
    order: np.ndarray
    """of the weights in `offsets`, as positions among the kept weights in the order of the mask"""
    tiling: Tiling

    @property
    def numbers(self) -> int:
        """Of its weights."""
        return len(self.order)

    def memory(self, kind: Any) -> np.ndarray:
        """For weights as the kernels take them, of the kind of the values."""
        return np.empty(self.numbers, kind)

    @cached_property
    def packed(self) -> tuple[Any, ...]:
        """As kernels take them, the order first."""
        return self.order, self.offsets, self.pointers, self.tiling.tiles, self.tiling.bands, self.tiling.strides


class ConvPlan:
    """A convolution over the kept weights of a mask, on maps of one size.

    Args:
        mask: bool, (outputs, inputs / groups, kernel height, kernel width).
        shape: of the convolution.
        source: grid of its input, whose halo suffices (`Shape.halos`).
        target: grid of its output, whose halo suffices for the gradient.
        in_parts: whether sums may lie in memory before they are complete, which would round them in bfloat16.

    """

    def __init__(self, mask: Tensor, shape: Shape, source: MapGrid, target: MapGrid, *, in_parts: bool = True) -> None:
        self.shape, self.source, self.target, self.in_parts = shape, source, target, in_parts
        outputs, inputs = mask.shape[0], mask.shape[1] * shape.groups
        self.outputs, self.inputs = outputs, inputs
        self.launch_args: dict[Any, Any] = {}  # what `launch_args` derives from this
        self._coordinates = coordinates(mask, shape.groups)
        self.kept = len(self._coordinates.output)

    @cached_property
    def tiling(self) -> Tiling:
        """Of its output."""
        return tiling(self.shape, self.source, self.target)

    @cached_property
    def tiling_back(self) -> Tiling:
        """Of its input."""
        return tiling_back(self.shape, self.source, self.target)

    @cached_property
    def reach_back(self) -> int:
        """See `tiling.reach_back`."""
        return reach_back(self.tiling, self.tiling_back)

    @cached_property
    def forward(self) -> Tables:
        """From the input to the output."""
        return self._tables(weights(self._coordinates, self.shape, self.outputs), self.tiling, self.source)

    @cached_property
    def backward(self) -> Tables:
        """From the gradient of the output to that of the input."""
        return self._tables(
            weights_back(self._coordinates, self.shape, self.inputs, self.source), self.tiling_back, self.target
        )

    @cached_property
    def weight_blocks(self) -> WeightBlocks:
        """The same as `forward` for the matrix unit."""
        found = weights(self._coordinates, self.shape, self.outputs)
        return block_tables(found, self.inputs, self.tiling, self.source, self.tiling.reach)

    @cached_property
    def weight_blocks_back(self) -> WeightBlocks:
        """The same as `backward`."""
        found = weights_back(self._coordinates, self.shape, self.inputs, self.source)
        return block_tables(found, self.outputs, self.tiling_back, self.target, self.reach_back)

    @cached_property
    def rooms_back(self) -> tuple[int, int]:
        """See `weight_blocks.rooms_back`."""
        return rooms_back(self.weight_blocks, self.weight_blocks_back)

    @cached_property
    def is_full(self) -> bool:
        """Whether the matrix unit is faster, for maps in bfloat16."""
        if not amx.available() or not self.kept:
            return False
        return self.kept >= _FULL * SIDE * SIDE * self.weight_blocks.count

    def _tables(self, found: Weights, tiling: Tiling, grid: MapGrid) -> Tables:
        """Sort kept weights by phase, part, channel they add to and place they read; see `Tables`.

        A part is a range of input channels, small enough that what one tile reads of it stays in the cache while all
        output channels pass by, but large enough not to have too few weights. `grid` is that of the source.
        """
        met, phase, channel, source, down, right, channels = found
        offsets = source * np.int64(grid.plane) + down * grid.row + right * LANES
        reach = [
            (self.shape.kernel[i] - 1) * self.shape.dilation[i] + tiling.tile[i] * tiling.strides[1] // LANES
            for i in (0, 1)
        ]
        sources = int(source.max()) + 1 if len(source) else 1
        window = reach[0] * reach[1] * LANES * 4 * sources
        parts = max(1, min(-(-window // _WINDOW), len(offsets) // max(1, channels * tiling.phases * _WORTH)))
        parts = parts if self.in_parts else 1
        part = source // -(-sources // parts)
        order = np.lexsort((offsets, channel, part, phase))
        key = (phase.astype(np.int64) * parts + part) * channels + channel
        counts = np.bincount(key, minlength=tiling.phases * parts * channels).reshape(tiling.phases * parts, channels)
        edges = np.concatenate([[0], np.cumsum(counts.ravel())])
        pointers = np.empty((tiling.phases * parts, channels + 1), np.int64)
        pointers[:, :-1] = edges[:-1].reshape(tiling.phases * parts, channels)
        pointers[:, -1] = edges[channels::channels]
        if len(offsets) and abs(offsets).max() >= 2**31:
            raise ValueError(f"{sources} channels of a {self.source} are more than 32-bit offsets reach")
        return Tables(
            offsets[order].astype(np.int32), pointers.reshape(tiling.phases, parts, channels + 1), met[order], tiling
        )
