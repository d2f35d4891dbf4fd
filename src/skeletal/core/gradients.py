"""The mean gradient of the loss at any weights, with the model left as found."""

import torch
from torch import Tensor, nn

from skeletal.core.batches import Cycle, Loss, evaluate, forward, to_device
from skeletal.core.borrow import device_of, state_of, widen, within
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
    state, device = state_of(model, without=weights), device_of(model)
    parameters = dict(model.named_parameters())
    leaves = {name: value.to(parameters[name].dtype).detach().requires_grad_() for name, value in weights.items()}
    total: Tensors = {}
    mean_loss = 0.0

    def backward() -> Tensor:
        value = evaluate(loss, forward(model, batch), batch)
        if not torch.isfinite(value):
            raise NonFiniteError(f"the loss is {value.item()} on batch {batches.taken}: check inputs and weights")
        if not value.requires_grad:
            raise ValueError("the loss does not depend on the prunable weights: computed under no_grad, or detached?")
        # Not `autograd.grad`, which reentrant activation checkpointing refuses. Only the leaves can get a `.grad`.
        value.backward()
        return value.detach()

    for _ in range(count):
        batch = to_device(next(batches), device)
        with torch.inference_mode(False), torch.enable_grad():
            mean_loss += within(model, state | leaves, backward).item() / count
        if all(leaf.grad is None for leaf in leaves.values()):
            raise ValueError("the loss does not depend on any prunable weight: check the loss and the selection")
        for name, leaf in leaves.items():
            wide = widen(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            total[name] = total[name].add_(wide) if name in total else wide
            leaf.grad = None
    for name, gradient in total.items():
        gradient.div_(count)
        if not torch.isfinite(gradient).all():
            raise NonFiniteError(f"the gradient of {name} {tuple(gradient.shape)} holds NaN or infinity")
    return total, mean_loss
