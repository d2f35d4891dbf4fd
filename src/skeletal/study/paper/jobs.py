"""One run of a study, known by its settings before anything is computed."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skeletal.harness.config import Pruning, Setup, Training
from skeletal.harness.store.folders import RunFolder

if TYPE_CHECKING:  # what runs are made with is imported by those that are done
    from skeletal.harness.data import Data


@dataclass(frozen=True)
class Job:
    """Resolved settings of a run; the same settings are the same job, in whichever item they appear."""

    setup: Setup
    pruning: Pruning
    training: Training | None
    """`None`: prune and measure, train nothing"""
    name: str | None = None
    """of the run folder, in place of model-data-method-density"""

    @property
    def kind(self) -> Literal["train", "measure"]:
        """What its result describes: a trained network, or a mask."""
        return "measure" if self.training is None else "train"

    def folder(self, root: Path) -> RunFolder:
        """Where its result lies, or will lie; creates nothing."""
        if self.training is None:
            from skeletal.harness.runs.measure import measure_folder

            return measure_folder(self.setup, self.pruning, root=root, name=self.name)
        from skeletal.harness.runs.experiment import run_folder

        return run_folder(self.setup, self.pruning, self.training, root=root, name=self.name)

    def placed(self, data_dir: Path | None, device: str) -> "Job":
        """Return the same job on this machine's data and device."""
        return replace(self, setup=replace(self.setup, data_dir=data_dir, device=device))

    def run(self, root: Path) -> dict[str, Any]:
        """Do it, or read the result if it is finished. Raises what `harness.experiment.run` and `measure` raise."""
        if self.training is None:
            from skeletal.harness.runs.measure import measure

            return measure(self.setup, self.pruning, root=root, name=self.name, progress=False)[1]
        from skeletal.harness.runs.experiment import run

        return run(self.setup, self.pruning, self.training, root=root, name=self.name, progress=False)[1]


@dataclass(frozen=True)
class SearchJob(Job):
    """Find masks and leave them in a run folder of their own, one file each."""

    @abstractmethod
    def place(self, root: Path) -> tuple[Path, str, dict[str, Any]]:
        """The folder that holds the run folder, the run folder's name, and the settings it is found by."""

    @abstractmethod
    def search(self, root: Path, begin: "Callable[[Data], RunFolder]") -> dict[str, Any]:
        """Find the masks, save each to its `file` after `begin` has made the folder, and return the result.

        `begin` is called with the data that the masks are found on.
        """

    def folder(self, root: Path) -> RunFolder:
        """See `Job`."""
        return RunFolder.find(*self.place(root))

    def file(self, root: Path, which: str | float) -> Path:
        """Where the mask of a name or a density lies, or will lie."""
        stem = which.replace(" ", "-") if isinstance(which, str) else f"{which:g}"
        return self.folder(root).path / f"{stem}.safetensors"

    def run(self, root: Path) -> dict[str, Any]:
        """See `Job`."""
        from skeletal.harness.runs.finding import fingerprint

        def begin(data: "Data") -> RunFolder:
            return RunFolder.open(*self.place(root), fingerprint(self.setup, data))

        return self.folder(root).once(lambda: self.search(root, begin))
