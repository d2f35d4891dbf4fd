"""One run of a study, known by its settings before anything is computed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from skeletal.harness.config import Pruning, Setup, Training
from skeletal.harness.folders import RunFolder


@dataclass(frozen=True)
class Job:
    """Resolved settings of a run; the same settings are the same job, in whichever item they stand."""

    setup: Setup
    pruning: Pruning
    training: Training | None
    """`None`: prune and measure, train nothing"""
    name: str | None = None
    """of the run folder, in place of model-data-method-density"""

    @property
    def kind(self) -> Literal["train", "measure"]:
        """What its result is of: a trained network, or a mask."""
        return "measure" if self.training is None else "train"

    def folder(self, root: Path) -> RunFolder:
        """Where its result lies, or will lie; creates nothing."""
        if self.training is None:
            from skeletal.harness.measure import measure_folder

            return measure_folder(self.setup, self.pruning, root=root, name=self.name)
        from skeletal.harness.experiment import run_folder

        return run_folder(self.setup, self.pruning, self.training, root=root, name=self.name)

    def placed(self, data_dir: Path | None, device: str) -> "Job":
        """Return the same job on this machine's data and device."""
        return replace(self, setup=replace(self.setup, data_dir=data_dir, device=device))

    def run(self, root: Path) -> dict[str, Any]:
        """Do it, or read the result if it is finished. Raises what `harness.experiment.run` and `measure` raise."""
        if self.training is None:
            from skeletal.harness.measure import measure

            return measure(self.setup, self.pruning, root=root, name=self.name, progress=False)[1]
        from skeletal.harness.experiment import run

        return run(self.setup, self.pruning, self.training, root=root, name=self.name, progress=False)[1]
