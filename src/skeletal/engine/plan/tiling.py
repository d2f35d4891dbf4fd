"""How the output of a convolution is cut into pieces that are computed together."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.codegen.tiles import kind_of
from skeletal.engine.plan.geometry import Pair, Shape
from skeletal.engine.plan.grid import MapGrid


@dataclass(frozen=True)
class Tiling:
    """Tiles, and bands of them."""

    tiles: np.ndarray
    """(tiles, 5): kind, phase, start in the source, start in the target, pixels"""
    bands: np.ndarray
    """(bands, 6): first and last tile, first and last row of the phase, first and last row read of the source; from
    the top of the map to its bottom"""
    strides: tuple[int, int, int, int]
    """x_row, x_column, out_row, out_column of a tile, in slots"""
    phases: int
    tile: Pair
    """rows and columns of the largest"""

    @cached_property
    def reach(self) -> int:
        """The most rows of the source that a band reads."""
        return int((self.bands[:, 5] - self.bands[:, 4]).max(initial=0))


def tiling(shape: Shape, source: MapGrid, target: MapGrid) -> Tiling:
    """For a convolution from one grid to another."""
    (stride_h, stride_w), (pad_h, pad_w), (step_h, _) = shape.stride, shape.padding, shape.dilation
    strides = (stride_h * source.row, stride_w * LANES, target.row, LANES)
    tiles, bands = [], []
    for height, first, found in _bands(target.height, target.width):
        start = len(tiles)
        for columns, w in found:
            reads = source.at(first * stride_h - pad_h, w * stride_w - pad_w)
            tiles.append((kind_of(height, columns, stride_w), 0, reads, target.at(first, w), height * columns))
        top = first * stride_h - pad_h
        bottom = top + (height - 1) * stride_h + (shape.kernel[0] - 1) * step_h + 1
        bands.append((start, len(tiles), first, first + height, top, bottom))
    tile = (bands[0][3] - bands[0][2], tiles[0][4] // (bands[0][3] - bands[0][2])) if tiles else (1, 1)
    return _made(tiles, bands, source, strides, 1, tile)


def tiling_back(shape: Shape, source: MapGrid, target: MapGrid) -> Tiling:
    """For its gradient, from the target to the source: a convolution for each phase of the stride."""
    stride_h, stride_w = shape.stride
    strides = (target.row, LANES, stride_h * source.row, stride_w * LANES)
    tiles, bands, tops = [], [], []
    phase, tile = 0, (1, 1)
    for h in range(min(stride_h, source.height)):
        rows = shape.shifts(0, h)
        for w in range(min(stride_w, source.width)):
            height, width = -(-(source.height - h) // stride_h), -(-(source.width - w) // stride_w)
            for tall, first, found in _bands(height, width):
                start = len(tiles)
                for wide, at in found:
                    there = source.at(h + first * stride_h, w + at * stride_w)
                    tiles.append((kind_of(tall, wide, 1), phase, target.at(first, at), there, tall * wide))
                    tile = max(tile, (tall, wide), key=lambda t: t[0] * t[1])
                reads = [first + shift for shift in rows.values()] or [first]
                bands.append((start, len(tiles), first, first + tall, min(reads), max(reads) + tall))
                tops.append(h + first * stride_h)
            phase += 1
    return _made(tiles, [bands[i] for i in np.argsort(tops, kind="stable")], target, strides, phase, tile)


def reach_back(forward: Tiling, back: Tiling) -> int:
    """The most rows of the output's gradient that a unit of `sparse.gradients` reads."""
    most = 0
    for i, band in enumerate(forward.bands):
        some = back.bands[len(back.bands) * i // len(forward.bands) : len(back.bands) * (i + 1) // len(forward.bands)]
        low, high = min([band[2], *some[:, 4]]), max([band[3], *some[:, 5]])
        most = max(most, int(high - low))
    return most


def _made(
    tiles: list[tuple[int, ...]],
    bands: list[tuple[int, ...]],
    grid: MapGrid,
    strides: tuple[int, int, int, int],
    phases: int,
    tile: Pair,
) -> Tiling:
    rows = np.array(bands, np.int64).reshape(-1, 6)
    rows[:, 4:] = rows[:, 4:].clip(-grid.halo, grid.height + grid.halo)
    return Tiling(np.array(tiles, np.int64).reshape(-1, 5), rows, strides, phases, tile)


def _bands(height: int, width: int) -> list[tuple[int, int, list[Pair]]]:
    """Tiling a map into bands (rows, first row, tiles), and those into tiles (columns, first column)."""
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
