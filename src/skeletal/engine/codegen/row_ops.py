"""Rows of pixels through batch norm and ReLU, forward and backward, as vector instructions; see `ir_builder`.

In compiled Python loops LLVM proves too little about what may overlap, and works number by number.
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import types

from skeletal.engine.codegen.compiling import intrinsic
from skeletal.engine.codegen.ir_builder import INDEX, Emitter
from skeletal.engine.codegen.packed_bf16 import LANES


@intrinsic
def affine(typing, mode, x, out, other, start, target, cells, a, b, valid, ahead):
    """`out = a x + b`, for the cells from slot `start` on, and 0 for examples from the number `valid` of a cell on.

    With `mode` 2 or 3 `other` is added; with 1 or 3 the result is then not below 0. The cells of `out` begin at slot
    `target`. The cells of x `ahead` slots further on will soon be needed.
    """
    index = types.int64
    signature = types.void(index, x, out, other, index, index, index, a, a, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, x.dtype)
        mode_, _, _, _, start_, target_, cells_, a_, b_, valid_, ahead_ = arguments
        factor, constant, present = emit.spread(a_), emit.spread(b_), emit.before(valid_)

        def case(added: bool, relu: bool) -> None:
            def body(j: Any, _: list[Any]) -> list[Any]:
                step = builder.mul(j, ir.Constant(INDEX, LANES))
                at, to = builder.add(start_, step), builder.add(target_, step)
                emit.prefetch(1, builder.add(at, ahead_))
                found = [builder.call(emit.fma, [number, factor, constant]) for number in emit.load_at(1, at)]
                if added:
                    found = [builder.fadd(*pair) for pair in zip(found, emit.load_at(3, at), strict=True)]
                if relu:
                    found = emit.positive(found)
                emit.store_at(2, to, emit.masked(present, found))
                return []

            emit.over(ir.Constant(INDEX, 0), cells_, [], body)

        emit.choose(mode_, [partial(case, added, relu) for added in (False, True) for relu in (False, True)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def affine_gradient(typing, mode, x, z, gradient, out, other, start, target, cells, a, b, p, q, r, valid, ahead):
    """`out = p g + q x + r`, for the cells from slot `start` on, and 0 for examples from `valid` on.

    The cells of `out` begin at slot `target`. g is the gradient before a ReLU: with `mode` 0 there is none; with 1 it
    was open where `a x + b` is above 0; with 2 where z is; with 3 also `other = g`. `ahead` as in `affine`.
    """
    index = types.int64
    signature = types.void(index, x, z, gradient, out, other, index, index, index, a, a, a, a, a, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, x.dtype)
        start_, target_, cells_, valid_, ahead_ = *arguments[6:9], *arguments[14:]
        factor, constant, gradient_factor, x_factor, rest = (emit.spread(number) for number in arguments[9:14])
        present = emit.before(valid_)

        def case(mode: int) -> None:
            def body(j: Any, _: list[Any]) -> list[Any]:
                step = builder.mul(j, ir.Constant(INDEX, LANES))
                at, to = builder.add(start_, step), builder.add(target_, step)
                for position in (1, 2, 3) if mode > 1 else (1, 3):
                    emit.prefetch(position, builder.add(at, ahead_))
                numbers, slopes = emit.load_at(1, at), emit.load_at(3, at)
                results = emit.load_at(2, at) if mode > 1 else []
                if mode == 1:
                    results = [builder.call(emit.fma, [number, factor, constant]) for number in numbers]
                if mode:
                    slopes = emit.open(slopes, results)
                # The order of the two sums decides the last bit, which must stay as it has always been.
                pairs = [(x_factor, numbers), (gradient_factor, slopes)]
                pairs = pairs[::-1] if mode == 1 else pairs
                found = []
                for i in range(emit.halves):
                    (outer, first), (inner, second) = [(factor, vectors[i]) for factor, vectors in pairs]
                    found.append(builder.call(emit.fma, [outer, first, builder.call(emit.fma, [inner, second, rest])]))
                emit.store_at(4, to, emit.masked(present, found))
                if mode == 3:
                    emit.store_at(5, at, slopes)
                return []

            emit.over(ir.Constant(INDEX, 0), cells_, [], body)

        emit.choose(arguments[0], [partial(case, mode) for mode in range(4)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def move(typing, array, start, target, cells):
    """Copy cells from slot `start` on to slot `target` on, which lies before it."""
    index = types.int64
    signature = types.void(array, index, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature, arguments, array.dtype)
        start_, target_, cells_ = arguments[1:]

        def body(j: Any, _: list[Any]) -> list[Any]:
            step = builder.mul(j, ir.Constant(INDEX, LANES))
            at, to = (emit.cell(builder.gep(emit.data(0), [builder.add(begin, step)])) for begin in (start_, target_))
            builder.store(builder.load(at, align=emit.bytes), to, align=emit.bytes)
            return []

        emit.over(ir.Constant(INDEX, 0), cells_, [], body)
        return context.get_dummy_value()

    return signature, generate
