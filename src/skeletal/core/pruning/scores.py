"""What a weight is worth: one function per criterion, higher = keep.

Every criterion takes a `Point`, the network at its present mask, and returns one score per weight, by
parameter name. A score of exactly zero means that no signal passes through the weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skeletal.core.errors import NonFiniteError
from skeletal.core.masks.selection import top
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.tensors import Tensors, counts, flatten, not_finite
from skeletal.core.pruning.criteria.balance import balanced_masks
from skeletal.core.pruning.criteria.exclusion import path_exclusion
from skeletal.core.pruning.criteria.flow import synaptic_flow
from skeletal.core.pruning.criteria.kernel import tangent_kernel_saliency
from skeletal.core.pruning.criteria.walks import heavy_paths
from skeletal.core.pruning.quotas import erdos_renyi, uniform


@dataclass(frozen=True)
class Point:
    """The network at one step: θ, c_t, and what can be computed there (computed once, when first asked for)."""

    weights: Tensors
    """the dense initialization θ, in at least float32; shapes of the layers"""
    mask: Tensors
    """the present mask c_t, bool, same shapes; all ones at the first step"""
    count: int
    """how many weights this step keeps"""
    derivatives: Derivatives | None
    """of the loss at any weights, over this step's batches; None if no batches were given"""
    generator: torch.Generator
    """seeded by the caller's seed; the only source of randomness a score may use"""

    @cached_property
    def kept(self) -> Tensors:
        """θ̄ = θ ⊙ c_t: the weights as they are now, pruned ones zero."""
        return {name: weight * self.mask[name] for name, weight in self.weights.items()}

    @cached_property
    def _first(self) -> tuple[Tensors, float]:
        return self._needed().gradient(self.kept, self.mask)

    @cached_property
    def _second(self) -> tuple[Tensors, float]:
        return self._needed().hessian_gradient(self.kept, self.mask)

    def _needed(self) -> Derivatives:
        if self.derivatives is None:
            raise ValueError("this score asks for a derivative, which needs batches")
        return self.derivatives

    @property
    def gradient(self) -> Tensors:
        """∇L(θ̄) for every weight, pruned ones included, averaged over the batches as `average` of `prune` says."""
        return self._first[0]

    @property
    def hessian_gradient(self) -> Tensors:
        """H g at θ̄, of the mean loss over the batches."""
        return self._second[0]

    def unrolled_gradient(self, *, steps: int, rate: float, momentum: float = 0.0) -> Tensors:
        """∇ of the loss after some steps of SGD from θ̄, with respect to θ̄; see `Derivatives.unrolled_gradient`."""
        asked = self._needed().unrolled_gradient(self.kept, self.mask, steps=steps, rate=rate, momentum=momentum)
        self.__dict__["_unrolled"] = asked
        return asked[0]

    @property
    def loss(self) -> float | None:
        """The mean loss at θ̄; None if the score did not need it."""
        known = [self.__dict__[name][1] for name in ("_first", "_second", "_unrolled") if name in self.__dict__]
        return known[0] if known else None


Score = Callable[[Point], Tensors]

FLOOR = 0.6
"""of an equal part of the weights to keep: what force-floor leaves every layer"""


def connection_sensitivity(at: Point) -> Tensors:
    """|θ̄ ⊙ ∇L(θ̄)|. At the dense network: SNIP (Eq. 2, 3). At the present mask: FORCE (Eq. 5, 7)."""
    return {name: (at.kept[name] * gradient).abs_() for name, gradient in at.gradient.items()}


def floored_sensitivity(at: Point) -> Tensors:
    """FORCE's score, above which come the best floor(FLOOR k / L) weights of each of the L layers, k being kept.

    A layer has at most as many as have a score. Not from the paper.
    """
    scores = connection_sensitivity(at)
    part = int(FLOOR * at.count / len(scores))
    quotas = {name: min(part, scored) for name, scored in counts(scores).items()}
    return _best_first(scores, quotas, lift=2 * float(flatten(scores).max()))


def regrowing_sensitivity(at: Point) -> Tensors:
    """|θ ⊙ ∇L(θ̄)| over all weights: what a pruned weight would be worth if it came back (Eq. 5, 6)."""
    return {name: (at.weights[name] * gradient).abs_() for name, gradient in at.gradient.items()}


def gradient_norm(at: Point) -> Tensors:
    """|∇L(θ̄)|: keeps the same weights as [∇L(θ̄)]² of GRASP-It (Eq. 17), whose square can underflow to zero."""
    return {name: gradient.abs() for name, gradient in at.gradient.items()}


def gradient_preservation(at: Point) -> Tensors:
    """θ̄ ⊙ H g: GRASP prunes the largest -θ_i [Hg]_i (Eq. 4), so the highest of this are kept. Signed.

    A kept weight that does nothing for the gradient's norm, such as one of a dead unit, comes before those that lower
    it: in place of 0, which is no score, it has the smallest positive one. Unless all are 0, and the network collapsed.
    """
    scores = {name: at.kept[name] * product for name, product in at.hessian_gradient.items()}
    if any(score.any() for score in scores.values()):
        for name, score in scores.items():
            score.masked_fill_((score == 0) & at.mask[name], torch.finfo(score.dtype).tiny)
    return scores


