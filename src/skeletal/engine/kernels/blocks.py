"""`sparse.convolve` and `sparse.gradients` for dense enough convolutions, on the matrix unit: see `weight_blocks`.

Its operands pass through line buffers of another order: see `block_buffer`.

Unless stated otherwise, units, maps and arguments are as in `sparse`; tables are `WeightBlocks`. All in slots.
"""

import numpy as np

from skeletal.engine.codegen.amx import clear_sums, configure, load_sums, multiply_add, release, store_sums
from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.layouts import finish, pair_channels
from skeletal.engine.codegen.packed_bf16 import LANES, write
from skeletal.engine.kernels.arguments import Epilogue, Prologue, share_of, unit_of
from skeletal.engine.kernels.block_buffer import fill_gradient, fill_pairs, fill_turned
from skeletal.engine.kernels.sparse import bands_back_of, clear_borders, present
from skeletal.engine.plan.weight_blocks import HELD, SIDE, STAGED

_BLOCK = SIDE * SIDE


@compiled
def fill_blocks(values, order, blocks, first, last, thread):
    """Blocks of weights, two of them in a slot, from kept values."""
    sort, starts, positions = order
    numbers = blocks.view(np.int16)
    for block in range(first, last):
        numbers[block * _BLOCK : (block + 1) * _BLOCK] = 0
        for j in range(starts[block], starts[block + 1]):
            write(numbers, positions[j], values[sort[j]])


@compiled
def gather_gradients(sums, order, gradient, first, last, thread):
    """`sparse.add_up`, for blocks [first, last)."""
    sort, starts, positions = order
    for j in range(starts[first], starts[last]):
        total = sums.dtype.type(0)
        for row in range(sums.shape[0]):
            total += sums[row, positions[j], 0]
        gradient[sort[j]] = total


