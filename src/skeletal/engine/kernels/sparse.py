"""Sparse convolution over kept weights only: forward, backward to the input, gradient of the weights.

All three walk the same tables (see `plan`): tiles of output pixels, and for each output channel the kept weights with
the places that they read. The batch lies innermost, so every step is a whole vector of examples, and nothing here
depends on stride, padding, dilation or groups: they are in the tables.

Work is cut into *units*: a band of tiles of one block of examples, for a part of the output channels. Arrays are flat;
starts and strides count slots (see `packed_bf16`), or numbers where stated.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.packed_bf16 import LANES, cell, empty_sum, flush, lanes, read, restore
from skeletal.engine.codegen.tiles import inner, inner_once, product
from skeletal.engine.kernels.arguments import Epilogue, share_of, unit_of
from skeletal.engine.kernels.line_buffer import buffer_offset, normalised, sent_back


@compiled
def clear_border(out, start, height, width, halo, plane):
    """Zero what surrounds a map: its halo, and the gap at the end of its plane."""
    row = (width + 2 * halo) * lanes(out)
    inside = halo * row + halo * lanes(out)
    for i in range(start, start + inside):
        out[i] = 0
    for h in range(height - 1):  # the end of a row and the start of the next lie side by side
        begin = start + inside + h * row + width * lanes(out)
        for i in range(begin, begin + 2 * halo * lanes(out)):
            out[i] = 0
    for i in range(start + inside + (height - 1) * row + width * lanes(out), start + plane):
        out[i] = 0


@compiled
def clear_borders(out, start, plane, grid, begin, end):
    """The same for channels [begin, end) of a block of maps."""
    for channel in range(begin, end):
        clear_border(out, start + channel * plane, grid[0], grid[1], grid[2], plane)


@compiled
def take_moments(maps, start, grid, rows, begin, end, moments):
    """Sum and sum of squares of some rows of channels [begin, end) of a block, into `moments` (channels, 2).

    In float64, as a variance is what is left of the squares without that of the mean, which may be far larger; with
    maps in bfloat16 by rows in float32, at half the cost, as their own rounding is coarser.
    """
    _, width, halo, size = grid
    row = (width + 2 * halo) * lanes(maps)
    for channel in range(begin, end):
        total = 0.0
        squares = 0.0
        for h in range(rows[0], rows[1]):
            at = start + channel * size + (h + halo) * row + halo * lanes(maps)
            sum_of_row = squares_of_row = empty_sum(maps)
            for i in range(width * lanes(maps)):
                value = empty_sum(maps) + read(maps, at + i)
                sum_of_row += value
                squares_of_row += value * value
            total += sum_of_row
            squares += squares_of_row
        moments[channel, 0] = total
        moments[channel, 1] = squares


@compiled
def present(x, examples, block):
    """How many examples a block really holds, of a map in slots."""
    return min(cell(x), examples - block * cell(x))


@compiled
def _convolve_band(x, x_at, target, out_at, plane, values, tables, band, begin, end, epilogue, valid):
    """The tiles of a band, of output channels [begin, end); see `convolve`."""
    offsets, pointers, tiles, bands, (x_row, x_column, out_row, out_column) = tables
    out, (scale, shift, other, relu, relu_output) = target.data, epilogue
    after = int(scale.size + other.size + relu + relu_output.size > 0)
    one, zero = values.dtype.type(1), values.dtype.type(0)
    last_part = pointers.shape[1] - 1
    for part in range(pointers.shape[1]):
        for channel in range(begin, end):
            a, b = (scale[channel], shift[channel]) if scale.size else (one, zero)
            for tile in range(bands[band, 0], bands[band, 1]):
                kind, phase = tiles[tile, 0], tiles[tile, 1]
                x_start, out_start = x_at + tiles[tile, 2], out_at + tiles[tile, 3]
                product(
                    kind, min(part, 1), x, x_start, x_row, x_column,
                    out, out_start + channel * plane, out_row, out_column, offsets, values,
                    pointers[phase, part, channel], pointers[phase, part, channel + 1],
                    after * (part == last_part), a, b, other, other.size, relu, valid,
                    relu_output, relu_output.size,
                )  # fmt: skip


@compiled
def _gradient_band(x, x_at, gradient, gradient_at, plane, tables, band, begin, end, sums, per_lane):
    """What the tiles of a band add to the sums of the kept weights of output channels [begin, end)."""
    offsets, pointers, tiles, bands, (x_row, x_column, gradient_row, gradient_column) = tables
    for part in range(pointers.shape[1]):
        for channel in range(begin, end):
            for tile in range(bands[band, 0], bands[band, 1]):
                kind, phase = tiles[tile, 0], tiles[tile, 1]
                x_start, start = x_at + tiles[tile, 2], gradient_at + tiles[tile, 3]
                some, others = pointers[phase, part, channel], pointers[phase, part, channel + 1]
                if per_lane:
                    inner(
                        kind, x, x_start, x_row, x_column,
                        gradient, start + channel * plane, gradient_row, gradient_column, offsets, sums, some, others,
                    )  # fmt: skip
                else:
                    inner_once(
                        kind, x, x_start, x_row, x_column,
                        gradient, start + channel * plane, gradient_row, gradient_column, offsets, sums, some, others,
                    )  # fmt: skip


@compiled
def convolve(x, before, target, values, tables, epilogue, moments, examples, splits, first, last, thread):
    """Write a sparse convolution of x, with what precedes and what follows it while that is still in the cache.

    Args:
        x, before, target, epilogue: `Source`, `Prologue`, `Target` and `Epilogue` of `kernels.arguments`; the line
            buffers of x are used with a prologue only.
        values: of the kept weights.
        tables: offsets, pointers, tiles, bands and strides, see `plan.Tables`.
        moments: (blocks * bands, output channels, 2), gets sum and sum of squares; empty for none.
        examples: in the whole batch.
        splits: parts of the output channels; a unit is a block of examples, a band of tiles and such a part.
        first, last: units.
        thread: whose line buffer to use.

    """
    pointers, bands = tables[1], tables[3]
    size = target.grid[3]
    plane = size // (lanes(target.numbers) // LANES)
    channels = pointers.shape[2] - 1
    buffer = x.buffers[thread]
    here, base, ready = -1, 0, 0  # what is in the buffer
    state = flush(x.buffers)
    for unit in range(first, last):
        block, band, split = unit_of(unit, splits, bands.shape[0])
        begin, end = share_of(channels, split, splits)
        out_at, numbers_at = block * target.block, block * channels * size
        valid = present(x.data, examples, block)
        if before.scale.size:
            low, high = bands[band, 4], bands[band, 5]
            if block != here:
                here, base, ready = block, low, low
            base, ready = normalised(x, before, block, buffer, base, ready, low, high, valid)
            at = -buffer_offset(x.maps, base)
            _convolve_band(buffer, at, target, out_at, plane, values, tables, band, begin, end, epilogue, valid)
        else:
            at = block * x.block
            _convolve_band(x.data, at, target, out_at, plane, values, tables, band, begin, end, epilogue, valid)
        if band == 0:
            clear_borders(target.numbers, numbers_at, size, target.grid, begin, end)
        if moments.size:
            rows = bands[band, 2], bands[band, 3]
            take_moments(target.numbers, numbers_at, target.grid, rows, begin, end, moments[unit // splits])
    restore(x.buffers, state)


@compiled
def bands_back_of(bands, bands_back, band, wanted):
    """First and last band of the input's gradient that are made with a band of the output, if that gradient is wanted;
    and first and last row of the output's gradient that both read.
    """
    first, last, low, high = 0, 0, bands[band, 2], bands[band, 3]
    if wanted:
        first = len(bands_back) * band // len(bands)
        last = len(bands_back) * (band + 1) // len(bands)
        for i in range(first, last):
            low, high = min(low, bands_back[i, 4]), max(high, bands_back[i, 5])
    return first, last, low, high


@compiled
def gradients(
    gradient, norm, x, before, tables, sums, target, values, tables_back, passed, relu_backward, examples, splits,
    first, last, thread,
):  # fmt: skip
    """A convolution's backward pass: the gradient of its input, and that of its kept weights.

    Both read the gradient of the output. With batch norm after the convolution, it is made here, row by row.

    Args:
        gradient: `Source`, of the output, or of what batch norm and ReLU made of it.
        norm: `NormGradient`.
        x, before: as in `convolve`.
        tables: forward ones.
        sums: (threads, kept weights, lanes), with a sum for each lane or, where few tiles meet a weight, one for all;
            each thread writes its own, and `add_up` turns them into gradients. Empty where they are not wanted.
        target: gets the gradient of x; its data are empty where that is not wanted.
        values, tables_back: for that gradient.
        passed: added to it; empty for none.
        relu_backward: whether to set it to 0 where x, the result of a ReLU, is not above 0.
        examples: in the whole batch.
        splits: parts of the channels; a unit is a block of examples, a band of tiles and such a part.
        first, last: units.
        thread: whose sums and line buffers to use.

    """
    bands, bands_back = tables[3], tables_back[3]
    has_norm, has_prologue = norm.x_factor.size, before.scale.size
    size = target.grid[3]
    outputs, inputs = tables[1].shape[2] - 1, tables_back[1].shape[2] - 1
    plane, plane_back = gradient.maps.plane, size // (lanes(target.numbers) // LANES)
    mine = sums[thread].reshape(-1)
    mine[:] = 0
    epilogue = Epilogue(values[:0], values[:0], passed, 0, x.data if relu_backward else x.data[:0])
    buffer, x_buffer = gradient.buffers[thread], x.buffers[thread]
    here, base, ready, x_base, x_ready = -1, 0, 0, 0, 0
    state = flush(gradient.buffers)
    for unit in range(first, last):
        block, band, split = unit_of(unit, splits, bands.shape[0])
        valid = present(gradient.data, examples, block)
        first_back, last_back, low, high = bands_back_of(bands, bands_back, band, target.data.size)
        if block != here:
            here, base, ready, x_base, x_ready = block, low, low, bands[band, 4], bands[band, 4]
        at, x_at, out_at = block * gradient.block, block * x.block, block * target.block
        if has_norm:
            base, ready = sent_back(gradient, norm, block, buffer, base, ready, low, high, valid)
            at = -buffer_offset(gradient.maps, base)
        if mine.size:
            if has_prologue:
                low, high = bands[band, 4], bands[band, 5]
                x_base, x_ready = normalised(x, before, block, x_buffer, x_base, x_ready, low, high, valid)
                x_at = -buffer_offset(x.maps, x_base)
            begin, end = share_of(outputs, split, splits)
            adding = plane, tables, band, begin, end, mine, sums.shape[2] > 1
            if has_norm and has_prologue:
                _gradient_band(x_buffer, x_at, buffer, at, *adding)
            elif has_norm:
                _gradient_band(x.data, x_at, buffer, at, *adding)
            elif has_prologue:
                _gradient_band(x_buffer, x_at, gradient.data, at, *adding)
            else:
                _gradient_band(x.data, x_at, gradient.data, at, *adding)
        begin, end = share_of(inputs, split, splits)
        for i in range(first_back, last_back):
            sending = target, out_at, plane_back, values, tables_back, i, begin, end, epilogue, valid
            if has_norm:
                _convolve_band(buffer, at, *sending)
            else:
                _convolve_band(gradient.data, at, *sending)
        if band == 0 and split == 0 and norm.other.size:
            clear_borders(norm.other, block * gradient.block, plane, gradient.maps, 0, outputs)
        if target.data.size and band == 0:
            clear_borders(target.numbers, block * inputs * size, size, target.grid, begin, end)
    restore(gradient.buffers, state)


@compiled
def gather(values, order, out):
    """`out = values[order]`."""
    for j in range(len(order)):
        out[j] = values[order[j]]


@compiled
def scatter(values, order, out):
    """`out[order] = values`."""
    for j in range(len(order)):
        out[order[j]] = values[j]


@compiled
def add_up(sums, order, gradient, first, last, thread):
    """`gradient[order[j]]` = all that threads and lanes have summed up for j."""
    for j in range(first, last):
        total = sums.dtype.type(0)
        for row in range(sums.shape[0]):
            for lane in range(sums.shape[2]):
                total += sums[row, j, lane]
        gradient[order[j]] = total
