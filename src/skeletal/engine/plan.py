"""The tables of a sparse convolution: all that depends on shapes and on the mask, worked out once."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.grid import Grid
from skeletal.engine.slots import LANES
from skeletal.engine.tiles import kind_of

Pair = tuple[int, int]

_WINDOW = 24 * 1024  # bytes of inputs that a tile may read and still find in a 32 to 48 KiB cache at its next channel
_WORTH = (
    12  # kept weights of an output channel in a part, below which taking up its sums again costs more than it saves
)


@dataclass(frozen=True)
class Shape:
    """A convolution without its weights."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    kernel: Pair

    def output(self, height: int, width: int) -> Pair:
        """Height and width of what it makes of a map.

        Raises:
            ValueError: the map is too small.

        """
        found = [
            (size + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i, size in enumerate((height, width))
        ]
        if min(found) < 1:
            raise ValueError(f"a map of {height} x {width} pixels is too small for a {self}")
        return found[0], found[1]

    def halos(self, height: int, width: int) -> Pair:
        """Pixels of zeros that it needs around its input, and around the gradient of its output."""
        return _halos(self, height, width)

    def shifts(self, axis: int, phase: int) -> dict[int, int]:
        """Which kernel positions an input pixel of index `phase` modulo the stride meets, and which output there.

        Position i: input `phase + stride m` contributed to output `m + shift`.
        """
        found = {}
        for position in range(self.kernel[axis]):
            distance = phase + self.padding[axis] - position * self.dilation[axis]
            if distance % self.stride[axis] == 0:
                found[position] = distance // self.stride[axis]
        return found


@lru_cache(maxsize=4096)
def _halos(shape: Shape, height: int, width: int) -> Pair:
    ahead, back = 0, 0
    for i, (size, made) in enumerate(zip((height, width), shape.output(height, width), strict=True)):
        reach = shape.dilation[i] * (shape.kernel[i] - 1)
        ahead = max(ahead, shape.padding[i], (made - 1) * shape.stride[i] - shape.padding[i] + reach - (size - 1))
        for phase in range(min(shape.stride[i], size)):
            last = (size - 1 - phase) // shape.stride[i]
            for shift in shape.shifts(i, phase).values():
                back = max(back, -shift, last + shift - (made - 1))
    return ahead, back


@dataclass(frozen=True)
class Tables:
    """What the kernels read; see `kernels.convolve`."""

    offsets: np.ndarray
    pointers: np.ndarray
    order: Tensor
    """of the weights in `offsets`, as positions among the kept weights in the order of the mask"""
    tiles: np.ndarray
    """(tiles, 5): kind, phase, start in the source, start in the target, pixels"""
    bands: np.ndarray
    """(bands, 6): first and last tile, first and last row of the phase, first and last row read of the source; from
    the top of the map to its bottom"""
    strides: tuple[int, int, int, int]
    """x_row, x_column, out_row, out_column of a tile"""

    @cached_property
    def packed(self) -> tuple[Any, ...]:
        """As kernels take them, the order first."""
        return self.order.numpy(), self.offsets, self.pointers, self.tiles, self.bands, self.strides

    @cached_property
    def reach(self) -> int:
        """The most rows of the source that a band reads."""
        return int((self.bands[:, 5] - self.bands[:, 4]).max(initial=0))


class Plan:
    """A convolution over the kept weights of a mask, on maps of one size.

    Args:
        mask: bool, (outputs, inputs / groups, kernel height, kernel width).
        shape: of the convolution.
        source: grid of its input, whose halo suffices (`Shape.halos`).
        target: grid of its output, whose halo suffices for the gradient.
        in_parts: whether sums may lie in memory before they are complete, which would round them in bfloat16.

    """

    def __init__(self, mask: Tensor, shape: Shape, source: Grid, target: Grid, *, in_parts: bool = True) -> None:
        self.shape, self.source, self.target, self.in_parts = shape, source, target, in_parts
        outputs, inputs = mask.shape[0], mask.shape[1] * shape.groups
        self.outputs, self.inputs = outputs, inputs
        self.frames: dict[Any, Any] = {}  # what `convolution` derives from this
        self._kept = [index.numpy() for index in mask.cpu().nonzero(as_tuple=True)]
        group = self._kept[0] // max(1, outputs // shape.groups)
        self._kept[1] = self._kept[1] + group * mask.shape[1]
        self.kept = len(self._kept[0])

    @cached_property
    def forward(self) -> Tables:
        """From the input to the output."""
        output, source, row, column = self._kept
        (stride_h, stride_w), (pad_h, pad_w), (step_h, step_w) = (
            self.shape.stride,
            self.shape.padding,
            self.shape.dilation,
        )
        grid = self.source
        offsets = source * grid.plane + row * step_h * grid.row + column * step_w * LANES
        strides = (stride_h * grid.row, stride_w * LANES, self.target.row, LANES)
        tiles, bands = [], []
        for height, first, found in _cut(self.target.height, self.target.width):
            start = len(tiles)
            for columns, w in found:
                reads = grid.at(first * stride_h - pad_h, w * stride_w - pad_w)
                kind = kind_of(height, columns, stride_w)
                tiles.append((kind, 0, reads, self.target.at(first, w), height * columns))
            top = first * stride_h - pad_h
            bottom = top + (height - 1) * stride_h + (self.shape.kernel[0] - 1) * step_h + 1
            bands.append((start, len(tiles), first, first + height, top, bottom))
        tile = (bands[0][3] - bands[0][2], tiles[0][4] // (bands[0][3] - bands[0][2])) if tiles else (1, 1)
        return self._tables(
            grid, np.zeros_like(output), 1, output, self.outputs, source, offsets, tiles, bands, strides, tile
        )

    @cached_property
    def backward(self) -> Tables:
        """From the gradient of the output to that of the input: a convolution for each phase of the stride."""
        output, source, row, column = self._kept
        (stride_h, stride_w), grid = self.shape.stride, self.target
        strides = (grid.row, LANES, stride_h * self.source.row, stride_w * LANES)
        phase_of, offset_of, order = [], [], []
        tiles, bands, tops = [], [], []
        phase, tile = 0, (1, 1)
        for h in range(min(stride_h, self.source.height)):
            for w in range(min(stride_w, self.source.width)):
                rows, columns = self.shape.shifts(0, h), self.shape.shifts(1, w)
                met = np.flatnonzero(np.isin(row, list(rows)) & np.isin(column, list(columns)))
                down = np.array([rows.get(i, 0) for i in range(self.shape.kernel[0])])[row[met]]
                right = np.array([columns.get(i, 0) for i in range(self.shape.kernel[1])])[column[met]]
                offset_of.append(output[met] * grid.plane + down * grid.row + right * LANES)
                phase_of.append(np.full(len(met), phase))
                order.append(met)
                height, width = -(-(self.source.height - h) // stride_h), -(-(self.source.width - w) // stride_w)
                for tall, first, found in _cut(height, width):
                    start = len(tiles)
                    for wide, at in found:
                        target = self.source.at(h + first * stride_h, w + at * stride_w)
                        tiles.append((kind_of(tall, wide, 1), phase, grid.at(first, at), target, tall * wide))
                        tile = max(tile, (tall, wide), key=lambda t: t[0] * t[1])
                    reads = [first + shift for shift in rows.values()] or [first]
                    bands.append((start, len(tiles), first, first + tall, min(reads), max(reads) + tall))
                    tops.append(h + first * stride_h)
                phase += 1
        bands = [bands[i] for i in np.argsort(tops, kind="stable")]
        met = np.concatenate(order)
        return self._tables(
            grid, np.concatenate(phase_of), phase, source[met], self.inputs, output[met], np.concatenate(offset_of),
            tiles, bands, strides, tile, met,
        )  # fmt: skip

    @cached_property
    def reach_back(self) -> int:
        """The most rows of the output's gradient that a unit of `kernels.gradients` reads."""
        bands, back = self.forward.bands, self.backward.bands
        most = 0
        for i, band in enumerate(bands):
            part = back[len(back) * i // len(bands) : len(back) * (i + 1) // len(bands)]
            low, high = min([band[2], *part[:, 4]]), max([band[3], *part[:, 5]])
            most = max(most, int(high - low))
        return most

    def _tables(
        self,
        grid: Grid,
        phase: np.ndarray,
        phases: int,
        channel: np.ndarray,
        channels: int,
        source: np.ndarray,
        offsets: np.ndarray,
        tiles: list[tuple[int, int, int, int, int]],
        bands: list[tuple[int, int, int, int, int, int]],
        strides: tuple[int, int, int, int],
        tile: Pair,
        met: np.ndarray | None = None,
    ) -> Tables:
        """Sort kept weights by phase, part, channel they add to and place they read; see `Tables`.

        A part is a range of input channels, such that what one tile reads of it stays in the cache while all output
        channels pass by; fewer parts where they would be left with too few weights each. `grid` is of the source.
        """
        reach = [(self.shape.kernel[i] - 1) * self.shape.dilation[i] + tile[i] * strides[1] // LANES for i in (0, 1)]
        sources = int(source.max()) + 1 if len(source) else 1
        window = reach[0] * reach[1] * LANES * 4 * sources
        parts = max(1, min(-(-window // _WINDOW), len(offsets) // max(1, channels * phases * _WORTH)))
        parts = parts if self.in_parts else 1
        part = source // -(-sources // parts)
        order = np.lexsort((offsets, channel, part, phase))
        key = (phase * parts + part) * channels + channel
        counts = np.bincount(key, minlength=phases * parts * channels).reshape(phases * parts, channels)
        edges = np.concatenate([[0], np.cumsum(counts.ravel())])
        pointers = np.empty((phases * parts, channels + 1), np.int64)
        pointers[:, :-1] = edges[:-1].reshape(phases * parts, channels)
        pointers[:, -1] = edges[channels::channels]
        rows = np.array(bands, np.int64).reshape(-1, 6)
        rows[:, 4:] = rows[:, 4:].clip(-grid.halo, grid.height + grid.halo)
        if len(offsets) and abs(offsets).max() >= 2**31:
            raise ValueError(f"{sources} channels of a {self.source} are more than 32-bit offsets reach")
        return Tables(
            offsets[order].astype(np.int32),
            pointers.reshape(phases, parts, channels + 1),
            torch.from_numpy(order if met is None else met[order]),
            np.array(tiles, np.int64).reshape(-1, 5),
            rows,
            strides,
        )


def _cut(height: int, width: int) -> list[tuple[int, int, list[Pair]]]:
    """Cut a map into bands (rows, first row, tiles), and those into tiles (columns, first column)."""
    tall = 2 if width in (2, 4) else 1
    bands = []
    for first in range(0, height, tall):
        rows = min(tall, height - first)
        tiles, column = [], 0
        for size in (width,) if rows == 2 else (7,) if width % 8 and width % 7 == 0 else (8, 4, 2, 1):
            while column + size <= width:
                tiles.append((size, column))
                column += size
        bands.append((rows, first, tiles))
    return bands
