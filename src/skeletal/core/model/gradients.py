"""Derivatives of the loss at any weights, with the model left as found."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skeletal.core.errors import NonFiniteError
from skeletal.core.model.batches import Cycle, Loss, evaluate, examples, forward, pieces, to_device
from skeletal.core.model.distributed import average_over_ranks, everyone, rank
from skeletal.core.model.precision import autocast, in_float32
from skeletal.core.model.preserve import (
    device_of,
    differentiable,
    preserve_random_state,
    set_mode,
    state_of,
    with_parameters,
)
from skeletal.core.model.random_state import seed_all
from skeletal.core.model.recompute import recomputing
from skeletal.core.model.tensors import Tensors, all_finite, widen

Value = TypeVar("Value")


class Derivatives:
    """Gradient and Hessian-gradient product of the loss, averaged over the next batches of a stream.

    This is the one door through which pruning asks for derivatives: a subclass may take them in another way, and is
    handed to `prune` as its `engine`.

    Each batch counts the same. Under `torch.distributed` the average is over all ranks, too, each counting by its
    examples, and every rank gets the same numbers to the bit.

    Args:
        model: run in the mode `bn_mode`; nothing of it is written to.
        batches: where every call takes `count` batches from.
        count: batches averaged over.
        loss: see `prune`.
        bn_mode: "train" or "eval".
        average: "signed" averages gradients with their sign, as in the paper's code, where a score takes the
            absolute value after the average; "absolute" averages the absolute values of each batch's gradient.
        precision: "float32", or "bfloat16" for a forward pass under autocast; the loss is float32 in both.
        channels_last: images go in with their channels innermost in memory; the numbers are the same to rounding.
        micro_batch: see `prune`.
        recompute: see `prune`.

    """

    name = "dense"
    """what masks and messages call this way of taking derivatives"""
    everywhere = True
    """whether gradients of pruned weights are given, too, which methods need whose weights may return"""
    why_dense: str | None = None
    """why a subclass has fallen back on this class, if it has"""

    def __init__(
        self,
        model: nn.Module,
        batches: Cycle,
        count: int,
        loss: Loss | None = None,
        bn_mode: str = "train",
        average: str = "signed",
        *,
        precision: str = "float32",
        channels_last: bool = False,
        micro_batch: int | None = None,
        recompute: bool = False,
    ) -> None:
        self.model, self.batches, self.count, self.loss = model, batches, count, loss
        self.bn_mode, self.average, self.precision, self.channels_last = bn_mode, average, precision, channels_last
        self.micro_batch, self.recompute = micro_batch, recompute

    def gradient(self, weights: Tensors, mask: Tensors | None = None) -> tuple[Tensors, float]:
        """The mean gradient with respect to some weights, in at least float32, and the mean loss.

        Args:
            weights: values to use in place of the parameters of these names; the others stay as they are.
            mask: c_t, outside of which `weights` are 0. There a subclass that is not for gradients `everywhere` gives
                0; this class, and where the mask is not told, every one gives the gradient.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
            ValueError: the loss does not depend on any of the weights.

        """
        return self._gradient(weights, (next(self.batches) for _ in range(self.count)))

    def hessian_gradient(self, weights: Tensors, mask: Tensors | None = None) -> tuple[Tensors, float]:
        """H g, the Hessian of the mean loss times its gradient, and the mean loss: what GRASP needs (Eq. 4).

        Both factors are of the same batches: g is averaged over all of them first, then Σ_b H_b g is summed up batch
        by batch, each by a second backward pass through g_b·g. The batches are asked for again, or held in memory,
        for that (see `Cycle.twice`), and random layers draw the same numbers in both passes.
        Arguments are those of `gradient`.

        Raises:
            NonFiniteError, ValueError: as `gradient`.
            ValueError: `average` is "absolute".

        """
        self._refuse_absolute(
            "a Hessian-gradient product: GRASP's criterion is signed, and the sign tells what to prune"
        )
        batches, again = self.batches.twice(self.count)
        with preserve_random_state(self.model):
            gradient, loss = self._gradient(weights, batches)
        return self._hessian_product(weights, gradient, again), loss

    def unrolled_gradient(
        self, weights: Tensors, mask: Tensors | None = None, *, steps: int, rate: float, momentum: float = 0.0
    ) -> tuple[Tensors, float]:
        """The gradient, with respect to the weights, of the loss after some steps of SGD: a meta-gradient.

        w_{i+1} = w_i - rate v_{i+1}, v_{i+1} = momentum v_i + ∇L_i(w_i), and then dL_M(w_M)/dw_0, exactly: from the end
        to the beginning, by one Hessian product at each w_i (ProsPr, Alizadeh et al. 2022). Every step, and the
        loss after the last, has `count` batches of its own; what is not among the weights stays as it is. Random layers
        draw the same numbers in both passes of a step.

        Args:
            weights: w_0; see `gradient`.
            mask: see `gradient`.
            steps: M.
            rate: of SGD.
            momentum: of SGD.

        Returns:
            The gradient, and the mean loss at w_0.

        Raises:
            NonFiniteError, ValueError: as `hessian_gradient`.

        """
        self._refuse_absolute("a gradient through training steps")
        path, velocity = [], {name: torch.zeros_like(value) for name, value in weights.items()}
        first = None
        for _ in range(steps):
            batches, again = self.batches.twice(self.count)
            seed = int(torch.randint(2**31, ()))
            gradient, loss = self._with_seed(seed, lambda at=weights, seen=batches: self._gradient(at, seen))
            first = loss if first is None else first
            path.append((weights, again, seed))
            velocity = {name: momentum * value + gradient[name] for name, value in velocity.items()}
            weights = {name: value - rate * velocity[name] for name, value in weights.items()}
        total, loss = self.gradient(weights)
        through = {name: torch.zeros_like(value) for name, value in total.items()}  # dL/dv
        for at, again, seed in reversed(path):
            through = {name: value - rate * total[name] for name, value in through.items()}
            product = self._with_seed(seed, lambda at=at, v=through, seen=again: self._hessian_product(at, v, seen))
            total = {name: value + product[name] for name, value in total.items()}
            through = {name: momentum * value for name, value in through.items()}
        return total, loss if first is None else first

    def _with_seed(self, seed: int, function: Callable[[], Value]) -> Value:
        with preserve_random_state(self.model):
            seed_all(seed)
            return function()

    def _refuse_absolute(self, what: str) -> None:
        if self.average == "absolute":
            raise ValueError(f"average='absolute' has no meaning for {what}; use average='signed'")

    def _hessian_product(self, weights: Tensors, vector: Tensors, batches: Iterator[Any]) -> Tensors:
        """H v, the Hessian of the mean loss over the batches at the weights, by a second backward pass through g·v."""

        def twice(leaves: Tensors, value: Tensor) -> None:
            first = torch.autograd.grad(value, list(leaves.values()), create_graph=True, allow_unused=True)
            dots = [
                (g * vector[name].to(g.dtype)).sum() for name, g in zip(leaves, first, strict=True) if g is not None
            ]
            along = torch.stack(dots).sum()
            if along.requires_grad:  # else the loss is linear in the weights
                along.backward()

        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return self._mean(weights, batches, twice, "Hessian-gradient product")[0]

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
        set_mode(self.model, self.bn_mode == "train")  # whatever a callback has left behind
        state = state_of(self.model, without=weights)
        parameters = dict(self.model.named_parameters())
        leaves = {name: value.to(parameters[name].dtype).detach().requires_grad_() for name, value in weights.items()}
        total: Tensors = {}
        losses, seen = [], 0
        for batch in batches:
            seen += examples(batch)
            # Absolute values are of a whole batch's gradient, so that its pieces have to be summed up apart.
            into, loss = ({} if self.average == "absolute" else total), 0.0
            for piece, share in pieces(batch, self.micro_batch):
                loss += self._visit(piece, share, state, leaves, backward)
                _collect(leaves, into)
            losses.append(loss)
            if self.average == "absolute":
                _add({name: summed.abs_() for name, summed in into.items()}, total)
            del batch, piece  # else the last one stays while the next is made
        total = {name: total[name] if name in total else torch.zeros_like(widen(leaf)) for name, leaf in leaves.items()}
        for name, summed in total.items():
            if len(losses) > 1:
                summed.div_(len(losses))
            if not all_finite(summed):
                raise NonFiniteError(f"the {what} of {name} {tuple(summed.shape)} holds NaN or infinity")
        # A meeting before the long messages: learns of a rank that has failed.
        means, counts = zip(*everyone((sum(losses) / len(losses), seen)), strict=True)
        shares = [count * len(counts) / sum(counts) for count in counts]
        average_over_ranks(total, shares[rank()])
        return total, sum(mean * share for mean, share in zip(means, shares, strict=True)) / len(means)

    def _visit(
        self,
        batch: Any,
        share: float,
        state: Tensors,
        leaves: Tensors,
        backward: Callable[[Tensors, Tensor], None],
    ) -> float:
        """Run `backward(leaves, loss)` on a batch whose loss counts `share` times; returns that loss."""
        device, drawn = device_of(self.model), torch.get_rng_state()
        copied = to_device(batch, device, channels_last=self.channels_last)

        def run() -> float:
            with autocast(self.precision, device):
                outputs = forward(self.model, copied)
            value = evaluate(self.loss, outputs if self.precision == "float32" else in_float32(outputs), copied)
            if not torch.isfinite(value):
                if not examples(batch):
                    raise ValueError(f"batch {self.batches.taken} holds no examples: leave empty batches out")
                raise NonFiniteError(
                    f"the loss is {value.item()} on batch {self.batches.taken}: check inputs and weights"
                )
            if not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on the prunable weights: computed under no_grad, or detached?"
                )
            value = value if share == 1 else value * share
            backward(leaves, value)
            return value.item()

        try:
            with (
                differentiable(),
                autocast("float32", device),  # the caller's own would reach the backward pass
                recomputing(self.model) if self.recompute else nullcontext(),
            ):
                return with_parameters(self.model, state | leaves, run)
        except RuntimeError as error:
            if not (self.channels_last and "view size is not compatible" in str(error)):
                raise
        self.channels_last = False  # the model's code counts on the images' own order
        torch.set_rng_state(drawn)
        for leaf in leaves.values():
            leaf.grad = None
        return self._visit(batch, share, state, leaves, backward)


def _collect(leaves: Tensors, into: Tensors) -> None:
    """Add the leaves' gradients to the sums, and take them off the leaves."""
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            grad = leaf.grad if leaf.grad.layout == torch.strided else leaf.grad.to_dense()  # of sparse embeddings
            grad, leaf.grad = widen(grad), None
            _add({name: grad}, into)


def _add(tensors: Tensors, into: Tensors) -> None:
    for name, tensor in tensors.items():
        into[name] = into[name].add_(tensor) if name in into else tensor
