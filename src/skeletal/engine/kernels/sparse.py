"""Sparse convolution over kept weights only: forward, backward to the input, gradient of the weights.

All three walk the same tables (see `plan`): tiles of output pixels, and for each output channel the kept weights with
the places that they read. The batch lies innermost, so every step is a whole vector of examples, and nothing here
depends on stride, padding, dilation or groups: they are in the tables.

Work is cut into *units*: a band of tiles of one block of examples, for a part of the output channels. Arrays are flat;
starts and strides count slots (see `slots`), or numbers where it says so.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import fork, held, part_of
from skeletal.engine.codegen.packed_bf16 import LANES, cell, flush, lanes, nothing, read, restore
from skeletal.engine.codegen.tiles import inner, inner_once, product
from skeletal.engine.kernels.line_buffer import normalise_rows, rolled, rolled_by, slope_rows


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
    """Sum and sum of squares of some rows of channels [begin, end) of a block, into `moments` (channels, 2)."""
    _, width, halo, size = grid
    row = (width + 2 * halo) * lanes(maps)
    for channel in range(begin, end):
        total = 0.0
        squares = 0.0
        for h in range(rows[0], rows[1]):
            at = start + channel * size + (h + halo) * row + halo * lanes(maps)
            sum_of_row = squares_of_row = nothing(maps)
            for i in range(width * lanes(maps)):
                value = read(maps, at + i)
                sum_of_row += value
                squares_of_row += value * value
            total += sum_of_row
            squares += squares_of_row
        moments[channel, 0] = total
        moments[channel, 1] = squares


@compiled
def present(x, examples, block):
    """How many examples of a block there are, of a map in slots."""
    return min(cell(x), examples - block * cell(x))


@compiled
def _convolve_band(
    x, x_at, out, out_at, plane, values, offsets, pointers, tiles, band, strides, begin, end,
    scale, shift, other, relu, valid, gate,
):  # fmt: skip
    """The tiles of a band, of output channels [begin, end); see `convolve`."""
    x_row, x_column, out_row, out_column = strides
    after = int(scale.size + other.size + relu + gate.size > 0)
    one, zero = values.dtype.type(1), values.dtype.type(0)
    last_part = pointers.shape[1] - 1
    for part in range(pointers.shape[1]):
        for channel in range(begin, end):
            a, b = (scale[channel], shift[channel]) if scale.size else (one, zero)
            for tile in range(band[0], band[1]):
                kind, phase = tiles[tile, 0], tiles[tile, 1]
                x_start, out_start = x_at + tiles[tile, 2], out_at + tiles[tile, 3]
                product(
                    kind, min(part, 1), x, x_start, x_row, x_column,
                    out, out_start + channel * plane, out_row, out_column, offsets, values,
                    pointers[phase, part, channel], pointers[phase, part, channel + 1],
                    after * (part == last_part), a, b, other, other.size, relu, valid, gate, gate.size,
                )  # fmt: skip


@compiled
def _gradient_band(
    x, x_at, gradient, gradient_at, plane, offsets, pointers, tiles, band, strides, begin, end, sums, per_lane
):
    """What the tiles of a band add to the sums of the kept weights of output channels [begin, end)."""
    x_row, x_column, gradient_row, gradient_column = strides
    for part in range(pointers.shape[1]):
        for channel in range(begin, end):
            for tile in range(band[0], band[1]):
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
def convolve(
    x, x_block, x_maps, before, windows, out, out_block, values, tables, maps,
    grid, scale, shift, other, relu, moments, examples, splits, first, last, thread,
):  # fmt: skip
    """Write a sparse convolution of x, with what precedes and what follows it while that is still in the cache.

    Args:
        x, out: flat; a block of examples every `x_block` and `out_block` elements.
        x_maps, windows: see `rolling`; a window for each thread, used with `before` only.
        before: scale and shift for each channel of x, applied to what is read, and 1 for a ReLU after that; empty for
            none.
        values: of the kept weights.
        tables: offsets, pointers, tiles, bands and strides, see `plan.Tables`.
        maps: the memory of `out`, number by number (see `slots`).
        grid: height, width, halo, plane of `maps`.
        scale, shift: for each output channel, applied afterwards; empty for none.
        other: added afterwards, of the layout of `out`; empty for none.
        relu: 1 ends with it.
        moments: (blocks * bands, output channels, 2), gets sum and sum of squares; empty for none.
        examples: in the whole batch.
        splits: parts of the output channels; a unit is a block of examples, a band of tiles and such a part.
        first, last: units.
        thread: whose window it is.

    """
    offsets, pointers, tiles, bands, strides = tables
    factor, constant, relu_before = before
    size = grid[3]
    plane = size // (lanes(maps) // LANES)
    channels = pointers.shape[2] - 1
    window = windows[thread]
    here, base, ready = -1, 0, 0  # what is in the window
    state = flush(windows)
    for unit in range(first, last):
        block, band, split = unit // splits // bands.shape[0], unit // splits % bands.shape[0], unit % splits
        begin, end = channels * split // splits, channels * (split + 1) // splits
        x_at, out_at = block * x_block, block * out_block
        valid = present(x, examples, block)
        if factor.size:
            if block != here:
                here, base, ready = block, bands[band, 4], bands[band, 4]
            base, ready = rolled(window, x_maps, base, ready, bands[band, 4], bands[band, 5])
            if ready < bands[band, 5]:
                normalise_rows(
                    x, x_at, x_maps, window, base, ready, bands[band, 5], factor, constant, relu_before, valid
                )
                ready = bands[band, 5]
            _convolve_band(
                window, -rolled_by(x_maps, base), out, out_at, plane, values, offsets, pointers, tiles, bands[band],
                strides, begin, end, scale, shift, other, relu, valid, other[:0],
            )  # fmt: skip
        else:
            _convolve_band(
                x, x_at, out, out_at, plane, values, offsets, pointers, tiles, bands[band], strides, begin, end,
                scale, shift, other, relu, valid, other[:0],
            )  # fmt: skip
        if band == 0:
            clear_borders(maps, block * channels * size, size, grid, begin, end)
        if moments.size:
            rows = bands[band, 2], bands[band, 3]
            take_moments(maps, block * channels * size, grid, rows, begin, end, moments[unit // splits])
    restore(windows, state)


@compiled
def share_of(bands, bands_back, band, wanted):
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
    gradient, gradient_block, gradient_maps, norm, gradient_windows, x, x_block, x_maps, before, x_windows,
    tables, sums, out, out_block, values, tables_back, passed, gated, maps, grid, examples, splits, first, last, thread,
):  # fmt: skip
    """A convolution's way back: the gradient of its input, and that of its kept weights.

    Both read the gradient of the output, which with batch norm after the convolution is made here, row by row.

    Args:
        gradient: of the output, or of what batch norm and ReLU made of it.
        gradient_maps, gradient_windows, x_maps, x_windows: see `rolling`.
        norm: as of `rolling.slope_rows`; its last three are empty where the gradient is that of the output already.
        x, before: as of `convolve`.
        tables: forward ones.
        sums: (threads, kept weights, lanes), with a sum for each lane or, where few tiles meet a weight, one for all;
            each thread writes its own, and `add_up` makes gradients of them. Empty where they are not wanted.
        out: gets the gradient of x; empty where that is not wanted.
        values, tables_back: for that gradient.
        passed: added to it; empty for none.
        gated: whether to set it to 0 where x, the result of a ReLU, is not above 0.
        maps, grid: of `out`, as of `convolve`.
        examples: in the whole batch.
        splits: parts of the channels; a unit is a block of examples, a band of tiles and such a part.
        first, last: units.
        thread: whose sums and windows they are.

    """
    offsets, pointers, tiles, bands, strides = tables
    offsets_back, pointers_back, tiles_back, bands_back, strides_back = tables_back
    by_x, (factor, constant, relu) = norm[7], before
    size = grid[3]
    outputs, inputs = pointers.shape[2] - 1, pointers_back.shape[2] - 1
    plane, plane_back = gradient_maps[3], size // (lanes(maps) // LANES)
    mine = sums[thread].reshape(-1)
    mine[:] = 0
    none, gate = values[:0], x if gated else x[:0]
    window, x_window = gradient_windows[thread], x_windows[thread]
    here, base, ready, x_base, x_ready = -1, 0, 0, 0, 0
    state = flush(gradient_windows)
    for unit in range(first, last):
        block, band, split = unit // splits // bands.shape[0], unit // splits % bands.shape[0], unit % splits
        valid = present(gradient, examples, block)
        first_back, last_back, low, high = share_of(bands, bands_back, band, out.size)
        if block != here:
            here, base, ready, x_base, x_ready = block, low, low, bands[band, 4], bands[band, 4]
        at, x_at, out_at = block * gradient_block, block * x_block, block * out_block
        if by_x.size:
            base, ready = rolled(window, gradient_maps, base, ready, low, high)
            if ready < high:
                slope_rows(norm, gradient, at, gradient_maps, window, base, ready, high, valid)
                ready = high
            at = -rolled_by(gradient_maps, base)
        if factor.size and mine.size:
            low, high = bands[band, 4], bands[band, 5]
            x_base, x_ready = rolled(x_window, x_maps, x_base, x_ready, low, high)
            if x_ready < high:
                normalise_rows(x, x_at, x_maps, x_window, x_base, x_ready, high, factor, constant, relu, valid)
                x_ready = high
            x_at = -rolled_by(x_maps, x_base)
        if mine.size:
            begin, end = outputs * split // splits, outputs * (split + 1) // splits
            adding = offsets, pointers, tiles, bands[band], strides, begin, end, mine, sums.shape[2] > 1
            if by_x.size and factor.size:
                _gradient_band(x_window, x_at, window, at, plane, *adding)
            elif by_x.size:
                _gradient_band(x, x_at, window, at, plane, *adding)
            elif factor.size:
                _gradient_band(x_window, x_at, gradient, at, plane, *adding)
            else:
                _gradient_band(x, x_at, gradient, at, plane, *adding)
        begin, end = inputs * split // splits, inputs * (split + 1) // splits
        for i in range(first_back, last_back):
            sending = offsets_back, pointers_back, tiles_back, bands_back[i], strides_back, begin, end
            if by_x.size:
                _convolve_band(
                    window, at, out, out_at, plane_back, values, *sending, none, none, passed, 0, valid, gate
                )
            else:
                _convolve_band(
                    gradient, at, out, out_at, plane_back, values, *sending, none, none, passed, 0, valid, gate
                )
        if band == 0 and split == 0 and norm[2].size:
            clear_borders(norm[2], block * gradient_block, plane, gradient_maps, 0, outputs)
        if out.size and band == 0:
            clear_borders(maps, block * inputs * size, size, grid, begin, end)
    restore(gradient_windows, state)


@compiled
def take(values, order, out):
    """`out = values[order]`."""
    for j in range(len(order)):
        out[j] = values[order[j]]


@compiled
def put(values, order, out):
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


@compiled
def shared_add_up(boards, threads, units, *arguments):
    """`add_up` by several threads."""
    fork(boards, threads, units, part_of(add_up, arguments), held(arguments))
