"""How close a mask is to the best in its neighbourhood: the paper's appendix C, measured.

For one fixed loss L, S(c) = Σ_{i ∈ c} |θ_i ∇L(θ ⊙ c)_i| is the saliency of a mask c (Eq. 6). A mask c_{t+1} made from
c_t is (p, ε)-locally optimal if no swap of p of its weights for p of those just pruned raises S by more than ε
(Definition 1). Theorem 1 bounds ε for a step of FORCE by 2 Λ p ‖θ‖²_∞ |c_t|, where Λ says how fast the gradient
changes when weights are removed (Definition 2).

Definition 2 asks for one Λ for all weights w ∈ R^m and all sub-masks. A network of two or more layers has no
finite one: its gradient changes without bound as w grows or, before a batch norm, shrinks. The theorem's proof,
however, needs only gradients at w = θ, and compares c_t with the swapped mask ζ, and the union of c_{t+1} and ζ with
both. Λ is the largest ratio among these pairs, the smallest number with which the proof holds for the swaps tried.
(The paper's last line puts λ of c_{t+1} where only that of c_t, which is no smaller, is proved. One Λ covers both.)
"""

import itertools
import math
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from skeletal.core.choices import require
from skeletal.core.errors import MaskError
from skeletal.core.masks.match import by_first_names, matching_parameters
from skeletal.core.masks.selection import top
from skeletal.core.model.batches import Cycle, Loss
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import together
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.preserve import differentiable, preserve_model
from skeletal.core.model.tensors import Tensors, flatten, unflatten, widen
from skeletal.core.model.weights import unwrap


@dataclass(frozen=True)
class LocalOptimality:
    """What `local_optimality` found for a mask c_{t+1} and the mask c_t that it was made from."""

    swaps: int
    """p: how many weights each swap exchanges"""
    gains: tuple[float, ...] = field(repr=False)
    """S(ζ) - S(c_{t+1}) of each swap tried; the first is the promising one, unless `exact`"""
    exact: bool
    """whether every swap of the neighbourhood was tried; else ε and Λ are lower estimates"""
    saliency: float
    """S(c_{t+1}), Eq. 6"""
    smoothness: float
    """Λ at θ: largest change of a gradient's entry per sum of absolute weights removed (Eq. 11)"""
    largest_weight: float
    """‖θ‖_∞ over all prunable weights"""
    before: int
    """|c_t|"""
    kept: int
    """|c_{t+1}|"""
    margin: float
    """γ of the proof: smallest kept minus largest pruned |θ_i ∇L(θ ⊙ c_t)_i|. Negative: not a step of FORCE on this
    loss, so the theorem promises nothing"""

    @property
    def epsilon(self) -> float:
        """ε of Definition 1: the largest gain of a swap, at least 0."""
        return max(0.0, *self.gains)

    @property
    def relative(self) -> float:
        """ε / S(c_{t+1}); infinite if the saliency is 0 and a swap raises it."""
        if self.saliency:
            return self.epsilon / self.saliency
        return math.inf if self.epsilon else 0.0

    @property
    def bound(self) -> float:
        """The most ε can be after a step of FORCE (Theorem 1): 2 Λ p ‖θ‖²_∞ |c_t|."""
        return 2 * self.smoothness * self.swaps * self.largest_weight**2 * self.before

    @property
    def holds(self) -> bool:
        """Whether ε is within the bound."""
        return self.epsilon <= self.bound


class _At(NamedTuple):
    """A mask and the gradient at θ ⊙ mask, both flat, shape (m,)."""

    mask: Tensor
    gradient: Tensor


_NUDGE = 1e-3  # relative to each weight: small against it, large against a gradient's rounding


