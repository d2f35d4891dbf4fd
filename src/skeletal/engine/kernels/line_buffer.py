"""Rows of maps that are made just before tiles read them, and never stored as a whole map.

What a convolution reads is often one multiply-add and a ReLU away from what lies in memory: batch norm of the layer
before, or of this one, on the way back. A *buffer* holds some rows of one block of such maps, ready to be read, in the
cache of the core that works on them. It is laid out like the map itself, with all its channels a plane apart, so that
the tables of a plan fit, but it starts with row `base` of the map. Rows are counted from 0 at the top of the map; those
of the halo are negative. A thread moves down a block, and the buffer moves with it.

Arrays are flat and count slots (see `packed_bf16`); `maps` are `arguments.Maps`.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.codegen.row_ops import affine, affine_gradient, move


@compiled
def row_of(maps):
    """Slots of a row."""
    return (maps.width + 2 * maps.halo) * LANES


@compiled
def buffer_offset(maps, base):
    """How far a place in a buffer lies before the same place in a block of maps."""
    return (base + maps.halo) * row_of(maps)


@compiled
def _roll(buffer, maps, base, ready, low, high):
    """Make room for rows up to `high`, where none before `low` will be needed; returns the new base and ready.

    Rows from `base` to `ready` are in the buffer; what is still needed of them stays in it.
    """
    if low < base or low >= ready:
        return low, low
    if high - base <= maps.rows:
        return base, ready
    row = row_of(maps)
    cells = (ready - low) * row // LANES
    for channel in range(maps.channels):
        move(buffer, channel * maps.plane + (low - base) * row, channel * maps.plane, cells)
    return low, ready


@compiled
def _clear_halo(buffer, maps, row, at):
    """Zero what a row has around the map; returns whether it holds anything else."""
    inside = 0 <= row < maps.height
    edge = maps.halo * LANES
    if not inside:
        edge = row_of(maps)
    for i in range(at, at + edge):
        buffer[i] = 0
    if inside:
        for i in range(at + edge + maps.width * LANES, at + 2 * edge + maps.width * LANES):
            buffer[i] = 0
    return inside


@compiled
def normalised(x, before, block, buffer, base, ready, low, high, valid):
    """Bring rows [low, high) of a block of x into the buffer, after a `Prologue`; returns the new base and ready."""
    maps = x.maps
    base, ready = _roll(buffer, maps, base, ready, low, high)
    row = row_of(maps)
    for channel in range(maps.channels):
        scale, shift = before.scale[channel], before.shift[channel]
        for h in range(ready, high):
            to = channel * maps.plane + (h - base) * row
            if _clear_halo(buffer, maps, h, to):
                edge = maps.halo * LANES
                at = x.block * block + channel * maps.plane + (h + maps.halo) * row + edge
                affine(
                    before.relu, x.data, buffer, x.data, at, to + edge, maps.width, scale, shift, valid, maps.plane
                )  # fmt: skip
    return base, max(ready, high)


@compiled
def sent_back(gradient, norm, block, buffer, base, ready, low, high, valid):
    """The same of a gradient, sent back through batch norm: a `NormGradient`."""
    maps = gradient.maps
    base, ready = _roll(buffer, maps, base, ready, low, high)
    row = row_of(maps)
    for channel in range(maps.channels):
        for h in range(ready, high):
            to = channel * maps.plane + (h - base) * row
            if _clear_halo(buffer, maps, h, to):
                edge = maps.halo * LANES
                at = gradient.block * block + channel * maps.plane + (h + maps.halo) * row + edge
                norm_gradient_row(norm, gradient.data, buffer, at, to + edge, maps.width, channel, valid, maps.plane)
    return base, max(ready, high)


@compiled
def norm_gradient_row(norm, gradient, out, start, target, cells, channel, valid, ahead):
    """A row of a channel of a gradient through a `NormGradient`; see `row_ops.affine_gradient`."""
    mode = norm.relu * (1 + (norm.z.size > 0) * (1 + (norm.other.size > 0)))
    affine_gradient(
        mode, norm.x, norm.z, gradient, out, norm.other, start, target, cells, norm.scale[channel], norm.shift[channel],
        norm.gradient_factor[channel], norm.x_factor[channel], norm.constant[channel], valid, ahead,
    )  # fmt: skip
