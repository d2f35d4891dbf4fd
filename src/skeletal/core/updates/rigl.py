"""RigL: the smallest weights go, and those that the loss asks for come."""

import math
from dataclasses import dataclass
from typing import ClassVar

from skeletal.core.model.tensors import Tensors
from skeletal.core.updates.exchange import check_room, grow, stay
from skeletal.core.updates.rule import Moment, Rule, check_fraction


@dataclass(frozen=True, kw_only=True)
class RigL(Rule):
    """In every layer, exchange the smallest weights for the pruned ones of the largest gradient (Evci et al. 2020).

    "Rigging the Lottery: Making All Tickets Winners", Algorithm 1; defaults are its section 4's. Each layer keeps its
    number of weights; the paper begins at a random mask of Erdős-Rényi-Kernel densities (method "random-erk").
    """

    fraction: float = 0.3
    """α: the fraction of a layer's weights that moves at the beginning; falls to 0 along a cosine"""

    needs_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)

    def check(self, kept: int, total: int, steps: int) -> None:
        """See `Rule.check`; and the mask must not keep all weights."""
        super().check(kept, total, steps)
        check_room(kept, total)

    def moving(self, step: int, steps: int) -> float:
        """f_decay(t; α, T_end) = α/2 (1 + cos(πt / T_end)) (Eq. 1)."""
        return self.fraction / 2 * (1 + math.cos(math.pi * step / (self.end * steps)))

    def next_mask(self, at: Moment) -> Tensors:
        """I_drop = ArgTopK(-|θ|, k); I_grow = ArgTopK(|∇L|, k) outside of what stays, k = f_decay · kept."""
        share, new = self.moving(at.step, at.steps), dict(at.mask)
        for name, gradient in at.gradients.items():
            keep = at.mask[name]
            number = round(share * int(keep.sum()))
            staying = stay(at.weights[name].abs(), keep, number)
            new[name] = grow(gradient.abs(), staying, number)
        return new
