"""The innermost loops of the sparse kernels, written as vector instructions.

A *tile* is a small rectangle of output pixels of one channel, for `LANES` examples each: few enough that its running
sums stay in registers while the kept weights pass by. A kept weight then costs one load and one fused
multiply-add per pixel, and one index. numba would keep the sums in memory, so these loops are emitted as LLVM vector
code; LLVM splits the vectors where the machine's own are shorter.
"""

from functools import partial
from typing import Any

from numba.core import types

from skeletal.engine.codegen.compiling import intrinsic
from skeletal.engine.codegen.ir_builder import INDEX, Cell, Emitter, constant
from skeletal.engine.codegen.packed_bf16 import LANES

SHAPES = ((1, 8), (1, 7), (1, 4), (1, 2), (1, 1), (2, 4), (2, 2))
"""Rows and columns of the tiles there are: for wide maps, for those of ImageNet networks, for what remains."""

STRIDES = (1, 2, None)
"""Pixels of x from one column of a tile to the next; None takes any number, at run time, and is a little slower."""


def kind_of(rows: int, columns: int, stride: int) -> int:
    """The number that tells the loops a tile's shape, including the stride of x."""
    known = stride if stride in STRIDES else None
    return SHAPES.index((rows, columns)) * len(STRIDES) + STRIDES.index(known)


_KINDS = [(rows, columns, stride) for rows, columns in SHAPES for stride in STRIDES]


