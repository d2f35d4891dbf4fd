"""Training: SGD with momentum and a step schedule (the paper's appendix A), in a loop that can be read.

A run can be stopped at any step and goes on exactly where it was: on a CPU the resumed run ends in the same
weights, to the bit, as one that was never stopped.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from skeletal.core.choices import require
from skeletal.core.files import write_atomically
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import cross_entropy
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.distributed import PeerError, agree, everyone, on_first, rank, ranks, together
from skeletal.harness.config import Training
from skeletal.harness.data.placing import resident, shared
from skeletal.harness.data.splits import Data, Split
from skeletal.harness.devices import pick_device, tuned
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training import trackers
from skeletal.harness.training.checkpoint import RunState, engine_of, load
from skeletal.harness.training.display import Display
from skeletal.harness.training.engines import ENGINES, Engine, engine_for_all
from skeletal.harness.training.evaluate import Scores, evaluate, place
from skeletal.harness.training.interrupt import Stop
from skeletal.harness.training.processes import Team, generator_seed


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


def milestones(training: Training) -> list[int]:
    """Epochs before which the learning rate is divided by 10: 150 and 250 for the paper's 350 epochs."""
    fractions, epochs = training.milestones or (), training.epochs or 0
    return sorted({round(f * epochs) for f in fractions} - {0})  # a step at 0 would leave no epoch at `lr`


def _to_channels_last(model: nn.Module) -> None:
    # Not `model.to(memory_format=...)`, which refuses 5-d weights. Hooks stay: the parameters are the same.
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _synchronize(model: nn.Module, device: torch.device, examples: int, batch_size: int) -> None:
    if device.type != "cuda":
        raise ValueError(
            f"--sync-bn needs GPUs, not {device.type}: torch's SyncBatchNorm computes nowhere else; without it each"
            " process normalizes by its own part of the batch"
        )
    if 0 < examples % batch_size < ranks():
        raise ValueError(
            f"the last batch of an epoch has {examples % batch_size} examples for {ranks()} processes, and with"
            " --sync-bn each needs one: choose another --batch-size"
        )
    if ranks() > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _named(prefix: str, scores: Scores) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in asdict(scores).items()}


def _scores(row: dict[str, Any], prefix: str) -> Scores:
    return Scores(**{f.name: row[f"{prefix}_{f.name}"] for f in fields(Scores)})


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


def _engine(
    model: nn.Module,
    mask: Mask | None,
    data: Data,
    training: Training,
    folder: RunFolder | None,
    device: torch.device,
    autocast: Any,
) -> Engine:
    """What the folder's checkpoint was trained by, or what the settings ask for."""
    state = None if folder is None else load(folder.path)
    batch_size = training.batch_size or 0
    return engine_for_all(
        model,
        mask,
        training.engine,
        device=device,
        example=lambda: next(iter(shared(data.train).batches(batch_size, train=False)))[0],
        autocast=autocast,
        earlier=None if state is None else engine_of(state),
    )


def _result(run: RunState) -> TrainResult:
    last = run.rows[-1]
    return TrainResult(
        epochs=run.epoch,
        train=_scores(last, "train"),
        validation=_scores(last, "val") if "val_loss" in last else None,
        test=_scores(last, "test"),
        seconds=run.seconds,
        seconds_per_epoch=sum(row["seconds"] for row in run.rows) / run.epoch,
        engine=run.engine.name,
    )


