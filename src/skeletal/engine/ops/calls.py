"""The compiled code that a convolution calls, once for each direction, and what it hands over.

In a thin skeleton, Python's own work per layer is a good part of a step. So what follows from a plan is worked out once
(`launch_args.LaunchArgs`), and tensors go to the kernels as pointers.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import LANES, computes, numbers_pointer, slots_pointer
from skeletal.engine.codegen.threads import share, thread_count
from skeletal.engine.kernels import arena, fused_batch_norm
from skeletal.engine.ops.affine import Affine
from skeletal.engine.ops.launch_args import NormArgs, NormGradArgs, launch_args, launch_args_back
from skeletal.engine.plan.plan import ConvPlan

_FEW_TILES = 2  # up to that many, sums for each lane would cost more to write and to read than to add up at once


def _splits(units: int, channels: int) -> int:
    """How many parts to cut channels into where there are too few blocks and bands to share among threads."""
    threads = torch.get_num_threads()
    return 1 if units >= 4 * threads or threads == 1 else max(1, min(channels, 4 * threads))


def like(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Numbers as kernels take them."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous() and not tensor.is_neg()):
        return tensor
    return tensor.detach().to(dtype).resolve_neg().contiguous()


@lru_cache
def ones(count: int, dtype: torch.dtype) -> Tensor:
    """So many; not to be written to."""
    return torch.ones(count, dtype=dtype, device="cpu")


def _fit(plan: ConvPlan, x: Tensor, values: Tensor, *maps: Tensor | None) -> None:
    """Kernels get addresses: they would read and write past the end of memory of another type or size.

    Raises:
        TypeError: maps and weights have types that do not go together.
        ValueError: there are not as many weights as the plan was made for.

    """
    if computes(x.dtype) != values.dtype or any(other is not None and other.dtype != x.dtype for other in maps):
        types = ", ".join(str(other.dtype) for other in (x, *maps) if other is not None)
        raise TypeError(f"maps of {types} meet weights of {values.dtype}: convert the whole network and its inputs")
    if values.numel() != plan.kept:
        raise ValueError(
            f"a layer of {plan.kept} kept weights got {values.numel()}: it takes the kept values, in the order of its"
            " mask"
        )


class Call(NamedTuple):
    """What to call, and what it makes."""

    made: tuple[Tensor | None, ...]
    units: int
    arguments: tuple[Any, ...]
    memory: tuple[Any, ...]
    """what addresses among the arguments point to, which has to live for as long"""


def run_convolution(plan: ConvPlan, x: Tensor, values: Tensor, examples: int, **options: Any) -> Tensor:
    """The storage of a convolution's output; see `forward_call`."""
    call = forward_call(plan, x, values, examples, **options)
    share(fused_batch_norm.shared_forward, call.units, *call.arguments)
    (out,) = call.made
    assert out is not None
    return out


def forward_call(
    plan: ConvPlan,
    x: Tensor,
    values: Tensor,
    examples: int,
    *,
    affine: Affine | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    relu: bool = False,
    norm: NormArgs | None = None,
) -> Call:
    """A call of `fused_batch_norm.shared_forward`, which makes the storage of a convolution's output.

    Args:
        plan: its tables.
        x: storage of the input.
        values: kept weights, in the order of the mask.
        examples: how many are in the batch.
        affine: what is still to be done to x.
        scale, shift: for each output channel, of what follows the convolution, both or none; with `norm.mode`
            2 only shift counts, as a bias before it.
        other: then added.
        relu: whether it ends with one.
        norm: batch norm of what the convolution makes.

    """
    _fit(plan, x, values, other, None if norm is None else norm.other)
    launch, blocks = launch_args(plan, x.dtype), x.shape[0]
    tables = plan.weight_blocks if launch.full else plan.forward
    units = blocks * len(plan.tiling.bands)
    splits = _splits(units, plan.outputs)
    out = arena.empty((blocks, plan.outputs, launch.planes[1]), x.dtype)
    if not units:
        out.zero_()
    buffer, threads = None, thread_count(units * splits)
    if launch.full:
        buffer = arena.empty((threads, plan.weight_blocks.room), x.dtype)
    elif affine is not None:
        buffer = arena.empty((threads, plan.inputs * launch.planes[0]), x.dtype)
    rest, state, then, added, materialized, mode = launch.no_norm if norm is None else norm
    by_channel = [like(tensor, values.dtype) for tensor in (scale, shift, *rest)]
    if wrong := [tensor.numel() for tensor in by_channel if tensor is not None and tensor.numel() != plan.outputs]:
        raise ValueError(f"a layer of {plan.outputs} channels got a bias, or a norm after it, of {wrong[0]}")
    numbers = [like(values, values.dtype), *by_channel]
    arguments = (
        launch.kinds,
        tuple(map(slots_pointer, (x, buffer, out, other, materialized, added))), tuple(map(numbers_pointer, numbers)),
        tables.memory(launch.kinds.values.dtype), tables.packed, launch.forward,
        (launch.as_it_is if affine is None else affine).numbers,
        np.empty((units if state[1] else 0, plan.outputs, 2)), mode, state, then[:2],
        (int(relu), int(then.relu), examples, splits),
    )  # fmt: skip
    return Call((out,), units * splits, arguments, (x, buffer, other, materialized, added, numbers))