@intrinsic
def product(
    typing, kind, add, x, x_start, x_row, x_column, out, out_start, out_row, out_column, offsets, values, begin, end,
    after, scale, shift, other, added, relu, valid, relu_output, relu_backward,
):  # fmt: skip
    """`out[tile] = Σ_j values[j] x[offsets[j] + tile]`, for j in [begin, end); with `add` 1, `+=`.

    `kind` says the tile's shape (see `kind_of`); rows and columns of a tile lie `x_row` and `x_column` slots apart
    in x, and `out_row` and `out_column` in `out`. With `after` 1 the sums become `sum * scale + shift`, plus what is at
    their place in `other` if `added`, not below 0 if `relu`, 0 where what is at their place in `relu_output` is not
    above 0 if `relu_backward`, and 0 for examples from the number `valid` of a cell on.
    """
    index = types.int64
    signature = types.void(
        index, index, x, index, index, index, out, index, index, index, offsets, values, index, index,
        index, values.dtype, values.dtype, other, index, index, index, relu_output, index,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, x.dtype)
        kind_, add_, _, x_at, x_row_, x_column_, _, out_at, out_row_, out_column_, _, _, begin_, end_ = arguments[:14]
        after_, scale_, shift_, _, added_, relu_, valid_, _, relu_backward_ = arguments[14:]
        beside, outputs_at = (builder.gep(emit.data(position), [out_at]) for position in (17, 21))
        start, out_start_ = builder.gep(emit.data(2), [x_at]), builder.gep(emit.data(6), [out_at])
        offset, value = emit.data(10), emit.data(11)

        def case(rows: int, columns: int, stride: int | None, add: bool) -> None:
            results = emit.pixels(out_start_, rows, columns, out_row_, out_column_)

            def body(j: Any, sums: list[Any]) -> list[Any]:
                here = builder.gep(start, [builder.sext(builder.load(builder.gep(offset, [j])), INDEX)])
                weight = emit.spread(builder.load(builder.gep(value, [j])))
                pixels = emit.pixels(here, rows, columns, x_row_, stride * LANES if stride else x_column_)
                return [
                    builder.call(emit.fma, [weight, number, total])
                    for number, total in zip(emit.load_all(pixels, emit.is_tight(2)), sums, strict=True)
                ]

            first = emit.load_all(results) if add else [emit.zero] * len(results) * emit.halves
            sums = emit.over(begin_, end_, first, body)

            def finish() -> list[Any]:
                a, b = emit.spread(scale_), emit.spread(shift_)
                finished = [builder.call(emit.fma, [total, a, b]) for total in sums]
                others = emit.pixels(beside, rows, columns, out_row_, out_column_)
                finished = emit.where(
                    added_, finished, lambda: list(map(builder.fadd, finished, emit.load_all(others)))
                )
                finished = emit.where(relu_, finished, lambda: emit.positive(finished))
                relu_outputs = emit.pixels(outputs_at, rows, columns, out_row_, out_column_)
                finished = emit.where(
                    relu_backward_, finished, lambda: emit.open(finished, emit.load_all(relu_outputs))
                )
                return emit.masked(emit.before(valid_), finished)

            emit.store_all(emit.where(after_, sums, finish), results)

        number = builder.add(builder.mul(kind_, constant(2)), add_)
        emit.choose(number, [partial(case, *shape, add) for shape in _KINDS for add in (False, True)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def largest(
    typing, x, x_start, offsets, positions, begin, end, out, out_start, chosen, before, scale, shift, relu, valid
):
    """`out[lane] = max_j x[x_start + offsets[j] + lane]`, and in `chosen` the first `positions[j]` where it is.

    For j in [begin, end), which must not be empty. NaN is larger than all, as in torch. With `before` 1
    the numbers are first multiplied by `scale`, `shift` is added, and with `relu` they are not below 0; from the number
    `valid` of a cell on the result is then 0.
    """
    index = types.int64
    signature = types.void(
        x, index, offsets, positions, index, index, out, index, chosen, index, scale, shift, index, index
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, x.dtype)
        _, x_at, _, _, begin_, end_, _, out_at, _, before_, scale_, shift_, relu_, valid_ = arguments
        start, offset, position = builder.gep(emit.data(0), [x_at]), emit.data(2), emit.data(3)
        a, b, present = emit.spread(scale_), emit.spread(shift_), emit.before(valid_)

        def ready(numbers: Cell) -> Cell:
            numbers = [builder.call(emit.fma, [number, a, b]) for number in numbers]
            return emit.masked(present, emit.where(relu_, numbers, lambda: emit.positive(numbers)))

        def read(j: Any) -> Cell:
            value = emit.load(emit.cell(builder.gep(start, [builder.load(builder.gep(offset, [j]))])))
            value = emit.where(before_, value, lambda: ready(value))
            place = emit.spread(builder.load(builder.gep(position, [j])), emit.bytes_)
            return value + [place] * emit.halves

        def body(j: Any, best: list[Any]) -> list[Any]:
            found = read(j)
            for i in range(emit.halves):
                larger = builder.fcmp_unordered(">", found[i], best[i])  # or one of them is NaN
                larger = builder.and_(larger, builder.fcmp_ordered("ord", best[i], best[i]))
                for k in (i, i + emit.halves):
                    found[k] = builder.select(larger, found[k], best[k])
            return found

        best = emit.over(builder.add(begin_, constant(1)), end_, read(begin_), body)
        emit.store(best[: emit.halves], emit.cell(builder.gep(emit.data(6), [out_at])))
        emit.store_places(best[emit.halves :], emit.data(8), out_at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def give_back(typing, out, out_start, offsets, positions, begin, end, gradient, start, chosen, apart):
    """`out[out_start + offsets[j] + lane] += gradient[lane]` where `chosen` is `positions[j]`: `largest`, backward.

    With `apart` 1 nothing else is added there, and `out` is overwritten, whatever was in it.
    """
    index = types.int64
    signature = types.void(out, index, offsets, positions, index, index, gradient, index, chosen, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, out.dtype)
        _, out_at, _, _, begin_, end_, _, at_, _, apart_ = arguments
        target, offset, position = builder.gep(emit.data(0), [out_at]), emit.data(2), emit.data(3)
        values = emit.load(emit.cell(builder.gep(emit.data(6), [at_])))
        places = emit.load_places(emit.data(8), at_)

        def body(j: Any, apart: bool) -> list[Any]:
            here = emit.cell(builder.gep(target, [builder.load(builder.gep(offset, [j]))]))
            mine = emit.spread(builder.load(builder.gep(position, [j])), emit.bytes_)
            cell = [
                builder.select(builder.icmp_unsigned("==", place, mine), value, emit.zero)
                for value, place in zip(values, places, strict=True)
            ]
            emit.store(cell if apart else list(map(builder.fadd, emit.load(here), cell)), here)
            return []

        def case(apart: bool) -> None:
            emit.over(begin_, end_, [], lambda j, _: body(j, apart))

        emit.choose(apart_, [partial(case, False), partial(case, True)])
        return context.get_dummy_value()

    return signature, generate


def _inner(per_lane: bool) -> Any:
    @intrinsic
    def tile(typing, kind, x, x_start, x_row, x_column, y, y_start, y_row, y_column, offsets, sums, begin, end):
        index = types.int64
        signature = types.void(index, x, index, index, index, y, index, index, index, offsets, sums, index, index)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit = Emitter(context, builder, signature, arguments, x.dtype)
            kind_, _, x_at, x_row_, x_column_, _, y_at, y_row_, y_column_, _, _, begin_, end_ = arguments
            start, y_start_ = builder.gep(emit.data(1), [x_at]), builder.gep(emit.data(5), [y_at])
            offset, target = emit.data(9), emit.data(10)

            def case(rows: int, columns: int, stride: int | None) -> None:
                held = emit.load_all(emit.pixels(y_start_, rows, columns, y_row_, y_column_), emit.is_tight(5))

                def body(j: Any, _: list[Any]) -> list[Any]:
                    here = builder.gep(start, [builder.sext(builder.load(builder.gep(offset, [j])), INDEX)])
                    at = builder.gep(target, [builder.mul(j, constant(LANES)) if per_lane else j])
                    if per_lane:
                        at = builder.bitcast(at, emit.vector.as_pointer())
                    # Two chains, so that an addition need not wait for the one before it.
                    chains = [builder.load(at, align=emit.bytes) if per_lane else emit.zero, emit.zero]
                    pixels = emit.pixels(here, rows, columns, x_row_, stride * LANES if stride else x_column_)
                    for i, number in enumerate(emit.load_all(pixels, emit.is_tight(1))):
                        chains[i % 2] = builder.call(emit.fma, [held[i], number, chains[i % 2]])
                    total = builder.fadd(*chains)
                    if per_lane:
                        builder.store(total, at, align=emit.bytes)
                    else:
                        builder.store(emit.across(builder.load(at), total), at)
                    return []

                emit.over(begin_, end_, [], body)

            emit.choose(kind_, [partial(case, *shape) for shape in _KINDS])
            return context.get_dummy_value()

        return signature, generate

    return tile


inner = _inner(per_lane=True)
"""`sums[j, lane] += Σ_tile x[offsets[j] + tile] y[tile]`, for j in [begin, end): the gradient of values[j].

Arguments as in `product`; the tile of y stays in registers.
"""

inner_once = _inner(per_lane=False)
"""The same with the lanes added up at once, `sums[j]`: for weights that few tiles meet, where sums for each lane would
cost more to write and to read than this does."""