def prospect(at: Point) -> Tensors:
    """|θ̄ ⊙ dL(θ_M)/dθ̄|: what a weight is worth to the loss after M steps of training (ProsPr, Alizadeh et al. 2022).

    The derivative with respect to the mask, which acts on the initial weights alone. Three steps of SGD at a rate of
    0.5 with momentum 0.9, as the paper's authors have them, on the prunable weights.
    """
    gradients = at.unrolled_gradient(steps=3, rate=0.5, momentum=0.9)
    return {name: (at.kept[name] * gradient).abs_() for name, gradient in gradients.items()}


def kernel_spectrum(at: Point) -> Tensors:
    """|∂ E‖f(x; θ ⊙ c) - f(x; (θ + Δ) ⊙ c)‖² / ∂c| for random θ, Δ and x (NTK-SAP, Wang et al. 2023)."""
    derivatives = at._needed()
    return tangent_kernel_saliency(derivatives.model, at.weights, at.mask, derivatives.batches.peek(), at.generator)


def kernel_bound(at: Point) -> Tensors:
    """∂R/∂θ̄² ⊙ θ̄², R a bound on the trace of the tangent kernel, from paths and data (PX, Iurada et al. 2024)."""
    return path_exclusion(at._needed(), at.kept, at.mask)


def heavy_walks(at: Point) -> Tensors:
    """1 / n for a weight that the n-th random walk along heavy weights takes first (PHEW, Patil and Dovrolis 2021)."""
    derivatives = at._needed()
    return heavy_paths(derivatives.model, at.weights, derivatives.batches.peek(), at.count, at.generator)


def balance(at: Point) -> Tensors:
    """Above 1 for weights on many paths through many nodes, by a quota after ERK (NPB, Pham et al. 2023)."""
    derivatives = at._needed()
    quotas = erdos_renyi({name: weight.shape for name, weight in at.weights.items()}, at.count)
    masks = balanced_masks(derivatives.model, at.weights, derivatives.batches.peek(), quotas, at.generator)
    return {name: score + masks[name] for name, score in noise(at).items()}


def flow(at: Point) -> Tensors:
    """|θ̄| ⊙ ∂R/∂|θ̄|, R the sum of all paths' products (SynFlow; Tanaka et al. 2020, Eq. 2). In doubles."""
    derivatives = at._needed()
    return synaptic_flow(derivatives.model, at.kept, derivatives.batches.peek())


def magnitude(at: Point) -> Tensors:
    """|θ|: large initial weights, whatever the data. A baseline."""
    return {name: weight.abs() for name, weight in at.weights.items()}


def noise(at: Point) -> Tensors:
    """Uniform in (0, 1]: random pruning, global over all layers. Doubles, since 2^24 floats would tie often."""
    return {
        name: 1 - torch.rand(weight.shape, dtype=torch.float64, generator=at.generator, device="cpu")
        for name, weight in at.weights.items()
    }


def uniform_noise(at: Point) -> Tensors:
    """Random within each layer, every layer at the same density."""
    return _best_first(noise(at), uniform({name: weight.shape for name, weight in at.weights.items()}, at.count))


def erk_noise(at: Point) -> Tensors:
    """Random within each layer, densities after Erdős-Rényi-Kernel (Evci et al. 2020, RigL)."""
    return _best_first(noise(at), erdos_renyi({name: weight.shape for name, weight in at.weights.items()}, at.count))


def _best_first(scores: Tensors, quotas: dict[str, int], lift: float = 1.0) -> Tensors:
    """The best `quotas[name]` of each layer lifted above all others, which are at most `lift`."""
    return {name: score + lift * top(score.flatten(), quotas[name]).view_as(score) for name, score in scores.items()}


def scores_at(at: Point, score: Score, where: str) -> Tensors:
    """A score's values at a point, checked: exactly one finite number for each weight.

    Args:
        at: the network at its present mask.
        score: perhaps a caller's own.
        where: the step, for the error.

    Raises:
        NonFiniteError: a loss, a derivative or a score is NaN or infinite.
        ValueError: names or shapes are not those of the weights; names the layer and both shapes.

    """
    try:
        scores = score(at)
    except NonFiniteError as error:
        raise NonFiniteError(f"at {where}: {error}") from error
    if not isinstance(scores, dict) or scores.keys() != at.weights.keys():
        raise ValueError("a score has to return a dict with one tensor for each name in point.weights")
    for name, weight in at.weights.items():
        found = scores[name]
        if not isinstance(found, Tensor) or found.shape != weight.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"score of {name} is {shape}, its weight {tuple(weight.shape)}")
        if not found.is_floating_point():
            raise ValueError(f"score of {name} is {found.dtype}; scores are floating-point numbers")
    if (name := not_finite(scores)) is not None:
        raise NonFiniteError(f"the score of {name} {tuple(scores[name].shape)} holds NaN or infinity at {where}")
    return scores
