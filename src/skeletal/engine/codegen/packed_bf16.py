"""What maps are made of in memory: float32, float64, or bfloat16, which LLVM knows but numba does not.

A bfloat16 is the upper half of a float32. Kernels read such maps as bits and widen them, compute in float32, and round
to the nearest, ties to even, where they write; NaN stays NaN. The CPU's own instruction does that, if there is one.

Kernels that go over single numbers see a bfloat16 map as int16. Kernels of tiles see *slots* of 32 bits, int32: a slot
holds two neighbours, the first in its lower half, so that an instruction each takes a vector of slots apart and no
number changes its lane. A slot is as wide as a float32, and as many slots make a cell (see `grid`), so one table of
offsets, which count slots, serves both.

*Tight* slots, uint32, are read more often than they are written, and only by kernels (see `line_buffer`). Their upper
number is the whole slot read as float32, with the lower number as its last digits: extracting it takes no
instruction. It is written so that what is read is one of the two bfloat16 places next to the true value, which one by
chance, so that it is right on average.
"""

import platform
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import overload
from numba.np.arrayobj import populate_array
from torch import Tensor

from skeletal.engine.codegen.compiling import intrinsic
from skeletal.engine.codegen.target import target_features

LANES = 16 if target_features().get("avx512f") else 8
"""Slots side by side in memory: as many float32 as one vector register holds, twice that on short ones. A slot is a
float32, a float64 or two bfloat16, each of another example."""

_ROUNDS = bool(target_features().get("avx512bf16"))
"""Whether the CPU rounds to bfloat16. Where it does not, LLVM calls a function that this process does not have."""

_HALF, _WORD = ir.IntType(16), ir.IntType(32)


def examples_of(dtype: torch.dtype) -> int:
    """How many examples a cell holds."""
    return LANES * per_slot(dtype)


def per_slot(dtype: torch.dtype) -> int:
    """How many numbers a slot holds."""
    return 2 if dtype == torch.bfloat16 else 1


_TIGHT = platform.machine().lower() in ("x86_64", "amd64")
"""where `flush` is known"""

COMPUTES = (torch.float32, torch.float64)
"""What the kernels compute in, and what weights have to be."""


