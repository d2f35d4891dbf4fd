"""Line buffers for the matrix unit.

The unit expects its operands in an order of its own, so everything passes through line *buffers*, like those of
`line_buffer`: rows of all channels of a block of examples, in the cache, but with the channels of a pixel side by
side, 32 at a time. Whatever has to be done to the maps before they are read is done on the way there.

- *Pairs*, [channel // 2][LANES][channel % 2] for even examples, then for odd ones: what forward pass and the gradient
  of x read, which sum over channels.
- *Natural*, [channel][slot], and *turned*, [slot][channel], 16 channels at a time: the gradient of the output and x,
  for the gradient of the weights, which sums over examples.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.layouts import pair_channels, transpose_cells
from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.codegen.row_ops import affine, move
from skeletal.engine.kernels.line_buffer import norm_gradient_row
from skeletal.engine.plan.weight_blocks import HELD, SIDE, STAGED


@compiled
def _roll(buffer, row, rows, base, ready, low, high):
    """`line_buffer._roll`, in a buffer whose rows lie one after the other."""
    if low < base or low >= ready:
        return low, low
    if high - base <= rows:
        return base, ready
    move(buffer, (low - base) * row, 0, (ready - low) * row // LANES)
    return low, ready


@compiled
def _clear(buffer, at, cells):
    for i in range(at, at + cells * LANES):
        buffer[i] = 0


@compiled
def _clear_halo(buffer, maps, h, at, pixel):
    """Zero what a row of a buffer has around the map; returns whether it holds anything else."""
    cells = pixel // LANES
    if not 0 <= h < maps.height:
        _clear(buffer, at, (maps.width + 2 * maps.halo) * cells)
        return False
    _clear(buffer, at, maps.halo * cells)
    _clear(buffer, at + (maps.halo + maps.width) * pixel, maps.halo * cells)
    return True


@compiled
def _pair(source, start, wide, maps, buffer, at, pixel, first, ahead):
    """Lay `STAGED` channels from the first on, whose rows begin `wide` slots apart, into a row of a buffer as pairs."""
    to = at + maps.halo * pixel + first // SIDE * HELD + first % SIDE // 2 * LANES
    for i in range(0, STAGED, 2):
        even, one = to + i // 2 * LANES, start + i * wide
        pair_channels(source, one, one + wide, LANES, buffer, even, even + HELD // 2, pixel, maps.width, ahead)


@compiled
def _turn(source, start, wide, maps, buffer, at, pixel, first, ahead):
    """The same, turned."""
    transpose_cells(source, start, wide, buffer, at + maps.halo * pixel + first * LANES, pixel, maps.width, ahead)


@compiled
def _row_at(source, block, channel, h):
    """Where row h of a channel of a block begins."""
    maps = source.maps
    return (
        block * source.block + channel * maps.plane
        + ((h + maps.halo) * (maps.width + 2 * maps.halo) + maps.halo) * LANES
    )  # fmt: skip


@compiled
def _stage(x, before, block, valid, h, first, stage):
    """Stage row h of `STAGED` channels from the first on, after a `Prologue`; 0 where there are no more."""
    width, plane = x.maps.width, x.maps.plane
    for i in range(STAGED):
        channel, to = first + i, i * width * LANES
        if channel >= x.maps.channels:
            _clear(stage, to, width)
            continue
        at = _row_at(x, block, channel, h)
        if before.scale.size:
            scale, shift = before.scale[channel], before.shift[channel]
            affine(before.relu, x.data, stage, x.data, at, to, width, scale, shift, valid, plane)
        else:
            for j in range(width * LANES):
                stage[to + j] = x.data[at + j]


@compiled
def _stage_gradient(gradient, norm, before, block, valid, h, first, stage):
    """The same of a gradient, sent back through batch norm if there was one; else as `before`, which is empty, says."""
    if not norm.x_factor.size:
        _stage(gradient, before, block, valid, h, first, stage)
        return
    width, plane = gradient.maps.width, gradient.maps.plane
    for i in range(STAGED):
        channel, to = first + i, i * width * LANES
        if channel >= gradient.maps.channels:
            _clear(stage, to, width)
            continue
        at = _row_at(gradient, block, channel, h)
        norm_gradient_row(norm, gradient.data, stage, at, to, width, channel, valid, plane)


@compiled
def fill_pairs(x, before, block, valid, buffer, sizes, base, ready, low, high, stage):
    """Bring rows [low, high) of a block of x into the buffer, as pairs; returns the new base and ready."""
    pixel, row, rows = sizes
    maps = x.maps
    base, ready = _roll(buffer, row, rows, base, ready, low, high)
    for h in range(ready, high):
        at = (h - base) * row
        if _clear_halo(buffer, maps, h, at, pixel):
            for some in range(0, pixel // LANES, STAGED):
                if not before.scale.size and some + STAGED <= maps.channels:
                    start = _row_at(x, block, some, h)
                    _pair(x.data, start, maps.plane, maps, buffer, at, pixel, some, 2 * maps.plane)
                    continue
                _stage(x, before, block, valid, h, some, stage)
                _pair(stage, 0, maps.width * LANES, maps, buffer, at, pixel, some, 0)
    return base, max(ready, high)


@compiled
def fill_turned(x, before, block, valid, buffer, sizes, base, ready, low, high, stage):
    """The same, turned."""
    pixel, row, rows = sizes
    maps = x.maps
    base, ready = _roll(buffer, row, rows, base, ready, low, high)
    for h in range(ready, high):
        at = (h - base) * row
        if _clear_halo(buffer, maps, h, at, pixel):
            for some in range(0, pixel // LANES, STAGED):
                if not before.scale.size and some + STAGED <= maps.channels:
                    start = _row_at(x, block, some, h)
                    _turn(x.data, start, maps.plane, maps, buffer, at, pixel, some, STAGED * maps.plane)
                    continue
                _stage(x, before, block, valid, h, some, stage)
                _turn(stage, 0, maps.width * LANES, maps, buffer, at, pixel, some, 0)
    return base, max(ready, high)


@compiled
def fill_gradient(gradient, norm, none, block, valid, buffer, sizes, base, ready, low, high, stage):
    """The same of a gradient, sent back through batch norm if there was one, as pairs; `none` is an empty prologue."""
    pixel, row, rows = sizes
    maps = gradient.maps
    base, ready = _roll(buffer, row, rows, base, ready, low, high)
    for h in range(ready, high):
        at = (h - base) * row
        if _clear_halo(buffer, maps, h, at, pixel):
            for some in range(0, pixel // LANES, STAGED):
                _stage_gradient(gradient, norm, none, block, valid, h, some, stage)
                _pair(stage, 0, maps.width * LANES, maps, buffer, at, pixel, some, 0)
    return base, max(ready, high)