def _save_weights(model: nn.Module, folder: RunFolder) -> None:
    """Under the model's own names, tied weights once for each, so that any loader can read them."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    copies = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(folder.path / "model.safetensors", save(copies))


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
    settings: dict[str, Any] = {**asdict(training), "seed": seed}
    del settings["engine"], settings["tensorboard"]  # the checkpoint says what came of the one; the other is a view
    if not settings["sync_bn"]:
        del settings["sync_bn"]  # came later: checkpoints from before it go on
    steps = steps_per_epoch(training, data)
    epochs, batch_size = settings["epochs"], settings["batch_size"]
    target = pick_device(device)
    autocast = partial(torch.autocast, target.type, torch.bfloat16, enabled=training.bf16)
    with (
        flush_denormals(),
        tuned(target),
        Stop() as stop,
        Display(epochs, steps, progress and rank() == 0) as display,
        ExitStack() as attached,
    ):
        model.to(target)
        if training.channels_last:
            _to_channels_last(model)
        if training.sync_bn:
            _synchronize(model, target, len(data.train), batch_size)
        engine = _engine(model, mask, data, training, folder, target, autocast)
        network = engine.network
        if engine.compiled:
            attached.callback(lambda: model.train().load_state_dict(network.state_dict()))
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=settings["lr"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones(training), gamma=0.1)
        if mask is not None and not engine.compiled:
            attached.callback(mask.attach(model, optimizer).detach)
        torch.manual_seed(generator_seed(seed))
        run = RunState(engine, optimizer, scheduler, mask, folder, settings, target)
        run.restore()
        held = network.state_dict() | {"settings": settings, "epoch": run.epoch, "batch": run.batch}
        agree(held, "train the same model with the same settings on every rank, from one run folder that all can see")
        team = Team(network, target)
        tracker = trackers.of(folder if training.tensorboard and rank() == 0 else None, mask, run.epoch)
        attached.callback(tracker.close)
        display.begin(run.epoch, run.batch)
        training_split = shared(resident(data.train, target))

        def asked_to_stop() -> bool:
            return any(everyone(stop.requested))

        def train_epoch() -> None:
            started = time.perf_counter() - run.epoch_seconds
            look_every = 1 if target.type == "cpu" or ranks() > 1 else 20  # looking makes a GPU wait
            network.train()
            batches = training_split.batches(batch_size, train=True, seed=seed, epoch=run.epoch, start=run.batch)
            for inputs, targets in batches:
                inputs = place(inputs, target, training.channels_last)
                targets = targets.to(target, non_blocking=True)
                optimizer.zero_grad()
                loss = torch.zeros((), device=target)
                if len(targets):  # none, where a small last batch is divided, or its images are corrupt
                    with autocast():
                        outputs = network(inputs)
                    outputs = outputs.float()
                    loss = cross_entropy(outputs, targets)
                    loss.backward()
                    run.tally.add(loss, outputs, targets)
                told = team.meet(loss, len(targets), stop.requested)
                if ranks() > 1 and not math.isfinite(told.loss):  # on all ranks alike
                    raise run.non_finite("the training loss", told.loss, run.batch + 1)
                team.average_gradients(len(targets), told)
                optimizer.step()
                run.batch += 1
                if run.batch % look_every == 0 or run.batch == steps or told.stopping:
                    newest = run.settle()
                    display.step(run.epoch, run.batch, newest if ranks() == 1 else told.loss)
                if told.stopping:
                    break
            run.epoch_seconds = time.perf_counter() - started

        def score(split: Split) -> Scores:
            return evaluate(
                network,
                shared(resident(split, target)).batches(batch_size, train=False),
                device=target,
                bf16=training.bf16,
                channels_last=training.channels_last,
                shared=True,
            )

        while run.epoch < epochs and not asked_to_stop():
            try:
                train_epoch()
            except Exception as error:
                if not isinstance(error, PeerError):
                    team.fail()
                raise
            run.tally.gather()
            run.check()
            team.share_statistics()
            if run.batch == steps:
                done = run.epoch + 1
                row = {
                    "epoch": run.epoch,
                    "lr": optimizer.param_groups[0]["lr"],
                    "seconds": run.epoch_seconds,
                    "engine": engine.name,
                }
                row |= _named("train", run.tally.scores())
                if len(data.validation):
                    row |= _named("val", score(data.validation))
                if done == epochs or (training.test_every and done % training.test_every == 0):
                    row |= _named("test", score(data.test))
                run.end_epoch(row)
                tracker.epoch(row)
                display.epoch(row)
            run.save()

        if asked_to_stop():
            where = f"stopped after epoch {run.epoch} of {epochs}"
            if run.batch:
                where += f" and step {run.batch} of {steps} of the next"
            raise display.interrupted(where, folder, resume_command)
        if folder is not None:
            on_first(partial(_save_weights, network, folder))
        return _result(run)
