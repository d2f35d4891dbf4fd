"""How far can I prune? Looked for at initialization, without training: the criterion the paper's section 5.4 asks for.

A method is followed down to lower and lower densities, and stopped before the first at which the skeleton degrades,
judged by the mask and by gradients of the untrained network. `recommend` asks three things of a density:

* Is there a path from input to output, in every seed? Without one nothing can be learned.
* Do at least 90% of the kept weights lie on such a path (`EFFECTIVE`), in every seed? The others are never trained:
  that part of the budget is wasted, and by then layers have run thin. The 90% is a convention.
* Is it at or above the knee of the FORCE saliency? S(c), Eq. 6, is the loss's remaining sensitivity to the weights.
  While weights worth less than the average are removed, S / |c|, the mean saliency of a kept weight, rises; where it
  begins to fall, the weights that stay lose worth along with those removed. The knee is the density at which S / |c| is
  largest: no threshold is set, and the loss's units cancel.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skeletal.core.choices import require
from skeletal.core.masks.compare import layer_agreement, overlap
from skeletal.core.masks.mask import Mask
from skeletal.core.pruning.methods import METHODS
from skeletal.harness.config import Pruning, Setup
from skeletal.harness.runs.measure import BATCHES, measure, measure_folder
from skeletal.harness.store.folders import RunFolder
from skeletal.study.beyond.sweep import SweepJob
from skeletal.study.paper.jobs import Job

EFFECTIVE = 0.9
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
METHODS_ADVISED = ("force", "snip", "random")


@dataclass(frozen=True)
class Line:
    """A method at one density, over all seeds."""

    density: float
    connected: bool
    """in every seed, as far as can be probed"""
    effective: float
    """kept weights on a path / kept weights, of the worst seed"""
    empty_layers: int
    """of the worst seed"""
    saliency: float
    """FORCE saliency (Eq. 6) / that of the dense network, mean over seeds"""
    gradient_norm: float
    """gradient norm over kept weights, squared / that of the dense network, mean over seeds"""
    layer_agreement: float | None
    """between the masks of two seeds, mean over pairs; None with one seed"""
    overlap: float | None
    """likewise, of weights; about what chance gives, as weights of two initializations have nothing in common"""

    @property
    def worth(self) -> float:
        """Mean saliency of a kept weight, relative to the dense network's: saliency / density."""
        return self.saliency / self.density


@dataclass(frozen=True)
class Recommendation:
    """How far to prune with one method."""

    density: float | None
    """the lowest that passes, with all above it; None if not even the highest does"""
    knee: float
    """the density with the largest saliency per kept weight"""
    reasons: tuple[str, ...]
    """what is wrong with the next lower density; none if that is the last one looked at"""


def recommend(lines: Sequence[Line]) -> Recommendation:
    """The lowest density before the skeleton degrades, by the criterion at the head of this file.

    Args:
        lines: one method's, at different densities, in any order.

    Raises:
        ValueError: there are no lines.

    """
    if not lines:
        raise ValueError("there is nothing to recommend from: give at least one density")
    falling = sorted(lines, key=lambda line: -line.density)
    knee = max(falling, key=lambda line: (line.worth, line.density)).density
    passed = None
    for line in falling:
        reasons = _failures(line, knee)
        if reasons:
            return Recommendation(passed, knee, tuple(f"at {line.density:g} {reason}" for reason in reasons))
        passed = line.density
    return Recommendation(passed, knee, ())


def _failures(line: Line, knee: float) -> list[str]:
    found = []
    if not line.connected:
        found.append("no path leads from input to output")
    elif line.effective < EFFECTIVE:
        found.append(f"only {100 * line.effective:.0f}% of the kept weights lie on a path from input to output")
    if line.density < knee:
        found.append(f"the mean saliency of a kept weight falls: it is largest at {knee:g}")
    return found


