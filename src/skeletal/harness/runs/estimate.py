"""What a run will cost, before it starts: a few real steps of each phase, timed here and now, and extrapolated."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from skeletal.core.masks.mask import Mask
from skeletal.core.progress import stage
from skeletal.core.pruning.algorithm import Step
from skeletal.harness.config import IMP, Pruning, Setup, Training, without_update
from skeletal.harness.data import Batch, Data, Split, resident
from skeletal.harness.data.folder import FolderSplit
from skeletal.harness.data.memory import MemorySplit
from skeletal.harness.devices import pick_device
from skeletal.harness.runs import best_of
from skeletal.harness.runs.experiment import prepare
from skeletal.harness.runs.finding import DENSE, WORTH, find_mask
from skeletal.harness.stopwatch import peak_memory
from skeletal.harness.store import pace, statefile
from skeletal.harness.store.folders import MASK, RunFolder
from skeletal.harness.training.engines import engine_for
from skeletal.harness.training.evaluate import batch_to_score, evaluate
from skeletal.harness.training.train import steps_per_epoch, train

STEPS = 3  # of pruning, that are run; on a GPU as many as are worth recording
ENOUGH = 3.0  # seconds of training that are worth extrapolating from


@dataclass(frozen=True)
class Estimate:
    """What a run is going to cost on this machine, as busy as it is now."""

    data_seconds: float
    """to load the data set"""
    prune_seconds: float
    """to find the mask; 0 for the dense network"""
    train_seconds: float
    """to train and test, `seconds` of the run's result"""
    step_seconds: float
    """of one training step"""
    steps_per_epoch: int
    memory: int
    """bytes at the peak: on a GPU what torch allocates there, else of this process, without its data workers"""
    disk: int
    """bytes of the run folder"""
    device: str
    engine: str
    """what would train the network"""
    assumed: tuple[str, ...]
    """what all this rests on"""


def estimate(setup: Setup, pruning: Pruning, training: Training) -> Estimate:
    """Run a few steps of pruning and training on the real data and network, and extrapolate.

    Takes up to nine gradients of pruning batches, or all if that takes only a moment, and some seconds of training
    steps. Leaves nothing behind: what it writes goes to a temporary folder. All three records must be resolved.

    Raises:
        ValueError: as `run`, for settings that cannot be run; and for imp, which is many trainings.

    """
    if pruning.method == IMP:
        raise ValueError(f"imp is {pruning.steps} trainings and one more: estimate one of them, with --method dense")
    device = pick_device(setup.device)
    started = time.perf_counter()
    data, model = prepare(setup, training, 1.0 if pruning.method == DENSE else pruning.density or 1.0)
    steps = steps_per_epoch(training, data)
    data_seconds = time.perf_counter() - started
    with warnings.catch_warnings(), TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # of masks found in three steps
        mask, prune_seconds = None, 0.0
        if pruning.method != DENSE:
            with stage("timing some steps of pruning"):
                mask, prune_seconds = _pruning(model, data, setup, pruning)
        pruning_memory = peak_memory(device)  # a training's own peak is measured anew
        cost = _Training(model, data, setup, training, mask, Path(scratch), device)
        with stage("timing some steps of training"):
            train_seconds = cost.seconds(steps)
        disk = cost.disk()
    return Estimate(
        data_seconds=data_seconds,
        prune_seconds=prune_seconds,
        train_seconds=train_seconds,
        step_seconds=cost.step,
        steps_per_epoch=steps,
        memory=max(pruning_memory, peak_memory(device)),
        disk=disk,
        device=str(device),
        engine=cost.engine.name,
        assumed=tuple(_assumptions(pruning, training, cost.engine.compiled, isinstance(data.train, FolderSplit))),
    )


def _assumptions(pruning: Pruning, training: Training, compiled: bool, workers: bool) -> Iterator[str]:
    yield "this machine stays as busy as it was in these seconds"
    if pruning.method != DENSE and (pruning.steps or 1) > 1:
        yield "every pruning step costs what the first ones did"
        if pruning.scoring_engine == "sparse":
            yield "scoring stays dense; the sparse scoring engine makes late steps cheaper"
    if pruning.best_of > 1:
        yield f"to compare {pruning.best_of} masks, a step of training takes as long as one of scoring"
    if training.update != "none":
        yield f"to move the mask (--update {training.update}) takes no time"
    if compiled:
        yield f"the engine is as fast on the run's mask as on one found in {min(STEPS, pruning.steps or 1)} steps"
    if workers:
        yield "images further on take as long to decode as the first ones"


