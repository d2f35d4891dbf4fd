"""Sparse convolution over kept weights only: forward, backward to the input, gradient of the weights.

All three walk the same tables (see `plan`): tiles of output pixels, and for each output channel the kept weights with
the places that they read. The batch lies innermost, so every step is a whole vector of examples, and nothing here
depends on stride, padding, dilation or groups: they are in the tables.

Work is cut into *units*: a band of tiles of one block of examples, for a part of the output channels. Arrays are flat;
starts and strides count slots (see `slots`), or numbers where it says so.
"""

from skeletal.engine.compiling import compiled
from skeletal.engine.fork import fork, held, part_of
from skeletal.engine.slots import LANES, cell, lanes, nothing, read
from skeletal.engine.tiles import inner, inner_once, product


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
def present(x, examples, block):
    """How many examples of a block there are, of a map in slots."""
    return min(cell(x), examples - block * cell(x))


@compiled
def convolve(
    x, x_block, out, out_block, values, offsets, pointers, tiles, bands, strides, maps,
    grid, scale, shift, other, relu, moments, examples, splits, first, last, thread,
):  # fmt: skip
    """Write a sparse convolution of x, with what follows it while it is still in the cache.

    Args:
        x, out: flat; a block of examples every `x_block` and `out_block` elements.
        values, offsets: of the kept weights: what each is, and where it reads, relative to the tile.
        pointers: (phases, blocks of input channels, output channels + 1), into the two.
        tiles: (tiles, 5): kind, phase, start in x, start in out, pixels.
        bands: (bands, 4): first and last tile, first and last row of the map.
        strides: x_row, x_column, out_row, out_column of a tile.
        maps: the memory of `out`, number by number (see `slots`).
        grid: height, width, halo, plane of `maps`.
        scale, shift: for each output channel, applied afterwards; empty for none.
        other: added afterwards, of the layout of `out`; empty for none.
        relu: 1 ends with it.
        moments: (blocks * bands, output channels, 2), gets sum and sum of squares; empty for none.
        examples: in the whole batch.
        splits: parts of the output channels; a unit is a block of examples, a band of tiles and such a part.
        first, last: units.
        thread: unused; see `weight_gradient`.

    """
    x_row, x_column, out_row, out_column = strides
    height, width, halo, size = grid
    plane = size // (lanes(maps) // LANES)
    channels = pointers.shape[2] - 1
    after = int(scale.size + other.size + relu > 0)
    one, zero = values.dtype.type(1), values.dtype.type(0)
    last_part = pointers.shape[1] - 1
    row = (width + 2 * halo) * lanes(maps)
    inside = halo * row + halo * lanes(maps)
    for unit in range(first, last):
        block, band, split = unit // splits // bands.shape[0], unit // splits % bands.shape[0], unit % splits
        begin, end = channels * split // splits, channels * (split + 1) // splits
        x_at, out_at = block * x_block, block * out_block
        valid = present(x, examples, block)
        for tile in range(bands[band, 0], bands[band, 1]):
            kind, phase = tiles[tile, 0], tiles[tile, 1]
            x_start, out_start = x_at + tiles[tile, 2], out_at + tiles[tile, 3]
            for part in range(pointers.shape[1]):
                for channel in range(begin, end):
                    a, b = (scale[channel], shift[channel]) if scale.size else (one, zero)
                    product(
                        kind, min(part, 1), x, x_start, x_row, x_column,
                        out, out_start + channel * plane, out_row, out_column, offsets, values,
                        pointers[phase, part, channel], pointers[phase, part, channel + 1],
                        after * (part == last_part), a, b, other, other.size, relu, valid,
                    )  # fmt: skip
        first_map = block * channels * size
        if band == 0:
            for channel in range(begin, end):
                clear_border(maps, first_map + channel * size, height, width, halo, size)
        if moments.size:
            for channel in range(begin, end):
                total = 0.0
                squares = 0.0
                for h in range(bands[band, 2], bands[band, 3]):
                    start = first_map + channel * size + inside + h * row
                    sum_of_row = squares_of_row = nothing(maps)
                    for i in range(width * lanes(maps)):
                        value = read(maps, start + i)
                        sum_of_row += value
                        squares_of_row += value * value
                    total += sum_of_row
                    squares += squares_of_row
                moments[unit // splits, channel, 0] = total
                moments[unit // splits, channel, 1] = squares


@compiled
def shared_convolve(boards, threads, units, *arguments):
    """`convolve` by several threads."""
    fork(boards, threads, units, part_of(convolve, arguments), held(arguments))


@compiled
def weight_gradient(
    x, x_block, gradient, gradient_block, offsets, pointers, tiles, bands, strides, plane, sums, splits,
    first, last, thread,
):  # fmt: skip
    """Add up, for each kept weight, what it read times the gradient of what it was added to.

    Tables as of `convolve`, of the forward plan. `sums` is (threads, kept weights, lanes), with a sum for each lane or,
    where few tiles meet a weight, one for all; each thread writes its own. `add_up` makes gradients of them.
    """
    x_row, x_column, gradient_row, gradient_column = strides
    channels = pointers.shape[2] - 1
    mine = sums[thread].reshape(-1)
    mine[:] = 0
    per_lane = sums.shape[2] > 1
    for unit in range(first, last):
        block, band, split = unit // splits // bands.shape[0], unit // splits % bands.shape[0], unit % splits
        begin, end = channels * split // splits, channels * (split + 1) // splits
        x_at, gradient_at = block * x_block, block * gradient_block
        for part in range(pointers.shape[1]):
            for tile in range(bands[band, 0], bands[band, 1]):
                kind, phase = tiles[tile, 0], tiles[tile, 1]
                x_start, start = x_at + tiles[tile, 2], gradient_at + tiles[tile, 3]
                for channel in range(begin, end):
                    some, others = pointers[phase, part, channel], pointers[phase, part, channel + 1]
                    if per_lane:
                        inner(
                            kind, x, x_start, x_row, x_column,
                            gradient, start + channel * plane, gradient_row, gradient_column, offsets, mine,
                            some, others,
                        )  # fmt: skip
                    else:
                        inner_once(
                            kind, x, x_start, x_row, x_column,
                            gradient, start + channel * plane, gradient_row, gradient_column, offsets, mine,
                            some, others,
                        )  # fmt: skip


@compiled
def shared_weight_gradient(boards, threads, units, *arguments):
    """`weight_gradient` by several threads."""
    fork(boards, threads, units, part_of(weight_gradient, arguments), held(arguments))


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
