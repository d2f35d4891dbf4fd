"""Derivatives of the loss at any weights, with the model left as found."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skeletal.core.errors import NonFiniteError
from skeletal.core.model.batches import Cycle, Loss, evaluate, examples, forward, pieces, to_device
from skeletal.core.model.distributed import average_over_ranks, everyone, rank
from skeletal.core.model.passes import Passes, passed
from skeletal.core.model.precision import autocast, in_float32
from skeletal.core.model.preserve import (
    device_of,
    differentiable,
    generators_of,
    preserve_random_state,
    set_mode,
    state_of,
    with_parameters,
)
from skeletal.core.model.recompute import recomputing, refuse_reentrant
from skeletal.core.model.state.random_state import RandomState, seed_all
from skeletal.core.model.tensors import Tensors, not_finite, widen

Value = TypeVar("Value")


class Derivatives:
    """Gradient and Hessian-gradient product of the loss, averaged over the next batches of a stream.

    Pruning asks for derivatives only through this class. A subclass may compute them in another way: pass it to
    `prune` as its `engine`.

    Each batch counts the same. Under `torch.distributed` the average is also over all ranks, each weighted by its
    examples, and every rank gets bit-identical numbers.

    Args:
        model: run in the mode `bn_mode`; never written to.
        batches: the source from which every call takes `count` batches.
        count: number of batches to average over.
        loss: see `prune`.
        bn_mode: "train" or "eval".
        average: "signed" averages gradients with their sign, as in the paper's code, where a score takes the
            absolute value after the average; "absolute" averages the absolute values of each batch's gradient.
        precision: "float32", or "bfloat16" for a forward pass under autocast; the loss is float32 in both.
        channels_last: pass images with their channels innermost in memory; the numbers are the same up to rounding.
        micro_batch: see `prune`.
        recompute: see `prune`.

    """

    name = "dense"
    """what masks and messages call this way of taking derivatives"""
    everywhere = True
    """whether gradients of pruned weights are given, too; methods whose weights may return need them"""
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
            mask: c_t, outside of which `weights` are 0. There, a subclass whose `everywhere` is False gives 0; this
                class gives the gradient, and so does every subclass if no mask is given.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
            ValueError: the loss does not depend on any of the weights.

        """
        return self._gradient(weights, (next(self.batches) for _ in range(self.count)))

    def hessian_gradient(self, weights: Tensors, mask: Tensors | None = None) -> tuple[Tensors, float]:
        """H g, the Hessian of the mean loss times its gradient, and the mean loss: what GRASP needs (Eq. 4).

        Both factors use the same batches: first g is averaged over all of them, then Σ_b H_b g is summed batch by
        batch, each with a second backward pass through g_b·g. For that, the batches are asked for again or held in
        memory (see `Cycle.twice`), and random layers draw the same numbers in both passes.
        The arguments are those of `gradient`.

        Raises:
            NonFiniteError, ValueError: as `gradient`.
            ValueError: `average` is "absolute".

        """
        self._refuse_absolute(
            "a Hessian-gradient product: GRASP's criterion is signed, and the sign tells what to prune"
        )
        batches, again = self.batches.twice(self.count)
        with preserve_random_state(self.model):
            gradient, loss = self._gradient(weights, batches, everywhere=True)
        return self._hessian_product(weights, gradient, again), loss

    def unrolled_gradient(
        self, weights: Tensors, mask: Tensors | None = None, *, steps: int, rate: float, momentum: float = 0.0
    ) -> tuple[Tensors, float]:
        """The gradient, with respect to the weights, of the loss after some steps of SGD: a meta-gradient.

        w_{i+1} = w_i - rate v_{i+1}, v_{i+1} = momentum v_i + ∇L_i(w_i), and then dL_M(w_M)/dw_0, exactly: backwards
        from the last step, with one Hessian product at each w_i (ProsPr, Alizadeh et al. 2022). Every step, and the
        loss after the last, has its own `count` batches; parameters not among the weights do not change. Random layers
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
            seed = int(torch.randint(2**31, (), device="cpu"))
            gradient, loss = self._with_seed(
                seed, lambda at=weights, seen=batches: self._gradient(at, seen, everywhere=True)
            )
            first = loss if first is None else first
            path.append((weights, again, seed))
            velocity = {name: momentum * value + gradient[name] for name, value in velocity.items()}
            weights = {name: value - rate * velocity[name] for name, value in weights.items()}
        total, loss = self.gradient(weights)
        through = {name: torch.zeros_like(value) for name, value in total.items()}  # dL/dv
        for at, again, seed in reversed(path):
            through = {name: value - rate * total[name] for name, value in through.items()}
            product = self._with_seed(
                seed, lambda at=at, v=through, seen=again: self._hessian_product(at, v, seen, everywhere=True)
            )
            total = {name: value + product[name] for name, value in total.items()}
            through = {name: momentum * value for name, value in through.items()}
        return total, loss if first is None else first

    @cached_property
    def _generators(self) -> list[Any]:
        """Looked for once: that takes as long as a small batch."""
        return generators_of(self.model)

    def _with_seed(self, seed: int, function: Callable[[], Value]) -> Value:
        with preserve_random_state(self.model):
            seed_all(seed, self.model)
            return function()

    def _refuse_absolute(self, what: str) -> None:
        if self.average == "absolute":
            raise ValueError(f"average='absolute' has no meaning for {what}; use average='signed'")

    def _hessian_product(
        self, weights: Tensors, vector: Tensors, batches: Iterator[Any], *, everywhere: bool = False
    ) -> Tensors:
        """H v, H the Hessian of the mean loss over the batches at the weights: a second backward pass through g·v."""

        def twice(leaves: Tensors, value: Tensor) -> None:
            refuse_reentrant(value)
            first = torch.autograd.grad(value, list(leaves.values()), create_graph=True, allow_unused=True)
            dots = [
                (g * vector[name].to(g.dtype)).sum() for name, g in zip(leaves, first, strict=True) if g is not None
            ]
            _require_any(dots)
            along = torch.stack(dots).sum()
            if along.requires_grad:  # else the loss is linear in the weights
                along.backward(inputs=list(leaves.values()))

        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            product, _, seen = self._mean(weights, batches, twice, "Hessian-gradient product")
        passed(Passes("hessian", seen, fresh=False, everywhere=everywhere))
        return product

    def _gradient(self, weights: Tensors, batches: Iterator[Any], *, everywhere: bool = False) -> tuple[Tensors, float]:
        def once(leaves: Tensors, value: Tensor) -> None:
            # Not `autograd.grad`, which reentrant activation checkpointing refuses.
            value.backward()
            _require_any([leaf.grad for leaf in leaves.values() if leaf.grad is not None])

        gradient, loss, seen = self._mean(weights, batches, once, "gradient")
        passed(Passes("gradient", seen, everywhere=everywhere))
        return gradient, loss

    def _mean(
        self, weights: Tensors, batches: Iterator[Any], backward: Callable[[Tensors, Tensor], None], what: str
    ) -> tuple[Tensors, float, int]:
        """The mean over the batches of what `backward(leaves, loss)` leaves in the leaves' `.grad`, and of the loss.

        Nothing else has a gradient. Also returns the number of examples, which are this rank's.
        """
        set_mode(self.model, self.bn_mode == "train")  # whatever a callback has left behind
        state = state_of(self.model, without=weights)
        parameters = dict(self.model.named_parameters())
        leaves = {name: value.to(parameters[name].dtype).detach().requires_grad_() for name, value in weights.items()}
        total: Tensors = {}
        untouched = {name: _state_of_gradient(parameters[name]) for name in leaves}
        losses, seen = [], 0
        for batch in batches:
            seen += examples(batch)
            # Absolute values are taken of a whole batch's gradient, so its pieces have to be summed separately.
            into, loss = ({} if self.average == "absolute" else total), 0.0
            for piece, share in pieces(batch, self.micro_batch):
                loss += self._visit(piece, share, state, leaves, backward)
                _collect(leaves, into)
            losses.append(loss)
            for name, before in untouched.items():
                if _state_of_gradient(parameters[name]) != before:
                    raise ValueError(
                        f"{name} is used through another reference than its module's own, such as a list of parameters"
                        " that the network keeps, and its gradient is not seen: read it from its module in forward"
                    )
            if self.average == "absolute":
                _add({name: summed.abs_() for name, summed in into.items()}, total)
            del batch, piece  # else the last one stays while the next is made
        total = {name: total[name] if name in total else torch.zeros_like(widen(leaf)) for name, leaf in leaves.items()}
        if len(losses) > 1:
            for summed in total.values():
                summed.div_(len(losses))
        if (name := not_finite(total)) is not None:
            raise NonFiniteError(f"the {what} of {name} {tuple(total[name].shape)} holds NaN or infinity")
        # A meeting before the long messages, to learn of a rank that has failed.
        means, counts = zip(*everyone((sum(losses) / len(losses), seen)), strict=True)
        shares = [count * len(counts) / sum(counts) for count in counts]
        average_over_ranks(total, shares[rank()])
        return total, sum(mean * share for mean, share in zip(means, shares, strict=True)) / len(means), seen

    def _visit(
        self,
        batch: Any,
        share: float,
        state: Tensors,
        leaves: Tensors,
        backward: Callable[[Tensors, Tensor], None],
    ) -> float:
        """Run `backward(leaves, loss)` on a batch whose loss counts `share` times; returns that loss."""
        device, drawn = device_of(self.model), RandomState()
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
                recomputing(self.model, self._generators) if self.recompute else nullcontext(),
            ):
                return with_parameters(self.model, state | leaves, run)
        except RuntimeError:
            if not self.channels_last:
                raise
        self.channels_last = False  # perhaps the model's code counts on the images' own order, which costs only time
        drawn.restore()
        for leaf in leaves.values():
            leaf.grad = None
        return self._visit(batch, share, state, leaves, backward)


def _state_of_gradient(weight: Tensor) -> tuple[int, int]:
    """What changes when a backward pass reaches a weight itself, and not what stands in for it."""
    return id(weight.grad), -1 if weight.grad is None else weight.grad._version


def _require_any(gradients: list[Tensor]) -> None:
    if not gradients:
        raise ValueError("the loss does not depend on any prunable weight: check the loss and the selection")


def _collect(leaves: Tensors, into: Tensors) -> None:
    """Add the leaves' gradients to the sums, and remove them from the leaves."""
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            grad = leaf.grad if leaf.grad.layout == torch.strided else leaf.grad.to_dense()  # of sparse embeddings
            grad, leaf.grad = widen(grad), None
            _add({name: grad}, into)


def _add(tensors: Tensors, into: Tensors) -> None:
    for name, tensor in tensors.items():
        into[name] = into[name].add_(tensor) if name in into else tensor
