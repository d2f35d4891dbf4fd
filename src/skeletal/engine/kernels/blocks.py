"""`kernels.convolve` and `kernels.gradients` for convolutions that keep much, on the matrix unit: see `squares`.

The unit wants what it multiplies in an order of its own, so everything passes through *windows*, as what `rolling`
makes does: rows of all channels of a block of examples, in the cache, but with the channels of a pixel side by side, 32
and 32. What is to become of the maps before they are read happens on the way there.

- *Pairs*, [channel // 2][LANES][channel % 2] for even examples, then for odd ones: what forward pass and the gradient
  of x read, which sum over channels.
- *Natural*, [channel][slot], and *turned*, [slot][channel], 16 channels at a time: the gradient of the output and x,
  for the gradient of the weights, which sums over examples.

Units, maps and arguments are as of `kernels`, if nothing else is said; tables are `squares.Squares`. All in slots.
"""

import numpy as np

from skeletal.engine.codegen.amx import clear_sums, configure, load_sums, multiply_add, release, store_sums
from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.layouts import exchange, finish, turn
from skeletal.engine.codegen.packed_bf16 import LANES, write
from skeletal.engine.codegen.row_ops import affine, affine_gradient, move
from skeletal.engine.kernels.sparse import clear_borders, present, share_of
from skeletal.engine.plan.weight_blocks import HELD, SIDE, STAGED

_SQUARE = SIDE * SIDE


@compiled
def fill(values, order, squares, first, last, thread):
    """Squares of weights, two of them in a slot, from kept values."""
    sort, starts, places = order
    numbers = squares.view(np.int16)
    for square in range(first, last):
        numbers[square * _SQUARE : (square + 1) * _SQUARE] = 0
        for j in range(starts[square], starts[square + 1]):
            write(numbers, places[j], values[sort[j]])


@compiled
def gather(sums, order, gradient, first, last, thread):
    """`kernels.add_up`, for squares [first, last)."""
    sort, starts, places = order
    for j in range(starts[first], starts[last]):
        total = sums.dtype.type(0)
        for row in range(sums.shape[0]):
            total += sums[row, places[j], 0]
        gradient[sort[j]] = total


