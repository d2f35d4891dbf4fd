"""The differentiable sparse convolution on blocked maps, alone and with batch norm.

In a thin skeleton what Python does for each layer is a good part of a step. So what a plan comes to is worked out once
(`frames.Frame`), and tensors go to the kernels as places in memory (see `slots.Place`), one call for each direction.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine.codegen.packed_bf16 import LANES, numbers_at, slots_at
from skeletal.engine.codegen.threads import share, thread_count
from skeletal.engine.kernels import arena, fused_batch_norm
from skeletal.engine.ops.affine import Affine, Gate
from skeletal.engine.ops.launch_args import Back, Norm, Statistics, frame_back, frame_of, kinds
from skeletal.engine.plan.plan import Plan

_FEW_TILES = 2  # up to that many, sums for each lane would cost more to write and to read than to add up at once


def _splits(units: int, channels: int) -> int:
    """Into how many parts channels are cut: where there are too few blocks and bands to share among threads."""
    threads = torch.get_num_threads()
    return 1 if units >= 4 * threads or threads == 1 else max(1, min(channels, 4 * threads))


def _like(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Numbers as kernels take them."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(dtype).contiguous()


@lru_cache
def ones(count: int, dtype: torch.dtype) -> Tensor:
    """So many; not to be written to."""
    return torch.ones(count, dtype=dtype)


class Call(NamedTuple):
    """What is to be called, and what it makes."""

    made: tuple[Tensor | None, ...]
    units: int
    arguments: tuple[Any, ...]
    memory: tuple[Any, ...]
    """what addresses among the arguments point to, which has to live for as long"""


def run_convolution(plan: Plan, x: Tensor, values: Tensor, examples: int, **options: Any) -> Tensor:
    """The storage of a convolution's output; see `forward_call`."""
    call = forward_call(plan, x, values, examples, **options)
    share(fused_batch_norm.shared_forward, call.units, *call.arguments)
    (out,) = call.made
    assert out is not None
    return out


def forward_call(
    plan: Plan,
    x: Tensor,
    values: Tensor,
    examples: int,
    *,
    affine: Affine | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    relu: bool = False,
    norm: Norm | None = None,
) -> Call:
    """Of `fused_batch_norm.shared_forward`, which makes the storage of a convolution's output.

    Args:
        plan: its tables.
        x: storage of the input.
        values: kept weights, in the order of the mask.
        examples: in the batch.
        affine: what is still to be done to x.
        scale, shift: for each output channel, of what follows the convolution, both or none; with `norm.way`
            2 only shift counts, as a bias before it.
        other: then added.
        relu: whether it ends with one.
        norm: batch norm of what the convolution makes.

    """
    frame, blocks = frame_of(plan, x.dtype), x.shape[0]
    tables = plan.squares if frame.full else plan.forward
    units = blocks * len(plan.cut.bands)
    splits = _splits(units, plan.outputs)
    out = arena.empty((blocks, plan.outputs, frame.planes[1]), x.dtype)
    if not units:
        out.zero_()
    window, threads = None, thread_count(units * splits)
    if frame.full:
        window = arena.empty((threads, plan.squares.room), x.dtype)
    elif affine is not None:
        window = arena.empty((threads, plan.inputs * frame.planes[0]), x.dtype)
    rest, state, then, added, settled, way = frame.no_norm if norm is None else norm
    numbers = [_like(tensor, values.dtype) for tensor in (values, scale, shift, *rest)]
    arguments = (
        frame.kinds,
        tuple(map(slots_at, (x, window, out, other, settled, added))), tuple(map(numbers_at, numbers)),
        tables.memory(frame.kinds.values.dtype), tables.packed, frame.forward,
        (frame.as_it_is if affine is None else affine).numbers,
        np.empty((units if state[1] else 0, plan.outputs, 2)), way, state, then[:2],
        (int(relu), int(then.relu), examples, splits),
    )  # fmt: skip
    return Call((out,), units * splits, arguments, (x, window, other, settled, added, numbers))


