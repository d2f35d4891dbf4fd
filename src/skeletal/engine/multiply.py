"""The differentiable sparse linear map."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine.convolution import run_convolution, run_weight_gradient
from skeletal.engine.grid import Grid
from skeletal.engine.plan import Plan


class Multiply(torch.autograd.Function):
    """A sparse linear map: `apply(x, values, plan)` of x (examples, inputs) gives (examples, outputs).

    Its plan is of a convolution on a map of one row, whose pixels are blocks of examples.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, plan: Plan) -> Tensor:
        columns = _columns(x, plan.source)
        ctx.plan = plan
        ctx.save_for_backward(columns, values)
        out, _ = run_convolution(plan.forward, columns, values.detach(), plan.outputs, plan.target, 0)
        return _rows(out, len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        columns, values = ctx.saved_tensors
        plan = ctx.plan
        of_out = _columns(gradient, plan.target)
        of_x = of_values = None
        if ctx.needs_input_grad[0]:
            found, _ = run_convolution(plan.backward, of_out, values.detach(), plan.inputs, plan.source, 0)
            of_x = _rows(found, len(gradient))
        if ctx.needs_input_grad[1]:
            of_values = run_weight_gradient(plan, columns, of_out)
        return of_x, of_values, None


def _columns(rows: Tensor, grid: Grid) -> Tensor:
    """A storage (1, features, numbers of a plane) of rows (examples, features)."""
    storage = torch.empty(1, rows.shape[1], grid.numbers(rows.dtype)[3], dtype=rows.dtype)
    storage[0, :, : len(rows)].copy_(rows.t())
    storage[0, :, len(rows) :] = 0
    return storage


def _rows(storage: Tensor, examples: int) -> Tensor:
    # Memory of its own: what a Function returns as a view cannot be changed in place.
    return storage[0, :, :examples].t().clone(memory_format=torch.contiguous_format)
