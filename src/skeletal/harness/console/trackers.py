"""A run's numbers in TensorBoard, beside the `metrics.jsonl` that every run has."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from skeletal.core.masks.mask import Mask
from skeletal.harness.store.folders import RunFolder


class Tracker(Protocol):
    """Something that is told of every epoch."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Take the metrics of an epoch, a line of `metrics.jsonl`."""
        ...

    def close(self) -> None:
        """Let go of files; called once, also after an exception."""
        ...


class Nothing:
    """Tracks nothing."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Pay no heed."""

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """Writes event files, which `tensorboard --logdir runs` shows.

    Every number of an epoch becomes a scalar, `train_loss` as `train/loss`. The densities of the layers, known before
    the first epoch, stand at step 0 as `density/<layer>`, and the mask's table as a text.

    Args:
        folder: where the event files go; made if it is not there. A resumed run adds a file to it.
        mask: of the run; None if it is dense.
        start: the epoch that comes next, from 0. What an earlier session logged from there on is no longer shown.

    Raises:
        ValueError: TensorBoard is not installed.

    """

    def __init__(self, folder: Path, mask: Mask | None = None, *, start: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start or None)
        if mask is not None and start == 0:
            for layer, keep in mask.items():
                self._writer.add_scalar(f"density/{layer}", keep.double().mean().item(), 0)
            self._writer.add_text("mask", "\n".join(f"    {line}" for line in str(mask).splitlines()), 0)
            self._writer.flush()

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the metrics of an epoch, a line of `metrics.jsonl`; what is not a number is left out."""
        for name, value in row.items():
            if name != "epoch" and isinstance(value, int | float):
                self._writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def of(folder: RunFolder | None, mask: Mask | None, start: int) -> Tracker:
    """The tracker of a run that is at epoch `start`; without a folder one that tracks nothing."""
    return Nothing() if folder is None else TensorBoard(folder.path / "tensorboard", mask, start=start)


def require_tensorboard() -> None:
    """Make sure that there is something to log with, before hours of pruning.

    Raises:
        ValueError: TensorBoard is not installed.

    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "TensorBoard is not installed: pip install 'skeletal[tensorboard]', or leave --tensorboard out"
        )
