"""What a person sees of a training while it runs."""

from typing import Any

from skeletal.core.extras import extra
from skeletal.core.model.distributed import rank
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.interrupt import Interrupted

with extra("run"):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """A bar with the time left on a terminal, else a line per epoch; nothing at all unless `shown`."""

    def __init__(self, epochs: int, steps: int, shown: bool) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._epochs, self._steps = epochs, steps
        self._lines = shown and not self._console.is_terminal
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[top1]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not shown or self._lines,
            speed_estimate_period=600,
        )

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, epoch: int, batch: int) -> None:
        """Start the bar where the run is: the speed must not count what earlier sessions did."""
        self._task = self._bar.add_task(
            "",
            total=self._epochs * self._steps,
            completed=epoch * self._steps + batch,
            epoch=min(epoch + 1, self._epochs),
            epochs=self._epochs,
            loss="-",
            top1="-",
        )

    def step(self, epoch: int, batch: int, loss: float) -> None:
        """One batch is done, the `batch`-th of its epoch."""
        self._bar.update(self._task, completed=epoch * self._steps + batch, epoch=epoch + 1, loss=f"{loss:.3f}")

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is done, with these metrics."""
        validation = f"{row['val_top1']:.2f}%" if "val_top1" in row else "-"
        self._bar.update(self._task, top1=validation)
        if self._lines:
            self._console.print(
                f"epoch {row['epoch'] + 1}/{self._epochs}  loss {row['train_loss']:.4f}  "
                f"train {row['train_top1']:.2f}%  validation {validation}  {row['seconds']:.1f} s"
            )

    def interrupted(self, where: str, folder: RunFolder | None, resume_command: str | None) -> Interrupted:
        """Tell how to go on, whatever is shown otherwise, and give the exception that says the same."""
        if folder is None:
            message = f"{where}; nothing is saved, as this run has no folder"
        else:
            how = resume_command or "run the same command again"
            message = f"{where}; {folder.path} holds the checkpoint. To go on:\n  {how}"
        self._bar.stop()
        if rank() == 0:
            self._console.print(message, markup=False)
        return Interrupted(message, folder)
