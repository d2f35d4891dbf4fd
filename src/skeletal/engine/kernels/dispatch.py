"""Where a convolution's kernels for kept weights one by one and those for blocks of them part ways: which one runs,
and what comes before and after it.

They are told apart by what comes first in the tables: one order of the weights, or what blocks have instead (see
`WeightBlocks.packed`). The choice is made while they are compiled, so that no machine has to compile what it cannot
run.
"""

from typing import Any

from skeletal.engine.codegen.compiling import intrinsic, is_tuple, overload
from skeletal.engine.codegen.fork import address_of_part, fork, held, part_of
from skeletal.engine.kernels.blocks import fill_blocks, gather_gradients
from skeletal.engine.kernels.sparse import add_up, gather


@intrinsic
def part_of_either(typing: Any, singly: Any, in_blocks: Any, order: Any, arguments: Any) -> Any:
    """`part_of` the second kernel where `order` is a tuple, else of the first; the other one is not compiled."""
    kernel = in_blocks if is_tuple(order) else singly
    return address_of_part(typing, kernel, arguments, (singly, in_blocks, order, arguments))


def arrange(boards, threads, values, order, weights):
    """Kept values as the kernels gather them, into `weights` as far as that reaches."""
    raise NotImplementedError("for kernels only")


def add_all_up(boards, threads, sums, order, gradient):
    """Gradients of kept values, from what threads have summed up."""
    raise NotImplementedError("for kernels only")


@overload(arrange)
def _arrange(boards, threads, values, order, weights):
    def singly(boards, threads, values, order, weights):
        gather(values, order[: len(weights)], weights)

    def in_blocks(boards, threads, values, order, weights):
        arguments = values, order, weights
        count = len(order[1]) - 1 if len(weights) else 0
        fork(boards, threads, count, part_of(fill_blocks, arguments), held(arguments))

    return in_blocks if is_tuple(order) else singly


@overload(add_all_up)
def _add_all_up(boards, threads, sums, order, gradient):
    def singly(boards, threads, sums, order, gradient):
        arguments = sums, order, gradient
        fork(boards, threads, sums.shape[1], part_of(add_up, arguments), held(arguments))

    def in_blocks(boards, threads, sums, order, gradient):
        arguments = sums, order, gradient
        count = len(order[1]) - 1 if sums.shape[1] else 0
        fork(boards, threads, count, part_of(gather_gradients, arguments), held(arguments))

    return in_blocks if is_tuple(order) else singly
