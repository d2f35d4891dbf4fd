"""The differentiable sparse linear map."""

from typing import Any

import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import examples_of, flat
from skeletal.engine.codegen.threads import share
from skeletal.engine.kernels import arena
from skeletal.engine.kernels.linear import shared_multiply, shared_multiply_back
from skeletal.engine.ops.calls import backward_call, forward_call, ones
from skeletal.engine.ops.once import once_differentiable
from skeletal.engine.plan.plan import ConvPlan


class Multiply(torch.autograd.Function):
    """A sparse linear map: `apply(x, values, bias, plan)` of x (examples, inputs) gives (examples, outputs), columns.

    Its plan is that of a convolution on a map of one row, whose pixels are blocks of examples. Rows of examples are
    turned into columns and back on the way. It returns the columns, too, so that they are saved with what they are made
    of, for `once_differentiable`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: ConvPlan) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        columns, out = _columns(plan.inputs, plan, x.dtype), arena.empty((len(x), plan.outputs), x.dtype)
        ctx.plan = plan
        ctx.save_for_backward(columns, values)
        scale = None if bias is None else ones(len(bias), bias.dtype)
        call = forward_call(plan, columns, values, examples_of(x.dtype), scale=scale, shift=bias)
        share(shared_multiply, call.units, _to_columns(x, columns), call.arguments, _to_rows(call.made[0], out))
        return out, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        if gradient is None:
            return (None,) * 4
        (columns, values), plan, wanted = saved, ctx.plan, ctx.needs_input_grad
        slopes = _columns(plan.outputs, plan, gradient.dtype)
        grad_x = arena.empty((len(gradient), plan.inputs), gradient.dtype) if wanted[0] else None
        grad_bias = torch.empty(plan.outputs if wanted[2] else 0, dtype=values.dtype, device="cpu")
        call = backward_call(plan, slopes, columns, values, examples_of(columns.dtype), wanted=wanted[:2])
        share(
            shared_multiply_back, call.units, _to_columns(gradient, slopes), call.arguments,
            _to_rows(call.made[0], grad_x, gradient), (flat(slopes), slopes.shape[2], flat(grad_bias)),
        )  # fmt: skip
        return grad_x, call.made[1], grad_bias if wanted[2] else None, None


def _columns(features: int, plan: ConvPlan, dtype: torch.dtype) -> Tensor:
    """Memory for a storage (1, features, numbers of a plane)."""
    return arena.empty((1, features, plan.source.numbers(dtype)[3]), dtype)


def _to_columns(rows: Tensor, storage: Tensor) -> tuple[Any, ...]:
    """Arguments of `transpose`."""
    examples, features = rows.shape
    return flat(rows.resolve_neg().contiguous()), features, examples, features, flat(storage), storage.shape[2]


def _to_rows(storage: Tensor | None, rows: Tensor | None, like: Tensor | None = None) -> tuple[Any, ...]:
    """The other mode; with nothing to do where there are none."""
    if storage is None or rows is None:
        return flat(None, like), 0, 0, 0, flat(None, like), 0
    return flat(storage), storage.shape[2], rows.shape[1], rows.shape[0], flat(rows), rows.shape[1]
