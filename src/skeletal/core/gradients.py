"""Derivatives of the loss at any weights, with the model left as found."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skeletal.core.batches import Cycle, Loss, evaluate, forward, to_device
from skeletal.core.borrow import device_of, differentiable, random_state_kept, state_of, widen, within
from skeletal.core.distributed import average_over_ranks, everyone
from skeletal.core.errors import NonFiniteError
from skeletal.core.selection import Tensors


class Derivatives:
    """Gradient and Hessian-gradient product of the loss, averaged over the next batches of a stream.

    Each batch counts the same. Under `torch.distributed` the average is over all ranks' batches, too, and every
    rank gets the same numbers to the bit.

    Args:
        model: run in the mode `bn_mode`; nothing of it is written to.
        batches: where every call takes `count` batches from.
        count: batches averaged over.
        loss: see `prune`.
        bn_mode: "train" or "eval".
        average: "signed" averages gradients with their sign, as in the paper's code, where a score takes the
            absolute value after the average; "absolute" averages the absolute values of each batch's gradient.

    """

    def __init__(
        self,
        model: nn.Module,
        batches: Cycle,
        count: int,
        loss: Loss | None = None,
        bn_mode: str = "train",
        average: str = "signed",
    ) -> None:
        self.model, self.batches, self.count, self.loss = model, batches, count, loss
        self.bn_mode, self.average = bn_mode, average

    def gradient(self, weights: Tensors) -> tuple[Tensors, float]:
        """The mean gradient with respect to some weights, in at least float32, and the mean loss.

        Args:
            weights: values to use in place of the parameters of these names; the others stay as they are.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
            ValueError: the loss does not depend on any of the weights.

        """
        return self._gradient(weights, (next(self.batches) for _ in range(self.count)))

    def hessian_gradient(self, weights: Tensors) -> tuple[Tensors, float]:
        """H g, the Hessian of the mean loss times its gradient, and the mean loss: what GRASP needs (Eq. 4).

        Both factors are of the same batches: g is averaged over all of them first, then Σ_b H_b g is summed up batch
        by batch, each by a second backward pass through g_b·g. The batches are held in memory for that, and random
        layers draw the same numbers in both passes.

        Raises:
            NonFiniteError, ValueError: as `gradient`.
            ValueError: `average` is "absolute".

        """
        if self.average == "absolute":
            raise ValueError(
                "average='absolute' has no meaning for a Hessian-gradient product: GRASP's criterion is signed,"
                " and the sign tells what to prune; use average='signed'"
            )
        batches = [next(self.batches) for _ in range(self.count)]
        with random_state_kept(self.model):
            gradient, loss = self._gradient(weights, iter(batches))

        def twice(leaves: Tensors, value: Tensor) -> None:
            first = torch.autograd.grad(value, list(leaves.values()), create_graph=True, allow_unused=True)
            dots = [
                (g * gradient[name].to(g.dtype)).sum() for name, g in zip(leaves, first, strict=True) if g is not None
            ]
            along = torch.stack(dots).sum()
            if along.requires_grad:  # else the loss is linear in the weights
                along.backward()

        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return self._mean(weights, iter(batches), twice, "Hessian-gradient product")[0], loss

    def _gradient(self, weights: Tensors, batches: Iterator[Any]) -> tuple[Tensors, float]:
        def once(leaves: Tensors, value: Tensor) -> None:
            # Not `autograd.grad`, which reentrant activation checkpointing refuses.
            value.backward()
            if all(leaf.grad is None for leaf in leaves.values()):
                raise ValueError("the loss does not depend on any prunable weight: check the loss and the selection")

        return self._mean(weights, batches, once, "gradient")

    def _mean(
        self, weights: Tensors, batches: Iterator[Any], backward: Callable[[Tensors, Tensor], None], what: str
    ) -> tuple[Tensors, float]:
        """Sum up what `backward(leaves, loss)` leaves in the leaves' `.grad`, over the batches; no one else has one."""
        self.model.train(self.bn_mode == "train")  # whatever a callback has left behind
        state, device = state_of(self.model, without=weights), device_of(self.model)
        parameters = dict(self.model.named_parameters())
        leaves = {name: value.to(parameters[name].dtype).detach().requires_grad_() for name, value in weights.items()}
        total = {name: torch.zeros_like(widen(leaf.detach())) for name, leaf in leaves.items()}
        losses = []
        for batch in batches:
            batch = to_device(batch, device)

            def run(batch: Any = batch) -> float:
                value = evaluate(self.loss, forward(self.model, batch), batch)
                if not torch.isfinite(value):
                    raise NonFiniteError(
                        f"the loss is {value.item()} on batch {self.batches.taken}: check inputs and weights"
                    )
                if not value.requires_grad:
                    raise ValueError(
                        "the loss does not depend on the prunable weights: computed under no_grad, or detached?"
                    )
                backward(leaves, value)
                return value.item()

            with differentiable():
                losses.append(within(self.model, state | leaves, run))
            for name, leaf in leaves.items():
                if leaf.grad is not None:
                    total[name].add_(leaf.grad.abs() if self.average == "absolute" else leaf.grad)
                    leaf.grad = None
        for name, summed in total.items():
            summed.div_(len(losses))
            if not torch.isfinite(summed).all():
                raise NonFiniteError(f"the {what} of {name} {tuple(summed.shape)} holds NaN or infinity")
        means = everyone(sum(losses) / len(losses))  # before the long messages: learns of a rank that has failed
        average_over_ranks(total)
        return total, sum(means) / len(means)
