"""The differentiable sparse linear map."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine import arena
from skeletal.engine.convolution import run_convolution, run_gradients
from skeletal.engine.grid import Grid
from skeletal.engine.plan import Plan
from skeletal.engine.slots import examples_of, flat
from skeletal.engine.threads import share
from skeletal.engine.transpose import WIDE, shared_transpose


class Multiply(torch.autograd.Function):
    """A sparse linear map: `apply(x, values, bias, plan)` of x (examples, inputs) gives (examples, outputs).

    Its plan is of a convolution on a map of one row, whose pixels are blocks of examples.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        columns = _columns(x, plan.source)
        ctx.plan = plan
        ctx.save_for_backward(columns, values)
        scale = None if bias is None else torch.ones_like(bias)
        out = run_convolution(plan, columns, values, examples_of(x.dtype), scale=scale, shift=bias)
        return _rows(out, len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        columns, values = ctx.saved_tensors
        examples = examples_of(columns.dtype)
        found, of_values = run_gradients(
            ctx.plan, _columns(gradient, ctx.plan.target), columns, values, examples, wanted=ctx.needs_input_grad[:2]
        )
        of_x = None if found is None else _rows(found, len(gradient))
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0, dtype=values.dtype)
        return of_x, of_values, of_bias, None


def _columns(rows: Tensor, grid: Grid) -> Tensor:
    """A storage (1, features, numbers of a plane) of rows (examples, features)."""
    examples, features = rows.shape
    size = grid.numbers(rows.dtype)[3]
    storage = arena.empty((1, features, size), rows.dtype)
    source, units = flat(rows.contiguous()), -(-features // WIDE)
    share(shared_transpose, units, source, features, examples, features, flat(storage), size)
    return storage


def _rows(storage: Tensor, examples: int) -> Tensor:
    _, features, size = storage.shape
    rows = arena.empty((examples, features), storage.dtype)
    share(shared_transpose, -(-examples // WIDE), flat(storage), size, features, examples, flat(rows), features)
    return rows
