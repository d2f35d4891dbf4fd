"""Backward passes that run once: kernels have no second derivative."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


class _Twice(torch.autograd.Function):
    """The identity, which refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Say what has second derivatives.

        Raises:
            RuntimeError: always.

        """
        raise RuntimeError(
            "the kernels of a compiled network have no second derivative: call fast.use('dense') before, or take it of"
            " fast.to_dense()"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's decorator of that name, with an error that tells the way out."""

    @wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> Any:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if not torch.is_grad_enabled():  # without create_graph=True
            return found
        return tuple(None if one is None else _Twice.apply(one.detach().requires_grad_()) for one in found)

    return once
