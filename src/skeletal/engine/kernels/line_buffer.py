"""Rows of maps that are made just before tiles read them, and never reach the memory of a whole map.

What a convolution reads is often one multiply-add and a ReLU away from what lies in memory: batch norm of the layer
before, or of this one, on the way back. A *window* holds some rows of one block of such maps, ready to be read, in the
cache of the core that works on them. It lies like the map itself, with all its channels a plane apart, so that the
tables of a plan fit; only the row `base` of the map comes first in it. Rows are counted from 0 at the top of the map,
those of the halo are negative. A thread goes down a block, and the window with it.

Arrays are flat and count slots (see `slots`). `maps` are height, width, halo and plane of the maps, their channels,
and how many rows the window has.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.codegen.row_ops import affine, affine_gradient, move


@compiled
def row_of(maps):
    """Slots of a row."""
    return (maps[1] + 2 * maps[2]) * LANES


@compiled
def rolled_by(maps, base):
    """By how much a place in a window lies before the same place in a block of maps."""
    return (base + maps[2]) * row_of(maps)


@compiled
def rolled(window, maps, base, ready, low, high):
    """Make place for rows up to `high`, of which none before `low` will be asked for; the new base and ready.

    Rows from `base` to `ready` are in the window; what is still needed of them stays in it.
    """
    if low < base or low >= ready:
        return low, low
    if high - base <= maps[5]:
        return base, ready
    row = row_of(maps)
    cells = (ready - low) * row // LANES
    for channel in range(maps[4]):
        move(window, channel * maps[3] + (low - base) * row, channel * maps[3], cells)
    return low, ready


@compiled
def _frame(window, maps, row, at):
    """Zero what a row has around the map; whether there is anything else in it."""
    height, width, halo = maps[0], maps[1], maps[2]
    inside = 0 <= row < height
    edge = halo * LANES
    if not inside:
        edge = row_of(maps)
    for i in range(at, at + edge):
        window[i] = 0
    if inside:
        for i in range(at + edge + width * LANES, at + 2 * edge + width * LANES):
            window[i] = 0
    return inside


@compiled
def normalise_rows(x, start, maps, window, base, first, last, scale, shift, relu, valid):
    """Rows [first, last) of `x * scale + shift`, by channel, not below 0 with `relu`, of the block from `start`."""
    width, halo, plane = maps[1], maps[2], maps[3]
    row = row_of(maps)
    for channel in range(maps[4]):
        for h in range(first, last):
            to = channel * plane + (h - base) * row
            if _frame(window, maps, h, to):
                at = start + channel * plane + (h + halo) * row + halo * LANES
                affine(relu, x, window, x, at, to + halo * LANES, width, scale[channel], shift[channel], valid, plane)


@compiled
def slope_rows(norm, gradient, start, maps, window, base, first, last, valid):
    """Rows [first, last) of a gradient sent back through batch norm; see `elementwise.apply_gradient`.

    `norm` is (x, z, other, relu, scale, shift, by_gradient, by_x, constant); `other` gets the gradient before the ReLU.
    """
    x, z, other, relu, scale, shift, by_gradient, by_x, constant = norm
    width, halo, plane = maps[1], maps[2], maps[3]
    row = row_of(maps)
    way = relu * (1 + (z.size > 0) * (1 + (other.size > 0)))
    for channel in range(maps[4]):
        for h in range(first, last):
            to = channel * plane + (h - base) * row
            if _frame(window, maps, h, to):
                at = start + channel * plane + (h + halo) * row + halo * LANES
                affine_gradient(
                    way, x, z, gradient, window, other, at, to + halo * LANES, width, scale[channel], shift[channel],
                    by_gradient[channel], by_x[channel], constant[channel], valid, plane,
                )  # fmt: skip
