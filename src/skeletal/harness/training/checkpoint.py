"""Everything that changes while training: saved in one file, from which the run resumes as if it had never stopped."""

import math
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from skeletal.core.errors import NonFiniteError
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import everyone, on_first, rank
from skeletal.core.model.state.attributes import Attributes, set_attributes
from skeletal.core.model.state.random_state import beside_torch, set_beside_torch
from skeletal.core.model.tensors import not_finite
from skeletal.engine.optimizer_state import from_dense, to_dense
from skeletal.harness.config import with_later
from skeletal.harness.ledger import Cost, Ledger
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.store.statefile import KEPT, REMEDY, engine_of, in_short, load, path_in, save
from skeletal.harness.training.engines import Engine
from skeletal.harness.training.evaluate import Tally


class Moving(Protocol):
    """What moves the mask of a run; see `training.moving`."""

    @property
    def asks_for_gradients(self) -> bool:
        """Whether the coming step also takes gradients of pruned weights."""
        ...

    def before_step(self) -> bool:
        """Whether the next step is taken by another form of the network than the last one."""
        ...

    def after_step(self, share: float) -> bool:
        """Whether the network has taken another form."""
        ...

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint, before its weights are loaded."""
        ...


__all__ = ["RunState", "engine_of", "load", "save"]


def _optimizer_state(engine: Engine, optimizer: torch.optim.Optimizer, moving: bool) -> dict[str, Any]:
    """The optimizer's state; for a compiled network by parameter name, as nothing else identifies its tensors."""
    state = optimizer.state_dict()
    if engine.compiled:
        names = {i: name for name, i in _numbers(engine.network, optimizer).items()}
        state["state"] = {names[i]: entries for i, entries in state["state"].items()}
    if moving and engine.compiled:  # a compiled network may have other shapes where the run resumes
        state["state"] = to_dense(engine.network, state["state"])
    return state


