"""Max pooling on blocked maps, over tables of what lies in each window.

Units are planes: one channel of one block of examples. Arrays are flat and count slots (see `packed_bf16`).
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import fork, held, part_of
from skeletal.engine.codegen.tiles import give_back, largest
from skeletal.engine.kernels.sparse import clear_border, present


@compiled
def max_pool(
    x, channels, before, out, chosen, plane, target, windows, pixels, offsets, positions, examples, first, last, thread
):
    """The largest of each window, and which of its positions that is, the first among equals, as in torch.

    Args:
        x, out, chosen: `chosen` is uint8, of the layout of out.
        channels: of x.
        before: as in `sparse.convolve`.
        plane: of x.
        target: grid of out.
        windows: (pixels of out + 1), into the next two, for each pixel.
        pixels: where it lies in its plane.
        offsets, positions: in x's plane, and in the window, of the positions inside the map.
        examples: in the batch.
        first, last: units.
        thread: unused.

    """
    height, width, halo, out_plane = target
    scale, shift, relu = before
    a = b = scale.dtype.type(0)
    for unit in range(first, last):
        clear_border(out, unit * out_plane, height, width, halo, out_plane)
        valid = present(x, examples, unit // channels)
        if scale.size:
            a, b = scale[unit % channels], shift[unit % channels]
        for pixel in range(len(pixels)):
            at = unit * out_plane + pixels[pixel]
            largest(
                x, unit * plane, offsets, positions, windows[pixel], windows[pixel + 1], out, at, chosen,
                scale.size, a, b, relu, valid,
            )  # fmt: skip


@compiled
def shared_max_pool(boards, threads, units, *arguments):
    """`max_pool` by several threads."""
    fork(boards, threads, units, part_of(max_pool, arguments), held(arguments))


@compiled
def max_pool_gradient(
    gradient, chosen, out, source, out_plane, windows, pixels, offsets, positions, apart, first, last, thread
):
    """Give each gradient to the position that was chosen; arguments as in `max_pool`, with `out` in the place of x.

    `source` is the grid of `out`; with `apart` each of its pixels lies in one window.
    """
    height, width, halo, plane = source
    for unit in range(first, last):
        if apart:
            clear_border(out, unit * plane, height, width, halo, plane)
        else:
            for i in range(unit * plane, (unit + 1) * plane):
                out[i] = 0
        for pixel in range(len(pixels)):
            at = unit * out_plane + pixels[pixel]
            begin, end = windows[pixel], windows[pixel + 1]
            give_back(out, unit * plane, offsets, positions, begin, end, gradient, at, chosen, apart)


@compiled
def shared_max_pool_gradient(boards, threads, units, *arguments):
    """`max_pool_gradient` by several threads."""
    fork(boards, threads, units, part_of(max_pool_gradient, arguments), held(arguments))
