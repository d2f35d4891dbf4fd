"""The mean gradient of the loss at any weights, with the model left as found."""

import torch
from torch import nn

from skeletal.core.batches import Cycle, Loss, evaluate, forward, to_device
from skeletal.core.borrow import device_of, state_of, widen
from skeletal.core.errors import NonFiniteError
from skeletal.core.selection import Tensors


def mean_gradient(
    model: nn.Module, weights: Tensors, batches: Cycle, count: int, loss: Loss | None = None
) -> tuple[Tensors, float]:
    """The gradient of the loss with respect to some weights, averaged with its sign over the next batches.

    Each batch counts the same, as in the paper's code: the absolute value is taken after the average.

    Args:
        model: run in its present mode; nothing of it is written to.
        weights: values to use in place of the parameters of these names; the others stay as they are.
        batches: `count` batches are taken from it.
        count: how many.
        loss: see `prune`.

    Returns:
        The gradients, in at least float32, and the mean loss.

    Raises:
        NonFiniteError: a loss or a gradient is NaN or infinite.
        ValueError: the loss does not depend on any of the weights.

    """
    state, device = state_of(model), device_of(model)
    leaves = {name: value.to(state[name].dtype).detach().requires_grad_() for name, value in weights.items()}
    total: Tensors = {}
    mean_loss = 0.0
    for _ in range(count):
        batch = to_device(next(batches), device)
        with torch.enable_grad():
            value = evaluate(loss, forward(model, state | leaves, batch), batch)
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"the loss is {value.item()} on batch {batches.taken}: check the inputs and the weights"
            )
        if not value.requires_grad:
            raise ValueError(
                "the loss does not depend on the prunable weights: is it computed under no_grad, or detached?"
            )
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise ValueError("the loss does not depend on any prunable weight: check the loss and the selection")
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            wide = widen(torch.zeros_like(leaf) if gradient is None else gradient.detach())
            total[name] = total[name].add_(wide) if name in total else wide
        mean_loss += value.item() / count
    for name, gradient in total.items():
        gradient.div_(count)
        if not torch.isfinite(gradient).all():
            raise NonFiniteError(f"the gradient of {name} {tuple(gradient.shape)} holds NaN or infinity")
    return total, mean_loss
