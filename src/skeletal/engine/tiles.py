"""The innermost loops of the sparse kernels, written as vector instructions.

A *tile* is a small rectangle of output pixels of one channel, for `LANES` examples each: few enough that its running
sums stay in registers while the kept weights pass by. What a kept weight costs is then one load and one fused
multiply-add per pixel, and one index. numba would keep the sums in memory, so these loops are emitted as LLVM vector
code; LLVM splits the vectors where the machine's own are shorter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from skeletal.engine.compiling import intrinsic
from skeletal.engine.slots import LANES, interleave, narrow, widen

SHAPES = ((1, 8), (1, 7), (1, 4), (1, 2), (1, 1), (2, 4), (2, 2))
"""Rows and columns of the tiles there are: for wide maps, for those of ImageNet networks, for what remains."""

STRIDES = (1, 2, None)
"""Pixels of x from one column of a tile to the next; None takes any number, at run time, and is a little slower."""

_INDEX = ir.IntType(64)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_INDEX, value)


Cell = list[Any]
"""The numbers of a cell in registers: one vector, or two where a slot holds two numbers."""


class Emitter:
    """What the loops share: where a tile's pixels lie, and vectors of what is computed in.

    Maps are arrays of float32 or float64, or of int32 or uint32, whose slots hold two bfloat16 (see `slots`).
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments
        self.paired = kind in (types.int32, types.uint32)
        scalar = ir.FloatType() if self.paired else context.get_value_type(kind)
        self.slots = ir.VectorType(context.get_value_type(kind), LANES)
        self.vector = ir.VectorType(scalar, LANES)
        self.zero = ir.Constant(self.vector, [0.0] * LANES)
        self.bytes = 8 if kind == types.float64 else 4
        self.halves = 2 if self.paired else 1
        self.bytes_ = ir.VectorType(ir.IntType(8), LANES)
        suffix = f"v{LANES}f{8 * self.bytes}"
        self.fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fma.{suffix}"
        )

    def data(self, position: int) -> Any:
        array = self.context.make_array(self.signature.args[position])
        return array(self.context, self.builder, self.arguments[position]).data

    def spread(self, scalar: Any, vector: Any = None) -> Any:
        """A vector of one number."""
        empty = ir.Constant(vector or self.vector, ir.Undefined)
        first = self.builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, empty, zeros)

    def pixels(self, start: Any, rows: int, columns: int, row_stride: Any, column_stride: Any) -> list[Any]:
        """Pointers to a tile's vectors; a stride is a number of elements, known now or at run time."""
        found = []
        for row in range(rows):
            begin = self.builder.gep(start, [self.builder.mul(row_stride, _constant(row))]) if row else start
            for column in range(columns):
                if isinstance(column_stride, int):
                    offset = _constant(column * column_stride)
                else:
                    offset = self.builder.mul(column_stride, _constant(column))
                found.append(self.cell(self.builder.gep(begin, [offset])))
        return found

    def cell(self, start: Any) -> Any:
        """A pointer to the cell at a slot."""
        return self.builder.bitcast(start, self.slots.as_pointer())

    def choose(self, kind: Any, cases: list[Callable[[], None]]) -> None:
        """`cases[kind]()`."""
        blocks = [self.builder.append_basic_block("case") for _ in cases]
        end = self.builder.append_basic_block("end")
        switch = self.builder.switch(kind, end)
        for number, (block, case) in enumerate(zip(blocks, cases, strict=True)):
            switch.add_case(_constant(number), block)
            self.builder.position_at_end(block)
            case()
            self.builder.branch(end)
        self.builder.position_at_end(end)

    def where(self, condition: Any, otherwise: list[Any], make: Callable[[], list[Any]]) -> list[Any]:
        """`make()` where the condition is not 0, else what there is."""
        builder, before = self.builder, self.builder.block
        made_in, end = builder.append_basic_block("made"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed("!=", condition, _constant(0)), made_in, end)
        builder.position_at_end(made_in)
        made = make()
        made_in = builder.block
        builder.branch(end)
        builder.position_at_end(end)
        results = []
        for old, new in zip(otherwise, made, strict=True):
            phi = builder.phi(old.type)
            phi.add_incoming(old, before)
            phi.add_incoming(new, made_in)
            results.append(phi)
        return results

    def positive(self, numbers: list[Any]) -> list[Any]:
        """ReLU; NaN stays what it is."""
        below = [self.builder.fcmp_ordered("<", number, self.zero) for number in numbers]
        return [self.builder.select(cut, self.zero, number) for cut, number in zip(below, numbers, strict=True)]

    def open(self, numbers: list[Any], results: list[Any]) -> list[Any]:
        """Gradients before a ReLU of these results."""
        shut = [self.builder.fcmp_ordered("<=", result, self.zero) for result in results]
        return [self.builder.select(cut, self.zero, number) for cut, number in zip(shut, numbers, strict=True)]

    def masked(self, present: list[Any], numbers: list[Any]) -> list[Any]:
        """The vectors of cells, 0 where no example is; `present` as of `before`."""
        return [self.builder.select(present[i % self.halves], n, self.zero) for i, n in enumerate(numbers)]

    def before(self, valid: Any) -> list[Any]:
        """Which numbers of a cell come before the number `valid`: a mask for each vector."""
        word = ir.IntType(32)
        limit = self.spread(self.builder.trunc(valid, word), ir.VectorType(word, LANES))
        return [
            self.builder.icmp_signed(
                "<", ir.Constant(limit.type, [self.halves * i + half for i in range(LANES)]), limit
            )
            for half in range(self.halves)
        ]

    def across(self, start: Any, vector: Any) -> Any:
        """A number plus the sum over a vector."""
        scalar = self.vector.element
        kind = ir.FunctionType(scalar, [scalar, self.vector])
        name = f"llvm.vector.reduce.fadd.v{LANES}f{8 * self.bytes}"
        reduce = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(reduce, [start, vector], fastmath=("reassoc",))

    def is_tight(self, position: int) -> bool:
        """Whether an argument has tight slots."""
        return self.signature.args[position].dtype == types.uint32

    def load(self, pointer: Any, tight: bool = False) -> Cell:
        slots = self.builder.load(pointer, align=self.bytes)
        return list(widen(self.builder, slots, tight)) if self.paired else [slots]

    def store(self, cell: Cell, pointer: Any, tight: bool = False) -> None:
        slots = narrow(self.builder, cell[0], cell[1], tight) if self.paired else cell[0]
        self.builder.store(slots, pointer, align=self.bytes)

    def load_all(self, pointers: list[Any], tight: bool = False) -> list[Any]:
        """The vectors of several cells, one cell after the other."""
        return [number for pointer in pointers for number in self.load(pointer, tight)]

    def store_all(self, numbers: list[Any], pointers: list[Any]) -> None:
        for i, pointer in enumerate(pointers):
            self.store(numbers[i * self.halves : (i + 1) * self.halves], pointer)

    def ask_for(self, position: int, at: Any) -> None:
        """Have the cell at a slot of an argument brought into the cache; it may lie outside of the array."""
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        pointer = self.builder.bitcast(self.builder.gep(self.data(position), [at]), byte)
        self.builder.call(function, [pointer, word(0), word(3), word(1)])

    def load_at(self, position: int, at: Any) -> Cell:
        """The cell at a slot of an argument."""
        return self.load(self.cell(self.builder.gep(self.data(position), [at])), self.is_tight(position))

    def store_at(self, position: int, at: Any, cell: Cell) -> None:
        self.store(cell, self.cell(self.builder.gep(self.data(position), [at])), self.is_tight(position))

    def load_places(self, array: Any, at: Any) -> Cell:
        """The bytes that belong to the numbers of the cell at slot `at`, each vector's together."""
        places = self.builder.load(self._places(array, at), align=1)
        if not self.paired:
            return [places]
        upper = self.builder.lshr(places, ir.Constant(places.type, [8] * LANES))
        return [self.builder.trunc(half, self.bytes_) for half in (places, upper)]

    def store_places(self, cell: Cell, array: Any, at: Any) -> None:
        places = interleave(self.builder, *cell) if self.paired else cell[0]
        self.builder.store(places, self._places(array, at), align=1)

    def _places(self, array: Any, at: Any) -> Any:
        start = self.builder.gep(array, [self.builder.mul(at, _constant(self.halves))])
        return self.builder.bitcast(start, ir.VectorType(ir.IntType(8 * self.halves), LANES).as_pointer())

    def over(self, begin: Any, end: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`for j in range(begin, end): carried = body(j, carried)`, with `carried` in registers."""
        builder = self.builder
        entry = builder.block
        loop, done = builder.append_basic_block("kept"), builder.append_basic_block("done")
        some = builder.icmp_signed("<", begin, end)
        builder.cbranch(some, loop, done)
        builder.position_at_end(loop)
        j = builder.phi(_INDEX)
        j.add_incoming(begin, entry)
        values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            values.append(phi)
        after = body(j, values)
        following = builder.add(j, _constant(1))
        j.add_incoming(following, builder.block)
        for phi, value in zip(values, after, strict=True):
            phi.add_incoming(value, builder.block)
        last = builder.block
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        builder.position_at_end(done)
        results = []
        for value, new in zip(carried, after, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            phi.add_incoming(new, last)
            results.append(phi)
        return results


def kind_of(rows: int, columns: int, stride: int) -> int:
    """The number by which the loops know a shape of tile, with the stride of x in it."""
    known = stride if stride in STRIDES else None
    return SHAPES.index((rows, columns)) * len(STRIDES) + STRIDES.index(known)


_KINDS = [(rows, columns, stride) for rows, columns in SHAPES for stride in STRIDES]


@intrinsic
def product(
    typing, kind, add, x, x_start, x_row, x_column, out, out_start, out_row, out_column, offsets, values, begin, end,
    after, scale, shift, other, added, relu, valid, gate, gated,
):  # fmt: skip
    """`out[tile] = Σ_j values[j] x[offsets[j] + tile]`, for j in [begin, end); with `add` 1, `+=`.

    `kind` says the tile's shape (see `kind_of`); rows and columns of a tile lie `x_row` and `x_column` slots apart
    in x, and `out_row` and `out_column` in `out`. With `after` 1 the sums become `sum * scale + shift`, plus what is at
    their place in `other` if `added`, not below 0 if `relu`, 0 where what is at their place in `gate` is not above 0 if
    `gated`, and 0 for examples from the number `valid` of a cell on.
    """
    index = types.int64
    signature = types.void(
        index, index, x, index, index, index, out, index, index, index, offsets, values, index, index,
        index, values.dtype, values.dtype, other, index, index, index, gate, index,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, x.dtype)
        kind_, add_, _, x_at, x_row_, x_column_, _, out_at, out_row_, out_column_, _, _, begin_, end_ = arguments[:14]
        after_, scale_, shift_, _, added_, relu_, valid_, _, gated_ = arguments[14:]
        beside, gates = (builder.gep(emit.data(position), [out_at]) for position in (17, 21))
        start, out_start_ = builder.gep(emit.data(2), [x_at]), builder.gep(emit.data(6), [out_at])
        offset, value = emit.data(10), emit.data(11)

        def case(rows: int, columns: int, stride: int | None, add: bool) -> None:
            results = emit.pixels(out_start_, rows, columns, out_row_, out_column_)

            def body(j: Any, sums: list[Any]) -> list[Any]:
                here = builder.gep(start, [builder.sext(builder.load(builder.gep(offset, [j])), _INDEX)])
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
                doors = emit.pixels(gates, rows, columns, out_row_, out_column_)
                finished = emit.where(gated_, finished, lambda: emit.open(finished, emit.load_all(doors)))
                return emit.masked(emit.before(valid_), finished)

            emit.store_all(emit.where(after_, sums, finish), results)

        number = builder.add(builder.mul(kind_, _constant(2)), add_)
        emit.choose(number, [partial(case, *shape, add) for shape in _KINDS for add in (False, True)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def largest(
    typing, x, x_start, offsets, positions, begin, end, out, out_start, chosen, before, scale, shift, relu, valid
):
    """`out[lane] = max_j x[x_start + offsets[j] + lane]`, and in `chosen` the first `positions[j]` where it is.

    For j in [begin, end), of which there has to be one at least. NaN is larger than all, as in torch. With `before` 1
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

        best = emit.over(builder.add(begin_, _constant(1)), end_, read(begin_), body)
        emit.store(best[: emit.halves], emit.cell(builder.gep(emit.data(6), [out_at])))
        emit.store_places(best[emit.halves :], emit.data(8), out_at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def give_back(typing, out, out_start, offsets, positions, begin, end, gradient, start, chosen, apart):
    """`out[out_start + offsets[j] + lane] += gradient[lane]` where `chosen` is `positions[j]`: `largest`, backward.

    With `apart` 1 nothing else is added there, and `out` is written as it becomes, whatever was in it.
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
                    here = builder.gep(start, [builder.sext(builder.load(builder.gep(offset, [j])), _INDEX)])
                    at = builder.gep(target, [builder.mul(j, _constant(LANES)) if per_lane else j])
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

Arguments as of `product`; the tile of y stays in registers.
"""

inner_once = _inner(per_lane=False)
"""The same with the lanes added up at once, `sums[j]`: for weights that few tiles meet, where sums for each lane would
cost more to write and to read than this does."""
