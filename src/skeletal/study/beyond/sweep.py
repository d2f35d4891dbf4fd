"""Masks of one method at many densities, found and measured at initialization."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from skeletal.core.masks.mask import Mask
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.ranking import Ranking
from skeletal.harness.config import Pruning
from skeletal.harness.data import Data
from skeletal.harness.devices import pick_device
from skeletal.harness.runs import experiment, finding
from skeletal.harness.runs.measure import BATCHES, measured
from skeletal.harness.store.folders import RunFolder
from skeletal.study.paper.jobs import SearchJob


def one_run_serves(pruning: Pruning) -> bool:
    """Whether one run, down to the lowest density, gives the masks of all densities on its way.

    A method of one step scores once, whatever the density: the masks are those of separate runs. With the exponential
    schedule every step keeps the same fraction (Eq. 9), so a run of T steps to density d is, at d' > d, one of
    T log d' / log d steps to d': a separate run would only take more of them. Masks with a pattern need a run each,
    and so do methods whose scores depend on how many weights are to be kept.
    """
    if pruning.pattern is not None:
        return False
    row = METHODS[pruning.method]
    return not row.by_count and (row.one_shot or (row.nested and pruning.schedule == "exponential"))


@dataclass(frozen=True)
class SweepJob(SearchJob):
    """Prune to all `densities` and measure each mask; the density of `pruning` is ignored.

    The result's `points` are what `harness.measure.measured` tells, one for each density.
    """

    densities: tuple[float, ...] = ()
    """falling"""
    measure_batches: int = BATCHES

    def place(self, root: Path) -> tuple[Path, str, dict[str, Any]]:
        """See `SearchJob`."""
        config = experiment.identity(self.setup, self.pruning) | {
            "kind": "sweep",
            "measure_batches": self.measure_batches,
        }
        config["density"] = list(self.densities)
        return root, experiment.run_name(self.setup, self.pruning.method, "sweep"), config

    def search(self, root: Path, begin: Callable[[Data], RunFolder]) -> dict[str, Any]:
        """See `SearchJob`."""
        start = time.perf_counter()
        data = finding.load_data(self.setup)
        model = finding.create_model(self.setup, data).to(pick_device(self.setup.device))
        points = []
        begin(data)
        for density, mask in self._masks(model, data):
            mask.save(self.file(root, density))
            mode = self.pruning.bn_mode or "train"
            found = measured(model, data, mask, seed=self.setup.seed, bn_mode=mode, batches=self.measure_batches)
            points.append(found | {"asked": density})
        seconds = round(time.perf_counter() - start, 3)
        return {"method": self.pruning.method, "seed": self.setup.seed, "seconds": seconds, "points": points}

    def _masks(self, model: nn.Module, data: Data) -> Iterator[tuple[float, Mask]]:
        def found(density: float, ranking: Ranking | None = None) -> Mask:
            pruning = replace(self.pruning, density=density)
            return finding.find_mask(model, data, self.setup, pruning, progress=False, on_step=ranking)

        if not one_run_serves(self.pruning):
            yield from ((density, found(density)) for density in self.densities)
            return
        ranking = Ranking(self.pruning.method)
        last = found(min(self.densities), ranking)
        for density in self.densities:
            about = last.metadata | {"density": density, "connected": None, "filled": []}
            yield density, ranking.mask(round(density * last.total), about)
