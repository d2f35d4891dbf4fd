"""What a training is given, and what it gives."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.choices import require
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import ranks
from skeletal.core.model.preserve import device_of, preserve_model, preserve_values, state_of, with_parameters
from skeletal.harness.config import Training, without_later
from skeletal.harness.console import trackers
from skeletal.harness.data.placing import shared
from skeletal.harness.data.splits import Data
from skeletal.harness.ledger import Ledger
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.store.statefile import in_short
from skeletal.harness.training.engines import ENGINES
from skeletal.harness.training.evaluate import Scores, to_device


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be trained; see `train`, whose arguments these are."""

    model: nn.Module
    data: Data
    training: Training
    device: torch.device
    mask: Mask | None = None
    folder: RunFolder | None = None
    seed: int = 0
    resume_command: str | None = None
    keep_epoch: int | None = None

    @property
    def batch_size(self) -> int:
        """Examples a step, of all ranks together."""
        return self.training.batch_size or 0

    def autocast(self) -> torch.autocast:
        """What the network runs under, measurements of it included."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.bf16)

    def example(self) -> Tensor:
        """A batch of inputs of the usual size."""
        return next(iter(shared(self.data.train).batches(self.batch_size, train=False)))[0]

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it continues."""
        settings: dict[str, Any] = {**asdict(self.training), "seed": self.seed}
        for how in (
            "engine",
            "graph",
            "compile",
            "tensorboard",
            "log",
        ):  # the same run, computed or looked at in another way
            del settings[how]
        moves = self.training.update != "none"  # a moving mask is another after every update
        settings["mask"] = None if self.mask is None else "moves" if moves else self.mask.digest
        return without_later(settings)


@dataclass(frozen=True)
class TrainResult:
    """What a finished training scored and cost."""

    epochs: int
    train: Scores
    """of the last epoch, as seen while training: augmented examples, changing weights"""
    validation: Scores | None
    """after the last epoch; `None` without validation examples"""
    test: Scores
    """after the last epoch"""
    seconds: float
    """wall clock, evaluation included, over all sessions if the run was interrupted"""
    seconds_per_epoch: float
    """mean wall clock of one pass over the training examples"""
    engine: str
    """what computed the network: dense, sparse, or "auto: " and what was measured to be fastest"""
    cost: Ledger = field(default_factory=Ledger)
    """of training and evaluation, over all sessions"""


def steps_per_epoch(training: Training, data: Data) -> int:
    """The number of batches in a pass over the training split, after a look at the settings.

    Raises:
        ValueError: a setting is missing or senseless, or there are no training examples.

    """
    settings: dict[str, Any] = asdict(training)
    missing = [name for name, value in settings.items() if value is None and not name.startswith("update_")]
    if missing:
        raise ValueError(f"training needs {', '.join(missing)}: `resolve(training, preset)` fills them in")
    for name in ("epochs", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {settings[name]}")
    for name, choices in (
        ("engine", ENGINES),
        ("graph", ("auto", "no")),
        ("compile", ("auto", "yes", "no")),
        ("decay", ("steps", "one-cycle")),
    ):
        require(name, settings[name], choices)
    trackers.require_loggers(training)
    steps = len(data.train.batches(settings["batch_size"], train=True))
    if steps == 0:
        raise ValueError("there is nothing to train on: the training split is empty")
    return steps


def refuse_views(model: nn.Module, data: Data, training: Training) -> None:
    """Check that a network can compute in the memory order it is trained in.

    Raises:
        ValueError: it cannot, as where it calls `view` on what a convolution gives.

    """
    if not training.channels_last:
        return
    image, state = to_device(data.blank(), device_of(model), True), state_of(model)
    ordered = {
        name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in state.items()
    }
    try:
        with preserve_model(model, training=False, seed=0), torch.no_grad():
            with_parameters(model, ordered, lambda: model(image))
    except RuntimeError as error:
        raise ValueError(
            f"this network cannot compute channels-last ({in_short(error)}): leave --channels-last out, or write"
            " reshape instead of view"
        ) from error


def refuse_single_images(model: nn.Module, data: Data, training: Training) -> None:
    """Check that training meets no batch of one image, if batch norm then sees a single value per channel.

    Raises:
        ValueError: it would, at the latest at the end of an epoch.

    """
    images, batch = len(data.train), training.batch_size or 0
    together = 1 if training.sync_bn else ranks()
    if not any(0 < size < 2 * together for size in (min(batch, images), images % batch)):  # each rank has its part
        return
    try:
        with preserve_model(model, training=True, seed=0), preserve_values(model), torch.no_grad():
            model(data.blank().to(device_of(model)))
    except ValueError as error:
        raise ValueError(
            f"{images} training images in batches of {batch} leave a single one to a batch"
            f"{' of a process' if together > 1 else ''}, which this network cannot be trained on ({error}):"
            " choose another --batch-size"
        ) from None