class _Landscape:
    """S and ∇L of one fixed loss over the masks of one θ; everything flat, shape (m,)."""

    def __init__(self, theta: Tensors, derivatives: Derivatives, seed: int) -> None:
        self.theta, self.derivatives, self.seed = theta, derivatives, seed
        self.flat = flatten(theta)
        self.size = self.flat.abs()

    def gradient(self, weights: Tensor) -> Tensor:
        of = self.derivatives
        with preserve_model(of.model, training=of.bn_mode == "train", seed=self.seed, loss=of.loss):
            return flatten(self.derivatives.gradient(unflatten(weights, self.theta))[0])

    def at(self, mask: Tensor) -> _At:
        return _At(mask, self.gradient(self.flat * mask))

    def worth(self, point: _At) -> Tensor:
        """|θ_i ∇L_i|, pruned weights included."""
        return self.size * point.gradient.abs()

    def saliency(self, point: _At) -> float:
        return (self.worth(point) * point.mask).sum(dtype=torch.float64).item()

    def change(self, larger: _At, smaller: _At) -> float:
        """The ratio of Eq. 11 at w = θ for the mask c of `larger` and ĉ ⊂ c of `smaller`."""
        moved = ((larger.gradient - smaller.gradient).abs() * larger.mask).max().item()
        removed = (self.size * (larger.mask & ~smaller.mask)).sum(dtype=torch.float64).item()
        return moved / removed if removed else 0.0  # weights that are 0 change nothing when removed

    def promise(self, point: _At) -> Tensor:
        """What S gains, to first order, by each weight that returns, and loses by each that goes."""
        weights, direction = self.flat * point.mask, self.size * point.gradient.sign() * point.mask
        ahead, behind = (self.gradient(weights + sign * _NUDGE * direction) for sign in (1, -1))
        return self.worth(point) + self.flat * (ahead - behind) / (2 * _NUDGE)


Swap = tuple[Sequence[int], Sequence[int]]
"""positions within the kept weights that go, and within those just pruned that return"""


def _few(number: int, swaps: int, most: int) -> int:
    """How many ways there are to choose `swaps` of `number`; a result above `most` only means more than `most`."""
    smaller = min(swaps, number - swaps)  # there are at least 2^smaller ways, of perhaps millions of digits
    return math.comb(number, smaller) if smaller <= most.bit_length() else most + 1


def _every_swap(kept: int, pruned: int, swaps: int) -> Iterator[Swap]:
    return itertools.product(itertools.combinations(range(kept), swaps), itertools.combinations(range(pruned), swaps))


def _random_swaps(kept: int, pruned: int, swaps: int, samples: int, seed: int) -> Iterator[Swap]:
    draw = random.Random(seed)
    for _ in range(samples):
        yield draw.sample(range(kept), swaps), draw.sample(range(pruned), swaps)


def _best_swap(inside: Tensor, outside: Tensor, swaps: int) -> Swap:
    """The least promising of the kept weights, shape (|c_{t+1}|,), for the most promising of those just pruned."""
    out, back = top(-inside, swaps), top(outside, swaps)
    return out.nonzero().flatten().tolist(), back.nonzero().flatten().tolist()


