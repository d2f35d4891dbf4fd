"""Backward passes that run once: kernels have no second derivative."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


class _Twice(torch.autograd.Function):
    """A gradient as it is, which refuses to be differentiated by what it depends on."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor | None) -> Tensor:
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
    """As torch's decorator of that name, with an error that tells the way out.

    Torch's hangs that error on leaves of its own, which a second pass skips if it only goes to what it is asked for.
    Here it stands in every way from a gradient to what that depends on: the gradients that came in, and saved tensors.
    So an operation has to save all that can require a gradient and that its gradient is not constant in.

    Args:
        backward: `backward(ctx, saved, *gradients)` of a `torch.autograd.Function`. It gets what was saved, because
            checkpointing allows only one look at it.

    """

    @wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> Any:
        _refuse_batched(gradients)
        saved = ctx.saved_tensors
        with torch.no_grad():
            found = backward(ctx, saved, *gradients)
        if not torch.is_grad_enabled():  # without create_graph=True
            return found
        return tuple(None if one is None else _Twice.apply(one.detach(), *gradients, *saved) for one in found)

    return once


def _refuse_batched(gradients: tuple[Tensor | None, ...]) -> None:
    """Several gradients at once are known to torch's own operations only.

    Raises:
        RuntimeError: these are such; says what takes them instead.

    """
    batched = any(one is not None and torch._C._functorch.is_legacy_batchedtensor(one) for one in gradients)
    if batched or torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "the kernels of a compiled network take one gradient at a time, not batches of them (vectorize=True,"
            " is_grads_batched=True, torch.vmap): call fast.use('dense') before, or take them of fast.to_dense()"
        )