def run_gradients(
    plan: ConvPlan, gradient: Tensor, x: Tensor, values: Tensor, examples: int, **options: Any
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a convolution's input and of its kept weights, if wanted; see `backward_call`."""
    call = backward_call(plan, gradient, x, values, examples, **options)
    share(fused_batch_norm.shared_backward, call.units, *call.arguments)
    return call.made[0], call.made[1]


def backward_call(
    plan: ConvPlan,
    gradient: Tensor,
    x: Tensor,
    values: Tensor,
    examples: int,
    *,
    affine: Affine | None = None,
    passed: Tensor | None = None,
    wanted: tuple[bool, bool] = (True, True),
    norm: NormGradArgs | None = None,
    relu_backward: bool = False,
) -> Call:
    """A call of `fused_batch_norm.shared_backward`: the gradients of a convolution's input and of its kept weights.

    Args:
        plan, x, values, examples, affine: as in `forward_call`.
        gradient: storage, of the output.
        passed: added to the gradient of the input.
        wanted: which.
        norm: batch norm after the convolution; `gradient` is then that of its result.
        relu_backward: whether the gradient of x counts only where x is above 0.

    """
    _fit(plan, x, values, gradient, passed)
    launch, blocks, kind = launch_args(plan, x.dtype), x.shape[0], values.dtype
    forward = plan.weight_blocks if launch.full else plan.forward
    back = plan.weight_blocks_back if launch.full else plan.backward if wanted[0] else plan.forward
    units = blocks * len(plan.tiling.bands)
    splits = _splits(units, max(plan.outputs, plan.inputs))
    units *= splits
    threads = thread_count(units)
    grad_x = arena.empty(tuple(x.shape), x.dtype) if wanted[0] else None
    if grad_x is not None and not units:
        grad_x.zero_()
    kept = forward.numbers if wanted[1] else 0
    lanes = 1 if launch.full or blocks * len(plan.tiling.tiles) <= _FEW_TILES else LANES
    sums = arena.empty((threads, kept, lanes), kind)
    grad_values = torch.empty(plan.kept, dtype=kind, device="cpu") if wanted[1] else None
    sizes = plan.rooms_back if launch.full else (
        plan.outputs * launch.planes[1] if norm is not None else 0,
        plan.inputs * launch.planes[0] if affine is not None and wanted[1] else 0,
    )  # fmt: skip
    buffers = [arena.empty((threads, size), x.dtype) if size else None for size in sizes]
    (y, z, grad_other), state, then, grad_numbers = launch.no_back if norm is None else norm
    channels = 0 if norm is None else plan.outputs
    read = like(values, kind)
    arguments = (
        launch.kinds,
        tuple(map(slots_pointer, (gradient, buffers[0], x, buffers[1], grad_x, passed, y, z, grad_other))),
        tuple(map(numbers_pointer, (read, grad_values, sums, *grad_numbers))),
        back.memory(launch.kinds.values.dtype) if wanted[0] else launch.no_weights, forward.packed, back.packed,
        launch_args_back(plan, x.dtype), (launch.as_it_is if affine is None else affine).numbers,
        np.empty((blocks * channels, 2)), norm is not None, state, then[:2],
        np.empty((2, channels), launch.kinds.values.dtype),
        (int(then.relu), examples, splits, kept, lanes, int(relu_backward)),
    )  # fmt: skip
    return Call(
        (grad_x, grad_values),
        units,
        arguments,
        (gradient, x, passed, y, z, grad_other, read, sums, buffers, grad_numbers),
    )
