"""Who is told of every epoch, besides the `metrics.jsonl` that every run has; TensorBoard is one of them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from skeletal.core.choices import require
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import rank
from skeletal.harness.config import LOGGERS, Training
from skeletal.harness.console.loggers import Csv, MLflow, WandB, scalars
from skeletal.harness.store.folders import MASK, STARTING_MASK, RunFolder


class Tracker(Protocol):
    """Something that is told of every epoch."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Take the metrics of an epoch, a line of `metrics.jsonl`."""
        ...

    def close(self) -> None:
        """Let go of files; called once, also after an exception."""
        ...


class Several:
    """Tells several trackers, or none."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def epoch(self, row: dict[str, Any]) -> None:
        """Tell each of them."""
        for tracker in self._trackers:
            tracker.epoch(row)

    def close(self) -> None:
        """Close each of them, even if others fail."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)


class TensorBoard:
    """Writes event files, which `tensorboard --logdir runs` shows.

    Every number of an epoch becomes a scalar, `train_loss` as `train/loss`. The densities of the layers, known before
    the first epoch, stand at step 0 as `density/<layer>`, and the mask's table as a text.

    Args:
        folder: where the event files go; created if missing. A resumed run adds a file to it.
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
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def names_of(training: Training) -> tuple[str, ...]:
    """Which of `LOGGERS` a training is logged to."""
    also = ("tensorboard",) if training.tensorboard else ()
    return tuple(dict.fromkeys((*training.log, *also)))


def of(folder: RunFolder | None, training: Training, mask: Mask | None, start: int) -> Tracker:
    """The trackers of a run that is at epoch `start`; without a folder nobody is told."""
    return Several(()) if folder is None else _opened(folder, names_of(training), mask, start)


def _opened(folder: RunFolder, names: Sequence[str], mask: Mask | None, start: int) -> Tracker:
    opened: dict[str, Callable[[], Tracker]] = {
        "csv": lambda: Csv(folder),
        "tensorboard": lambda: TensorBoard(folder.path / _FILES["tensorboard"], mask, start=start),
        "wandb": lambda: WandB(folder),
        "mlflow": lambda: MLflow(folder, start=start),
    }
    with ExitStack() as stack:  # closes those already open if the next one fails
        trackers = []
        for name in names:
            trackers.append(opened[name]())
            stack.callback(trackers[-1].close)
        stack.pop_all()
    return Several(trackers)


_FILES = {"csv": "metrics.csv", "tensorboard": "tensorboard"}
"""what loggers that keep files in the run's folder call them"""


def log_finished(folder: RunFolder, training: Training) -> None:
    """Tell of a finished run's epochs those who keep files in its folder and have none: it did not know of them.

    A CSV file is always written anew: an earlier session may have known of it, and the last one not.
    """
    late = [n for n in names_of(training) if n in _FILES and (n == "csv" or not (folder.path / _FILES[n]).exists())]
    if not late or rank():
        return
    masks = (folder.path / name for name in (STARTING_MASK, MASK))
    mask = next((Mask.load(file) for file in masks if file.exists()), None)
    with closing(_opened(folder, late, mask, 0)) as tracker:
        for row in folder.metrics():
            tracker.epoch(row)


def require_loggers(training: Training) -> None:
    """Make sure that there is something to log with, before hours of pruning.

    Raises:
        ValueError: an unknown logger, or one that is not installed; says how to get it.

    """
    for name in names_of(training):
        require("logger", name, LOGGERS)
        if name == "tensorboard":
            require_tensorboard()
        elif name != "csv" and find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'skeletal[{name}]', or leave it out of --log")


def require_tensorboard() -> None:
    """Make sure that there is something to log with, before hours of pruning.

    Raises:
        ValueError: TensorBoard is not installed.

    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "TensorBoard is not installed: pip install 'skeletal[tensorboard]', or leave --tensorboard out"
        )
