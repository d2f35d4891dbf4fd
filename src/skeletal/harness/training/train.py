"""Training: SGD with momentum and a step schedule (the paper's appendix A); the loop is `trainer.turns`.

A run can be stopped at any step and resumes exactly where it was: on a CPU the resumed run ends with the same weights,
to the bit, as one that was never stopped.
"""

from collections import deque

from torch import nn

from skeletal.core.masks.mask import Mask
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import rank, together
from skeletal.core.progress import shown
from skeletal.harness.config import Training
from skeletal.harness.console.interrupt import Stop
from skeletal.harness.data.splits import Data
from skeletal.harness.devices import own_stream, pick_device, tuned
from skeletal.harness.output.bars import for_person
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.task import Task, TrainResult, steps_per_epoch
from skeletal.harness.training.trainer import Trainer, turns

__all__ = ["TrainResult", "steps_per_epoch", "train"]


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
    keep_epoch: int | None = None,
) -> TrainResult:
    """Train `model` in place with SGD and cross-entropy, holding pruned weights at 0.

    With a `folder`, every epoch adds a line to `metrics.jsonl` (epochs count from 0) and replaces the
    checkpoint; a folder that has a checkpoint is resumed; the final weights land in `model.safetensors`.
    Writing `result.json` is left to the caller, who may have more to say. The checkpoint of epoch `keep_epoch` is kept.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP let the current step finish, write the checkpoint, print `resume_command` and
    raise `Interrupted`; a second SIGINT interrupts at once. Signals are handled in the main thread only.

    A masked model on a CPU may be trained by a compiled network in its place (`training.engine`); its values come
    back into the model at the end. "auto" measures once, and a resumed run keeps to what was chosen then.

    The model moves to `device` and stays there, in training mode; `training.channels_last` changes the memory
    order of its weights. The global random states of torch, Python and numpy are seeded with `seed`, or restored when
    resuming.

    In a process group (torchrun) all ranks call it, on the same model, data and settings; `training.batch_size` is that
    of all together, of which each takes its part, and rank 0 writes. All end with the same weights, equal to those of
    one process up to rounding, except that batch norm takes each rank's own statistics unless `training.sync_bn`, and
    dropout draws each rank's own numbers.

    Raises:
        ValueError: a setting is missing or senseless, there are no training examples, a label is not a class of the
            network, ranks hold different weights, or the folder's checkpoint belongs to another run, or to another
            engine than the one asked for.
        NonFiniteError: the loss or a weight became NaN or infinite; the last good checkpoint is kept.
        MaskError: the mask does not fit the model, or a pruned weight has moved.
        Interrupted: a signal came, to this rank or another.
        PeerError: another rank has failed; names the rank and its error.

    """
    steps_per_epoch(training, data)  # before a device is looked for
    task = Task(
        model=model,
        data=data,
        training=training,
        device=pick_device(device),
        mask=mask,
        folder=folder,
        seed=seed,
        resume_command=resume_command,
        keep_epoch=keep_epoch,
    )
    with (
        flush_denormals(),
        tuned(task.device),
        own_stream(task.device),
        Stop() as stop,
        shown(progress and rank() == 0, for_person),
        Trainer(task, stop, progress=progress) as trainer,
    ):
        (result,) = deque(turns(trainer), maxlen=1)
    assert result is not None, "the last turn gives the result"
    return result