def _pruning(model: nn.Module, data: Data, setup: Setup, pruning: Pruning) -> tuple[Mask, float]:
    """A mask found in a few steps of one batch, and the seconds that all steps and batches would take.

    If all of them take only a moment, all are run.
    """
    steps, batches = pruning.steps or 1, pruning.batches_per_step or 1
    first = WORTH if pick_device(setup.device).type == "cuda" and steps * batches >= WORTH else STEPS
    few = replace(pruning, on_collapse="keep", best_of=1)
    ends: list[float] = []

    def on_step(_: Step) -> None:
        ends.append(time.perf_counter())

    def timed(count: int, upto: int = first) -> tuple[Mask, float, float]:
        """The mask, the seconds of everything, and those of a step, from `count` batches in each step."""
        ends.clear()
        started = time.perf_counter()
        settings = replace(few, steps=min(steps, upto), batches_per_step=count)
        mask = find_mask(model, data, setup, settings, progress=False, on_step=on_step)
        total = time.perf_counter() - started
        between = [later - earlier for earlier, later in pairwise(ends)]
        return mask, total, median(between) if between else total

    mask, total, step = timed(1)  # including what only the first step costs
    many, of_one = pruning.best_of, step
    comparing = many * best_of.STEPS * of_one if many > 1 else 0.0
    if batches == 1 and steps > first and steps * step < ENOUGH:  # where the first steps say least about the others
        mask, total, _ = timed(1, steps)
        return mask, many * total + comparing
    seconds = total + (steps - len(ends)) * step
    if batches > 1:
        of_one = timed(1)[2] if steps == 1 else step
        seconds += steps * (batches - 1) * max(timed(2)[2] - of_one, 0)
    return mask, many * seconds + comparing


def epoch_seconds(first_steps: Callable[[int], float], steps: int) -> tuple[float, float]:
    """Seconds of a pass of so many steps, and of a step: timed as a whole if that is short, else from two parts of it.

    Args:
        first_steps: measures the seconds that the given number of first steps of a pass takes.
        steps: in a pass.

    """
    guess = first_steps(min(2, steps)) / min(2, steps)
    if steps * guess < ENOUGH:
        whole = first_steps(steps)
        return whole, whole / steps
    few = max(1, min(steps // 3, math.ceil(ENOUGH / 3 / guess)))
    shorter, longer = first_steps(few), first_steps(3 * few)
    step = max(longer - shorter, 0) / (2 * few)  # without what an epoch costs to begin, such as starting workers
    return shorter + (steps - few) * step, step


class _Training:
    """Times pieces of a training: its steps, its evaluations, its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        setup: Setup,
        training: Training,
        mask: Mask | None,
        scratch: Path,
        device: Any,
    ) -> None:
        self.model, self.data, self.setup, self.training = model.to(device), data, setup, training
        self.mask, self.scratch, self.device = mask, scratch, device
        self.batch_size = training.batch_size or 0
        autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=training.bf16)
        started = time.perf_counter()
        self.engine = engine_for(
            model, mask, training.engine, device=device, autocast=autocast,
            example=lambda: next(iter(data.train.batches(self.batch_size, train=False)))[0],
        )  # fmt: skip
        self.setup_seconds = time.perf_counter() - started
        self.step = 0.0

    def seconds(self, steps: int) -> float:
        """Of the whole training, tests included."""
        epochs, every = self.training.epochs or 0, self.training.test_every
        tests = 1 + (sum((epoch + 1) % every == 0 for epoch in range(epochs - 1)) if every else 0)
        epoch, self.step = epoch_seconds(self._first_steps, steps)
        validation, test = self._evaluation(self.data.validation), self._evaluation(self.data.test)
        saving = self._saving()
        if self.device.type == "cuda":  # where a run does not write one after every short epoch
            saving = min(saving, (epoch + validation) / pace.SHARE)
        return self.setup_seconds + epochs * (epoch + validation + saving) + tests * test

    def _first_steps(self, count: int) -> float:
        """Of that many steps in the second epoch of a run; the first one warms up."""
        folder = replace(RunFolder.open(self.scratch, f"steps-{count}", {}), scratch=True)
        data, size = self.data, self.batch_size
        short = replace(
            data,
            train=_first(data.train, count * size),
            validation=_first(data.validation, size),
            test=_first(data.test, size),
        )
        training = without_update(replace(self.training, epochs=2, test_every=0, tensorboard=False, log=()))
        train(self.model, short, training, mask=self.mask, folder=folder, seed=self.setup.seed,
              device=self.setup.device, progress=False)  # fmt: skip
        self.folder = folder
        return folder.metrics()[1]["seconds"]

    def _evaluation(self, split: Split) -> float:
        """Of a split, from the second half of a few batches."""
        size = batch_to_score(self.batch_size, self.device)
        batches = math.ceil(len(split) / size)
        if not batches:
            return 0.0
        few = min(batches, 3)
        part = resident(_first(split, few * size), self.device)
        times = [self._timed(partial(self._score, part.batches(size, train=False))) for _ in range(2)]
        return times[1] * batches / few

    def _score(self, batches: Iterable[Batch]) -> None:
        evaluate(
            self.engine.network, batches, device=self.device, bf16=self.training.bf16,
            channels_last=self.training.channels_last,
        )  # fmt: skip

    def _saving(self) -> float:
        state = statefile.load(self.folder.path) or {}
        return min(self._timed(lambda: statefile.save(self.folder.path, state)) for _ in range(2))

    @staticmethod
    def _timed(function: Any) -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    def disk(self) -> int:
        """Bytes of the finished run folder."""
        if self.mask is not None:
            self.mask.save(self.folder.path / MASK)
        sizes = {file.name: file.stat().st_size for file in self.folder.path.rglob("*") if file.is_file()}
        epochs = self.training.epochs or 0
        sizes["metrics.jsonl"] = sizes["metrics.jsonl"] // 2 * epochs
        return sum(sizes.values()) + 2000  # config.json and result.json


def _first(split: Split, count: int) -> Split:
    """The split's first examples."""
    assert isinstance(split, MemorySplit | FolderSplit), f"a {type(split).__name__} has no members"
    return replace(split, members=split.members[:count])
