"""Batch norm, addition, ReLU and pooling on blocked maps (see `grid`), each in as few passes as it takes.

Units are planes: one channel of one block of examples. Arrays are flat, and all maps of one call lie on one grid,
unless said otherwise.
"""

from skeletal.engine.kernels import clear_border, clear_lanes, compiled
from skeletal.engine.tiles import LANES, give_back, largest


@compiled
def moments(x, grid, channels, sums, first, last, thread):
    """Sum and sum of squares of every plane, into `sums` (planes, 2)."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    for unit in range(first, last):
        total = squares = 0.0
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            sum_of_row = squares_of_row = x.dtype.type(0)
            for i in range(start, start + width * LANES):
                sum_of_row += x[i]
                squares_of_row += x[i] * x[i]
            total += sum_of_row
            squares += squares_of_row
        sums[unit, 0] = total
        sums[unit, 1] = squares


@compiled
def scale_shift(x, out, grid, channels, scale, shift, other, relu, examples, first, last, thread):
    """`out = x * scale + shift (+ other)`, by channel, not below 0 with `relu`."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    length = width * LANES
    for unit in range(first, last):
        block, channel = unit // channels, unit % channels
        clear_border(out, unit * plane, height, width, halo, plane)
        a, b = scale[channel], shift[channel]
        valid = min(LANES, examples - block * LANES)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            for i in range(start, start + length):
                value = x[i] * a + b
                if other.size:
                    value += other[i]
                out[i] = 0 if relu and value < 0 else value
            clear_lanes(out, start, length, valid)


@compiled
def reduce_gradient(x, z, gradient, grid, channels, scale, shift, relu, sums, first, last, thread):
    """Sums of the gradient before the ReLU, and of its product with x, of every plane, into `sums` (planes, 2).

    Whether the ReLU was open is read off its result z, or where z is empty computed again from x.
    """
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    zero = x.dtype.type(0)
    for unit in range(first, last):
        a, b = scale[unit % channels], shift[unit % channels]
        total = product = 0.0
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            total_of_row = product_of_row = zero
            if not relu:
                for i in range(start, start + width * LANES):
                    total_of_row += gradient[i]
                    product_of_row += gradient[i] * x[i]
            elif z.size:
                for i in range(start, start + width * LANES):
                    value = zero if z[i] <= 0 else gradient[i]
                    total_of_row += value
                    product_of_row += value * x[i]
            else:
                for i in range(start, start + width * LANES):
                    value = zero if x[i] * a + b <= 0 else gradient[i]
                    total_of_row += value
                    product_of_row += value * x[i]
            total += total_of_row
            product += product_of_row
        sums[unit, 0] = total
        sums[unit, 1] = product


@compiled
def apply_gradient(
    x, z, gradient, out, other, grid, channels, scale, shift, relu, by_gradient, by_x, constant, examples,
    first, last, thread,
):  # fmt: skip
    """`out = by_gradient * g + by_x * x + constant`, by channel, and `other = g`; g is the gradient before the ReLU."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    length = width * LANES
    zero = x.dtype.type(0)
    for unit in range(first, last):
        block, channel = unit // channels, unit % channels
        a, b = scale[channel], shift[channel]
        p, q, r = by_gradient[channel], by_x[channel], constant[channel]
        valid = min(LANES, examples - block * LANES)
        clear_border(out, unit * plane, height, width, halo, plane)
        if other.size:
            clear_border(other, unit * plane, height, width, halo, plane)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            if not relu:
                for i in range(start, start + length):
                    out[i] = p * gradient[i] + q * x[i] + r
            elif z.size:
                for i in range(start, start + length):
                    value = zero if z[i] <= 0 else gradient[i]
                    out[i] = p * value + q * x[i] + r
                    if other.size:
                        other[i] = value
            else:
                for i in range(start, start + length):
                    value = zero if x[i] * a + b <= 0 else gradient[i]
                    out[i] = p * value + q * x[i] + r
            clear_lanes(out, start, length, valid)


@compiled
def max_pool(x, out, chosen, plane, target, windows, pixels, offsets, positions, first, last, thread):
    """The largest of each window, and which of its positions that is, the first among equals, as in torch.

    Args:
        x, out, chosen: `chosen` is uint8, of the layout of out.
        plane: of x.
        target: grid of out.
        windows: (pixels of out + 1), into the next two, for each pixel.
        pixels: where it lies in its plane.
        offsets, positions: in x's plane, and in the window, of the positions inside of the map.
        first, last: units.
        thread: unused.

    """
    height, width, halo, out_plane = target
    for unit in range(first, last):
        clear_border(out, unit * out_plane, height, width, halo, out_plane)
        for pixel in range(len(pixels)):
            at = unit * out_plane + pixels[pixel]
            largest(  # pyrefly: ignore [missing-argument]
                x, unit * plane, offsets, positions, windows[pixel], windows[pixel + 1], out, at, chosen
            )


@compiled
def max_pool_gradient(
    gradient, chosen, out, plane, out_plane, windows, pixels, offsets, positions, first, last, thread
):
    """Give each gradient to the position that was chosen; arguments as of `max_pool`, with `out` in the place of x."""
    for unit in range(first, last):
        for i in range(unit * plane, (unit + 1) * plane):
            out[i] = 0
        for pixel in range(len(pixels)):
            at = unit * out_plane + pixels[pixel]
            begin, end = windows[pixel], windows[pixel + 1]
            give_back(  # pyrefly: ignore [missing-argument]
                out, unit * plane, offsets, positions, begin, end, gradient, at, chosen
            )


@compiled
def mean(x, out, grid, first, last, thread):
    """The mean of every plane, for each lane: global average pooling, into `out` (planes, LANES)."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    for unit in range(first, last):
        out[unit] = 0
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            for w in range(width):
                for lane in range(LANES):
                    out[unit, lane] += x[start + w * LANES + lane]
        for lane in range(LANES):
            out[unit, lane] /= height * width


@compiled
def mean_gradient(gradient, out, grid, first, last, thread):
    """Spread each mean's gradient over its plane."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    for unit in range(first, last):
        clear_border(out, unit * plane, height, width, halo, plane)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            for w in range(width):
                for lane in range(LANES):
                    out[start + w * LANES + lane] = gradient[unit, lane] / (height * width)
