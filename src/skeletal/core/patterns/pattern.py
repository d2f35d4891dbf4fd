"""What a pattern is: a restriction of masks, and the choice of the best mask within it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skeletal.core.choices import at_most
from skeletal.core.model.layout import Layout, layouts
from skeletal.core.model.tensors import Tensors


class Chosen(NamedTuple):
    """What a pattern makes of scores."""

    keep: Tensors
    """bool, by parameter name"""
    filled: int
    """how many of the kept weights belong together with no weight that has a score"""


Choose = Callable[[Tensors, Tensors, int], Chosen]
"""`(scores, available, count)` -> the mask of at most `count` of the available weights, all of one pattern.

Scores and masks are (outputs, inputs, positions) of each weight, on the CPU (see `Layout.units`); scores are doubles,
and exactly 0 means that a weight has none. All are of one network, by parameter name.
"""


@dataclass(frozen=True)
class Pattern(ABC):
    """Which weights of a network stay or go together. Its choice is a function of the scores alone."""

    name: str
    """as masks record it"""

    @abstractmethod
    def on(self, model: nn.Module, weights: dict[str, nn.Parameter], example: Any) -> Choose:
        """The choice for one network.

        Args:
            model: in the mode it is scored in.
            weights: that the mask covers.
            example: a batch; None if there is none.

        Raises:
            ValueError: the network cannot follow the pattern.

        """


class Patterned:
    """A pattern on one network: chooses masks by scores in the weights' own shapes, on their own devices.

    Raises:
        ValueError: the network cannot follow the pattern.

    """

    def __init__(self, pattern: Pattern, model: nn.Module, weights: dict[str, nn.Parameter], example: Any) -> None:
        self.name = pattern.name
        self._layouts: dict[str, Layout] = layouts(model, weights)
        self._choose = pattern.on(model, weights, example)
        sizes = {name: torch.ones_like(weight, device="cpu", dtype=torch.bool) for name, weight in weights.items()}
        self._total = sum(keep.numel() for keep in sizes.values())
        whole = self._choose(self._units(sizes, torch.float64), self._units(sizes), self._total)
        self.largest = sum(int(keep.sum()) for keep in whole.keep.values())
        """how many weights the pattern can keep at most"""

    def check(self, count: int) -> None:
        """Make sure that `count` weights can be kept.

        Raises:
            ValueError: the pattern does not allow as many; names the largest density.

        """
        if count > self.largest:
            raise ValueError(
                f"the pattern {self.name} keeps at most {self.largest:,} of this network's {self._total:,} weights:"
                f" density has to be at most {at_most(self.largest / self._total)}"
            )

    def choose(self, scores: Tensors, available: Tensors, count: int) -> Chosen:
        """The best mask of at most `count` weights, all of them available.

        Raises:
            ValueError: not even the smallest part that the pattern keeps together is that small.

        """
        found = self._choose(self._units(scores, torch.float64), self._units(available), min(count, self.largest))
        keep = {
            name: self._layouts[name].weight(units, available[name]).to(available[name].device)
            for name, units in found.keep.items()
        }
        return Chosen(keep, found.filled)

    def _units(self, tensors: Tensors, dtype: torch.dtype | None = None) -> Tensors:
        return {name: self._layouts[name].units(tensor).to("cpu", dtype) for name, tensor in tensors.items()}


def ranked(scores: Tensor) -> Tensor:
    """Scores as they are ranked: exactly 0 means no score, and comes below even the negative ones."""
    return scores.masked_fill(scores == 0, torch.finfo(scores.dtype).min)
