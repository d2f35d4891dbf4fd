"""Run a kernel on several threads without the interpreter, so that handing over work takes two microseconds.

With Python's own pool it takes ninety on a quiet machine, most of them to wake a sleeping thread on a sleeping core,
and a training step of a thin skeleton has hundreds of kernels of a few tens of microseconds.

The *caller* runs its own part of the work and offers each other part on a *board*. A *worker* polls its board for as
long as its patience lasts, takes what is offered and reports it. The caller itself does what no worker has taken by
the time it is through, so a sleeping worker costs nothing but time. Parts do not depend on who runs them.

Kernels come as functions `kernel(*arguments, first, last, thread)` over the units [first, last), none of which raises.
Each has a function beside it, `shared_kernel(boards, threads, units, *arguments)`, which numba compiles and caches as
it does any other; a function made by another would be compiled anew in each process.
"""

import os
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from skeletal.engine.codegen.compiling import compiled, intrinsic

_NUMBER = ir.IntType(64)
_PART = ir.FunctionType(ir.VoidType(), [_NUMBER] * 4)
"""Of the arguments' address, first, last and thread."""
_GIVE_WAY = "SwitchToThread" if os.name == "nt" else "sched_yield"

OFFER, FUNCTION, ARGUMENTS, FIRST, LAST, THREAD, LAST_OFFER = range(7)
DONE, ASLEEP = 8, 16  # words that different threads write lie in different cache lines
WORDS = 24
"""int64 words of a board. An offer is a number, each time the next; 0 is none."""


@intrinsic
def part_of(typing: Any, kernel: Any, arguments: Any) -> Any:
    """The address of a function that takes up arguments from where they are held, and runs a part of the kernel."""
    return address_of_part(typing, kernel, arguments, (kernel, arguments))


def address_of_part(typing: Any, kernel: Any, arguments: Any, taken: tuple[Any, ...]) -> Any:
    """What `part_of`, or an intrinsic like it that takes arguments of the types `taken`, returns to numba."""
    ours = kernel.get_call_type(typing, (*arguments.types, *[types.int64] * 3), {})

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = kernel.dispatcher.get_compile_result(ours)
        context.active_code_library.add_linking_library(found.library)
        part = ir.Function(builder.module, _PART, builder.module.get_unique_name("part"))
        part.linkage = "internal"
        inside = ir.IRBuilder(part.append_basic_block())
        held = inside.load(inside.inttoptr(part.args[0], context.get_value_type(arguments).as_pointer()))
        unpacked = cgutils.unpack_tuple(inside, held, len(arguments.types))
        known = found.fndesc
        function = context.declare_function(builder.module, known)
        context.call_conv.call_function(inside, function, known.restype, known.argtypes, [*unpacked, *part.args[1:]])
        inside.ret_void()
        return builder.ptrtoint(part, _NUMBER)

    return types.int64(*taken), code


@intrinsic
def held(typing: Any, arguments: Any) -> Any:
    """The address of a copy of the arguments on the stack of the function that calls this."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ptrtoint(cgutils.alloca_once_value(builder, values[0]), _NUMBER)

    return types.int64(arguments), code


@intrinsic
def _run(typing: Any, part: Any, arguments: Any, first: Any, last: Any, thread: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.call(builder.inttoptr(values[0], _PART.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), code


def _word(context: Any, builder: Any, board: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(board)(context, builder, array).data, [index])


@intrinsic
def _read(typing: Any, board: Any, index: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_word(context, builder, board, *values), "acquire", 8)

    return types.int64(board, types.int64), code


@intrinsic
def _write(typing: Any, board: Any, index: Any, value: Any) -> Any:
    """What was written before is visible to any reader of this."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[2], _word(context, builder, board, *values[:2]), "release", 8)
        return context.get_dummy_value()

    return types.none(board, types.int64, types.int64), code


@intrinsic
def _take(typing: Any, board: Any, offer: Any) -> Any:
    """Whether this thread is the one that takes an offer off its board."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = _word(context, builder, board, values[0], _NUMBER(OFFER))
        return builder.extract_value(builder.cmpxchg(word, values[1], _NUMBER(0), "acq_rel", "monotonic"), 1)

    return types.boolean(board, types.int64), code


@intrinsic
def _give_way(typing: Any) -> Any:
    """Let another thread have this core, if one waits for it."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _GIVE_WAY), [])
        return context.get_dummy_value()

    return types.none(), code


@compiled
def serve(board, patience):
    """Do what is offered on a board, until that many looks in a row have found nothing."""
    looks = 0
    while looks < patience:
        offer = _read(board, OFFER)
        if offer != 0 and _take(board, offer):
            _run(board[FUNCTION], board[ARGUMENTS], board[FIRST], board[LAST], board[THREAD])
            _write(board, DONE, offer)
            looks = 0
        # No `pause` instruction: on a virtual machine it can take 4 microseconds.
        looks += 1


@compiled
def fork(boards, threads, units, part, arguments):
    """Run all parts, one per thread, and return when all are done.

    Args:
        boards: (workers, WORDS), of workers that serve no one else now; parts beyond them are the caller's.
        threads: parts of equal size.
        units: of the kernel.
        part: address of what `part_of` makes.
        arguments: address of what `held` holds.

    """
    workers = min(threads - 1, boards.shape[0])
    for worker in range(workers):
        board, thread = boards[worker], worker + 1
        board[FUNCTION], board[ARGUMENTS], board[THREAD] = part, arguments, thread
        board[FIRST], board[LAST] = units * thread // threads, units * (thread + 1) // threads
        board[LAST_OFFER] += 1
        _write(board, OFFER, board[LAST_OFFER])
    _run(part, arguments, 0, units // threads, 0)
    for thread in range(workers + 1, threads):
        _run(part, arguments, units * thread // threads, units * (thread + 1) // threads, thread)
    for worker in range(workers):
        board = boards[worker]
        if _take(board, board[LAST_OFFER]):
            _run(part, arguments, board[FIRST], board[LAST], worker + 1)
            continue
        looks = 0
        while _read(board, DONE) != board[LAST_OFFER]:
            looks += 1
            if looks % 100_000 == 0:  # more threads than cores
                _give_way()
