"""Batch norm, addition, ReLU and means on blocked maps (see `grid`), each in as few passes as possible.

Units are planes: one channel of one block of examples. Arrays are flat and count numbers (see `packed_bf16`), and all
maps of one call lie on one grid, unless stated otherwise.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import fork, held, part_of
from skeletal.engine.codegen.packed_bf16 import LANES, empty_sum, lanes, read, write
from skeletal.engine.codegen.row_ops import affine, affine_gradient
from skeletal.engine.kernels.sparse import clear_border, present, take_moments


@compiled
def moments(x, grid, channels, sums, first, last, thread):
    """Sum and sum of squares of every plane, into `sums` (planes, 2)."""
    take_moments(x, 0, grid, (0, grid[0]), first, last, sums)


@compiled
def shared_moments(boards, threads, units, *arguments):
    """`moments` by several threads."""
    fork(boards, threads, units, part_of(moments, arguments), held(arguments))


@compiled
def scale_shift(x, out, grid, channels, scale, shift, other, relu, examples, first, last, thread):
    """`out = x * scale + shift (+ other)`, by channel, not below 0 with `relu`; arrays and grid count slots."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    mode = 2 * (other.size > 0) + relu
    for unit in range(first, last):
        block, channel = unit // channels, unit % channels
        clear_border(out, unit * plane, height, width, halo, plane)
        valid = present(x, examples, block)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            affine(mode, x, out, other, start, start, width, scale[channel], shift[channel], valid, plane)


@compiled
def shared_scale_shift(boards, threads, units, *arguments):
    """`scale_shift` by several threads."""
    fork(boards, threads, units, part_of(scale_shift, arguments), held(arguments))


@compiled
def reduce_gradient(x, z, gradient, grid, channels, scale, shift, relu, sums, first, last, thread):
    """Sums of the gradient before the ReLU, and of its product with x, of every plane, into `sums` (planes, 2).

    In float64, with maps in bfloat16 by rows in float32, as `sparse.take_moments`. Whether the ReLU was open is read
    off its result z or, where z is empty, recomputed from x.
    """
    height, width, halo, plane = grid
    row = (width + 2 * halo) * lanes(x)
    zero = empty_sum(x)
    for unit in range(first, last):
        a, b = scale[unit % channels], shift[unit % channels]
        total = product = 0.0
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * lanes(x)
            total_of_row = product_of_row = zero
            if not relu:
                for i in range(start, start + width * lanes(x)):
                    value = zero + read(gradient, i)
                    total_of_row += value
                    product_of_row += value * read(x, i)
            elif z.size:
                for i in range(start, start + width * lanes(x)):
                    value = zero if read(z, i) <= 0 else zero + read(gradient, i)
                    total_of_row += value
                    product_of_row += value * read(x, i)
            else:
                for i in range(start, start + width * lanes(x)):
                    value = zero if read(x, i) * a + b <= 0 else zero + read(gradient, i)
                    total_of_row += value
                    product_of_row += value * read(x, i)
            total += total_of_row
            product += product_of_row
        sums[unit, 0] = total
        sums[unit, 1] = product


@compiled
def shared_reduce_gradient(boards, threads, units, *arguments):
    """`reduce_gradient` by several threads."""
    fork(boards, threads, units, part_of(reduce_gradient, arguments), held(arguments))


@compiled
def apply_gradient(
    x, z, gradient, out, other, grid, channels, scale, shift, relu, gradient_factor, x_factor, constant, examples,
    first, last, thread,
):  # fmt: skip
    """`out = gradient_factor * g + x_factor * x + constant`, by channel, and `other = g`.

    g is the gradient before the ReLU. Arrays and grid count slots.
    """
    height, width, halo, plane = grid
    row = (width + 2 * halo) * LANES
    mode = relu * (1 + (z.size > 0) * (1 + (other.size > 0)))
    for unit in range(first, last):
        block, channel = unit // channels, unit % channels
        clear_border(out, unit * plane, height, width, halo, plane)
        if other.size:
            clear_border(other, unit * plane, height, width, halo, plane)
        valid = present(x, examples, block)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * LANES
            affine_gradient(
                mode, x, z, gradient, out, other, start, start, width, scale[channel], shift[channel],
                gradient_factor[channel], x_factor[channel], constant[channel], valid, plane,
            )  # fmt: skip


@compiled
def shared_apply_gradient(boards, threads, units, *arguments):
    """`apply_gradient` by several threads."""
    fork(boards, threads, units, part_of(apply_gradient, arguments), held(arguments))


@compiled
def mean(x, out, grid, first, last, thread):
    """The mean of every plane, for each lane: global average pooling, into `out` (planes, lanes)."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * lanes(x)
    for unit in range(first, last):
        out[unit] = 0
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * lanes(x)
            for w in range(width):
                for lane in range(lanes(x)):
                    out[unit, lane] += read(x, start + w * lanes(x) + lane)
        for lane in range(lanes(x)):
            out[unit, lane] /= height * width


@compiled
def shared_mean(boards, threads, units, *arguments):
    """`mean` by several threads."""
    fork(boards, threads, units, part_of(mean, arguments), held(arguments))


@compiled
def mean_gradient(gradient, out, grid, first, last, thread):
    """Spread each mean's gradient over its plane."""
    height, width, halo, plane = grid
    row = (width + 2 * halo) * lanes(out)
    for unit in range(first, last):
        clear_border(out, unit * plane, height, width, halo, plane)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * lanes(out)
            for w in range(width):
                for lane in range(lanes(out)):
                    write(out, start + w * lanes(out) + lane, gradient[unit, lane] / (height * width))


@compiled
def shared_mean_gradient(boards, threads, units, *arguments):
    """`mean_gradient` by several threads."""
    fork(boards, threads, units, part_of(mean_gradient, arguments), held(arguments))
