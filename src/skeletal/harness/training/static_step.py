"""The training step as one fixed sequence of kernels on memory that stays where it is, so that it can be recorded.

The host decides nothing in it: a counter on the device holds the number of the batch, by which the step reads its
examples, crops and flips from the epoch's plan, and which it advances; the learning rate is a number on the device;
what the batch scored goes into a row of a table. So one recording, a CUDA graph, takes every step of a run. Without a
recording the same function runs kernel after kernel, with the same results.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import cross_entropy
from skeletal.core.model.state.attributes import Attributes
from skeletal.core.model.state.random_state import beside_torch, set_beside_torch
from skeletal.harness.data.augment import Draws
from skeletal.harness.data.memory import EpochPlan, Levels, MemorySplit, made, plan_epoch
from skeletal.harness.training.checkpoint import RunState
from skeletal.harness.training.evaluate import scored, to_device
from skeletal.harness.training.processes import StepReport
from skeletal.harness.training.step import Batching


class StaticStep:
    """The step of a run, for batches of a size.

    Args:
        run: whose network and optimizer it moves.
        batching: of a split that is held in memory.
        network: what is called on full batches: the run's network, or what was compiled of it. A short last batch goes
            through the run's own, as compiling for another size takes as long again.

    """

    def __init__(self, run: RunState, batching: Batching, network: Callable[[Tensor], Tensor]) -> None:
        assert isinstance(batching.split, MemorySplit), "only what lies in memory can be read by a fixed step"
        self.network, self._run, self._batching, self._split = network, run, batching, batching.split
        device, size = run.device, batching.batch_size
        self.steps = -(-len(self._split) // size)
        self.last_size = len(self._split) - (self.steps - 1) * size
        self._part, self._levels = self._split.there, Levels.of(self._split.spec, device)
        self._ahead: tuple[int, EpochPlan] | None = (run.epoch, self._planned(run.epoch))
        self._plan = _moved(self._ahead[1], device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self.table = torch.zeros(self.steps, 3, device=device)
        """loss, top-1 and top-5 counts of each batch of the epoch"""
        prepare_momentum(run.optimizer)

    def size(self, batch: int) -> int:
        """How many examples a batch has."""
        return self.last_size if batch == self.steps - 1 else self._batching.batch_size

    def turn_to(self, epoch: int, batch: int) -> None:
        """Prepare for a batch of an epoch, from which steps advance by themselves."""
        if self._ahead is None or self._ahead[0] != epoch:
            self._ahead = epoch, self._planned(epoch)
        plan, self._ahead = self._ahead[1], None
        pinned = _pinned(plan) if self._run.device.type == "cuda" else plan
        for there, here in zip(_tensors(self._plan), _tensors(pinned), strict=True):
            there.copy_(here, non_blocking=True)
        self._rate.fill_(self._run.optimizer.param_groups[0]["lr"])
        self.seek(batch)

    def seek(self, batch: int) -> None:
        """Let the next step be on this batch."""
        self._position.fill_(batch)

    def look_ahead(self, epoch: int) -> None:
        """Draw an epoch's plan while the device is busy."""
        self._ahead = epoch, self._planned(epoch)

    def _planned(self, epoch: int) -> EpochPlan:
        return plan_epoch(self._split, self._batching.batch_size, seed=self._batching.seed, epoch=epoch)

    def __call__(self, size: int) -> None:
        """Take the step at the counter, on `size` examples, and advance the counter."""
        run, how = self._run, self._batching
        members, *draws = (rows.index_select(0, self._position)[0, :size] for rows in _tensors(self._plan))
        images, targets = made(self._part, members, Draws(*draws), self._split.spec.padding, self._levels)
        run.optimizer.zero_grad()
        network = self.network if size == how.batch_size else run.engine.network
        with how.autocast():
            torch.set_autocast_cache_enabled(False)  # until the block ends: a recording must not share cast weights
            outputs = network(to_device(images, run.device, how.channels_last))
        outputs = outputs.float()
        loss = cross_entropy(outputs, targets)
        loss.backward()
        with _rate_on_device(run.optimizer, self._rate):
            run.optimizer.step()  # the mask's hooks follow it
        self.table.index_copy_(0, self._position, scored(loss, outputs, targets)[None])
        self._position.add_(1)


