"""The pieces of a training's loop: what is set up once, an epoch, its scores, the end."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from torch import nn

from skeletal.core.masks.attach import Skeleton
from skeletal.core.masks.mask import Mask
from skeletal.core.model.cudnn import trying_all
from skeletal.core.model.distributed import PeerError, agree, everyone, on_first, rank, ranks
from skeletal.core.model.state.attributes import set_attributes
from skeletal.core.model.state.random_state import seed_all
from skeletal.core.updates.rule import Rule
from skeletal.harness.console import trackers
from skeletal.harness.console.display import Display
from skeletal.harness.console.interrupt import Interrupted, Stop
from skeletal.harness.data.placing import resident, shared
from skeletal.harness.data.splits import Split
from skeletal.harness.ledger import Ledger
from skeletal.harness.meter import uses_of
from skeletal.harness.stopwatch import Stopwatch
from skeletal.harness.store.pace import Pace
from skeletal.harness.store.weightsfile import save_weights
from skeletal.harness.training.account import Account
from skeletal.harness.training.checkpoint import RunState, changed, engine_of, load
from skeletal.harness.training.choose_step import Way, choose
from skeletal.harness.training.engines import Engine, engine_for_all
from skeletal.harness.training.evaluate import Scores, batch_to_score, evaluate
from skeletal.harness.training.moving import Moving, leave_mask, mask_in, rule_of
from skeletal.harness.training.processes import Team, generator_seed
from skeletal.harness.training.rate import scheduler
from skeletal.harness.training.step import Batching
from skeletal.harness.training.task import Task, TrainResult, steps_per_epoch

LONG = 1000
"""a training of at least this many steps deserves a word on how to shorten it"""


class Trainer:
    """One training, resumed where its folder's checkpoint left it. Set up inside a `with` block.

    Args:
        task: what is trained.
        stop: asks for the end.
        progress: show a bar.
        runs: how many trainings take turns, with this one.

    Raises:
        ValueError: see `train`.

    """

    def __init__(self, task: Task, stop: Stop, *, progress: bool, runs: int = 1) -> None:
        self._task, self._stop, self._progress, self._runs = task, stop, progress, runs
        self._steps = steps_per_epoch(task.training, task.data)
        self._epochs = task.training.epochs or 0
        self._opened = ExitStack()

    def __enter__(self) -> "Trainer":
        with ExitStack() as opened:  # closes what is already open if the rest fails
            self._set_up(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def _set_up(self, opened: ExitStack) -> None:
        task, training, stopwatch = self._task, self._task.training, Stopwatch(self._task.device)
        self._display = opened.enter_context(Display(self._epochs, self._steps, self._progress and rank() == 0))
        task.model.to(task.device)
        if training.channels_last:
            _to_channels_last(task.model)
        if training.sync_bn:
            _synchronize(task.model, task.device, len(task.data.train), task.batch_size)
        rule = rule_of(training, self._steps)
        state = None if task.folder is None else load(task.folder.path)
        mask = mask_in(state, task.mask)
        if rule is not None and mask is None:
            raise ValueError(f"--update {training.update} moves a mask, and a dense training has none: give it one")
        settings = task.settings()
        if state is not None and not changed(settings, state):
            _take_weights(task.model, state)  # a compiled network reads in them which channels are dead
        uses = uses_of(task.model, task.data.blank(), mask)
        engine = _engine(task, mask, state)
        trained = engine.network if rule is None else task.model
        self._optimizer = torch.optim.SGD(
            trained.parameters(),
            lr=training.lr or 0.0,
            momentum=training.momentum or 0.0,
            weight_decay=training.weight_decay or 0.0,
        )
        rate = scheduler(self._optimizer, training)
        run = RunState(engine, self._optimizer, rate, mask, task.folder, settings, task.device)
        run.keep_epoch, run.data = task.keep_epoch, task.data.fingerprint
        if mask is not None and (rule is not None or not engine.compiled):
            skeleton = mask.attach(task.model, self._optimizer)
            opened.callback(skeleton.detach)
            if rule is not None:
                run.moving = self._moving(run, skeleton, rule)
        if engine.compiled:
            opened.callback(lambda: _take_back(task.model, run))
        seed_all(generator_seed(task.seed), task.model)
        run.restore()
        network = run.engine.network
        held = network.state_dict() | {"settings": settings, "epoch": run.epoch, "batch": run.batch}
        agree(held, "train the same model with the same settings on every rank, from one run folder that all can see")
        self._run, self._team, self._account = run, Team(network, task.device), Account(run, uses, stopwatch)
        self._tracker = trackers.of(None if rank() else task.folder, training, task.mask, run.epoch)
        opened.callback(self._tracker.close)
        begun = bool(run.epoch or run.batch)
        if not begun and self._steps * self._epochs >= LONG and not training.bf16 and run.device.type == "cpu":
            self._display.hint_at_bfloat16()
        self._display.begin(run.epoch, run.batch, resumed=begun)
        self._way: Way | None = None
        self._pace = Pace(every=task.device.type != "cuda" or ranks() > 1, runs=self._runs)

    def _moving(self, run: RunState, skeleton: Skeleton, rule: Rule) -> Moving:
        task = self._task
        steps = self._epochs * self._steps
        return Moving(
            run, task.model, skeleton, rule, steps=steps, seed=task.seed, example=task.example, autocast=task.autocast
        )

    def _choose(self) -> Way:
        task, run = self._task, self._run
        split = shared(resident(task.data.train, task.device))
        batching = Batching(split, task.batch_size, task.seed, task.training.channels_last, task.autocast)
        steps_left = (self._epochs - run.epoch) * self._steps - run.batch
        return choose(run, batching, self._team, task.training, steps_left)

    def goes_on(self) -> bool:
        """Whether there are epochs left, and nobody has asked any rank to stop."""
        return self._run.epoch < self._epochs and not self._asked_to_stop()

    def _asked_to_stop(self) -> bool:
        return any(everyone(self._stop.requested))

    def steps(self) -> Iterator[None]:
        """Take the remaining steps of this epoch, one with each item, until somebody asks to stop.

        Raises:
            NonFiniteError: the loss or a weight became NaN or infinite.
            MaskError: a pruned weight has moved.
            PeerError: another rank has failed.

        """
        run = self._run
        look_every = 1 if run.device.type == "cpu" or ranks() > 1 else 20  # looking makes a GPU wait
        run.engine.network.train()
        try:
            if self._way is None:
                self._display.note("the first step takes longer")
                self._way = self._choose()
            before = run.epoch_seconds
            started = time.perf_counter() - before
            for report in self._way.steps.take(lambda: self._stop.requested):
                run.batch += 1
                self._account.step(report.examples)
                if run.batch % look_every == 0 or run.batch == self._steps or report.stopping:
                    newest = run.materialize()
                    self._display.step(run.epoch, run.batch, newest if ranks() == 1 else report.loss)
                if report.stopping:
                    break
                yield
        except Exception as error:
            if not isinstance(error, PeerError):
                self._team.fail()
            raise
        run.epoch_seconds = time.perf_counter() - started
        self._account.trained(run.epoch_seconds - before)
        run.tally.gather()
        run.check()
        self._team.share_statistics()

    def score(self) -> None:
        """Record a whole epoch: what it scored in training, on the validation examples, and, if it is time, in test."""
        run, task = self._run, self._task
        if run.batch < self._steps:  # stopped in the middle
            return
        done = run.epoch + 1
        row = {
            "epoch": run.epoch,
            "lr": self._optimizer.param_groups[0]["lr"],
            "seconds": run.epoch_seconds,
            "engine": run.engine.name,
        }
        if run.moving is not None and run.mask is not None:
            row["density"] = run.mask.density
        if self._way is not None and self._way.about is not None:
            row["step"] = self._way.about
        row |= _named("train", run.tally.scores())
        if (cost := run.ledger.training) is not None:
            row |= {"macs_dense": cost.macs_dense, "macs_kept": cost.macs_kept}
        if len(task.data.validation):
            row |= _named("val", self._scores("validation", task.data.validation))
        test_every = task.training.test_every
        if done == self._epochs or (test_every and done % test_every == 0):
            row |= _named("test", self._scores("test", task.data.test))
        run.end_epoch(row)
        self._tracker.epoch(row)
        self._display.epoch(row)

    def _scores(self, name: str, split: Split) -> Scores:
        task = self._task
        began = time.perf_counter()
        size = batch_to_score(task.batch_size, task.device)
        with self._display.scoring(name), trying_all(False):
            scores = evaluate(
                self._run.engine.network,
                shared(resident(split, task.device)).batches(size, train=False),
                device=task.device,
                bf16=task.training.bf16,
                channels_last=task.training.channels_last,
                shared=True,
                split=name,
            )
        self._account.evaluated(scores.examples, time.perf_counter() - began)
        if not math.isfinite(scores.loss):  # of the network in evaluation mode; the training loss was checked
            warnings.warn(
                f"the {name} loss is {scores.loss} after epoch {self._run.epoch + 1}: the network's outputs overflow;"
                " try a lower learning rate",
                stacklevel=2,
            )
        return scores

    def save(self) -> None:
        """Write the checkpoint; on a GPU not after every epoch, if epochs are short (see `Pace`)."""
        run = self._run
        if run.epoch in (self._epochs, run.keep_epoch) or self._stop.requested or self._pace.due():
            self._write()

    def _write(self) -> None:
        self._pace.write(self._run.save, (self._run.epoch, self._run.batch))

    def finish(self) -> TrainResult:
        """Leave the weights in the folder.

        Raises:
            Interrupted: somebody has asked to stop; the message says how to resume.

        """
        run, folder = self._run, self._task.folder
        if self._asked_to_stop():
            self._write()  # the signal may have come after the end of an epoch
            raise self._interrupted()
        if folder is not None:
            on_first(partial(save_weights, folder.path, run.engine.network.state_dict(), run.attributes()))
            if run.moving is not None and run.mask is not None:
                on_first(partial(leave_mask, self._task, run.mask))
        return _result(run, self._account.close())

    def _interrupted(self) -> Interrupted:
        run = self._run
        where = f"stopped after epoch {run.epoch} of {self._epochs}"
        if run.batch:
            where += f" and step {run.batch} of {self._steps} of the next"
        return self._display.interrupted(where, self._task.folder, self._task.resume_command)


def turns(trainer: Trainer) -> Iterator[TrainResult | None]:
    """The loop of a training. It pauses after every step, so that several can take turns; the result comes last."""
    while trainer.goes_on():
        yield from trainer.steps()
        trainer.score()
        trainer.save()
    yield trainer.finish()


def _take_back(model: nn.Module, run: RunState) -> None:
    model.train().load_state_dict(run.engine.network.state_dict())
    set_attributes(model, run.attributes())


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


def _take_weights(model: nn.Module, state: dict[str, Any]) -> None:
    with suppress(RuntimeError, KeyError, TypeError, AttributeError):  # they do not fit: `restore` says so
        model.load_state_dict(state["model"])


def _engine(task: Task, mask: Mask | None, state: dict[str, Any] | None) -> Engine:
    """What the folder's checkpoint was trained by, or what the settings ask for."""
    return engine_for_all(
        task.model,
        mask,
        task.training.engine,
        device=task.device,
        example=task.example,
        autocast=task.autocast,
        earlier=None if state is None or "rewound" in state else engine_of(state),
    )


def _named(prefix: str, scores: Scores) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in asdict(scores).items()}


def _scores_of(row: dict[str, Any], prefix: str) -> Scores:
    return Scores(**{f.name: row[f"{prefix}_{f.name}"] for f in fields(Scores)})


def _result(run: RunState, ledger: Ledger) -> TrainResult:
    last = run.rows[-1]
    return TrainResult(
        epochs=run.epoch,
        train=_scores_of(last, "train"),
        validation=_scores_of(last, "val") if "val_loss" in last else None,
        test=_scores_of(last, "test"),
        seconds=run.seconds,
        seconds_per_epoch=sum(row["seconds"] for row in run.rows) / run.epoch,
        engine=run.engine.name,
        cost=ledger,
    )
