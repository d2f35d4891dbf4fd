"""Patterns whose parts lie within a layer: weights stay or go in groups, the best groups first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.masks.selection import top
from skeletal.core.model.tensors import Tensors
from skeletal.core.patterns.pattern import Choose, Chosen, Pattern, ranked

Groups = Callable[[Tensor], Tensor]
"""From a layer's scores, (outputs, inputs, positions), to the number of each weight's group, int64: 0 and up.

A score of -inf is of a weight that cannot be kept; the lowest double is of one that has no score. -1 is the number of a
weight that the pattern does not allow; numbers of weights that cannot be kept do not matter.
"""


@dataclass(frozen=True)
class Grouped(Pattern):
    """Keep whole groups, in the order of the mean score of their weights, each if it still fits.

    This makes the sum of the kept scores large, which without a pattern is what the top k does: it is the greedy
    solution of the knapsack problem, by value per weight (Dantzig 1957). Ties go to the first group.
    """

    groups: Groups
    in_order: bool = False
    """whether a layer's groups are kept in the order of their numbers"""

    def on(self, model: nn.Module, weights: dict[str, nn.Parameter], example: Any) -> Choose:
        """See `Pattern`."""
        return self._choose

    def _choose(self, scores: Tensors, available: Tensors, count: int) -> Chosen:
        numbers, groups, layers = {}, 0, [0]
        for name, score in scores.items():
            found = self.groups(ranked(score).masked_fill_(~available[name], -torch.inf))
            if found.dtype != torch.int64 or found.shape != score.shape:
                raise ValueError(
                    f"the pattern {self.name} gives {tuple(found.shape)} of {found.dtype} for {name}: it has to give a"
                    f" group number, int64, for each of its weights (outputs, inputs, positions), {tuple(score.shape)}"
                )
            inside = found.ge(0) & available[name]
            numbers[name] = torch.where(inside, found + groups, -1)
            groups += int(found.max()) + 1 if found.numel() else 0
            layers.append(groups)
        taken, filled = _taken(_flat(scores), _flat(numbers), groups, count, layers if self.in_order else [])
        if count and not taken.any():
            raise ValueError(
                f"{count:,} weights are to be kept, fewer than the pattern {self.name} keeps together: choose a higher"
                " density"
            )
        return Chosen({name: taken[number] for name, number in numbers.items()}, filled)


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _taken(scores: Tensor, numbers: Tensor, groups: int, count: int, layers: Sequence[int]) -> tuple[Tensor, int]:
    """Which groups are kept, bool by number, False for -1; and how many of their weights are in one without score.

    Of layers, given by the number that each begins with and the last ends before, a group counts no more than one
    before it: where some scores are negative, the mean of a later one may be higher, as it has weights without a score.
    """
    inside = numbers >= 0
    scores, numbers = scores[inside], numbers[inside]
    sizes = numbers.bincount(minlength=groups)
    means = numbers.bincount(scores, minlength=groups) / sizes
    scored = numbers[scores != 0].bincount(minlength=groups) > 0
    means.masked_fill_(~scored, torch.finfo(means.dtype).min)
    for first, end in pairwise(layers):
        means[first:end] = means[first:end].cummin(0).values
    present = sizes.nonzero().flatten()
    # The last one is that of weights without a group, number -1.
    taken = torch.zeros(groups + 1, dtype=torch.bool, device="cpu")
    taken[present] = fitting(means[present], sizes[present], count)
    return taken, int(sizes[taken[:-1] & ~scored].sum())


def fitting(values: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Mark items from the most valuable on, each if its size still fits in `count`; ties go to the first.

    Args:
        values: shape (n,), without NaN.
        sizes: int64, at least 1.
        count: sum of sizes that may not be exceeded.

    """
    if not len(sizes):
        return torch.zeros(0, dtype=torch.bool, device="cpu")
    size = int(sizes[0])
    if bool((sizes == size).all()):
        return top(values, min(count // size, len(values)))
    order = values.argsort(descending=True, stable=True)
    sizes = sizes[order]
    first = int((sizes.cumsum(0) <= count).sum())  # all of these fit, one after the other
    taken = torch.zeros(len(sizes), dtype=torch.bool, device="cpu")
    taken[:first] = True
    room = count - int(sizes[:first].sum())
    while len(later := (sizes[first:] <= room).nonzero()):
        first += int(later[0])
        taken[first] = True
        room -= int(sizes[first])
        first += 1
    return torch.zeros_like(taken).index_fill_(0, order[taken], True)


def n_of_m(n: int, m: int) -> Groups:
    """At most N of every M inputs of a unit that follow each other; every weight is a group of its own.

    The inputs are counted for each kernel position by itself, as torch's semi-structured (2:4) tensors and cuSPARSELt
    see a convolution. A last group of fewer than M inputs counts as one filled up with zeros: it keeps at most N, too.
    (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks".)
    """

    def groups(scores: Tensor) -> Tensor:
        outputs, inputs, positions = scores.shape
        padded = nn.functional.pad(scores, (0, 0, 0, -inputs % m), value=-torch.inf).view(outputs, -1, m, positions)
        allowed = _ranks(padded, 2).lt(n).view(outputs, -1, positions)[:, :inputs]
        return torch.where(allowed, torch.arange(scores.numel(), device="cpu").view_as(scores), -1)

    return groups


def fan_in(scores: Tensor) -> Tensor:
    """Every output unit of a layer keeps the same number of weights (SRigL; Lasby et al. 2023, section 3).

    A group is the j-th best weight of every unit, so that the groups a layer keeps are those of the first j.
    """
    units = scores.flatten(1)
    return torch.where(units.isneginf(), -1, _ranks(units, 1)).view_as(scores)


def blocks(rows: int, columns: int) -> Groups:
    """Blocks of R outputs and C inputs at one kernel position: dense pieces of the matrix of each position.

    Positions are apart, so that a block has one size in convolutions and linear layers. Blocks at the edges, where
    outputs or inputs run out, are smaller, and ranked by the mean of the weights they have.
    """

    def groups(scores: Tensor) -> Tensor:
        outputs, inputs, positions = scores.shape
        row = torch.arange(outputs, device="cpu").div(rows, rounding_mode="floor")
        column = torch.arange(inputs, device="cpu").div(columns, rounding_mode="floor")
        across = -(-inputs // columns)
        block = row[:, None] * across + column
        return block[:, :, None] * positions + torch.arange(positions, device="cpu")

    return groups


def _ranks(scores: Tensor, dim: int) -> Tensor:
    """0 for the highest along a dimension, then 1, ...; ties go to the first."""
    order = scores.argsort(dim=dim, descending=True, stable=True)
    places = torch.arange(scores.shape[dim], device="cpu").view([-1 if i == dim else 1 for i in range(scores.dim())])
    return torch.empty_like(order).scatter_(dim, order, places.expand_as(order))