class StaticSteps:
    """Takes steps by calling a `StaticStep`, or recordings of it: `take_step` gives what takes one of some size."""

    def __init__(self, run: RunState, step: StaticStep, take_step: Callable[[int], Callable[[], object]]) -> None:
        self._run, self._step, self._take_step = run, step, take_step

    def take(self, stopping: Callable[[], bool]) -> Iterator[StepReport]:
        """See `Steps`."""
        run, step = self._run, self._step
        epoch, first = run.epoch, run.batch
        step.turn_to(epoch, first)
        for batch in range(first, step.steps):
            size = step.size(batch)
            self._take_step(size)()
            run.tally.append(size, step.table[batch])
            if batch == (first + step.steps) // 2:
                step.look_ahead(epoch + 1)
            yield StepReport(float("nan"), size, stopping())


@contextmanager
def _rate_on_device(optimizer: torch.optim.SGD, rate: Tensor) -> Generator[None]:
    """Let the optimizer read its learning rate from the device, by the one implementation that can: the fused one."""
    (group,) = optimizer.param_groups
    before = {name: group[name] for name in ("lr", "fused")}
    group.update(lr=rate, fused=True if rate.is_cuda else before["fused"])
    try:
        yield
    finally:
        group.update(before)


def prepare_momentum(optimizer: torch.optim.SGD) -> None:
    """Momentum for every weight, in the weight's memory order, as the fused optimizer wants it.

    SGD's first step makes it of the gradient; from zeros every step is the same one, with the same result. A checkpoint
    may hold it in another order. What is in order stays where it is, as recordings may know it.
    """
    (group,) = optimizer.param_groups
    if group["momentum"]:
        for weight in group["params"]:
            if weight.requires_grad:
                state = optimizer.state[weight]
                momentum, ordered = state.get("momentum_buffer"), torch.zeros_like(weight)
                if momentum is None or momentum.stride() != ordered.stride():
                    state["momentum_buffer"] = ordered if momentum is None else ordered.copy_(momentum)


def _tensors(plan: EpochPlan) -> tuple[Tensor, ...]:
    return plan.members, *plan.draws


def _moved(plan: EpochPlan, device: torch.device) -> EpochPlan:
    return EpochPlan(plan.members.to(device), Draws(*(rows.to(device) for rows in plan.draws)))


def _pinned(plan: EpochPlan) -> EpochPlan:
    return EpochPlan(plan.members.pin_memory(), Draws(*(rows.pin_memory() for rows in plan.draws)))


class Snapshot:
    """Everything that a step changes, to be put back into the same memory: weights, buffers, momentum, random state."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._buffers = [
            (f"{path}.{name}".removeprefix("."), module, name, buffer)
            for path, module in network.named_modules()
            for name, buffer in module._buffers.items()
        ]
        momentum: list[Any] = [state.get("momentum_buffer") for state in optimizer.state.values()]
        self._there = [*network.parameters(), *network.buffers(), *(value for value in momentum if value is not None)]
        self._kept = [tensor.detach().clone() for tensor in self._there]
        self._weights: list[Tensor] = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimizer, self._device = optimizer, device
        self._beside_torch = beside_torch()
        self._attributes, self._network = Attributes(network), network
        self._random = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def replaced(self) -> str | None:
        """The name of a buffer that is another tensor by now: `self.mean = ...`, where a recording needs `copy_`."""
        return next((path for path, module, name, was in self._buffers if module._buffers.get(name) is not was), None)

    def counted(self) -> str | None:
        """The name of a number or text that the network's code has changed, which a recording takes for a constant."""
        return next(iter(self._attributes.changed(self._network)), None)

    @torch.no_grad()
    def put_back(self) -> None:
        """Put weights, buffers and momentum back."""
        for _, module, name, buffer in self._buffers:
            module._buffers[name] = buffer
        for there, kept in zip(self._there, self._kept, strict=True):
            there.copy_(kept)

    def restore(self) -> None:
        """Put everything back, and drop gradients."""
        self.put_back()
        self._optimizer.zero_grad()
        set_beside_torch(self._beside_torch)
        self._attributes.restore(self._network)
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state(self._random[1], self._device)

    def weights(self) -> Tensor:
        """All trained weights as they are now, one after the other, in double precision: float64 (n,)."""
        return _in_a_row(self._weights)

    def weights_kept(self) -> Tensor:
        """The same, as they were."""
        trained = {id(weight) for weight in self._weights}
        return _in_a_row([kept for there, kept in zip(self._there, self._kept, strict=True) if id(there) in trained])


def _in_a_row(weights: list[Tensor]) -> Tensor:
    return torch.cat([weight.detach().double().flatten() for weight in weights])
