"""SET, Sparse Evolutionary Training: the weights closest to zero go, and random ones come."""

from dataclasses import dataclass

import torch

from skeletal.core.model.tensors import Tensors
from skeletal.core.updates.exchange import check_room, grow, stay
from skeletal.core.updates.rule import Moment, Rule, check_fraction


@dataclass(frozen=True, kw_only=True)
class SET(Rule):
    """In every layer, exchange the weights closest to zero for as many at random (Mocanu et al. 2018).

    "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network science",
    Algorithm 1: the smallest fraction ζ of a layer's positive weights goes, and the largest fraction ζ of its negative
    ones. The paper does this after every epoch but the last: set `every` to the number of steps per epoch.
    New weights start at 0, which Evci et al. (2020) found best. Each layer keeps its number of weights.
    """

    end: float = 1.0
    fraction: float = 0.3
    """ζ"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)

    def check(self, kept: int, total: int, steps: int) -> None:
        """See `Rule.check`; and the mask must not keep all weights."""
        super().check(kept, total, steps)
        check_room(kept, total)

    def next_mask(self, at: Moment) -> Tensors:
        """What stays of each sign, and random weights in place of what goes."""
        new = {}
        for name, keep in at.mask.items():
            weight = at.weights[name]
            positive = keep & (weight > 0)
            rest = keep & ~positive  # a weight of 0 is among them, and the first to go
            goes = [round(self.fraction * int(side.sum())) for side in (positive, rest)]
            staying = stay(weight, positive, goes[0]) | stay(-weight, rest, goes[1])
            noise = torch.rand(weight.shape, dtype=torch.float64, generator=at.generator, device="cpu")
            noise = noise.to(weight.device)
            new[name] = grow(noise, staying, sum(goes))
        return new
