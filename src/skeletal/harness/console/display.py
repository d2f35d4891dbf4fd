"""What a person sees of a training while it runs."""

import sys
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from skeletal.core.model.distributed import rank
from skeletal.core.progress import Progress, current
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.devices import multiplies_bfloat16
from skeletal.harness.store.folders import RunFolder


class Display:
    """Progress, as `core.progress` tells it; a line per epoch where lines stay; nothing unless `shown`."""

    def __init__(self, epochs: int, steps: int, shown: bool) -> None:
        self._progress = current() if shown else Progress()
        self._epochs, self._steps = epochs, steps
        self._validation = ""
        self._open = ExitStack()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def begin(self, epoch: int, batch: int, *, resumed: bool) -> None:
        """Start where the run is: the speed must not count what earlier sessions did."""
        if resumed:
            at = f" and step {batch + 1} of {self._steps}" if batch else ""
            done = epoch == self._epochs
            self._progress.say("resuming after the last epoch" if done else f"resuming at epoch {epoch + 1}{at}")
        total, done = self._epochs * self._steps, epoch * self._steps + batch
        self._stage = self._open.enter_context(self._progress.stage("training", total, unit="step", done=done))

    def hint_at_bfloat16(self) -> None:
        """Say that this CPU could compute in another type, if it can: the default is the paper's float32."""
        if multiplies_bfloat16():
            self._progress.say("training in float32; this CPU multiplies bfloat16, too: --bf16 may take half the time")

    def note(self, text: str) -> None:
        """What is being done, beside the steps."""
        self._stage.update(note=text)

    def scoring(self, split: str) -> AbstractContextManager[object]:
        """While the network is scored on a split's images."""
        return self._progress.stage(f"scoring on {split} images")

    def step(self, epoch: int, batch: int, loss: float) -> None:
        """One batch is done, the `batch`-th of its epoch."""
        note = f"epoch {epoch + 1}/{self._epochs}, loss {loss:.3f}{self._validation}"
        self._stage.update(epoch * self._steps + batch, note=note)

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is done, with these metrics."""
        validation = f"{row['val_top1']:.2f}%" if "val_top1" in row else "-"
        self._validation = f", validation {validation}" if "val_top1" in row else ""
        if self._progress.lines:
            self._progress.say(
                f"epoch {row['epoch'] + 1}/{self._epochs}  loss {row['train_loss']:.4f}  "
                f"train {row['train_top1']:.2f}%  validation {validation}  {row['seconds']:.1f} s"
            )

    def interrupted(self, where: str, folder: RunFolder | None, resume_command: str | None) -> Interrupted:
        """Tell how to resume, whatever else is shown, and return the exception that says the same."""
        if folder is not None and folder.scratch:
            self._open.close()
            return Interrupted("", None)
        if folder is None:
            message = f"{where}; nothing is saved, as this run has no folder"
        else:
            how = resume_command or "run the same command again"
            message = f"{where}; {folder.path} holds the checkpoint. To resume:\n  {how}"
        self._open.close()
        if rank() == 0:
            print(message, file=sys.stderr, flush=True)
        return Interrupted(message, folder)
