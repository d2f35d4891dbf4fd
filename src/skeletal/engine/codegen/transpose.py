"""A square of a matrix, transposed within the registers."""

from typing import Any

from llvmlite import ir
from numba.core import types

from skeletal.engine.codegen.compiling import intrinsic
from skeletal.engine.codegen.packed_bf16 import LANES


@intrinsic
def transpose_square(typing, source, start, stride, target, target_start, target_stride):
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
