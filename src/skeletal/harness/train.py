"""Training: SGD with momentum and a step schedule (the paper's appendix A), in a loop that can be read.

A run can be stopped at any step and goes on exactly where it was: on a CPU the resumed run ends in the same
weights, to the bit, as one that was never stopped.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy

from skeletal.core.choices import require
from skeletal.core.denormals import flush_denormals
from skeletal.core.files import write_atomically
from skeletal.core.mask import Mask
from skeletal.harness.checkpoint import RunState, engine_of, load
from skeletal.harness.config import Training
from skeletal.harness.data.splits import Data, Split
from skeletal.harness.display import Display
from skeletal.harness.engines import ENGINES, Engine, engine_for
from skeletal.harness.evaluate import Scores, evaluate, place
from skeletal.harness.folders import RunFolder
from skeletal.harness.interrupt import Stop

if TYPE_CHECKING:
    from accelerate import Accelerator


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


@contextmanager
def _accelerator(device: str, bf16: bool) -> Iterator["Accelerator"]:
    """An Accelerator of our own. Accelerate allows one configuration per process: set the caller's aside."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import patch_environment

    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    callers = [dict(state) for state in shared]
    chosen = {} if device in ("auto", "cpu") else {"ACCELERATE_TORCH_DEVICE": device}
    try:
        for state in shared:
            state.clear()
        with patch_environment(**chosen):
            accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device == "cpu")
        if accelerator.num_processes > 1:
            raise RuntimeError(f"train runs in one process, but {accelerator.num_processes} were launched")
        yield accelerator
    finally:
        for state, before in zip(shared, callers, strict=True):
            state.clear()
            state.update(before)


def milestones(training: Training) -> list[int]:
    """Epochs before which the learning rate is divided by 10: 150 and 250 for the paper's 350 epochs."""
    fractions, epochs = training.milestones or (), training.epochs or 0
    return sorted({round(f * epochs) for f in fractions} - {0})  # a step at 0 would leave no epoch at `lr`


def _to_channels_last(model: nn.Module) -> None:
    # Not `model.to(memory_format=...)`, which refuses 5-d weights. Hooks stay: the parameters are the same.
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


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
    steps = len(data.train.batches(settings["batch_size"], train=True))
    if steps == 0:
        raise ValueError("there is nothing to train on: the training split is empty")
    return steps


def _engine(
    model: nn.Module, mask: Mask | None, data: Data, training: Training, folder: RunFolder | None, accelerator: Any
) -> Engine:
    """What the folder's checkpoint was trained by, or what the settings ask for."""
    state = None if folder is None else load(folder.path)
    batch_size = training.batch_size or 0
    return engine_for(
        model,
        mask,
        training.engine,
        device=accelerator.device,
        example=lambda: next(iter(data.train.batches(batch_size, train=False)))[0],
        autocast=accelerator.autocast,
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

    Raises:
        ValueError: a setting is missing or senseless, there are no training examples, or the folder's
            checkpoint belongs to another run, or to another engine than the one asked for.
        NonFiniteError: the loss or a weight became NaN or infinite; the last good checkpoint is kept.
        MaskError: the mask does not fit the model, or a pruned weight has moved.
        Interrupted: a signal came.

    """
    settings: dict[str, Any] = {**asdict(training), "seed": seed}
    del settings["engine"]  # the checkpoint says what came of it
    steps = steps_per_epoch(training, data)
    epochs, batch_size = settings["epochs"], settings["batch_size"]
    with (
        _accelerator(device, training.bf16) as accelerator,
        flush_denormals(),
        Stop() as stop,
        Display(epochs, steps, progress) as display,
        ExitStack() as attached,
    ):
        model.to(accelerator.device)
        if training.channels_last:
            _to_channels_last(model)
        engine = _engine(model, mask, data, training, folder, accelerator)
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
        torch.manual_seed(seed)
        run = RunState(engine, optimizer, scheduler, mask, folder, settings, accelerator.device)
        run.restore()
        display.begin(run.epoch, run.batch)

        def train_epoch() -> None:
            started = time.perf_counter() - run.epoch_seconds
            look_every = 1 if accelerator.device.type == "cpu" else 20  # looking makes a GPU wait
            network.train()
            batches = data.train.batches(batch_size, train=True, seed=seed, epoch=run.epoch, start=run.batch)
            for inputs, targets in batches:
                inputs = place(inputs, accelerator.device, training.channels_last)
                targets = targets.to(accelerator.device, non_blocking=True)
                optimizer.zero_grad()
                with accelerator.autocast():
                    outputs = network(inputs)
                outputs = outputs.float()
                loss = cross_entropy(outputs, targets)
                accelerator.backward(loss)
                optimizer.step()
                run.batch += 1
                run.tally.add(loss, outputs, targets)
                stopping = stop.requested
                if run.batch % look_every == 0 or run.batch == steps or stopping:
                    display.step(run.epoch, run.batch, run.settle())
                if stopping:
                    break
            run.epoch_seconds = time.perf_counter() - started

        def score(split: Split) -> Scores:
            return evaluate(
                network,
                split.batches(batch_size, train=False),
                device=accelerator.device,
                bf16=training.bf16,
                channels_last=training.channels_last,
            )

        while run.epoch < epochs and not stop.requested:
            train_epoch()
            assert run.batch == steps or stop.requested, "the training split broke its promised length"
            run.check()
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
                display.epoch(row)
            run.save()

        if stop.requested:
            where = f"stopped after epoch {run.epoch} of {epochs}"
            if run.batch:
                where += f" and step {run.batch} of {steps} of the next"
            raise display.interrupted(where, folder, resume_command)
        if folder is not None:
            _save_weights(network, folder)
        return _result(run)
