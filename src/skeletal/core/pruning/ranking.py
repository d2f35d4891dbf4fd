"""The order in which a method lets weights go, and the masks of any size that follow from it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skeletal.core.choices import named
from skeletal.core.masks.mask import Mask
from skeletal.core.masks.selection import top
from skeletal.core.model.tensors import Tensors, flatten, unflatten
from skeletal.core.pruning.algorithm import Step
from skeletal.core.pruning.methods import METHODS


class Ranking:
    """All weights of a network, best first, as one run of a method ranks them: pass it to `prune` as `on_step`.

    A nested method (Eq. 7) scores only the weights it has left, so scores alone cannot compare weights that it pruned
    at different steps. A run does define this order: a weight that survives more steps comes before one that
    survives fewer; among those that leave at the same step, and among those never pruned, the higher score at the last
    step they were scored at comes first; a weight without a score comes after those with one; ties go to the first
    position. A method of one step, or one whose pruned weights may return, ranks by its last step alone.

    This order gives a mask of any count not below the run's: for a method of one step, exactly the mask
    that a run of its own would find, unless its scores depend on the count (random-uniform, random-erk, phew, npb); for
    a nested one with the exponential schedule, whose steps all keep the same
    fraction, the mask of a run of fewer steps, up to the rounding of its counts.
    Patterns do not count: its masks are of single weights.

    Args:
        method: the one that is run, a row of `skeletal.METHODS`.

    """

    def __init__(self, method: str) -> None:
        self._nested = METHODS[named("method", method, METHODS)].nested
        self._survived: Tensors = {}
        self._scores: Tensors = {}
        self._mask: Tensors = {}

    def __call__(self, step: Step) -> None:
        """Take note of a step."""
        if not self._nested or not self._mask:
            self._survived = {name: torch.zeros_like(keep, dtype=torch.int32) for name, keep in step.mask.items()}
            self._scores = {name: _ranked(score) for name, score in step.scores.items()}
        else:
            for name, score in step.scores.items():
                self._scores[name] = torch.where(self._mask[name], _ranked(score), self._scores[name])
        for name, keep in step.mask.items():
            self._survived[name] += keep
        self._mask = step.mask

    def keep(self, count: int) -> Tensors:
        """The `count` best weights of the whole network: bool tensors by parameter name.

        Raises:
            ValueError: no run has been seen, or it has no `count` weights.

        """
        survived, scores = flatten(self._seen()), flatten(self._scores)
        return unflatten(_best(survived, scores, count, "the network"), self._survived)

    def keep_within_layers(self, like: Mapping[str, Tensor]) -> Tensors:
        """The best weights of each layer, as many in each as another mask keeps there.

        So layer densities can come from one method and positions from another. Given the run's own mask, returns it.

        Raises:
            ValueError: no run has been seen, or the other mask is of another network.

        """
        survived = self._seen()
        if like.keys() != survived.keys() or any(like[name].shape != ours.shape for name, ours in survived.items()):
            raise ValueError("the mask is of another network than the one that was ranked")
        return {
            name: _best(ours.flatten(), self._scores[name].flatten(), int(like[name].sum()), name).view(ours.shape)
            for name, ours in survived.items()
        }

    def mask(self, count: int, metadata: Mapping[str, Any] | None = None) -> Mask:
        """`keep(count)` as a `Mask`."""
        return Mask(self.keep(count), metadata)

    def _seen(self) -> Tensors:
        if not self._survived:
            raise ValueError("nothing is ranked yet: call prune with on_step=ranking, then ask")
        return self._survived


def _ranked(score: Tensor) -> Tensor:
    """Scores as pruning ranks them: exactly 0 means no score, and comes below even the negative ones."""
    return score.masked_fill(score == 0, -torch.inf)


def _best(survived: Tensor, scores: Tensor, count: int, where: str) -> Tensor:
    """The first `count` by (survived, score, position); all flat."""
    if not 0 <= count <= len(scores):
        raise ValueError(f"{count:,} weights are to be kept of {where}, which has {len(scores):,}")
    keep, level = torch.zeros_like(survived, dtype=torch.bool), int(survived.max()) if len(survived) else 0
    while count:
        here = survived == level
        room = int(here.sum())
        if room <= count:
            keep |= here
        else:
            keep[here] = top(scores[here], count)
        count -= min(room, count)
        level -= 1
    return keep