@compiled
def _roll(window, row, rows, base, ready, low, high):
    """`rolling.rolled`, in a window whose rows lie one after the other."""
    if low < base or low >= ready:
        return low, low
    if high - base <= rows:
        return base, ready
    move(window, (low - base) * row, 0, (ready - low) * row // LANES)
    return low, ready


@compiled
def _clear(window, at, cells):
    for i in range(at, at + cells * LANES):
        window[i] = 0


@compiled
def _frame(window, maps, h, at, pixel):
    """Zero what a row of a window has around the map; whether there is anything else in it."""
    height, width, halo = maps[0], maps[1], maps[2]
    cells = pixel // LANES
    if not 0 <= h < height:
        _clear(window, at, (width + 2 * halo) * cells)
        return False
    _clear(window, at, halo * cells)
    _clear(window, at + (halo + width) * pixel, halo * cells)
    return True


@compiled
def _pair(source, start, wide, maps, window, at, pixel, first, ahead):
    """Lay `STAGED` channels from the first on, whose rows begin `wide` slots apart, into a row of a window as pairs."""
    to = at + maps[2] * pixel + first // SIDE * HELD + first % SIDE // 2 * LANES
    for i in range(0, STAGED, 2):
        even, one = to + i // 2 * LANES, start + i * wide
        exchange(source, one, one + wide, LANES, window, even, even + HELD // 2, pixel, maps[1], ahead)


@compiled
def _turn(source, start, wide, maps, window, at, pixel, first, ahead):
    """The same, turned."""
    turn(source, start, wide, window, at + maps[2] * pixel + first * LANES, pixel, maps[1], ahead)


@compiled
def _inside(maps, start, channel, h):
    """Where row h of a channel begins, of the block from `start`."""
    return start + channel * maps[3] + ((h + maps[2]) * (maps[1] + 2 * maps[2]) + maps[2]) * LANES


@compiled
def _ready(x, start, maps, scale, shift, relu, valid, h, first, stage):
    """Stage row h of `STAGED` channels from the first on, normalised if there is a scale; 0 where there are no more."""
    width, plane = maps[1], maps[3]
    for i in range(STAGED):
        channel = first + i
        if channel < maps[4]:
            at = _inside(maps, start, channel, h)
            if scale.size:
                affine(
                    relu, x, stage, x, at, i * width * LANES, width, scale[channel], shift[channel], valid, plane
                )  # fmt: skip
            else:
                for j in range(width * LANES):
                    stage[i * width * LANES + j] = x[at + j]
        else:
            _clear(stage, i * width * LANES, width)


@compiled
def _slope(norm, gradient, start, maps, valid, h, first, stage):
    """The same of a gradient, sent back through batch norm if there was one; see `rolling.slope_rows`."""
    x, z, other, relu, scale, shift, by_gradient, by_x, constant = norm
    width, plane = maps[1], maps[3]
    if not by_x.size:
        _ready(gradient, start, maps, by_x, by_x, 0, valid, h, first, stage)
        return
    way = relu * (1 + (z.size > 0) * (1 + (other.size > 0)))
    for i in range(STAGED):
        channel = first + i
        if channel < maps[4]:
            at = _inside(maps, start, channel, h)
            affine_gradient(
                way, x, z, gradient, stage, other, at, i * width * LANES, width, scale[channel], shift[channel],
                by_gradient[channel], by_x[channel], constant[channel], valid, plane,
            )  # fmt: skip
        else:
            _clear(stage, i * width * LANES, width)


@compiled
def _sum_up(weights, window, ahead, offsets, some, others, tile, strides, pixel, sums, row):
    """The sums of 32 output channels, of squares [some, others), at the pixels of a tile: (32, pixels, 2, LANES)."""
    cell = 0
    for r in range(tile[0]):
        for c in range(tile[1]):
            at = (tile[3] + r * strides[0] + c * strides[1]) * pixel - ahead
            clear_sums()
            for j in range(some, others):
                multiply_add(weights, j * (_SQUARE // 2), window, at + offsets[j])
            store_sums(sums, cell * 2 * LANES, row)
            cell += 1


@compiled
def _write(
    sums, row, out, out_at, plane, tile, strides, first, channels, scale, shift, other, relu, valid, gate, moments
):
    """What becomes of the sums of the channels from `first` on, of `channels` in all; see `kernels.convolve`."""
    a, b = sums.dtype.type(1), sums.dtype.type(0)
    for i in range(min(SIDE, channels - first)):
        if scale.size:
            a, b = scale[first + i], shift[first + i]
        total, squares = 0.0, 0.0
        for r in range(tile[0]):
            to = out_at + (first + i) * plane + tile[4] + r * strides[2]
            found = finish(
                sums, i * row + r * tile[1] * 2 * LANES, out, to, strides[3], tile[1], a, b,
                other, other.size, relu, valid, gate, gate.size, plane,
            )  # fmt: skip
            total += found[0]
            squares += found[1]
        if moments.size:
            moments[first + i, 0], moments[first + i, 1] = total, squares


@compiled
def convolve_squares(
    x, x_block, x_maps, before, windows, out, out_block, weights, tables, maps,
    grid, scale, shift, other, relu, moments, examples, splits, first, last, thread,
):  # fmt: skip
    """`kernels.convolve`; a window holds rows of x, then rows that are staged, then sums."""
    offsets, pointers, tiles, bands, strides, (channels, pixel, row, rows, of_sums) = tables
    factor, constant, relu_before = before
    plane = grid[3] // 2
    window = windows[thread].view(np.int32)
    stage = window[rows * row :]
    sums = windows[thread].view(np.float32)[rows * row + STAGED * x_maps[1] * LANES :]
    no_moments = np.empty((0, 2))
    here, base, ready = -1, 0, 0  # what is in the window
    sides = pointers.shape[1] - 1
    configure()
    for unit in range(first, last):
        block, band, split = unit // splits // bands.shape[0], unit // splits % bands.shape[0], unit % splits
        begin, end = sides * split // splits, sides * (split + 1) // splits
        valid = present(x, examples, block)
        low, high = bands[band, 4], bands[band, 5]
        if block != here:
            here, base, ready = block, low, low
        base, ready = _roll(window, row, rows, base, ready, low, high)
        for h in range(ready, high):
            at = (h - base) * row
            if _frame(window, x_maps, h, at, pixel):
                for some in range(0, pixel // LANES, STAGED):
                    if not factor.size and some + STAGED <= x_maps[4]:
                        start, wide = _inside(x_maps, block * x_block, some, h), x_maps[3]
                        _pair(x, start, wide, x_maps, window, at, pixel, some, 2 * wide)
                        continue
                    _ready(x, block * x_block, x_maps, factor, constant, relu_before, valid, h, some, stage)
                    _pair(stage, 0, x_maps[1] * LANES, x_maps, window, at, pixel, some, 0)
        ready = max(ready, high)
        ahead = (base + x_maps[2]) * row
        of_unit = moments[unit // splits] if len(moments) else no_moments
        for side in range(begin, end):
            some, others = pointers[0, side], pointers[0, side + 1]
            _sum_up(weights, window, ahead, offsets, some, others, tiles[band], strides, pixel, sums, of_sums)
            _write(
                sums, of_sums, out, block * out_block, plane, tiles[band], strides, side * SIDE, channels,
                scale, shift, other, relu, valid, other[:0], of_unit,
            )  # fmt: skip
        if band == 0:
            begin, end = min(begin * SIDE, channels), min(end * SIDE, channels)
            clear_borders(maps, block * channels * grid[3], grid[3], grid, begin, end)
    release()


@compiled
def _natural(window, ahead, pixel, held, natural, tile, row):
    """Cells of 32 channels of pairs, from `held` on, that a tile meets, as they were."""
    for r in range(tile[0]):
        at = (tile[4] + r * row) // LANES * pixel - ahead + held
        for i in range(0, HELD // 2, LANES):
            to = r * tile[1] * HELD + 2 * i
            exchange(window, at + i, at + i + HELD // 2, pixel, natural, to, to + LANES, HELD, tile[1], 0)


@compiled
def _add(x, ahead, x_pixel, natural, offsets, some, others, tile, strides, sums):
    """What a tile adds to the gradients of squares [some, others), which share their output channels."""
    for j in range(some, others):
        load_sums(sums, j * _SQUARE, SIDE)
        at = 0
        for r in range(tile[0]):
            for c in range(tile[1]):
                place = (tile[3] + r * strides[0] + c * strides[1]) * x_pixel - ahead
                multiply_add(natural, at, x, place + offsets[j])
                at += HELD
        store_sums(sums, j * _SQUARE, SIDE)


@compiled
def gradients_of_squares(
    gradient, gradient_block, gradient_maps, norm, gradient_windows, x, x_block, x_maps, before, x_windows,
    tables, sums, out, out_block, weights, tables_back, passed, gated, maps, grid,
    examples, splits, first, last, thread,
):  # fmt: skip
    """`kernels.gradients`; `sums` are numbers of squares, and windows always needed: of the gradient, with room for
    natural cells of a band, for rows that are staged and for sums, and of x.
    """
    offsets, pointers, tiles, bands, strides, (outputs, x_pixel, x_row, x_rows, of_channel) = tables
    offsets_back, pointers_back, tiles_back, bands_back, strides_back, (inputs, pixel, row, rows, of_sums) = tables_back
    factor, constant, relu = before
    mine = sums[thread].reshape(-1)
    mine[:] = 0
    cells = of_channel // (2 * LANES)
    none, gate, no_moments = sums[0, 0, :0], x if gated else x[:0], np.empty((0, 2))
    window, x_window = gradient_windows[thread].view(np.int32), x_windows[thread].view(np.int32)
    natural = window[rows * row :]
    stage = natural[cells * HELD :]
    scratch = stage[STAGED * max(x_maps[1], gradient_maps[1]) * LANES :].view(np.float32)
    here, base, ready, x_base, x_ready = -1, 0, 0, 0, 0
    sides, sides_back = pointers.shape[1] - 1, pointers_back.shape[1] - 1
    configure()
    for unit in range(first, last):
        block, band, split = unit // splits // bands.shape[0], unit // splits % bands.shape[0], unit % splits
        valid = present(gradient, examples, block)
        first_back, last_back, low, high = share_of(bands, bands_back, band, out.size)
        x_low, x_high = bands[band, 4], bands[band, 5]
        if block != here:
            here, base, ready, x_base, x_ready = block, low, low, x_low, x_low
        base, ready = _roll(window, row, rows, base, ready, low, high)
        for h in range(ready, high):
            at = (h - base) * row
            if _frame(window, gradient_maps, h, at, pixel):
                for some in range(0, pixel // LANES, STAGED):
                    _slope(norm, gradient, block * gradient_block, gradient_maps, valid, h, some, stage)
                    _pair(stage, 0, gradient_maps[1] * LANES, gradient_maps, window, at, pixel, some, 0)
        ready = max(ready, high)
        ahead = (base + gradient_maps[2]) * row
        if mine.size:
            x_base, x_ready = _roll(x_window, x_row, x_rows, x_base, x_ready, x_low, x_high)
            for h in range(x_ready, x_high):
                at = (h - x_base) * x_row
                if _frame(x_window, x_maps, h, at, x_pixel):
                    for some in range(0, x_pixel // LANES, STAGED):
                        if not factor.size and some + STAGED <= x_maps[4]:
                            start, wide = _inside(x_maps, block * x_block, some, h), x_maps[3]
                            _turn(x, start, wide, x_maps, x_window, at, x_pixel, some, STAGED * wide)
                            continue
                        _ready(x, block * x_block, x_maps, factor, constant, relu, valid, h, some, stage)
                        _turn(stage, 0, x_maps[1] * LANES, x_maps, x_window, at, x_pixel, some, 0)
            x_ready = max(x_ready, x_high)
            for side in range(sides * split // splits, sides * (split + 1) // splits):
                some, others = pointers[0, side], pointers[0, side + 1]
                _natural(window, ahead, pixel, side * HELD, natural, tiles[band], strides[2])
                x_ahead = (x_base + x_maps[2]) * x_row
                _add(x_window, x_ahead, x_pixel, natural, offsets, some, others, tiles[band], strides, mine)
        begin, end = sides_back * split // splits, sides_back * (split + 1) // splits
        for i in range(first_back, last_back):
            tile, empty = tiles_back[i], False
            for side in range(begin, end):
                some, others = pointers_back[tile[2], side], pointers_back[tile[2], side + 1]
                if not (empty and some == others):
                    _sum_up(
                        weights, window, ahead, offsets_back, some, others, tile, strides_back, pixel, scratch, of_sums
                    )
                empty = some == others
                _write(
                    scratch, of_sums, out, block * out_block, grid[3] // 2, tile, strides_back, side * SIDE, inputs,
                    none, none, passed, 0, valid, gate, no_moments,
                )  # fmt: skip
        if band == 0 and split == 0 and norm[2].size:
            clear_borders(norm[2], block * gradient_block, gradient_maps[3], gradient_maps, 0, outputs)
        if out.size and band == 0:
            begin, end = min(begin * SIDE, inputs), min(end * SIDE, inputs)
            clear_borders(maps, block * inputs * grid[3], grid[3], grid, begin, end)
    release()
