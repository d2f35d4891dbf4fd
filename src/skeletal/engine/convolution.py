"""The differentiable sparse convolution on blocked maps, alone and with batch norm."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine import arena, batch_norm, kernels
from skeletal.engine.affine import Affine, before
from skeletal.engine.grid import Grid
from skeletal.engine.plan import Plan
from skeletal.engine.slots import LANES, computes, flat, per_slot, slots
from skeletal.engine.threads import share, thread_count

_NO_MOMENTS = np.empty((0, 0, 2))
_FEW_TILES = 2  # up to that many, sums for each lane would cost more to write and to read than to add up at once
_WINDOW = 1 << 17  # bytes of rows made ready: a small part of what the second cache of a core holds


def _splits(units: int, channels: int) -> int:
    """Into how many parts channels are cut: where there are too few blocks and bands to share among threads."""
    threads = torch.get_num_threads()
    return 1 if units >= 4 * threads or threads == 1 else max(1, min(channels, 4 * threads))


def _block(x: Tensor) -> int:
    """Slots of a block."""
    return x.shape[1] * x.shape[2] // per_slot(x.dtype)


def _none(x: Tensor) -> np.ndarray:
    return slots(None, x)


class _Window(NamedTuple):
    maps: tuple[int, int, int, int, int, int]
    slots: np.ndarray
    """(threads, slots); see `rolling`"""


def _window(x: Tensor, grid: Grid, reach: int, threads: int) -> _Window:
    """Memory for rows of maps like x on a grid, `reach` of them at least."""
    channels = x.shape[1]
    row = max(1, channels * grid.row * (8 if x.dtype == torch.float64 else 4))
    rows = min(grid.height + 2 * grid.halo, max(reach, _WINDOW // row))
    memory = np.empty((threads, 0), _none(x).dtype)
    if reach:
        memory = slots(arena.empty((threads, *x.shape[1:]), x.dtype)).reshape(threads, -1)
    return _Window((*grid.slots, channels, rows), memory)


class _Taking(NamedTuple):
    """The arguments of `kernels.take`: weights in the order of a table."""

    values: np.ndarray
    order: np.ndarray
    weights: np.ndarray


def _taking(values: Tensor, order: Tensor) -> _Taking:
    # Not `values[order]`: torch would share it among threads of its own, which go on to spin where ours work.
    known = flat(values)
    return _Taking(known, order.numpy(), np.empty(len(order), known.dtype))


@dataclass
class _Forward:
    """The arguments of `kernels.convolve`, and what it writes to."""

    units: int
    taking: _Taking
    out: Tensor
    sums: np.ndarray
    arguments: tuple[Any, ...]


def _forward(
    plan: Plan,
    x: Tensor,
    values: Tensor,
    examples: int,
    affine: Affine | None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    relu: bool = False,
    moments: bool = False,
) -> _Forward:
    tables, channels = plan.forward, plan.outputs
    units = len(x) * len(tables.bands)
    splits = _splits(units, channels)
    maps = plan.target.numbers(x.dtype)
    out = arena.empty((len(x), channels, maps[3]), x.dtype)
    if not units:
        out.zero_()
    sums = np.empty((units, channels, 2)) if moments else _NO_MOMENTS
    taking = _taking(values, tables.order)
    window = _window(x, plan.source, 0 if affine is None else tables.reach, thread_count(units * splits))
    arguments = (
        slots(x), _block(x), window.maps, before(affine, taking.values.dtype), window.slots, slots(out), _block(out),
        taking.weights, tables.packed, flat(out), maps, flat(scale, values), flat(shift, values), slots(other, x),
        int(relu), sums, examples, splits,
    )  # fmt: skip
    return _Forward(units * splits, taking, out, sums, arguments)


def run_convolution(plan: Plan, x: Tensor, values: Tensor, examples: int, **options: Any) -> Tensor:
    """The storage of a convolution's output.

    Args:
        plan: its tables.
        x: storage of the input.
        values: kept weights, in the order of the mask.
        examples: in the batch.
        options: `affine` of x; `scale` and `shift` for each output channel, `other` to be added and `relu`, which
            follow the convolution.

    """
    call = _forward(plan, x, values, examples, options.pop("affine", None), **options)
    kernels.take(*call.taking)
    share(kernels.shared_convolve, call.units, *call.arguments)
    return call.out


@dataclass
class _Back:
    """The arguments of `kernels.gradients` and of `kernels.add_up`, and what they write to."""

    units: int
    taking: _Taking
    of_x: Tensor | None
    of_values: Tensor | None
    arguments: tuple[Any, ...]
    adding: tuple[Any, ...]


def _back(
    plan: Plan,
    gradient: Tensor,
    norm: tuple[Any, ...] | None,
    x: Tensor,
    affine: Affine | None,
    values: Tensor,
    examples: int,
    passed: Tensor | None,
    wanted: tuple[bool, bool],
) -> _Back:
    """Of the gradients of x and of the values those that are wanted."""
    tables, kind = plan.forward, flat(values).dtype
    back = plan.backward if wanted[0] else tables
    units = len(x) * len(tables.bands)
    splits = _splits(units, max(plan.outputs, plan.inputs))
    units *= splits
    threads = thread_count(units)
    maps = plan.source.numbers(x.dtype)
    of_x = arena.empty(tuple(x.shape), x.dtype) if wanted[0] else None
    if of_x is not None and not units:
        of_x.zero_()
    lanes = 1 if len(x) * len(tables.tiles) <= _FEW_TILES else LANES
    sums = arena.empty((threads, plan.kept if wanted[1] else 0, lanes), computes(x.dtype)).numpy()
    of_values = torch.empty(plan.kept, dtype=values.dtype) if wanted[1] else None
    taking = _taking(values, back.order if wanted[0] else back.order[:0])
    window = _window(gradient, plan.target, 0 if norm is None else plan.reach_back, threads)
    norm = norm or (_none(x), _none(x), _none(x), 0, *[np.empty(0, kind)] * 5)
    x_window = _window(x, plan.source, tables.reach if affine is not None and wanted[1] else 0, threads)
    arguments = (
        slots(gradient), _block(gradient), window.maps, norm, window.slots,
        slots(x), _block(x), x_window.maps, before(affine, kind), x_window.slots,
        tables.packed, sums, slots(of_x, x), _block(x), taking.weights, back.packed, slots(passed, x),
        flat(of_x, x), maps, examples, splits,
    )  # fmt: skip
    adding = (sums, tables.order.numpy() if wanted[1] else tables.order[:0].numpy(), flat(of_values, values))
    return _Back(units, taking, of_x, of_values, arguments, adding)


def run_gradients(
    plan: Plan,
    gradient: Tensor,
    x: Tensor,
    values: Tensor,
    examples: int,
    *,
    affine: Affine | None = None,
    passed: Tensor | None = None,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a convolution's input and of its kept weights, those that are wanted of the two.

    Args:
        plan, x, values, examples, affine: as of `run_convolution`.
        gradient: storage, of the output.
        passed: added to the gradient of the input.
        wanted: which.

    """
    call = _back(plan, gradient, None, x, affine, values, examples, passed, wanted)
    share(batch_norm.shared_plain_backward, call.units, call.taking, call.arguments, call.adding)
    return call.of_x, call.of_values