def run_gradients(
    plan: Plan, gradient: Tensor, x: Tensor, values: Tensor, examples: int, **options: Any
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a convolution's input and of its kept weights, those that are wanted; see `backward_call`."""
    call = backward_call(plan, gradient, x, values, examples, **options)
    share(fused_batch_norm.shared_backward, call.units, *call.arguments)
    return call.made[0], call.made[1]


def backward_call(
    plan: Plan,
    gradient: Tensor,
    x: Tensor,
    values: Tensor,
    examples: int,
    *,
    affine: Affine | None = None,
    passed: Tensor | None = None,
    wanted: tuple[bool, bool] = (True, True),
    norm: Back | None = None,
    gated: bool = False,
) -> Call:
    """Of `fused_batch_norm.shared_backward`: makes the gradients of a convolution's input and of its kept weights.

    Args:
        plan, x, values, examples, affine: as of `forward_call`.
        gradient: storage, of the output.
        passed: added to the gradient of the input.
        wanted: which.
        norm: batch norm after the convolution; `gradient` is then that of its result.
        gated: whether the gradient of x counts only where x is above 0.

    """
    frame, blocks, kind = frame_of(plan, x.dtype), x.shape[0], values.dtype
    forward = plan.squares if frame.full else plan.forward
    back = plan.squares_back if frame.full else plan.backward if wanted[0] else plan.forward
    units = blocks * len(plan.cut.bands)
    splits = _splits(units, max(plan.outputs, plan.inputs))
    units *= splits
    threads = thread_count(units)
    of_x = arena.empty(tuple(x.shape), x.dtype) if wanted[0] else None
    if of_x is not None and not units:
        of_x.zero_()
    kept = forward.numbers if wanted[1] else 0
    lanes = 1 if frame.full or blocks * len(plan.cut.tiles) <= _FEW_TILES else LANES
    sums = arena.empty((threads, kept, lanes), kind)
    of_values = torch.empty(plan.kept, dtype=kind) if wanted[1] else None
    sizes = plan.rooms_back if frame.full else (
        plan.outputs * frame.planes[1] if norm is not None else 0,
        plan.inputs * frame.planes[0] if affine is not None and wanted[1] else 0,
    )  # fmt: skip
    windows = [arena.empty((threads, size), x.dtype) if size else None for size in sizes]
    (y, z, of_other), state, then, of_numbers = frame.no_back if norm is None else norm
    channels = 0 if norm is None else plan.outputs
    values = values if values.is_contiguous() else values.contiguous()
    arguments = (
        frame.kinds,
        tuple(map(slots_at, (gradient, windows[0], x, windows[1], of_x, passed, y, z, of_other))),
        tuple(map(numbers_at, (values, of_values, sums, *of_numbers))),
        back.memory(frame.kinds.values.dtype) if wanted[0] else frame.no_weights, forward.packed, back.packed,
        frame_back(plan, x.dtype), (frame.as_it_is if affine is None else affine).numbers,
        np.empty((blocks * channels, 2)), norm is not None, state, then[:2],
        np.empty((2, channels), frame.kinds.values.dtype), (int(then.relu), examples, splits, kept, lanes, int(gated)),
    )  # fmt: skip
    return Call(
        (of_x, of_values), units, arguments, (gradient, x, passed, y, z, of_other, values, sums, windows, of_numbers)
    )


def _entered(gate: Gate | None) -> Gate | None:
    """A convolution reads maps with that gate."""
    if gate is not None:
        gate.readers += 1
        gate.convolutions += 1
    return gate


def _through(gated: bool, x: Tensor, gradient: Tensor | None) -> Tensor | None:
    """A gradient of x that comes from others only."""
    return gradient if gradient is None or not gated else gradient.masked_fill(x <= 0, 0)


class Convolve(torch.autograd.Function):
    """A sparse convolution. Hands its input on, so that whoever else reads it sends its gradient here, and adding the
    two costs no pass of its own.

    `apply(x, values, bias, affine, gate, plan, examples)` returns output, x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        affine: Affine | None,
        gate: Gate | None,
        plan: Plan,
        examples: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.settings = affine, _entered(gate), plan, examples
        ctx.save_for_backward(x, values)
        scale = None if bias is None else ones(len(bias), bias.dtype)
        return run_convolution(plan, x, values, examples, affine=affine, scale=scale, shift=bias), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, passed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, values = ctx.saved_tensors
        affine, gate, plan, examples = ctx.settings
        gated = gate is not None and gate.kept
        if gradient is None:
            return _through(gated, x, passed), *[None] * 6
        gradient = gradient.contiguous()
        passed = None if passed is None else passed.contiguous()
        wanted = ctx.needs_input_grad
        of_x, of_values = run_gradients(
            plan, gradient, x, values, examples, affine=affine, passed=passed, wanted=wanted[:2], gated=gated
        )
        of_bias = plan.target.inside(gradient).sum((0, 2, 3, 4), dtype=values.dtype) if wanted[2] else None
        return of_x, of_values, of_bias, *[None] * 4


def _norm(
    plan: Plan,
    x: Tensor,
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
    relu: bool,
    examples: int,
) -> Norm:
    """Batch norm of a convolution's output."""
    scale, shift = np.empty((2, plan.outputs), kinds(x.dtype).values.dtype)
    running = statistics.running_mean, statistics.running_variance
    numbers = [_like(tensor, values.dtype) for tensor in (*running, weight, bias)]
    count = examples * plan.target.height * plan.target.width
    found = np.empty((3, plan.outputs))
    state = count, int(statistics.of_batch), float(statistics.rate), float(statistics.eps), found
    return Norm(numbers, state, Affine(scale, shift, relu), None, None)


def convolve_normalised(
    plan: Plan,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    norm_bias: Tensor | None,
    other: Tensor | None,
    affine: Affine | None,
    statistics: Statistics,
    relu: bool,
    examples: int,
) -> Tensor:
    """What `ConvolveNormalise` and its reader make of x, in one pass: with running statistics and without gradients."""
    norm = _norm(plan, x, values, weight, norm_bias, statistics, False, examples)._replace(way=2)
    return run_convolution(plan, x, values, examples, affine=affine, shift=bias, other=other, relu=relu, norm=norm)


class ConvolveNormalise(torch.autograd.Function):
    """A sparse convolution, batch norm, then optionally the addition of another map, then optionally ReLU.

    `apply(x, values, bias, weight, norm_bias, other, affine, gate, statistics, relu, plan, examples)` returns output,
    what is still to be done to it, its gate, and x, as `Convolve` does. Where another map is added nothing remains to
    be done. Without one the output is the convolution's, and what reads it does batch norm and ReLU: the gradient that
    comes back is that of the result (see `affine.Settle`). So neither that result nor the gradient of the convolution's
    output lie in memory, which is most of what a step of a thin skeleton would read and write.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        norm_bias: Tensor | None,
        other: Tensor | None,
        affine: Affine | None,
        gate: Gate | None,
        statistics: Statistics,
        relu: bool,
        plan: Plan,
        examples: int,
    ) -> tuple[Tensor, Affine | None, Gate | None, Tensor]:
        ctx.set_materialize_grads(False)
        norm = _norm(plan, x, values, weight, norm_bias, statistics, relu, examples)
        settled = None
        if other is not None:
            settled = arena.empty((x.shape[0], plan.outputs, frame_of(plan, x.dtype).planes[1]), x.dtype)
        norm = norm._replace(other=other, settled=settled)
        scale = None if bias is None else ones(len(bias), bias.dtype)
        out = run_convolution(plan, x, values, examples, affine=affine, scale=scale, shift=bias, norm=norm)
        for kept, used in zip((statistics.running_mean, statistics.running_variance), norm.numbers, strict=False):
            if kept is not None and used is not None and used is not kept:
                kept.copy_(used)
        ctx.save_for_backward(x, values, out, settled if relu else None)
        own = Gate() if relu and settled is not None else None
        ctx.settings = affine, _entered(gate), norm.state, norm.then, plan, examples, other is not None, own
        return (out, norm.then, None, x) if settled is None else (settled, None, own, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        passed = others[-1]
        x, values, y, z = ctx.saved_tensors
        affine, gate, state, then, plan, examples, has_other, own = ctx.settings
        gated = gate is not None and gate.kept
        if gradient is None:
            return _through(gated, x, passed), *[None] * 11
        if own is not None and own.kept:  # the gradient counts everywhere
            z, then = None, then._replace(relu=False)
        gradient = gradient.contiguous()
        passed = None if passed is None else passed.contiguous()
        # With ReLU, else the other's gradient is the one that came in.
        of_other = arena.empty(tuple(y.shape), y.dtype) if has_other and then.relu else None
        of_weight, of_norm_bias = (torch.empty(plan.outputs, dtype=values.dtype) for _ in range(2))
        wanted = ctx.needs_input_grad
        norm = Back((y, z, of_other), state, then, (of_weight, of_norm_bias))
        of_x, of_values = run_gradients(
            plan, gradient, x, values, examples,
            affine=affine, passed=passed, wanted=wanted[:2], norm=norm, gated=gated,
        )  # fmt: skip
        of_bias = None
        if wanted[2]:  # a batch's mean takes away what a bias adds
            of_bias = torch.zeros_like(of_norm_bias) if state[1] else of_norm_bias * torch.from_numpy(then.scale)
        return (
            of_x,
            of_values,
            of_bias,
            of_weight if wanted[3] else None,
            of_norm_bias if wanted[4] else None,
            gradient if has_other and not then.relu else of_other,
            *[None] * 6,
        )