def computes(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute in on maps of a type: that type, and float32 for bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def flat(tensor: Tensor | None, like: Tensor | None = None) -> np.ndarray:
    """The numbers of a contiguous tensor, as kernels see them; none, of the type of `like`, without a tensor."""
    return _array(tensor, like, torch.int16)


def slots(tensor: Tensor | None, like: Tensor | None = None) -> np.ndarray:
    """The same as slots."""
    return _array(tensor, like, torch.int32)


def _array(tensor: Tensor | None, like: Tensor | None, bits: torch.dtype) -> np.ndarray:
    if tensor is None:
        assert like is not None
        return _none(like.dtype, bits)
    tensor = tensor.detach()
    assert tensor.is_contiguous()  # a kernel would write into a copy
    return (tensor.view(bits) if tensor.dtype == torch.bfloat16 else tensor).numpy().reshape(-1)


Pointer = tuple[int, int]
"""Where numbers or slots lie in memory, and how many: free to find out, and cheap to hand over."""
NULL: Pointer = (0, 0)


def numbers_pointer(tensor: Tensor | None) -> Pointer:
    """Of the numbers of a contiguous tensor; of none without one."""
    if tensor is None:
        return NULL
    assert tensor.is_contiguous()
    return tensor.data_ptr(), tensor.numel()


def slots_pointer(tensor: Tensor | None) -> Pointer:
    """Of its slots."""
    address, size = numbers_pointer(tensor)
    return address, size // 2 if tensor is not None and tensor.dtype == torch.bfloat16 else size


def tight(slots: np.ndarray) -> np.ndarray:
    """An array of slots as one of tight slots, where two numbers share one."""
    return slots.view(np.uint32) if slots.dtype == np.int32 and _TIGHT else slots


@lru_cache
def _none(dtype: torch.dtype, bits: torch.dtype) -> np.ndarray:
    return _array(torch.empty(0, dtype=dtype, device="cpu"), None, bits)


class _BFloat(ir.types._BaseFloatType):
    """LLVM's `bfloat`, which llvmlite does not name."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def format_constant(self, value: Any) -> str:
        """Constants are not needed."""
        raise NotImplementedError(value)


_BFloat._create_instance()


def _like(kind: Any, scalar: Any) -> Any:
    return ir.VectorType(scalar, kind.count) if isinstance(kind, ir.VectorType) else scalar


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def widen(builder: Any, slots: Any, tight: bool = False) -> tuple[Any, Any]:
    """The two float32 in each of a vector of slots."""
    floats = _like(slots.type, ir.FloatType())
    lower = builder.shl(slots, _constant(slots.type, 16))
    upper = slots if tight else builder.and_(slots, _constant(slots.type, -(1 << 16)))
    return builder.bitcast(lower, floats), builder.bitcast(upper, floats)


def narrow(builder: Any, lower: Any, upper: Any, tight: bool = False) -> Any:
    """Slots of two vectors of float32, rounded: `widen`, backward."""
    if tight:
        return _tight(builder, lower, upper)
    return interleave(builder, _rounded(builder, lower), _rounded(builder, upper))


def _tight(builder: Any, lower: Any, upper: Any) -> Any:
    """The upper half that, together with the lower one, makes the number or what lies next to it, up or down in
    proportion: right on average (stochastic rounding).

    The nearest would be biased for numbers that are round already, as all are that a batch norm leaves as they are: as
    last digits the lower number is always about a quarter (its sign 0, its exponent near that of 1). The place to round
    at is drawn from the lower number's five last bits, which say nothing of the upper one; below a lower 0, which most
    have after a relu, it is the middle.

    Adding to the bits of a float makes it larger, away from 0, whatever its sign. Where the number is 0, or nearly,
    what is read is a denormal, that is 0. Infinity may be read as NaN, but never as a number.
    """
    kind = _like(lower.type, _WORD)
    number = partial(_constant, kind)
    tail = builder.zext(_rounded(builder, lower), kind)
    bits = builder.bitcast(upper, kind)
    size = builder.and_(bits, number(0x7FFFFFFF))
    drawn = builder.and_(builder.shl(tail, number(11)), number(0xF800))
    up = builder.add(size, builder.xor(drawn, number(0x8000)))
    nearest = builder.sub(builder.select(builder.icmp_unsigned("<", up, tail), tail, up), tail)
    nearest = builder.select(builder.icmp_unsigned("<", size, number(0x7F800000)), nearest, size)
    nearest = builder.and_(nearest, number(0x7FFF0000))
    return builder.or_(builder.or_(nearest, tail), builder.and_(bits, number(-(1 << 31))))


def interleave(builder: Any, lower: Any, upper: Any) -> Any:
    """Two vectors of integers as one of integers twice as wide."""
    width = lower.type.element.width
    wide = _like(lower.type, ir.IntType(2 * width))
    return builder.or_(builder.zext(lower, wide), builder.shl(builder.zext(upper, wide), _constant(wide, width)))


def _rounded(builder: Any, value: Any) -> Any:
    """The bits of float32 as bfloat16: the nearest, ties to even, NaN a quiet NaN."""
    if _ROUNDS:
        return builder.bitcast(builder.fptrunc(value, _like(value.type, _BFloat())), _like(value.type, _HALF))
    width = value.type.count if isinstance(value.type, ir.VectorType) else 1
    kind = ir.FunctionType(_like(value.type, _HALF), [value.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"skeletal_round_{width}")
    if function.is_declaration:
        _define_rounding(function)
    return builder.call(function, [value])


def _define_rounding(function: Any) -> None:
    """In integers, in a function of its own: inlined into each tile, it would take minutes to compile."""
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    value = function.args[0]
    number = partial(_constant, _like(value.type, _WORD))
    bits = builder.bitcast(value, _like(value.type, _WORD))
    upper = builder.lshr(bits, number(16))
    half = builder.add(builder.and_(upper, number(1)), number(0x7FFF))  # ties to even
    nearest = builder.lshr(builder.add(bits, half), number(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    found = builder.select(is_nan, builder.or_(upper, number(0x40)), nearest)
    builder.ret(builder.trunc(found, function.function_type.return_type))


@intrinsic
def _read(typing, array, index):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        bits = builder.zext(builder.load(builder.gep(data, [arguments[1]])), _WORD)
        return builder.bitcast(builder.shl(bits, _constant(_WORD, 16)), ir.FloatType())

    return types.float32(array, types.int64), generate


@intrinsic
def _write(typing, array, index, value):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store(_rounded(builder, arguments[2]), builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.float32), generate


# What follows is for kernels. Arrays of int16 are bfloat16 maps.


@intrinsic
def array_at(typing, pointer, like):
    """A flat array of what lies at a `Pointer`, of the type of another. It does not keep that memory alive."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.return_type
        address, size = (builder.extract_value(arguments[0], i) for i in range(2))
        array = context.make_array(kind)(context, builder)
        data = builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
        width = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        populate_array(
            array, data, cgutils.pack_array(builder, [size]), cgutils.pack_array(builder, [width]), width, meminfo=None
        )
        return array._getvalue()

    return types.Array(like.dtype, 1, "C")(pointer, like), generate


def lanes(array: Any) -> int:
    """Numbers in a cell of an array of maps, a constant."""
    raise NotImplementedError("for kernels only")


def cell(array: Any) -> int:
    """Examples in a cell of an array of slots, a constant."""
    raise NotImplementedError("for kernels only")


def nothing(array: Any) -> Any:
    """0, of the type that `read` gives."""
    raise NotImplementedError("for kernels only")


def empty_sum(array: Any) -> Any:
    """0, in the type for a sum of many numbers: float64, or float32 where those are bfloat16, rounded far worse."""
    raise NotImplementedError("for kernels only")


def read(array: Any, index: int) -> Any:
    """`array[index]`, as float32 where the array is of bfloat16."""
    raise NotImplementedError("for kernels only")


def write(array: Any, index: int, value: Any) -> None:
    """`array[index] = value`, rounded where the array is of bfloat16."""
    raise NotImplementedError("for kernels only")


@intrinsic
def flush(typing, array):
    """Treat denormal numbers as 0 from here on if an array has tight slots, where they stand for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if array.dtype != types.uint32:
            return _WORD(0)
        state = cgutils.alloca_once(builder, _WORD)
        _control(builder, "stmxcsr", state)
        old = builder.load(state)
        builder.store(builder.or_(old, _WORD(0x8040)), state)
        _control(builder, "ldmxcsr", state)
        return old

    return types.int32(array), generate


@intrinsic
def restore(typing, array, old):
    """Restore what `flush` has changed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if array.dtype == types.uint32:
            state = cgutils.alloca_once(builder, _WORD)
            builder.store(arguments[1], state)
            _control(builder, "ldmxcsr", state)
        return context.get_dummy_value()

    return types.void(array, types.int32), generate


def _control(builder: Any, name: str, state: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
    builder.call(function, [builder.bitcast(state, ir.IntType(8).as_pointer())])


@overload(lanes)
def _lanes(array):
    count = 2 * LANES if array.dtype == types.int16 else LANES
    return lambda array: count


@overload(cell)
def _cell(array):
    count = 2 * LANES if array.dtype == types.int32 else LANES
    return lambda array: count


@overload(nothing)
def _nothing(array):
    kind = types.float32 if array.dtype == types.int16 else array.dtype
    return lambda array: kind(0)


@overload(empty_sum)
def _empty_sum(array):
    kind = types.float32 if array.dtype == types.int16 else types.float64
    return lambda array: kind(0)


@overload(read)
def _read_one(array, index):
    if array.dtype == types.int16:
        return lambda array, index: _read(array, index)
    # A signed index might count from the end: LLVM would gather number by number, ten times as slowly.
    return lambda array, index: array[types.uint64(index)]


@overload(write)
def _write_one(array, index, value):
    def bits(array, index, value):
        _write(array, index, types.float32(value))

    def plain(array, index, value):
        array[types.uint64(index)] = value

    return bits if array.dtype == types.int16 else plain