class Convolve(torch.autograd.Function):
    """A sparse convolution. Hands its input on, so that whoever else reads it sends its gradient here, and adding the
    two costs no pass of its own.

    `apply(x, values, bias, affine, plan, examples)` returns output, x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, affine: Affine | None, plan: Plan, examples: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.settings = affine, plan, examples
        ctx.save_for_backward(x, values)
        scale = None if bias is None else torch.ones_like(bias)
        return run_convolution(plan, x, values, examples, affine=affine, scale=scale, shift=bias), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, passed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, values = ctx.saved_tensors
        affine, plan, examples = ctx.settings
        if gradient is None:
            return passed, *[None] * 5
        gradient = gradient.contiguous()
        passed = None if passed is None else passed.contiguous()
        of_x, of_values = run_gradients(
            plan, gradient, x, values, examples, affine=affine, passed=passed, wanted=ctx.needs_input_grad[:2]
        )
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = plan.target.inside(gradient).sum((0, 2, 3, 4), dtype=values.dtype)
        return of_x, of_values, of_bias, None, None, None


@dataclass(frozen=True)
class Statistics:
    """Of a batch norm: what it normalises by."""

    of_batch: bool
    running_mean: Tensor | None
    running_variance: Tensor | None
    rate: float
    """by which the running ones move towards the batch's"""
    eps: float


