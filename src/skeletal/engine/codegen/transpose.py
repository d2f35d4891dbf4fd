"""Matrices turned over, in squares that fit the registers: what a sparse linear layer does to rows of examples."""

from typing import Any

from llvmlite import ir
from numba.core import types

from skeletal.engine.codegen.compiling import compiled, intrinsic
from skeletal.engine.codegen.packed_bf16 import LANES, nothing, read

WIDE = 4 * LANES
"""Columns that are read one after the other, so that the CPU sees them coming."""


@intrinsic
def _square(typing, source, start, stride, target, target_start, target_stride):
    """`target[j, i] = source[i, j]`, LANES by LANES.

    Interleaving vector i with vector i + LANES / 2, for all i, log2(LANES) times over, is a transposition.
    """
    index = types.int64
    signature = types.void(source, index, index, target, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(context.get_value_type(source.dtype), LANES)
        places = ir.VectorType(ir.IntType(32), LANES)
        halves = [
            ir.Constant(places, [i // 2 + LANES * (i % 2) + begin for i in range(LANES)]) for begin in (0, LANES // 2)
        ]

        def row(position: int, number: int) -> Any:
            array = context.make_array(signature.args[position])(context, builder, arguments[position])
            offset = builder.mul(arguments[position + 2], ir.Constant(ir.IntType(64), number))
            at = builder.gep(array.data, [builder.add(arguments[position + 1], offset)])
            return builder.bitcast(at, vector.as_pointer())

        size = source.dtype.bitwidth // 8
        rows = [builder.load(row(0, i), align=size) for i in range(LANES)]
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True)
            rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in halves]
        for i, found in enumerate(rows):
            builder.store(found, row(3, i), align=size)
        return context.get_dummy_value()

    return signature, generate


@compiled
def transpose(source, source_stride, rows, columns, target, target_stride, first, last, thread):
    """`target[j, i] = source[i, j]` for all rows i and columns j; the rest of each row of `target` becomes 0.

    Args:
        source, target: flat, of one type; a row starts every `source_stride` and `target_stride` numbers.
        rows, columns: of source.
        first, last: units, of WIDE columns each.
        thread: unused.

    """
    whole = rows // LANES * LANES
    for unit in range(first, last):
        begin, end = unit * WIDE, min(columns, (unit + 1) * WIDE)
        squares = whole if (end - begin) % LANES == 0 else 0
        for i in range(0, squares, LANES):
            for j in range(begin, end, LANES):
                _square(source, i * source_stride + j, source_stride, target, j * target_stride + i, target_stride)
        for j in range(begin, end):
            for i in range(squares, rows):
                target[j * target_stride + i] = source[i * source_stride + j]
            for i in range(rows, target_stride):
                target[j * target_stride + i] = 0


@compiled
def sum_rows(source, stride, sums, first, last, thread):
    """`sums[i]` = all of row i of an array of maps, in the type of the sums."""
    for i in range(first, last):
        total = nothing(source)
        for j in range(i * stride, (i + 1) * stride):
            total += read(source, j)
        sums[i] = total