@compiled
def _sum_up(weights, buffer, ahead, offsets, some, others, tile, strides, pixel, sums, row):
    """The sums of 32 output channels, of blocks [some, others), at the pixels of a tile: (32, pixels, 2, LANES)."""
    cell = 0
    for r in range(tile[0]):
        for c in range(tile[1]):
            at = (tile[3] + r * strides[0] + c * strides[1]) * pixel - ahead
            clear_sums()
            for j in range(some, others):
                multiply_add(weights, j * (_BLOCK // 2), buffer, at + offsets[j])
            store_sums(sums, cell * 2 * LANES, row)
            cell += 1


@compiled
def _write(sums, row, target, block, tile, strides, first, channels, epilogue, valid, moments):
    """What becomes of the sums of the channels from `first` on, of `channels` in all; see `sparse.convolve`."""
    scale, shift, other, relu, relu_output = epilogue
    plane = target.grid[3] // 2
    a, b = sums.dtype.type(1), sums.dtype.type(0)
    for i in range(min(SIDE, channels - first)):
        if scale.size:
            a, b = scale[first + i], shift[first + i]
        total, squares = 0.0, 0.0
        for r in range(tile[0]):
            to = block * target.block + (first + i) * plane + tile[4] + r * strides[2]
            found = finish(
                sums, i * row + r * tile[1] * 2 * LANES, target.data, to, strides[3], tile[1], a, b,
                other, other.size, relu, valid, relu_output, relu_output.size, plane,
            )  # fmt: skip
            total += found[0]
            squares += found[1]
        if moments.size:
            moments[first + i, 0], moments[first + i, 1] = total, squares


@compiled
def convolve_blocks(x, before, target, weights, tables, epilogue, moments, examples, splits, first, last, thread):
    """`sparse.convolve`; a buffer holds rows of x, then rows that are staged, then sums."""
    offsets, pointers, tiles, bands, strides, (channels, pixel, row, rows, sums_row) = tables
    sizes, size = (pixel, row, rows), target.grid[3]
    buffer = x.buffers[thread].view(np.int32)
    stage = buffer[rows * row :]
    sums = x.buffers[thread].view(np.float32)[rows * row + STAGED * x.maps.width * LANES :]
    no_moments = np.empty((0, 2))
    here, base, ready = -1, 0, 0  # what is in the buffer
    sides = pointers.shape[1] - 1
    configure()
    for unit in range(first, last):
        block, band, split = unit_of(unit, splits, bands.shape[0])
        begin, end = share_of(sides, split, splits)
        valid = present(x.data, examples, block)
        low, high = bands[band, 4], bands[band, 5]
        if block != here:
            here, base, ready = block, low, low
        base, ready = fill_pairs(x, before, block, valid, buffer, sizes, base, ready, low, high, stage)
        ahead = (base + x.maps.halo) * row
        unit_moments = moments[unit // splits] if len(moments) else no_moments
        for side in range(begin, end):
            some, others = pointers[0, side], pointers[0, side + 1]
            _sum_up(weights, buffer, ahead, offsets, some, others, tiles[band], strides, pixel, sums, sums_row)
            _write(
                sums, sums_row, target, block, tiles[band], strides, side * SIDE, channels, epilogue, valid,
                unit_moments,
            )  # fmt: skip
        if band == 0:
            begin, end = min(begin * SIDE, channels), min(end * SIDE, channels)
            clear_borders(target.numbers, block * channels * size, size, target.grid, begin, end)
    release()


@compiled
def _natural(buffer, ahead, pixel, held, natural, tile, row):
    """Cells of 32 channels of pairs, from `held` on, that a tile meets, as they were."""
    for r in range(tile[0]):
        at = (tile[4] + r * row) // LANES * pixel - ahead + held
        for i in range(0, HELD // 2, LANES):
            to = r * tile[1] * HELD + 2 * i
            pair_channels(buffer, at + i, at + i + HELD // 2, pixel, natural, to, to + LANES, HELD, tile[1], 0)


@compiled
def _add(x, ahead, x_pixel, natural, offsets, some, others, tile, strides, sums):
    """What a tile adds to the gradients of blocks [some, others), which share their output channels."""
    for j in range(some, others):
        load_sums(sums, j * _BLOCK, SIDE)
        at = 0
        for r in range(tile[0]):
            for c in range(tile[1]):
                start = (tile[3] + r * strides[0] + c * strides[1]) * x_pixel - ahead
                multiply_add(natural, at, x, start + offsets[j])
                at += HELD
        store_sums(sums, j * _BLOCK, SIDE)


@compiled
def gradients_of_blocks(
    gradient, norm, x, before, tables, sums, target, weights, tables_back, passed, relu_backward, examples, splits,
    first, last, thread,
):  # fmt: skip
    """`sparse.gradients`; sums are (threads, numbers of all blocks, 1). One thread's buffers hold

    - rows of the gradient as pairs, a tile of 32 of its channels as they were, rows that are staged, and sums;
    - rows of x, turned.
    """
    offsets, pointers, tiles, bands, strides, (outputs, x_pixel, x_row, x_rows, sums_row) = tables
    offsets_back, pointers_back, tiles_back, bands_back, strides_back, sizes_back = tables_back
    inputs, pixel, row, rows, sums_row_back = sizes_back
    mine = sums[thread].reshape(-1)
    mine[:] = 0
    none, no_moments = sums[0, 0, :0], np.empty((0, 2))
    epilogue = Epilogue(none, none, passed, 0, x.data if relu_backward else x.data[:0])
    empty = Prologue(none, none, 0)
    buffer, x_buffer = gradient.buffers[thread].view(np.int32), x.buffers[thread].view(np.int32)
    natural = buffer[rows * row :]
    stage = natural[sums_row // (2 * LANES) * HELD :]
    scratch = stage[STAGED * max(x.maps.width, gradient.maps.width) * LANES :].view(np.float32)
    here, base, ready, x_base, x_ready = -1, 0, 0, 0, 0
    sides, sides_back = pointers.shape[1] - 1, pointers_back.shape[1] - 1
    sizes, x_sizes, size = (pixel, row, rows), (x_pixel, x_row, x_rows), target.grid[3]
    configure()
    for unit in range(first, last):
        block, band, split = unit_of(unit, splits, bands.shape[0])
        valid = present(gradient.data, examples, block)
        first_back, last_back, low, high = bands_back_of(bands, bands_back, band, target.data.size)
        x_low, x_high = bands[band, 4], bands[band, 5]
        if block != here:
            here, base, ready, x_base, x_ready = block, low, low, x_low, x_low
        base, ready = fill_gradient(
            gradient, norm, empty, block, valid, buffer, sizes, base, ready, low, high, stage
        )  # fmt: skip
        ahead = (base + gradient.maps.halo) * row
        if mine.size:
            x_base, x_ready = fill_turned(
                x, before, block, valid, x_buffer, x_sizes, x_base, x_ready, x_low, x_high, stage
            )  # fmt: skip
            begin, end = share_of(sides, split, splits)
            for side in range(begin, end):
                some, others = pointers[0, side], pointers[0, side + 1]
                _natural(buffer, ahead, pixel, side * HELD, natural, tiles[band], strides[2])
                x_ahead = (x_base + x.maps.halo) * x_row
                _add(x_buffer, x_ahead, x_pixel, natural, offsets, some, others, tiles[band], strides, mine)
        begin, end = share_of(sides_back, split, splits)
        for i in range(first_back, last_back):
            tile, cleared = tiles_back[i], False
            for side in range(begin, end):
                some, others = pointers_back[tile[2], side], pointers_back[tile[2], side + 1]
                if not (cleared and some == others):
                    _sum_up(
                        weights, buffer, ahead, offsets_back, some, others, tile, strides_back, pixel, scratch,
                        sums_row_back,
                    )  # fmt: skip
                cleared = some == others
                _write(
                    scratch, sums_row_back, target, block, tile, strides_back, side * SIDE, inputs, epilogue, valid,
                    no_moments,
                )  # fmt: skip
        if band == 0 and split == 0 and norm.other.size:
            plane = gradient.maps.plane
            clear_borders(norm.other, block * gradient.block, plane, gradient.maps, 0, outputs)
        if target.data.size and band == 0:
            begin, end = min(begin * SIDE, inputs), min(end * SIDE, inputs)
            clear_borders(target.numbers, block * inputs * size, size, target.grid, begin, end)
    release()