class ConvolveNormalise(torch.autograd.Function):
    """A sparse convolution, batch norm, then optionally the addition of another map, then optionally ReLU.

    `apply(x, values, bias, weight, norm_bias, other, affine, statistics, relu, plan, examples)` returns output, what is
    still to be done to it, and x, as `Convolve` does. Where another map is added nothing remains to be done. Without
    one the output is the convolution's, and what reads it does batch norm and ReLU: the gradient that comes back is
    that of the result (see `affine.Settle`). So neither that result nor the gradient of the convolution's output lie in
    memory, which is most of what a step of a thin skeleton would read and write.
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
        statistics: Statistics,
        relu: bool,
        plan: Plan,
        examples: int,
    ) -> tuple[Tensor, Affine | None, Tensor]:
        ctx.set_materialize_grads(False)
        scale = None if bias is None else torch.ones_like(bias)
        call = _forward(plan, x, values, examples, affine, scale=scale, shift=bias, moments=statistics.of_batch)
        kind = call.taking.values.dtype
        count = examples * plan.target.height * plan.target.width
        numbers = np.empty((3, plan.outputs))
        then = Affine(np.empty(plan.outputs, kind), np.empty(plan.outputs, kind), relu)
        normalising = (
            call.sums, count, int(statistics.of_batch),
            flat(statistics.running_mean, values), flat(statistics.running_variance, values),
            statistics.rate, statistics.eps, flat(weight, values), flat(norm_bias, values), numbers, *then[:2],
        )  # fmt: skip
        out = None if other is None else arena.empty(tuple(call.out.shape), x.dtype)
        settling = (
            slots(call.out), slots(out, x), plan.target.slots, plan.outputs, *then[:2], slots(other, x), int(relu),
            examples,
        )  # fmt: skip
        share(batch_norm.shared_forward, call.units, call.taking, call.arguments, normalising, settling)
        ctx.save_for_backward(x, values, call.out, out if relu else None)
        ctx.settings = affine, statistics, plan, examples, count, numbers, then
        ctx.has_other = other is not None
        return (call.out, then, x) if out is None else (out, None, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Any, passed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, values, y, z = ctx.saved_tensors
        affine, statistics, plan, examples, count, numbers, then = ctx.settings
        if gradient is None:
            return passed, *[None] * 10
        gradient = gradient.contiguous()
        passed = None if passed is None else passed.contiguous()
        kind, relu = then.scale.dtype, int(then.relu)
        by_x, constant, of_weight, of_norm_bias = np.empty((4, plan.outputs), kind)
        # With ReLU, else the other's gradient is the one that came in.
        of_other = arena.empty(tuple(y.shape), y.dtype) if ctx.has_other and relu else None
        sums = np.empty((len(y) * plan.outputs, 2))
        reducing = (
            flat(y), flat(z, y), flat(gradient), plan.target.numbers(y.dtype), plan.outputs, *then[:2], relu, sums,
        )  # fmt: skip
        sloping = sums, count, int(statistics.of_batch), numbers, by_x, constant, of_weight, of_norm_bias
        norm = slots(y), slots(z, y), slots(of_other, y), relu, *then[:2], then.scale, by_x, constant
        call = _back(plan, gradient, norm, x, affine, values, examples, passed, ctx.needs_input_grad[:2])
        share(batch_norm.shared_backward, call.units, reducing, sloping, call.taking, call.arguments, call.adding)
        of_bias = None
        if ctx.needs_input_grad[2]:  # a batch's mean takes away what a bias adds
            of_bias = np.zeros_like(of_norm_bias) if statistics.of_batch else of_norm_bias * then.scale
        if ctx.has_other and not relu:
            of_other = gradient
        found = (of_bias, of_weight, of_norm_bias)
        wanted = ctx.needs_input_grad[2:5]
        of_numbers = [torch.from_numpy(slope) if want else None for slope, want in zip(found, wanted, strict=True)]
        return call.of_x, call.of_values, *of_numbers, of_other, *[None] * 5
