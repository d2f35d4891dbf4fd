"""Cells of maps in bfloat16 as the matrix unit takes them, and back, as vector instructions; see `ir_builder`.

Arrays are int32, of slots with two examples each; starts and strides count slots.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from skeletal.engine.codegen.compiling import intrinsic
from skeletal.engine.codegen.ir_builder import INDEX, Emitter
from skeletal.engine.codegen.packed_bf16 import LANES


def _cells(emit: Emitter, position: int, at: Any) -> Any:
    """Load the slots of a cell of an argument as they are."""
    return emit.builder.load(emit.cell(emit.builder.gep(emit.data(position), [at])), align=emit.bytes)


def _put(emit: Emitter, slots: Any, position: int, at: Any) -> None:
    emit.builder.store(slots, emit.cell(emit.builder.gep(emit.data(position), [at])), align=emit.bytes)


@intrinsic
def pair_channels(typing, source, one, other, step, target, to, to_other, to_step, cells, ahead):
    """Cells of two channels, with even and odd examples alternating, become cells of even and of odd examples, with the
    two channels alternating; and vice versa.

    Cells of a channel lie `step` slots apart from `one` and from `other` on, and are written `to_step` apart. Those
    `ahead` slots further on will soon be needed.
    """
    index = types.int64
    signature = types.void(source, index, index, index, target, index, index, index, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, source.dtype)
        _, one_, other_, step_, _, to_, to_other_, to_step_, cells_, ahead_ = arguments
        half, low = (ir.Constant(emit.slots, [value] * LANES) for value in (16, 0xFFFF))
        high = ir.Constant(emit.slots, [-(1 << 16)] * LANES)

        def body(j: Any, _: list[Any]) -> list[Any]:
            from_, into = builder.mul(j, step_), builder.mul(j, to_step_)
            places = [builder.add(start, from_) for start in (one_, other_)]
            for place in places:
                emit.prefetch(0, builder.add(place, ahead_))
            first, second = (_cells(emit, 0, place) for place in places)
            even = builder.or_(builder.and_(first, low), builder.shl(second, half))
            odd = builder.or_(builder.lshr(first, half), builder.and_(second, high))
            _put(emit, even, 4, builder.add(to_, into))
            _put(emit, odd, 4, builder.add(to_other_, into))
            return []

        emit.over(ir.Constant(INDEX, 0), cells_, [], body)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def transpose_cells(typing, source, start, channel, target, to, to_step, cells, ahead):
    """Of `LANES` channels, `channel` slots apart: cells become square blocks of slots with the channels innermost.

    Cells lie one after the other in the source, blocks `to_step` slots apart. `ahead` as in `pair_channels`.
    """
    index = types.int64
    signature = types.void(source, index, index, target, index, index, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, source.dtype)
        _, start_, channel_, _, to_, to_step_, cells_, ahead_ = arguments
        word = ir.IntType(32)

        def body(j: Any, _: list[Any]) -> list[Any]:
            at = builder.add(start_, builder.mul(j, ir.Constant(INDEX, LANES)))
            places = [builder.add(at, builder.mul(channel_, ir.Constant(INDEX, i))) for i in range(LANES)]
            for place in places:
                emit.prefetch(0, builder.add(place, ahead_))
            rows = [_cells(emit, 0, place) for place in places]
            width = LANES // 2
            while width:  # exchange the upper right with the lower left quarter of blocks of this size, and so on
                lower = [i if not i & width else LANES + i - width for i in range(LANES)]
                upper = [i + width if not i & width else LANES + i for i in range(LANES)]
                for i in range(LANES):
                    if not i & width:
                        pair = rows[i], rows[i + width]
                        rows[i], rows[i + width] = (
                            builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(word, LANES), order))
                            for order in (lower, upper)
                        )
                width //= 2
            place = builder.add(to_, builder.mul(j, to_step_))
            for i, row in enumerate(rows):
                _put(emit, row, 3, builder.add(place, ir.Constant(INDEX, i * LANES)))
            return []

        emit.over(ir.Constant(INDEX, 0), cells_, [], body)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def finish(
    typing, sums, at, out, to, column, cells, scale, shift, other, added, relu, valid, relu_output, relu_backward,
    ahead,
):  # fmt: skip
    """Write sums of the matrix unit, (cells, even and odd examples, LANES) from `at` on, as cells `column` slots apart.

    What happens to them before is as in `tiles.product`. `ahead` as in `pair_channels`, in `other` and `relu_output`.
    Returns the sum of what was written, and that of its squares. The cells bypass the caches, which could not
    hold them all.
    """
    index, number = types.int64, sums.dtype
    signature = types.UniTuple(number, 2)(
        sums, index, out, index, index, index, number, number, other, index, index, index, relu_output, index, index
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, out.dtype)
        _, at_, _, to_, column_, cells_, scale_, shift_, _, added_, relu_, valid_, _, relu_backward_, ahead_ = arguments
        a, b, present = emit.spread(scale_), emit.spread(shift_), emit.before(valid_)

        def body(j: Any, totals: list[Any]) -> list[Any]:
            start = builder.add(at_, builder.mul(j, ir.Constant(INDEX, emit.halves * LANES)))
            to = builder.add(to_, builder.mul(j, column_))
            found = []
            for half in range(emit.halves):
                place = builder.gep(emit.data(0), [builder.add(start, ir.Constant(INDEX, half * LANES))])
                vector = builder.load(builder.bitcast(place, emit.vector.as_pointer()), align=emit.bytes)
                found.append(builder.call(emit.fma, [vector, a, b]))

            def beside(position: int) -> list[Any]:
                emit.prefetch(position, builder.add(to, ahead_))
                return emit.load_at(position, to)

            found = emit.where(added_, found, lambda: list(map(builder.fadd, found, beside(8))))
            found = emit.where(relu_, found, lambda: emit.positive(found))
            found = emit.where(relu_backward_, found, lambda: emit.open(found, beside(12)))
            found = emit.masked(present, found)
            emit.store_at(2, to, found, nontemporal=True)
            total, squares = totals
            for vector in found:
                total, squares = builder.fadd(total, vector), builder.call(emit.fma, [vector, vector, squares])
            return [total, squares]

        totals = emit.over(ir.Constant(INDEX, 0), cells_, [emit.zero] * 2, body)
        return context.make_tuple(
            builder, signature.return_type, [emit.across(emit.vector.element(0.0), total) for total in totals]
        )

    return signature, generate
