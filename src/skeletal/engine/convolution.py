"""The differentiable sparse convolution on blocked maps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine import arena, kernels
from skeletal.engine.grid import Grid
from skeletal.engine.plan import Plan, Tables
from skeletal.engine.slots import LANES, computes, flat, per_slot, slots
from skeletal.engine.threads import share, thread_count

_NO_MOMENTS = np.empty((0, 0, 2))
_FEW_TILES = 2  # up to that many, sums for each lane would cost more to write and to read than to add up at once


def _splits(units: int, channels: int) -> int:
    """Into how many parts output channels are cut: where there are too few blocks and bands to share among threads."""
    threads = torch.get_num_threads()
    return 1 if units >= 4 * threads or threads == 1 else max(1, min(channels, 4 * threads))


def run_convolution(
    tables: Tables,
    x: Tensor,
    values: Tensor,
    channels: int,
    grid: Grid,
    examples: int,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    relu: bool = False,
    moments: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One pass of `kernels.convolve`: the storage of the output, and sum and sum of squares of its channels."""
    blocks = len(x)
    units = blocks * len(tables.bands)
    splits = _splits(units, channels)
    maps = grid.numbers(x.dtype)
    out = arena.empty((blocks, channels, maps[3]), x.dtype)
    if not units:
        out.zero_()
    sums = np.empty((units, channels, 2)) if moments else _NO_MOMENTS
    # Not `values[tables.order]`: torch would share it among threads of its own, which go on to spin where ours work.
    known = flat(values)
    weights = np.empty(len(tables.order), known.dtype)
    kernels.take(known, tables.order.numpy(), weights)
    share(
        kernels.shared_convolve, units * splits,
        slots(x), _block(x), slots(out), _block(out),
        weights, tables.offsets, tables.pointers, tables.tiles, tables.bands, tables.strides,
        flat(out), maps, flat(scale, values), flat(shift, values), slots(other, x), int(relu), sums,
        examples, splits,
    )  # fmt: skip
    if not moments:
        return out, None
    with np.errstate(all="ignore"):  # sums of infinities, where training diverges
        return out, torch.from_numpy(sums.sum(0))


def _block(x: Tensor) -> int:
    """Slots of a block."""
    return x.shape[1] * x.shape[2] // per_slot(x.dtype)


def run_weight_gradient(plan: Plan, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the kept weights, in the order of the mask."""
    tables = plan.forward
    units = x.shape[0] * len(tables.bands)
    splits = _splits(units, plan.outputs)
    units *= splits
    lanes = 1 if x.shape[0] * len(tables.tiles) <= _FEW_TILES else LANES
    sums = arena.empty((thread_count(units), plan.kept, lanes), computes(x.dtype))
    share(
        kernels.shared_weight_gradient, units,
        slots(x), _block(x), slots(gradient), _block(gradient),
        tables.offsets, tables.pointers, tables.tiles, tables.bands, tables.strides, plan.target.plane,
        sums.numpy(), splits,
    )  # fmt: skip
    found = torch.empty(plan.kept, dtype=sums.dtype)
    share(kernels.shared_add_up, plan.kept, sums.numpy(), tables.order.numpy(), found.numpy())
    return found


class Convolve(torch.autograd.Function):
    """A sparse convolution. Hands its input on, so that whoever else reads it sends its gradient here, and adding the
    two costs no pass of its own.

    `apply(x, values, bias, plan, examples, moments)` returns output, moments (None unless asked for), x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan, examples: int, moments: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.examples = plan, examples
        ctx.save_for_backward(x, values)
        scale = None if bias is None else torch.ones_like(bias)
        out, sums = run_convolution(
            plan.forward, x, values.detach(), plan.outputs, plan.target, examples,
            scale=scale, shift=bias, moments=moments,
        )  # fmt: skip
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        return out, sums, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Any, passed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, values = ctx.saved_tensors
        plan = ctx.plan
        if gradient is None:
            return passed, None, None, None, None, None
        gradient = gradient.contiguous()
        of_x = of_values = of_bias = None
        if ctx.needs_input_grad[0]:
            other = None if passed is None else passed.contiguous()
            of_x, _ = run_convolution(
                plan.backward, gradient, values.detach(), plan.inputs, plan.source, ctx.examples, other=other
            )
        if ctx.needs_input_grad[1]:
            of_values = run_weight_gradient(plan, x, gradient)
        if ctx.needs_input_grad[2]:
            of_bias = plan.target.inside(gradient).sum((0, 2, 3, 4), dtype=values.dtype)
        return of_x, of_values, of_bias, None, None, None
