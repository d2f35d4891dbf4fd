"""A sparse linear layer: rows of examples become columns, pass through a convolution, and become rows again."""

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import fork, held, part_of
from skeletal.engine.codegen.packed_bf16 import LANES, nothing, read
from skeletal.engine.codegen.transpose import transpose_square
from skeletal.engine.kernels.fused_batch_norm import shared_backward, shared_forward

_WIDE = 4 * LANES
"""Columns that are read one after the other, so that the CPU sees them coming."""


@compiled
def transpose(source, source_stride, rows, columns, target, target_stride, first, last, thread):
    """`target[j, i] = source[i, j]` for all rows i and columns j; the rest of each row of `target` becomes 0.

    Args:
        source, target: flat, of one type; a row starts every `source_stride` and `target_stride` numbers.
        rows, columns: of source.
        first, last: units, of _WIDE columns each.
        thread: unused.

    """
    whole = rows // LANES * LANES
    for unit in range(first, last):
        begin, end = unit * _WIDE, min(columns, (unit + 1) * _WIDE)
        whole_rows = whole if (end - begin) % LANES == 0 else 0
        for i in range(0, whole_rows, LANES):
            for j in range(begin, end, LANES):
                transpose_square(
                    source, i * source_stride + j, source_stride, target, j * target_stride + i, target_stride
                )
        for j in range(begin, end):
            for i in range(whole_rows, rows):
                target[j * target_stride + i] = source[i * source_stride + j]
            for i in range(rows, target_stride):
                target[j * target_stride + i] = 0


@compiled
def sum_rows(source, stride, sums, first, last, thread):
    """`sums[i]` = the sum of row i of an array of maps, in the type of the sums."""
    for i in range(first, last):
        total = nothing(source)
        for j in range(i * stride, (i + 1) * stride):
            total += read(source, j)
        sums[i] = total


@compiled
def _units(columns):
    """Of `transpose`."""
    return -(-columns // _WIDE)


@compiled
def shared_multiply(boards, threads, units, ahead, arguments, after):
    """`fused_batch_norm.shared_forward`, with `transpose` before and after it, by several threads."""
    fork(boards, threads, _units(ahead[3]), part_of(transpose, ahead), held(ahead))
    shared_forward(boards, threads, units, *arguments)
    fork(boards, threads, _units(after[3]), part_of(transpose, after), held(after))


@compiled
def shared_multiply_back(boards, threads, units, ahead, arguments, after, grad_bias):
    """`fused_batch_norm.shared_backward`, with `transpose` before and after it; and a bias's gradient, if wanted."""
    fork(boards, threads, _units(ahead[3]), part_of(transpose, ahead), held(ahead))
    fork(boards, threads, grad_bias[2].size, part_of(sum_rows, grad_bias), held(grad_bias))
    shared_backward(boards, threads, units, *arguments)
    fork(boards, threads, _units(after[3]), part_of(transpose, after), held(after))
