"""What a weight is worth: one function per criterion, higher = keep.

Every criterion takes a `Point`, the network at its present mask, and returns one score per weight, by
parameter name. A score of exactly zero means that no signal passes through the weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skeletal.core.selection import Tensors


@dataclass(frozen=True)
class Point:
    """The network at one step: θ, c_t, and what can be computed there (computed once, when first asked for)."""

    weights: Tensors
    """the dense initialization θ, in at least float32; shapes of the layers"""
    mask: Tensors
    """the present mask c_t, bool, same shapes; all ones at the first step"""
    differentiate: Callable[[Tensors], tuple[Tensors, float]]
    """the mean loss over this step's batches, and its gradient, at any weights"""
    generator: torch.Generator
    """seeded by the caller's seed; the only source of randomness a score may use"""

    @cached_property
    def kept(self) -> Tensors:
        """θ̄ = θ ⊙ c_t: the weights as they are now, pruned ones zero."""
        return {name: weight * self.mask[name] for name, weight in self.weights.items()}

    @cached_property
    def _differentiated(self) -> tuple[Tensors, float]:
        return self.differentiate(self.kept)

    @property
    def gradient(self) -> Tensors:
        """∇L(θ̄), averaged over the batches with its sign, for every weight, pruned ones included."""
        return self._differentiated[0]

    @property
    def loss(self) -> float | None:
        """The mean loss at θ̄; None if the score did not need it."""
        return self._differentiated[1] if "_differentiated" in self.__dict__ else None


Score = Callable[[Point], Tensors]


def connection_sensitivity(at: Point) -> Tensors:
    """|θ̄ ⊙ ∇L(θ̄)|. At the dense network: SNIP (Eq. 2, 3). At the present mask: FORCE (Eq. 5, 7)."""
    return {name: (at.kept[name] * gradient).abs_() for name, gradient in at.gradient.items()}


def regrowing_sensitivity(at: Point) -> Tensors:
    """|θ ⊙ ∇L(θ̄)| over all weights: what a pruned weight would be worth if it came back (Eq. 5, 6)."""
    return {name: (at.weights[name] * gradient).abs_() for name, gradient in at.gradient.items()}


def gradient_norm(at: Point) -> Tensors:
    """|∇L(θ̄)|: keeps the same weights as [∇L(θ̄)]² of GRASP-It (Eq. 17), whose square can underflow to zero."""
    return {name: gradient.abs() for name, gradient in at.gradient.items()}


def magnitude(at: Point) -> Tensors:
    """|θ|: large initial weights, whatever the data. A baseline."""
    return {name: weight.abs() for name, weight in at.weights.items()}


def noise(at: Point) -> Tensors:
    """Uniform in (0, 1]: random pruning, global over all layers. Doubles, since 2^24 floats would tie often."""
    return {
        name: 1 - torch.rand(weight.shape, dtype=torch.float64, generator=at.generator)
        for name, weight in at.weights.items()
    }


def check_scores(scores: Tensors, weights: Tensors) -> None:
    """Refuse scores, perhaps a caller's own, that do not cover exactly the weights.

    Raises:
        ValueError: naming the layer and both shapes.

    """
    if not isinstance(scores, dict) or scores.keys() != weights.keys():
        raise ValueError("a score has to return a dict with one tensor for each name in point.weights")
    for name, weight in weights.items():
        score = scores[name]
        if not isinstance(score, Tensor) or score.shape != weight.shape:
            shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"score of {name} is {shape}, its weight {tuple(weight.shape)}")
        if not score.is_floating_point():
            raise ValueError(f"score of {name} is {score.dtype}; scores are floating-point numbers")
