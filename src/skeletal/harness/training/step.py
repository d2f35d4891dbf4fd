"""One step of training, as the loop takes it: a batch, its gradients, an update; what it scored is tallied.

`Trainer` asks for the steps of an epoch and does not care how they are taken, so that they can be exchanged. Here they
are taken one kernel after the other, as Python launches them, and together with other processes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from skeletal.core.model.batches import cross_entropy
from skeletal.core.model.distributed import ranks
from skeletal.harness.data.splits import Split
from skeletal.harness.training.checkpoint import RunState
from skeletal.harness.training.evaluate import to_device
from skeletal.harness.training.processes import StepReport, Team


class Steps(Protocol):
    """A way to take steps."""

    def take(self, stopping: Callable[[], bool]) -> Iterator[StepReport]:
        """Take the remaining steps of the run's epoch, one with each item, and add each batch to the run's tally.

        The run counts the batches itself. `stopping` tells whether this rank has been asked to stop.
        """
        ...


@dataclass(frozen=True)
class Batching:
    """Which batches a run sees, and how the network meets them."""

    split: Split
    """the training examples, where batches are made"""
    batch_size: int
    seed: int
    channels_last: bool
    autocast: Callable[[], AbstractContextManager[Any]]


class EagerSteps:
    """Steps on batches as the split gives them; with several ranks, each takes its part of every batch.

    `network` is called in place of the run's network: for example, its compiled form.
    """

    def __init__(
        self, run: RunState, batching: Batching, team: Team, network: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._run, self._batching, self._team = run, batching, team
        self._network = network

    def take(self, stopping: Callable[[], bool]) -> Iterator[StepReport]:
        """See `Steps`."""
        run, how = self._run, self._batching
        batches = how.split.batches(how.batch_size, train=True, seed=how.seed, epoch=run.epoch, start=run.batch)
        for inputs, targets in batches:
            inputs = to_device(inputs, run.device, how.channels_last)
            yield self._step(inputs, targets.to(run.device, non_blocking=True), stopping)

    def _step(self, inputs: Tensor, targets: Tensor, stopping: Callable[[], bool]) -> StepReport:
        run, team, examples = self._run, self._team, len(targets)
        if run.moving is not None and run.moving.before_step():
            team.turn_to(run.engine.network)
        run.optimizer.zero_grad()
        loss = torch.zeros((), device=run.device)
        if examples:  # none, where a small last batch is divided, or its images are corrupt
            loss, outputs = self._gradients(inputs, targets)
            run.tally.add(loss, outputs, targets)
        merged = team.meet(loss, examples, stopping())
        if ranks() > 1 and not math.isfinite(merged.loss):  # on all ranks alike
            raise run.non_finite("the training loss", merged.loss, run.batch + 1)
        team.average_gradients(examples, merged)
        run.optimizer.step()
        if run.moving is not None and run.moving.after_step(examples * ranks() / max(merged.examples, 1)):
            team.turn_to(run.engine.network)
        return merged

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's mean loss and outputs, after the backward pass."""
        run = self._run
        network = run.engine.network if self._network is None else self._network
        with self._batching.autocast():
            outputs = network(inputs)
        outputs = outputs.float()
        loss = cross_entropy(outputs, targets)
        loss.backward()
        return loss, outputs
