"""Images into blocked maps, in the type that the maps are stored in, in one pass.

This avoids torch's own copies: torch would share them among its threads, which keep spinning on the cores where ours
should work on the first layer, for as long as that takes.
"""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import fork, held, part_of
from skeletal.engine.codegen.packed_bf16 import lanes, write
from skeletal.engine.kernels.sparse import clear_border


@compiled
def pack_planes(images, out, grid, channels, first, last, thread):
    """`out[block, channel, row, column, lane] = images[example, channel, row, column]`, and 0 where there is none.

    Args:
        images: (N, C, H, W), of any strides.
        out: flat, number by number (see `packed_bf16`).
        grid: height, width, halo, plane of `out`.
        channels: of both.
        first, last: units: planes of a block.
        thread: unused.

    """
    height, width, halo, plane = grid
    row = (width + 2 * halo) * lanes(out)
    zero = images.dtype.type(0)
    for unit in range(first, last):
        block, channel = unit // channels, unit % channels
        clear_border(out, unit * plane, height, width, halo, plane)
        begin = block * lanes(out)
        present = min(lanes(out), images.shape[0] - begin)
        for h in range(height):
            start = unit * plane + (h + halo) * row + halo * lanes(out)
            for lane in range(present):
                for w in range(width):
                    write(out, start + w * lanes(out) + lane, images[begin + lane, channel, h, w])
            for lane in range(present, lanes(out)):
                for w in range(width):
                    write(out, start + w * lanes(out) + lane, zero)


@compiled
def shared_pack_planes(boards, threads, units, *arguments):
    """`pack_planes` by several threads."""
    fork(boards, threads, units, part_of(pack_planes, arguments), held(arguments))
