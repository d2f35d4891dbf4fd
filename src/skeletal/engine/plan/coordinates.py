"""Kept weights, as the two directions of a convolution see them."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid


class Coordinates(NamedTuple):
    """Where kept weights are, in the order of the mask."""

    output: np.ndarray
    source: np.ndarray
    """input channel, of all groups"""
    row: np.ndarray
    column: np.ndarray
    """of the kernel"""


class Weights(NamedTuple):
    """Kept weights as one direction of a convolution sees them; int32 arrays of equal length but for the last."""

    order: np.ndarray
    """positions among all kept ones, in the order of the mask"""
    phase: np.ndarray
    channel: np.ndarray
    """that they add to"""
    source: np.ndarray
    """channel that they read"""
    down: np.ndarray
    """rows from the pixel that they add to (times the stride) to that they read"""
    right: np.ndarray
    channels: int


def coordinates(mask: Tensor, groups: int) -> Coordinates:
    """Of a mask (outputs, inputs / groups, kernel height, kernel width)."""
    output, source, row, column = (index.numpy().astype(np.int32) for index in mask.cpu().nonzero(as_tuple=True))
    group = output // max(1, mask.shape[0] // groups)
    return Coordinates(output, source + group * mask.shape[1], row, column)


def weights(where: Coordinates, shape: Shape, outputs: int) -> Weights:
    """From the input to the output."""
    output, source, row, column = where
    step_h, step_w = shape.dilation
    every = np.arange(len(output), dtype=np.int32)
    return Weights(every, np.zeros_like(output), output, source, row * step_h, column * step_w, outputs)


def weights_back(where: Coordinates, shape: Shape, inputs: int, grid: MapGrid) -> Weights:
    """From the gradient of the output to that of the input, on a grid: for each phase of the stride those weights that
    its pixels meet.
    """
    output, source, row, column = where
    found, phase = [], 0
    for h in range(min(shape.stride[0], grid.height)):
        for w in range(min(shape.stride[1], grid.width)):
            rows, columns = shape.shifts(0, h), shape.shifts(1, w)
            are_met = [
                np.array([i in shifts for i in range(size)])
                for shifts, size in zip((rows, columns), shape.kernel, strict=True)
            ]
            met = np.flatnonzero(are_met[0][row] & are_met[1][column]).astype(np.int32)
            down = np.array([rows.get(i, 0) for i in range(shape.kernel[0])], np.int32)[row[met]]
            right = np.array([columns.get(i, 0) for i in range(shape.kernel[1])], np.int32)[column[met]]
            found.append((met, np.full(len(met), phase, np.int32), down, right))
            phase += 1
    met, phases, down, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Weights(met, phases, source[met], output[met], down, right, inputs)
