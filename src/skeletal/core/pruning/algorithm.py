"""Algorithm 1 of the paper, to be laid beside it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.tensors import counts as kept_in
from skeletal.core.pruning.keep_top import keep_top
from skeletal.core.pruning.methods import Method
from skeletal.core.pruning.scores import Point, scores_at


@dataclass(frozen=True)
class Step:
    """What `on_step` sees after a step: the new mask, and what it was made of."""

    step: int
    """1 to steps"""
    steps: int
    kept: int
    """as many as the schedule says, or fewer where a pattern leaves no other choice"""
    density: float
    loss: float | None
    """mean loss before the step, at the previous mask; None for data-free methods"""
    mask: Tensors
    scores: Tensors
    filled: int = 0
    """how many of the kept weights have no score, and were filled in by position (`on_collapse="keep"`)"""


def algorithm_1(
    theta: Tensors,
    method: Method,
    counts: list[int],
    derivatives: Derivatives | None,
    generator: torch.Generator,
    on_collapse: str,
    keep: Callable[..., tuple[Tensors, int]] = keep_top,
) -> Iterator[Step]:
    """Progressive skeletonization: one step for each count of the schedule, lines as in the paper's Algorithm 1.

    `keep` chooses the weights by their scores: `keep_top`, or `keep_pattern` of a pattern.
    """
    total = sum(weight.numel() for weight in theta.values())
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in theta.items()}  # line 3: c_0 = 1
    for t, count in enumerate(counts, 1):  # lines 2, 4: k_t of Eq. 8 or 9
        where = f"step {t} of {len(counts)}"
        point = Point(theta, mask, count, derivatives, generator)  # lines 5, 6: a mini-batch, θ̄ = θ ⊙ c_{t-1}
        scores = scores_at(point, method.score, where)  # line 7: g(θ̄) of Eq. 5, or another criterion
        how = method.nested, on_collapse, where, method.looks_at_data
        mask, filled = keep(scores, mask, count, *how)  # lines 8, 9: Eq. 7, or Eq. 6
        kept = sum(kept_in(mask).values())
        yield Step(t, len(counts), kept, kept / total, point.loss, mask, scores, filled)
        del point, scores  # four times the weights, while the next step has the activations to hold