@together()
@differentiable()
def local_optimality(
    model: nn.Module,
    batches: Sequence[Any],
    mask: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None = None,
    *,
    swaps: int = 1,
    samples: int = 32,
    loss: Loss | None = None,
    bn_mode: Literal["train", "eval"] = "train",
    seed: int = 0,
) -> LocalOptimality:
    """Measure how far a mask is from the best in its neighbourhood, and check the bound that FORCE promises.

    Estimates ε of Definition 1 and Λ of Definition 2 (see this file's head) and compares ε with Theorem 1's bound
    (paper, appendix C). Every swap tried takes two gradients over all the batches; the rest takes four more.

    Among the millions of swaps of a real network, random ones are rarely any good. So the first swap tried is the one
    with the largest first-order change of S: |θ_j ∇L_j| + θ_j [H s]_j for a weight that returns, the negative of that
    for one that goes, all at θ ⊙ c_{t+1}, with s = |θ| ⊙ sign(∇L) on c_{t+1}, so that H s is ∇S without its
    first term. H s is a central difference of two gradients. The swap's gain is then measured, not predicted.

    Under torchrun, call it on every rank: each gradient is the mean over all ranks' batches.

    Args:
        model: at its initialization θ, dense; left as found.
        batches: a list that, together with the loss, defines L: each counts the same, and all are used every time.
        mask: c_{t+1}.
        before: c_t, which contains it; None for the dense network, which SNIP starts from.
        swaps: p.
        samples: random swaps to try, besides the promising one. If there are no more different swaps than this, all
            are tried, and ε is exact.
        loss: see `prune`.
        bn_mode: see `prune`.
        seed: for the swaps, and for random layers, which draw the same numbers for every gradient.

    Raises:
        MaskError: a mask belongs to another model, or `mask` is not contained in `before`.
        TypeError: `batches` is not a list or tuple.
        ValueError: there are no batches, `swaps` is more than can be swapped, or a number is below 1.
        NonFiniteError: a loss or a gradient is NaN or infinite.

    """
    swaps, samples, seed = (operator.index(n) for n in (swaps, samples, seed))
    require("bn_mode", bn_mode, ("train", "eval"))
    require_fixed(batches)
    model = unwrap(model)
    mask = by_first_names(mask, model)
    before = None if before is None else by_first_names(before, model)
    parameters = matching_parameters(mask, model)
    derivatives = Derivatives(model, Cycle(batches), len(batches), loss, bn_mode)
    land = _Landscape({name: widen(parameters[name].detach()) for name in mask}, derivatives, seed)
    now = flatten({name: keep.detach().bool() for name, keep in mask.items()}).to(land.flat.device)
    earlier = _earlier(mask, before, now)
    inside, outside = now.nonzero().flatten(), (earlier & ~now).nonzero().flatten()
    sizes = len(inside), len(outside)
    if not 1 <= swaps <= min(sizes) or samples < 1:
        raise ValueError(
            f"swaps={swaps} and samples={samples}: with {sizes[0]:,} weights kept and {sizes[1]:,} just pruned"
            f" swaps can be 1 to {min(sizes):,}, and samples have to be at least 1"
        )

    with flush_denormals():
        start, here = land.at(earlier), land.at(now)
        exact = _few(sizes[0], swaps, samples) * _few(sizes[1], swaps, samples) <= samples
        if exact:
            tried = _every_swap(*sizes, swaps)
        else:
            promise = land.promise(here)
            best = _best_swap(promise[inside], promise[outside], swaps)
            tried = itertools.chain([best], _random_swaps(*sizes, swaps, samples, seed))
        base, gains, changes = land.saliency(here), [], []
        for out, back in tried:
            union = now.clone()
            union[outside[list(back)]] = True
            swapped = union.clone()
            swapped[inside[list(out)]] = False
            there, both = land.at(swapped), land.at(union)
            gains.append(land.saliency(there) - base)
            changes += [land.change(start, there), land.change(both, here), land.change(both, there)]
    first = land.worth(start)
    return LocalOptimality(
        swaps=swaps,
        gains=tuple(gains),
        exact=exact,
        saliency=base,
        smoothness=max(changes),
        largest_weight=land.size.max().item(),
        before=int(earlier.sum()),
        kept=len(inside),
        margin=(first[inside].min() - first[outside].max()).item(),
    )


def require_fixed(batches: object) -> None:
    """Make sure that the batches are the same every time.

    Raises:
        TypeError: they are no list.
        ValueError: there are none.

    """
    if not isinstance(batches, list | tuple):
        raise TypeError(
            f"batches is a {type(batches).__name__}, but the saliency has to be of one fixed loss:"
            " pass a list, for instance list(itertools.islice(loader, 4))"
        )
    if not batches:
        raise ValueError("batches is empty: pass a list of (inputs, targets) or of dicts")


def _earlier(mask: Mapping[str, Tensor], before: Mapping[str, Tensor] | None, now: Tensor) -> Tensor:
    """c_t, flat, checked against c_{t+1}."""
    if before is None:
        return torch.ones_like(now)
    if before.keys() != mask.keys() or any(before[name].shape != keep.shape for name, keep in mask.items()):
        raise MaskError("the two masks are of different layers: both have to be of the same network and selection")
    for name, keep in mask.items():
        back = keep.detach().bool().cpu() & ~before[name].detach().bool().cpu()
        if back.any():
            raise MaskError(
                f"{int(back.sum())} weights of {name} {tuple(keep.shape)} are kept but were not before:"
                " the neighbourhood is defined for a mask contained in the one before"
            )
    return flatten({name: before[name].detach().bool() for name in mask}).to(now.device)
