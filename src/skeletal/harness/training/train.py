"""Training: SGD with momentum and a step schedule (the paper's appendix A), in a loop that can be read.

A run can be stopped at any step and goes on exactly where it was: on a CPU the resumed run ends in the same
weights, to the bit, as one that was never stopped.
"""

from dataclasses import asdict
from typing import Any

from torch import nn

from skeletal.core.choices import require
from skeletal.core.masks.mask import Mask
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import together
from skeletal.harness.config import Training
from skeletal.harness.data.splits import Data
from skeletal.harness.devices import pick_device, tuned
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training import trackers
from skeletal.harness.training.engines import ENGINES
from skeletal.harness.training.interrupt import Stop
from skeletal.harness.training.trainer import Task, Trainer, TrainResult, milestones

__all__ = ["TrainResult", "milestones", "steps_per_epoch", "train"]


def steps_per_epoch(training: Training, data: Data) -> int:
    """The number of batches in a pass over the training split, after a look at the settings.

    Raises:
        ValueError: a setting is missing or senseless, or there are no training examples.

    """
    settings: dict[str, Any] = asdict(training)
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        raise ValueError(f"training needs {', '.join(missing)}: `resolve(training, preset)` fills them in")
    for name in ("epochs", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {settings[name]}")
    require("engine", training.engine, ENGINES)
    if training.tensorboard:
        trackers.require_tensorboard()
    steps = len(data.train.batches(settings["batch_size"], train=True))
    if steps == 0:
        raise ValueError("there is nothing to train on: the training split is empty")
    return steps


@together()
def train(
    model: nn.Module,
    data: Data,
    training: Training,
    *,
    mask: Mask | None = None,
    folder: RunFolder | None = None,
    seed: int = 0,
    device: str = "auto",
    resume_command: str | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train `model` in place with SGD and cross-entropy, holding pruned weights at 0.

    With a `folder`, every epoch adds a line to `metrics.jsonl` (epochs count from 0) and replaces the
    checkpoint; a folder that has a checkpoint is resumed; the final weights land in `model.safetensors`.
    Writing `result.json` is left to the caller, who may have more to say.

    SIGINT (Ctrl-C) and SIGTERM let the current step finish, write the checkpoint, print `resume_command` and
    raise `Interrupted`; a second SIGINT interrupts at once. Signals are handled in the main thread only.

    A masked model on a CPU may be trained by a compiled network in its place (`training.engine`); its values come
    back into the model in the end. "auto" measures once, and a resumed run keeps to what was chosen then.

    The model moves to `device` and stays there, in training mode; `training.channels_last` changes the memory
    order of its weights. torch's global random state is seeded with `seed`, or restored when resuming.

    In a process group (torchrun) all ranks call it, on the same model, data and settings; `training.batch_size` is that
    of all together, of which each takes its part, and rank 0 writes. All end with the same weights, to rounding those
    of one process, except that batch norm takes each rank's own statistics unless `training.sync_bn`, and dropout draws
    each rank's own numbers.

    Raises:
        ValueError: a setting is missing or senseless, there are no training examples, a label is no class of the
            network's, ranks hold different weights, or the folder's checkpoint belongs to another run, or to another
            engine than the one asked for.
        NonFiniteError: the loss or a weight became NaN or infinite; the last good checkpoint is kept.
        MaskError: the mask does not fit the model, or a pruned weight has moved.
        Interrupted: a signal came, to this rank or another.
        PeerError: another rank has failed; names the rank and its error.

    """
    steps = steps_per_epoch(training, data)
    task = Task(
        model=model,
        data=data,
        training=training,
        device=pick_device(device),
        mask=mask,
        folder=folder,
        seed=seed,
        resume_command=resume_command,
    )
    with (
        flush_denormals(),
        tuned(task.device),
        Stop() as stop,
        Trainer(task, steps, stop, progress=progress) as trainer,
    ):
        while trainer.goes_on():
            trainer.epoch()
            trainer.score()
            trainer.save()
        return trainer.finish()
