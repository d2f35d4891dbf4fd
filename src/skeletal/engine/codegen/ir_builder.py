"""What the kernels' innermost loops are written with: vectors, cells, loops and choices, as LLVM instructions."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from skeletal.engine.codegen.packed_bf16 import LANES, interleave, narrow, widen

INDEX = ir.IntType(64)


def constant(value: int) -> ir.Constant:
    """An index that is known now."""
    return ir.Constant(INDEX, value)


Cell = list[Any]
"""The numbers of a cell in registers: one vector, or two where a slot holds two numbers."""


class Emitter:
    """What the loops share: where a tile's pixels lie, and vectors of what is computed in.

    Maps are arrays of float32 or float64, or of int32 or uint32, whose slots hold two bfloat16 (see `packed_bf16`).
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
            begin = self.builder.gep(start, [self.builder.mul(row_stride, constant(row))]) if row else start
            for column in range(columns):
                if isinstance(column_stride, int):
                    offset = constant(column * column_stride)
                else:
                    offset = self.builder.mul(column_stride, constant(column))
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
            switch.add_case(constant(number), block)
            self.builder.position_at_end(block)
            case()
            self.builder.branch(end)
        self.builder.position_at_end(end)

    def where(self, condition: Any, otherwise: list[Any], make: Callable[[], list[Any]]) -> list[Any]:
        """`make()` where the condition is not 0, else what there is."""
        builder, before = self.builder, self.builder.block
        made_in, end = builder.append_basic_block("made"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed("!=", condition, constant(0)), made_in, end)
        builder.position_at_end(made_in)
        made = make()
        made_in = builder.block
        builder.branch(end)
        builder.position_at_end(end)
        return self._either(otherwise, before, made, made_in)

    def _either(self, ones: list[Any], one_block: Any, others: list[Any], other_block: Any) -> list[Any]:
        """The values that come from the block that was left last."""
        results = []
        for one, other in zip(ones, others, strict=True):
            results.append(self.builder.phi(one.type))
            results[-1].add_incoming(one, one_block)
            results[-1].add_incoming(other, other_block)
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
        """The vectors of cells, 0 where there is no example; `present` as in `before`."""
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

    def store(self, cell: Cell, pointer: Any, tight: bool = False, *, nontemporal: bool = False) -> None:
        """Write a cell; with `nontemporal` past the caches, where it begins at a multiple of its size."""
        slots = narrow(self.builder, cell[0], cell[1], tight) if self.paired else cell[0]
        stored = self.builder.store(slots, pointer, align=LANES * self.bytes if nontemporal else self.bytes)
        if nontemporal:
            stored.set_metadata("nontemporal", self.builder.module.add_metadata([ir.IntType(32)(1)]))

    def load_all(self, pointers: list[Any], tight: bool = False) -> list[Any]:
        """The vectors of several cells, one cell after the other."""
        return [number for pointer in pointers for number in self.load(pointer, tight)]

    def store_all(self, numbers: list[Any], pointers: list[Any]) -> None:
        for i, pointer in enumerate(pointers):
            self.store(numbers[i * self.halves : (i + 1) * self.halves], pointer)

    def prefetch(self, position: int, at: Any) -> None:
        """Prefetch the cell at a slot of an argument into the cache; it may lie outside the array."""
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        pointer = self.builder.bitcast(self.builder.gep(self.data(position), [at]), byte)
        self.builder.call(function, [pointer, word(0), word(3), word(1)])

    def load_at(self, position: int, at: Any) -> Cell:
        """The cell at a slot of an argument."""
        return self.load(self.cell(self.builder.gep(self.data(position), [at])), self.is_tight(position))

    def store_at(self, position: int, at: Any, cell: Cell, *, nontemporal: bool = False) -> None:
        self.store(
            cell,
            self.cell(self.builder.gep(self.data(position), [at])),
            self.is_tight(position),
            nontemporal=nontemporal,
        )

    def load_places(self, array: Any, at: Any) -> Cell:
        """The bytes that belong to the numbers of the cell at slot `at`, each vector's together."""
        places = self.builder.load(self._coordinates(array, at), align=1)
        if not self.paired:
            return [places]
        upper = self.builder.lshr(places, ir.Constant(places.type, [8] * LANES))
        return [self.builder.trunc(half, self.bytes_) for half in (places, upper)]

    def store_places(self, cell: Cell, array: Any, at: Any) -> None:
        places = interleave(self.builder, *cell) if self.paired else cell[0]
        self.builder.store(places, self._coordinates(array, at), align=1)

    def _coordinates(self, array: Any, at: Any) -> Any:
        start = self.builder.gep(array, [self.builder.mul(at, constant(self.halves))])
        return self.builder.bitcast(start, ir.VectorType(ir.IntType(8 * self.halves), LANES).as_pointer())

    def over(self, begin: Any, end: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`for j in range(begin, end): carried = body(j, carried)`, with `carried` in registers."""
        builder = self.builder
        entry = builder.block
        loop, done = builder.append_basic_block("kept"), builder.append_basic_block("done")
        some = builder.icmp_signed("<", begin, end)
        builder.cbranch(some, loop, done)
        builder.position_at_end(loop)
        j = builder.phi(INDEX)
        j.add_incoming(begin, entry)
        values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            values.append(phi)
        after = body(j, values)
        following = builder.add(j, constant(1))
        j.add_incoming(following, builder.block)
        for phi, value in zip(values, after, strict=True):
            phi.add_incoming(value, builder.block)
        last = builder.block
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        builder.position_at_end(done)
        return self._either(carried, entry, after, last)
