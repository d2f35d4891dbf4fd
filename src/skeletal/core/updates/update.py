"""A skeleton whose mask moves: the one call that training makes after each step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from skeletal.core.errors import MaskError, NonFiniteError
from skeletal.core.masks.attach import Skeleton
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import agree, average_over_ranks, everyone, ranks
from skeletal.core.model.shards import is_sharded
from skeletal.core.model.tensors import Tensors, not_finite
from skeletal.core.updates.rule import Moment, Rule


class MaskUpdate:
    """Move a skeleton's mask while it trains: call `step()` after each step of the optimizer.

    Weights that come start at 0, and what the optimizer remembers of them starts anew; weights that stay, and what is
    remembered of them, do not change; nor do layers that do not require a gradient. (Adam counts steps once for the
    whole tensor, so the moments of a new weight are not corrected for their young age.) The optimizer takes its step
    before every update, whereas the papers' pseudocode leaves it out.

    The gradients of pruned weights, which RigL asks for, are taken only in the backward passes before an update:
    of the whole layer, at the masked weights, summed over the passes if they accumulate; passes that `zero_grad`
    throws away, such as SAM's first or a generator's through a discriminator, do not count. They have to come by
    `.backward()`.

    Under torchrun, all ranks call it equally often and make the same move: gradients are averaged over the ranks. In
    `DistributedDataParallel.join()`, ranks that have run out of batches do not, and the others would wait for them.

    Args:
        skeleton: what `mask.attach(model)` returned.
        optimizer: the optimizer of the model's weights, or all of them if there are several.
        rule: `SET`, `RigL`, `Gradual`, or one of your own.
        steps: of the optimizer in the whole training.
        seed: for random choices.

    Raises:
        MaskError: the skeleton is detached.
        ValueError: the mask has a pattern; the rule does not suit the training; no optimizer holds one of the weights,
            or processes share it.

    """

    def __init__(
        self, skeleton: Skeleton, optimizer: Optimizer | Sequence[Optimizer], rule: Rule, *, steps: int, seed: int = 0
    ) -> None:
        self._skeleton, self._rule, self._steps, self._seed = skeleton, rule, steps, seed
        self._optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        if skeleton.pattern is not None:
            raise ValueError(
                f"the mask has the pattern {skeleton.pattern}, and {type(rule).__name__} moves single weights,"
                " which would break it: prune without a pattern, or keep the mask as it is"
            )
        for name, weight in self._weights().items():
            if is_sharded(weight):
                raise ValueError(f"{name} is sharded over processes, and a mask that moves needs whole weights")
        self._step = 0
        self._kept = self._begun_with = sum(int(keep.sum()) for keep in skeleton.mask.values())
        rule.check(self._kept, sum(keep.numel() for keep in skeleton.mask.values()), steps)
        skeleton.moving = True
        self._make_ready()

    @property
    def mask(self) -> Mask:
        """The mask as it is now; a copy."""
        return Mask(self._skeleton.mask)

    @property
    def due(self) -> bool:
        """Whether the mask moves after the coming step."""
        return self._rule.due(self._step + 1, self._steps)

    def step(self, *, share: float = 1.0) -> bool:
        """Count a step of the optimizer, and move the mask if it is time.

        An update is skipped if its gradients are not finite, as in a step that a `GradScaler` skips.

        Args:
            share: this process's weight in the mean gradient, by its examples; see `average_over_ranks`.

        Returns:
            Whether the mask has moved.

        Raises:
            MaskError: the skeleton is detached; the rule needs gradients, and none came by a backward pass; or the
                rule's new mask does not fit.
            ValueError: no optimizer holds one of the weights any more; frozen layers keep more than the rule leaves.
            NonFiniteError: a weight is NaN or infinite.

        """
        due, self._step = self.due, self._step + 1
        moved = due and self._move(share)
        self._make_ready()
        return moved

    def _make_ready(self) -> None:
        self._skeleton.keep_gradients(self.due and self._rule.needs_gradients)

    def _weights(self) -> dict[str, nn.Parameter]:
        """The skeleton's, which the optimizers hold."""
        weights = self._skeleton.weights
        held = {id(weight) for one in self._optimizers for group in one.param_groups for weight in group["params"]}
        for name, weight in weights.items():
            if id(weight) not in held:
                raise ValueError(
                    f"no optimizer given holds {name}: pass all that hold the skeleton's weights, to a new MaskUpdate"
                    " if the weights or the optimizer have been exchanged since"
                )
        return weights

    def _move(self, share: float) -> bool:
        parameters = self._weights()
        trained = {name for name, weight in parameters.items() if weight.requires_grad}
        weights = {name: weight.detach() for name, weight in parameters.items()}
        gradients = _of_all_ranks(self._skeleton.gradients, weights, share) if self._rule.needs_gradients else {}
        if not_finite(gradients) is not None:
            return False
        if (name := not_finite(weights)) is not None:
            raise NonFiniteError(f"{name} holds NaN or infinity after step {self._step}")
        if self._rule.needs_gradients and trained and trained.isdisjoint(gradients):
            raise MaskError(
                f"{type(self._rule).__name__} needs gradients, and none has come to .grad by a backward pass since the"
                " last step: call .backward(), and register hooks that clear .grad after mask.attach"
            )
        mask = {name: keep.to(weights[name].device) for name, keep in self._skeleton.mask.items()}
        frozen = frozenset(weights.keys() - trained)
        at = Moment(weights, mask, gradients, self._step, self._steps, self._begun_with, self._seed, frozen)
        new = _checked(self._rule.next_mask(at), mask) | {name: mask[name] for name in frozen}
        self._skeleton.move(new, *self._optimizers)
        agree(self._skeleton.mask, "weights and gradients have to be the same on every rank")
        return True

    def state_dict(self) -> dict[str, Any]:
        """What it takes to resume: the mask as it is, and the steps taken."""
        return {"step": self._step, "begun_with": self._begun_with, "mask": self._skeleton.mask}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`; call this before the model and the optimizer load theirs.

        Raises:
            MaskError: it belongs to another model.

        """
        self._skeleton.move(state["mask"])
        self._step, self._begun_with = int(state["step"]), int(state["begun_with"])
        self._make_ready()


def _of_all_ranks(gradients: Tensors, weights: Tensors, share: float) -> Tensors:
    """The mean over the ranks, including a rank without examples."""
    if ranks() == 1:
        return gradients
    names = set().union(*everyone(list(gradients)))
    found = {name: gradients.get(name, torch.zeros_like(weights[name])).clone() for name in weights if name in names}
    average_over_ranks(found, share)
    return found


def _checked(new: Tensors, old: Tensors) -> Tensors:
    for name, keep in old.items():
        found = new.get(name)
        if not isinstance(found, torch.Tensor) or found.dtype != torch.bool or found.shape != keep.shape:
            raise MaskError(f"the rule's new mask of {name} is not a bool tensor of shape {tuple(keep.shape)}")
    return new
