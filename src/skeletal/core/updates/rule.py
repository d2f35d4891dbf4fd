"""What a rule for moving masks is: when it moves them, and where to."""

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from skeletal.core.model.tensors import Tensors
from skeletal.core.seeds import seed_of


@dataclass(frozen=True)
class Moment:
    """A training after one of its steps, as a rule sees it."""

    weights: Tensors
    """θ after the optimizer's step; pruned ones are 0"""
    mask: Tensors
    """bool, where the weights are"""
    gradients: Tensors
    """of the step's loss at the masked weights, for all weights, pruned ones included; layers that had none are
    missing, and all layers are if the rule does not ask for gradients"""
    step: int
    """steps taken, from 1 on"""
    steps: int
    """of the whole training"""
    begun_with: int
    """weights that the mask kept before the first step"""
    seed: int
    frozen: frozenset[str] = frozenset()
    """layers that do not require a gradient: they keep their masks, whatever the rule says"""

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return sum(int(keep.sum()) for keep in self.mask.values())

    @cached_property
    def generator(self) -> torch.Generator:
        """The only source of randomness a rule may use: on the CPU, a function of seed and step."""
        return torch.Generator().manual_seed(seed_of("mask update", self.seed, self.step))


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """When a mask moves, and where to: every so many steps, up to a fraction of the training.

    To write your own, inherit from this class with a frozen dataclass.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `every` is no whole number.

    """

    every: int = 100
    """steps from one update to the next, ΔT"""
    end: float = 0.75
    """fraction of the training after which the mask stays"""

    needs_gradients: ClassVar[bool] = False
    """whether a moment also has to bring the gradients of pruned weights"""

    def __post_init__(self) -> None:
        if operator.index(self.every) < 1:
            raise ValueError(f"every is {self.every}; it has to be at least 1 step")
        if not 0 < self.end <= 1:
            raise ValueError(f"end is {self.end}; it is a fraction of the training, above 0 and at most 1")

    def due(self, step: int, steps: int) -> bool:
        """Whether the mask moves after this step: every ΔT steps before the end."""
        return step % self.every == 0 and step < self.end * steps

    def updates(self, steps: int) -> int:
        """How often the mask moves in a training of `steps` steps."""
        return sum(self.due(step, steps) for step in range(self.every, steps + 1, self.every))

    def check(self, kept: int, total: int, steps: int) -> None:
        """Make sure that the rule suits a training of `steps` steps that begins with `kept` of `total` weights.

        Raises:
            ValueError: it does not; says what to change.

        """
        if not self.updates(steps):
            raise ValueError(
                f"a mask that moves every {self.every} steps, up to {self.end:g} of the training, never moves in"
                f" {steps}: choose a smaller every, or train longer"
            )

    @abstractmethod
    def next_mask(self, at: Moment) -> Tensors:
        """The mask from now on: bool, of the names, shapes and devices of the present one."""


def check_fraction(fraction: float) -> None:
    """Refuse a number that is not a fraction of the kept weights."""
    if not (0 < fraction <= 1 and math.isfinite(fraction)):
        raise ValueError(f"fraction is {fraction}; it is the share of kept weights that moves, above 0 and at most 1")