def _numbers(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """By parameter name, the numbers that an optimizer's state has: it may hold those of no use to the network, too."""
    held = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    numbers = {weight: i for i, weight in enumerate(held)}
    return {name: numbers[id(weight)] for name, weight in network.named_parameters()}


def _load_optimizer_state(engine: Engine, optimizer: torch.optim.Optimizer, state: dict[str, Any], dense: bool) -> None:
    """`dense`: what is under a name has the shape of the original network's parameter."""
    if all(isinstance(key, str) for key in state["state"]):
        parameters = dict(engine.network.named_parameters())
        if dense:
            mine = {name: entries for name, entries in state["state"].items() if name in parameters}
            state = state | {"state": from_dense(engine.network, mine)}
        for name, entries in state["state"].items():
            for what, value in entries.items():
                wanted = tuple(parameters[name].shape) if name in parameters else "nothing"
                if isinstance(value, torch.Tensor) and value.dim() and tuple(value.shape) != wanted:
                    raise ValueError(
                        f"the checkpoint's {what} of {name} has shape {tuple(value.shape)}, the compiled network needs"
                        f" {wanted}: another version of skeletal wrote it; delete it to train from the beginning"
                    )
        numbers = _numbers(engine.network, optimizer)
        state = state | {"state": {numbers[name]: entries for name, entries in state["state"].items()}}
    optimizer.load_state_dict(state)


def changed(settings: dict[str, Any], state: dict[str, Any]) -> list[str]:
    """Names of the settings that a checkpoint was not trained with."""
    theirs, ours = with_later(state["settings"]), with_later(settings)
    theirs.setdefault("mask", ours.get("mask"))  # which earlier versions did not keep
    return [name for name, value in ours.items() if theirs.get(name) != value]


@dataclass
class RunState:
    """Everything that changes while training, and its way to disk and back.

    Without a folder, `save` and `restore` do nothing. With several ranks, all call everything and rank 0 writes.
    """

    engine: Engine
    optimizer: torch.optim.SGD
    scheduler: torch.optim.lr_scheduler.LRScheduler
    mask: Mask | None
    """as it is now"""
    folder: RunFolder | None
    settings: dict[str, Any]
    """what a resumed run must have in common with the one it continues"""
    device: torch.device
    epoch: int = 0
    batch: int = 0
    """batches of this epoch that are done"""
    tally: Tally = field(default_factory=Tally)
    epoch_seconds: float = 0.0
    """training time of this epoch so far"""
    earlier_seconds: float = 0.0
    """wall clock of earlier sessions"""
    started: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """metrics of the epochs that are done"""
    moving: Moving | None = None
    """what moves the mask while training"""
    keep_epoch: int | None = None
    """after so many epochs a second copy of the checkpoint is kept for good"""
    ledger: Ledger = field(default_factory=partial(Ledger, training=Cost(), evaluation=Cost()))
    """what the run has cost so far, over all sessions; finding the mask is not its business"""
    data: str = ""
    """what it is trained on, see `Data.fingerprint`"""
    newest: float = math.nan
    """the last loss that `materialize` has seen"""

    def __post_init__(self) -> None:
        self._attributes = Attributes(self.engine.modules)

    def turn_to(self, engine: Engine) -> None:
        """Train another form of the network from now on."""
        self._attributes = self._attributes.of_another_form(self.engine.modules, engine.modules)
        self.engine = engine

    def attributes(self) -> dict[str, Any]:
        """Plain attributes of the network that its own code has changed, as "module.attribute"."""
        return self._attributes.changed(self.engine.modules)

    @property
    def seconds(self) -> float:
        """Wall clock over all sessions."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def non_finite(self, name: str, value: object, step: int) -> NonFiniteError:
        """An error that names the thing, the step of this epoch, and what is left to go on from."""
        rate = self.optimizer.param_groups[0]["lr"]
        message = (
            f"{name} is {value} in epoch {self.epoch + 1}, step {step}, at learning rate {rate:g}: try a lower one"
        )
        if self.folder is not None and path_in(self.folder.path).exists():
            message += f"; {path_in(self.folder.path)} holds the last good state"
        return NonFiniteError(message)

    def materialize(self) -> float:
        """Fetch the losses since the last call; the newest.

        Raises:
            NonFiniteError: one of them is NaN or infinite.

        """
        losses = self.tally.materialize()
        for step, loss in enumerate(losses, self.batch - len(losses) + 1):
            if not math.isfinite(loss):
                raise self.non_finite("the training loss", loss, step)
        self.newest = losses[-1] if losses else self.newest
        return self.newest

    def check(self) -> None:
        """Refuse a state that a run must not resume from.

        Raises:
            MaskError: a pruned weight has moved.
            NonFiniteError: a parameter is NaN or infinite.

        """
        network = self.engine.network
        if self.mask is not None and not self.engine.compiled:  # in which there is nothing that could move
            self.mask.check(network)
        weights = {name: weight.detach() for name, weight in network.named_parameters()}
        if (name := not_finite(weights)) is not None:
            raise self.non_finite(name, "not finite", self.batch)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Record the metrics of this epoch and turn to the next."""
        self.rows.append(row)
        if self.folder is not None and rank() == 0:
            self.folder.append(row)
        self.scheduler.step()
        self.epoch, self.batch, self.tally, self.epoch_seconds = self.epoch + 1, 0, Tally(), 0.0

    def save(self) -> None:
        """Write the checkpoint."""
        if self.folder is None:
            return
        cuda_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        (rng, cuda_rng), *others = everyone((torch.get_rng_state(), cuda_rng))
        state = {
            "settings": self.settings,
            "data": self.data,
            "engine": self.engine.choice,
            "model": self.engine.network.state_dict(),
            "optimizer": _optimizer_state(self.engine, self.optimizer, self.moving is not None),
            "scheduler": self.scheduler.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "tally": self.tally.sums(),
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "cost": self.ledger.record(),
            "rng": rng,
            "cuda_rng": cuda_rng,
            "rng_of_others": others,
            "rng_beside_torch": everyone(beside_torch()),
            "attributes": self.attributes(),
            "attributes_lost": self._attributes.lost(self.engine.modules),
        }
        if self.moving is not None:
            state["update"] = self.moving.state()
        if (self.epoch, self.batch) == (self.keep_epoch, 0):  # first: a run that is killed here takes that epoch again
            on_first(partial(save, self.folder.path / KEPT, state))
        on_first(partial(save, self.folder.path, state))

    def restore(self) -> None:
        """Resume from the folder's checkpoint, if there is one; drop metrics that are newer.

        Raises:
            ValueError: the checkpoint was trained with other settings or on other data, is of another network, or
                metrics of earlier epochs are gone.

        """
        if self.folder is None:
            return
        state = load(self.folder.path)
        on_first(partial(self.folder.truncate_metrics, 0 if state is None else state["epoch"]))
        if state is None:
            return
        self.rows = self.folder.metrics()
        if names := changed(self.settings, state):
            raise ValueError(
                f"the checkpoint in {self.folder.path} has other settings ({', '.join(names)}); "
                "open another run folder, or delete the checkpoint to train from the beginning"
            )
        if (there := state.get("data", self.data)) != self.data:  # which earlier versions did not keep
            raise ValueError(
                f"the checkpoint in {self.folder.path} was trained on other data ({there}) than are here ({self.data}):"
                " put them back as they were, or open another run folder, as it may have seen what is now held out"
            )
        if len(self.rows) != state["epoch"]:
            raise ValueError(
                f"{self.folder.path / 'metrics.jsonl'} has {len(self.rows)} lines, the checkpoint needs "
                f"{state['epoch']}; delete the folder to run again"
            )
        try:
            self._take(state)
        except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path_in(self.folder.path)} does not fit this network and optimizer ({in_short(error)}); {REMEDY}"
            ) from error

    def _take(self, state: dict[str, Any]) -> None:
        if self.moving is not None:
            self.moving.load(state["update"])
        self.engine.network.load_state_dict(state["model"])
        dense = self.moving is not None or "rewound" in state
        _load_optimizer_state(self.engine, self.optimizer, state["optimizer"], dense)
        self.scheduler.load_state_dict(state["scheduler"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.tally = Tally(**state["tally"]) if rank() == 0 else Tally()  # the sums of all ranks so far
        self.ledger = Ledger.read(state.get("cost"))  # which earlier versions did not keep
        self.epoch_seconds, self.earlier_seconds = state["epoch_seconds"], state["seconds"]
        states = [(state["rng"], state["cuda_rng"]), *state.get("rng_of_others", [])]
        if rank() < len(states):  # else there are more ranks than before, and the new ones stay as they were seeded
            rng, cuda_rng = states[rank()]
            torch.set_rng_state(rng)
            if cuda_rng is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(cuda_rng, self.device)
        if rank() < len(beside := state.get("rng_beside_torch", [])):  # which earlier versions did not keep
            set_beside_torch(beside[rank()])
        set_attributes(self.engine.modules, state.get("attributes", {}))
        if (lost := state.get("attributes_lost")) and rank() == 0:
            warnings.warn(
                f"the network writes to {', '.join(map(str, lost))}, which a checkpoint does not hold and which begins"
                " anew here: keep what the network needs of it in numbers, text or buffers",
                stacklevel=2,
            )
