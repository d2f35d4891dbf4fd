"""The matrix unit of a CPU (Intel's AMX): products of small matrices of bfloat16, added up in float32.

It has eight registers of 16 rows of 64 bytes. Here four hold sums, 32 x 32 numbers; two hold a matrix of 32 rows and 32
columns, and two hold one of 32 rows of pairs and 16 columns, twice: one step adds the product of 32 x 32 by 32 x 32
numbers to the sums, in about as many cycles as vectors take to multiply 1/16 of those.
"""

import ctypes
import platform
from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from skeletal.engine.codegen.compiling import intrinsic
from skeletal.engine.codegen.target import host_features, target_features

_BYTE, _WORD = ir.IntType(8), ir.IntType(64)
_ROWS, _WIDTH = 16, 64  # of a register, the width in bytes
_SIZE = _ROWS * _WIDTH
_SUMS, _LEFT, _RIGHT = range(4), (4, 5), (6, 7)
_PERMISSION, _REQUEST, _TILES = 158, 0x1023, 18  # Linux: arch_prctl, ARCH_REQ_XCOMP_PERM, the state of the registers
_SYSTEM = platform.system() == "Linux" and platform.machine() == "x86_64"
_PRESENT = _SYSTEM and all(
    features.get(name) for features in (host_features(), target_features()) for name in ("amx-tile", "amx-bf16")
)


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether there is such a unit, and the system lets this process use it; ask before using it."""
    return bool(_PRESENT) and ctypes.CDLL(None).syscall(_PERMISSION, _REQUEST, _TILES) == 0


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _bytes(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _BYTE.as_pointer())


@intrinsic
def configure(typing):
    """Make the registers ready; each thread has to call this before it uses them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        settings = bytearray(64)
        settings[0] = 1
        for register in range(8):
            settings[16 + 2 * register], settings[48 + register] = _WIDTH, _ROWS
        constant = cgutils.create_constant_array(_BYTE, settings)
        place = cgutils.global_constant(builder, "registers", constant)
        _call(builder, "ldtilecfg", builder.bitcast(place, _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def release(typing):
    """Give the registers back, as each thread has to in the end. What it wrote past the caches is then in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        _call(builder, "sse.sfence")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def clear_sums(typing):
    """Set all sums to 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for register in _SUMS:
            _call(builder, "tilezero", _BYTE(register))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def multiply_add(typing, left, at, right, right_at):
    """`sums[m, n] += Σ_k left[m, k] right[k, n]`, with m, n and k up to 32.

    `left` lies row by row; `right` in two halves of n, each by pairs of k: [n // 16][k // 2][n % 16][k % 2]. Both are
    arrays of int32, each with two bfloat16.
    """
    index = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width = _WORD(_WIDTH)
        for registers, position in ((_LEFT, 0), (_RIGHT, 2)):
            start = _bytes(context, builder, signature.args[position], *arguments[position : position + 2])
            for i, register in enumerate(registers):
                _call(builder, "tileloadd64", _BYTE(register), builder.gep(start, [_WORD(i * _SIZE)]), width)
        for register in _SUMS:
            _call(builder, "tdpbf16ps", _BYTE(register), _BYTE(_LEFT[register // 2]), _BYTE(_RIGHT[register % 2]))
        return context.get_dummy_value()

    return types.void(left, index, right, index), generate


def _moved(name: str) -> Any:
    @intrinsic
    def move(typing, array, at, row):
        index = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start = _bytes(context, builder, signature.args[0], *arguments[:2])
            row_ = builder.mul(arguments[2], _WORD(4))
            for register in _SUMS:
                down = builder.mul(row_, _WORD(register // 2 * _ROWS))
                place = builder.gep(start, [builder.add(down, _WORD(register % 2 * _WIDTH))])
                _call(builder, name, _BYTE(register), place, row_)
            return context.get_dummy_value()

        return types.void(array, index, index), generate

    return move


load_sums = _moved("tileloadd64")
"""Take sums from an array of float32: 32 rows from `at` on, `row` numbers apart."""
store_sums = _moved("tilestored64")
"""Write them to it."""
