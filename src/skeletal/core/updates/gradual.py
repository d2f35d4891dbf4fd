"""Gradual magnitude pruning: the smallest weights of every layer go, little by little."""

import math
from dataclasses import dataclass

from skeletal.core.choices import at_most
from skeletal.core.model.tensors import Tensors
from skeletal.core.pruning.quotas import uniform
from skeletal.core.updates.exchange import stay
from skeletal.core.updates.rule import Moment, Rule


@dataclass(frozen=True, kw_only=True)
class Gradual(Rule):
    """Prune the smallest weights while training, fast at first and slowly at the end (Zhu and Gupta 2017).

    "To prune, or not to prune: exploring the efficacy of pruning for model compression", Eq. 1. All layers have the
    same density in the end, except those that had less in the beginning, which keep what they have, and frozen ones,
    which also do: the others then make up for what these keep above it, as the total is exact.
    """

    density: float
    """in the end"""
    end: float = 0.75
    """fraction of the training after which the mask stays; the paper names none"""
    begin: float = 0.0
    """fraction of the training before the first update, t_0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; it is the fraction kept in the end, above 0 and at most 1")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin is {self.begin}; it is a fraction of the training below end, {self.end}")

    def _span(self, steps: int) -> tuple[int, int]:
        """t_0 and t_0 + nΔt, both multiples of Δt."""
        return math.ceil(self.begin * steps / self.every) * self.every, int(self.end * steps) // self.every * self.every

    def due(self, step: int, steps: int) -> bool:
        """At t_0 + Δt, ..., t_0 + nΔt."""
        first, last = self._span(steps)
        return step % self.every == 0 and first < step <= last

    def check(self, kept: int, total: int, steps: int) -> None:
        """See `Rule.check`; also, the mask has to keep enough at the beginning."""
        super().check(kept, total, steps)
        final = round(self.density * total)
        if not 0 < final <= kept:
            raise ValueError(
                f"gradual pruning to a density of {self.density:g} ends at {final:,} of {total:,} weights, the mask"
                f" begins with {kept:,}: choose a density above 0 and at most {at_most(kept / total)}"
            )

    def count(self, begun_with: int, total: int, step: int, steps: int) -> int:
        """s_t = s_f + (s_i - s_f)(1 - (t - t_0) / nΔt)³ (Eq. 1), as the number of weights kept."""
        first, last = self._span(steps)
        left = 1 - min(max((step - first) / (last - first), 0.0), 1.0)
        final = round(self.density * total)
        return final + round((begun_with - final) * left**3)

    def next_mask(self, at: Moment) -> Tensors:
        """The largest weights of each layer.

        Raises:
            ValueError: frozen layers alone keep more weights than are left.

        """
        total = sum(keep.numel() for keep in at.mask.values())
        kept = {name: int(keep.sum()) for name, keep in at.mask.items()}
        fixed = sum(kept[name] for name in at.frozen)
        count = self.count(at.begun_with, total, at.step, at.steps)
        if fixed > count:
            raise ValueError(
                f"gradual pruning to a density of {self.density:g} leaves {count:,} weights after step {at.step}, and"
                f" frozen layers, which keep theirs, have {fixed:,}: unfreeze them, leave them out of the mask, or"
                " choose a higher density"
            )
        shapes = {name: keep.shape for name, keep in at.mask.items() if name not in at.frozen}
        quotas = kept | uniform(shapes, count - fixed, at_most=kept)
        return {name: stay(at.weights[name].abs(), keep, kept[name] - quotas[name]) for name, keep in at.mask.items()}
