"""A run's mask that moves: the update after a step, and a compiled network planned again for the new mask."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.connectivity import reaches_output
from skeletal.core.masks.attach import Skeleton
from skeletal.core.masks.mask import Mask
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.state.snapshot import take_attributes
from skeletal.core.updates.gradual import Gradual
from skeletal.core.updates.rigl import RigL
from skeletal.core.updates.rule import Rule
from skeletal.core.updates.sparse_evolution import SET
from skeletal.core.updates.update import MaskUpdate
from skeletal.engine.optimizer_state import carry_over
from skeletal.harness.config import Training
from skeletal.harness.store.folders import MASK, STARTING_MASK
from skeletal.harness.training.checkpoint import RunState
from skeletal.harness.training.engines import plan_again
from skeletal.harness.training.task import Task


def rule_of(training: Training, epoch: int) -> Rule | None:
    """The rule by which a training's mask moves; None where it does not.

    Args:
        training: resolved.
        epoch: its number of steps.

    Raises:
        ValueError: a setting is missing or out of range.

    """
    if training.update == "none":
        return None
    settings: dict[str, Any] = {
        name: value
        for name in ("every", "fraction", "end", "density")
        if (value := getattr(training, f"update_{name}")) is not None
    }
    rules: dict[str, Callable[..., Rule]] = {"set": SET, "rigl": RigL, "gradual": Gradual}
    every_epoch = settings.get("every", 0 if training.update == "set" else None) == 0
    return rules[training.update](**settings | ({"every": epoch} if every_epoch else {}))


class Moving:
    """What moves the mask of a run.

    A compiled network has neither pruned weights nor gradients of them. So the step before an update that asks for
    those is taken by the dense network, masked; then the mask moves, and the network is compiled for the new one. The
    optimizer follows, weight by weight.

    Args:
        run: its optimizer holds the parameters of `model`, and from now on those of the run's network.
        model: the dense network, which the mask is attached to.
        skeleton: of the model.
        rule: when the mask moves, and where to.
        steps: of the whole training.
        seed: of random choices.
        example: gives a batch of inputs of the usual size.
        autocast: what the network runs under.

    """

    def __init__(
        self, run: RunState, model: nn.Module, skeleton: Skeleton, rule: Rule, *, steps: int, seed: int,
        example: Callable[[], Tensor], autocast: Callable[[], torch.autocast],
    ) -> None:  # fmt: skip
        self._run, self._model, self._rule = run, model, rule
        self._example, self._autocast = example, autocast
        self._update = MaskUpdate(skeleton, run.optimizer, rule, steps=steps, seed=seed)
        self._compiled = run.engine if run.engine.compiled else None
        if self._compiled is not None:
            kept = {"kept": self._update.mask.kept}
            run.engine = self._compiled = replace(self._compiled, choice=kept | self._compiled.choice)
            carry_over(run.optimizer, model, run.engine.network)

    @property
    def asks_for_gradients(self) -> bool:
        """Whether the coming step also takes gradients of pruned weights, for an update after it."""
        return self._update.due and self._rule.needs_gradients

    def before_step(self) -> bool:
        """Prepare the next step; return whether another form of the network takes it than the last one."""
        dense = self._compiled is not None and self.asks_for_gradients
        if dense:
            self._become_dense()
        return dense

    def after_step(self, share: float) -> bool:
        """Move the mask if it is time; return whether the network has taken another form.

        Args:
            share: see `MaskUpdate.step`.

        """
        run, due = self._run, self._update.due
        if due and self._compiled is not None and run.engine.network is not self._model:
            self._become_dense()
        if self._update.step(share=share):
            run.mask = self._mask()
        if due and self._compiled is not None:
            self._compile()
        return due and self._compiled is not None

    def _mask(self) -> Mask:
        found = self._update.mask
        found.metadata = {} if self._run.mask is None else dict(self._run.mask.metadata)
        return found

    def _become_dense(self) -> None:
        compiled = self._run.engine.network
        self._model.load_state_dict(compiled.state_dict())
        take_attributes(self._model, compiled.get_submodule("network"))
        self._model.train(compiled.training)
        carry_over(self._run.optimizer, compiled, self._model)
        self._run.turn_to(replace(self._run.engine, network=self._model))

    def _compile(self) -> None:
        run = self._run
        assert run.mask is not None and self._compiled is not None, "only a masked network is compiled"
        self._compiled = plan_again(self._compiled, self._model, run.mask, self._example, self._autocast)
        run.turn_to(self._compiled)
        carry_over(run.optimizer, self._model, run.engine.network)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self._update.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint, before its weights are loaded."""
        self._update.load_state_dict(state)
        self._run.mask = self._mask()


def mask_in(state: dict[str, Any] | None, start: Mask | None) -> Mask | None:
    """The mask that a checkpoint's network has; the starting one where there is none yet."""
    moved = None if state is None else state.get("update")
    return start if moved is None or start is None else Mask(moved["mask"], start.metadata)


def leave_mask(task: Task, mask: Mask) -> None:
    """Write the mask that a run ends with in place of the one it began with, which is set aside."""
    folder = task.folder
    assert folder is not None, "only a run on disk leaves a mask"
    example = task.example().to(task.device)
    with preserve_model(task.model, training=False, seed=0):
        connected, _ = reaches_output(task.model, dict(mask), (example, None))
    if not (folder.path / STARTING_MASK).exists() and (folder.path / MASK).exists():
        (folder.path / MASK).rename(folder.path / STARTING_MASK)
    method = mask.metadata.get("method", "mask").removesuffix(f"-{task.training.update}")
    made = {"method": f"{method}-{task.training.update}", "connected": connected}
    Mask(mask, mask.metadata | made).save(folder.path / MASK)