@dataclass(frozen=True)
class DenseJob(Job):
    """Measure the dense network as the sweeps are measured."""

    measure_batches: int = BATCHES

    def folder(self, root: Path) -> RunFolder:
        """See `Job`."""
        return measure_folder(self.setup, self.pruning, root=root, measure_batches=self.measure_batches)

    def run(self, root: Path) -> dict[str, Any]:
        """See `Job`."""
        return measure(self.setup, self.pruning, root=root, measure_batches=self.measure_batches, progress=False)[1]


@dataclass(frozen=True)
class Advice:
    """A sweep over densities at initialization: which runs it is made of, and what comes of them."""

    setup: Setup
    """its seed is ignored"""
    prunings: tuple[Pruning, ...]
    """resolved; one for each method, whose density is ignored"""
    densities: tuple[float, ...] = DENSITIES
    seeds: tuple[int, ...] = (0, 1)
    measure_batches: int = BATCHES

    def __post_init__(self) -> None:
        for pruning in self.prunings:
            require("method", pruning.method, METHODS)
        if not self.prunings or not self.seeds or not self.densities:
            raise ValueError("advice needs at least one method, one density and one seed")
        if any(pruning.best_of > 1 for pruning in self.prunings):
            raise ValueError(
                "advice follows one mask down to each density, not the best of several: leave --best-of out"
            )
        wrong = [density for density in self.densities if not 0 < density <= 1]
        if wrong:
            raise ValueError(f"density is {wrong[0]}; it is the fraction of weights kept, above 0 and at most 1")
        object.__setattr__(self, "densities", tuple(sorted(set(self.densities), reverse=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """What each method is called: by its number of batches, too, where it stands here twice (SNIP and SNIP-MB)."""
        methods = [pruning.method for pruning in self.prunings]
        return tuple(
            method if methods.count(method) == 1 else f"{method}, batches_per_step={pruning.batches_per_step}"
            for method, pruning in zip(methods, self.prunings, strict=True)
        )

    def jobs(self) -> list[Job]:
        """The dense network measured, and a sweep of each method, for each seed."""
        return [self._dense(seed) for seed in self.seeds] + [
            self._sweep(pruning, seed) for pruning in self.prunings for seed in self.seeds
        ]

    def _dense(self, seed: int) -> DenseJob:
        setup = replace(self.setup, seed=seed)
        return DenseJob(setup, replace(self.prunings[0], method="dense"), None, measure_batches=self.measure_batches)

    def _sweep(self, pruning: Pruning, seed: int) -> SweepJob:
        setup = replace(self.setup, seed=seed)
        pruning = replace(pruning, density=min(self.densities))
        return SweepJob(setup, pruning, None, densities=self.densities, measure_batches=self.measure_batches)

    def lines(self, pruning: Pruning, root: Path) -> list[Line]:
        """What was measured of one method, densities falling; its jobs have to be finished."""
        sweeps = [self._sweep(pruning, seed) for seed in self.seeds]
        dense = [self._dense(seed).folder(root).result() for seed in self.seeds]
        points = zip(*(sweep.folder(root).result()["points"] for sweep in sweeps), strict=True)
        return [self._line(root, sweeps, dense, list(found)) for found in points]

    def _line(self, root: Path, sweeps: list[SweepJob], dense: list[dict], found: list[dict]) -> Line:
        density = found[0]["asked"]
        masks = [Mask.load(sweep.file(root, density)) for sweep in sweeps]
        pairs = list(itertools.combinations(masks, 2))

        def relative(what: str) -> float:
            return statistics.fmean(
                at[what] / whole[what] if whole[what] else 0.0 for at, whole in zip(found, dense, strict=True)
            )

        return Line(
            density=density,
            connected=all(at["connected"] is not False for at in found),
            effective=min(at["effective_density"] / at["density"] for at in found),
            empty_layers=max(len(at["empty_layers"]) for at in found),
            saliency=relative("force_saliency"),
            gradient_norm=relative("gradient_norm"),
            layer_agreement=statistics.fmean(layer_agreement(*pair) for pair in pairs) if pairs else None,
            overlap=statistics.fmean(overlap(*pair) for pair in pairs) if pairs else None,
        )
