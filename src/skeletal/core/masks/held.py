"""One weight whose pruned positions are held at exactly zero."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import unserializable_hook

from skeletal.core.model.shards import is_sharded, local, part_like


class Held:
    """One weight and its pruned positions. Weak, so that hooks keep no model alive."""

    def __init__(self, weight: nn.Parameter, keep: Tensor) -> None:
        self._all = ~keep
        self._hooks: list[Any] = []
        self._coming: tuple[Tensor, bool] | None = None
        self._added_to: tuple[Tensor, int] | None = None
        self.note(False)
        self.bind(weight)

    @property
    def keep(self) -> Tensor:
        """Which positions are kept."""
        return ~self._all

    def bind(self, weight: nn.Parameter) -> None:
        """Hold this parameter, in place of the one before."""
        self.let_go()
        self.weight = weakref.ref(weight)
        self._where = _as_read(self._all, weight)
        self.zero()

    def move(self, keep: Tensor, optimizers: Sequence[Optimizer]) -> None:
        """Hold other positions from now on; see `Skeleton.move`."""
        weight = self.weight()
        assert weight is not None, "the skeleton has looked"
        changed = _as_read(self._all ^ ~keep, weight)
        for optimizer in optimizers:
            _forget(optimizer, weight, changed)
        self._all = ~keep
        self._where = _as_read(self._all, weight)
        self.zero()
        self.zero_own_gradient(weight)

    def let_go(self) -> None:
        """Remove the gradient's hooks."""
        while self._hooks:
            self._hooks.pop().remove()

    def where(self, device: torch.device) -> Tensor:
        """The pruned positions of this process's part, on a device."""
        if self._where.device != device:
            self._where = self._where.to(device)
        return self._where

    def note(self, wanted: bool) -> None:
        """From now on, add up gradients in `noted`, before their pruned entries are zeroed; or stop."""
        self.noting, self._added_to = wanted, None
        self.noted: Tensor | None = None

    @unserializable_hook  # a copy in another process is not held, as `attach` tells: torch would say it of each weight
    def zero_gradient(self, gradient: Tensor | None) -> Tensor | None:
        """The gradient with its pruned entries zeroed; None where a second derivative is zero without being stored."""
        if gradient is None:
            return None
        if self.noting:
            dense = gradient.detach().to_dense() if gradient.layout == torch.sparse_coo else gradient.detach()
            self._coming = dense, self._thrown_away()  # known only before the gradient becomes part of `.grad`
        return _zeroed(gradient, self.where(gradient.device))

    def add_noted(self, weight: Tensor) -> None:
        """Note the gradient that has come, now that it is part of `.grad`; one that was only asked for never is."""
        if self.noting and self._coming is not None and weight.grad is not None:
            coming, anew = self._coming
            self.noted = coming if anew or self.noted is None else self.noted + coming
            self._coming, self._added_to = None, (weight.grad, weight.grad._version)

    def _thrown_away(self) -> bool:
        """Whether `.grad` has been zeroed since what is noted was added to it."""
        gradient = None if (weight := self.weight()) is None else weight.grad
        if gradient is None:
            return True
        if self._added_to is not None and gradient is self._added_to[0] and gradient._version == self._added_to[1]:
            return False  # all pruned, or without a gradient: zero, but not zeroed
        return not gradient.to_dense().any()

    def zero_own_gradient(self, weight: Tensor) -> None:
        """Zero the pruned entries of the weight's `.grad`."""
        if weight.grad is not None:
            if weight.grad.layout == torch.sparse_coo:
                weight.grad = _zeroed(weight.grad, self.where(weight.device))
            else:
                local(weight.grad).masked_fill_(self.where(weight.device), 0)

    @torch.no_grad()
    def zero(self) -> None:
        """Zero the pruned weights."""
        weight = self.weight()
        if weight is None:
            return
        # Filled, because multiplying by the mask would leave NaN and -0.
        local(weight).masked_fill_(self.where(weight.device), 0)
        self._watch(weight)

    def _watch(self, weight: nn.Parameter) -> None:
        """Have each of its gradients come by here first."""
        if self._hooks or weight.is_inference() or not (weight.is_floating_point() or weight.is_complex()):
            return
        frozen = not weight.requires_grad  # torch takes hooks of no such tensor, and keeps those of one that becomes it
        weight.requires_grad_(True)
        if is_sharded(weight):  # FSDP2 puts the gradient in its place, and calls no other hook
            self._hooks = [weight.register_post_accumulate_grad_hook(self.zero_own_gradient)]
        else:
            self._hooks = [
                weight.register_hook(self.zero_gradient),
                weight.register_post_accumulate_grad_hook(self.add_noted),
            ]
        weight.requires_grad_(not frozen)

    def warn_of_another_mask(self, loaded: Tensor) -> None:
        """Warn if loaded weights are not 0 where this mask is."""
        if lost := int((local(loaded).ne(0) & self.where(loaded.device)).sum()):
            warnings.warn(
                f"{lost:,} loaded weights of a layer {tuple(loaded.shape)} are pruned now, and set to 0: the mask moves"
                " while training, so load the state of its MaskUpdate before the model's",
                stacklevel=5,
            )

    def zero_stale_gradient(self) -> None:
        """Zero the pruned entries of a gradient from before."""
        if (weight := self.weight()) is not None:
            self.zero_own_gradient(weight)

    def zero_state(self, optimizer: Optimizer) -> None:
        """Forget what a used optimizer remembers of pruned weights: momentum, second moments, averages."""
        if (weight := self.weight()) is not None:
            _forget(optimizer, weight, self.where(local(weight).device))


_BEGINS = {"step_size": "lr", "sum": "initial_accumulator_value"}
"""what Rprop and Adagrad remember that does not begin at 0, and the optimizer's setting that it begins at"""


def begins(kind: str, settings: Mapping[str, Any]) -> float:
    """What an optimizer with these settings begins with, for each entry of a weight, where it remembers this."""
    return float(settings.get(_BEGINS.get(kind, ""), 0))


def has_history(optimizer: Optimizer) -> bool:
    """Whether an optimizer remembers former steps of all its parameters as one, as LBFGS does."""
    return hasattr(optimizer, "_params")


def _forget(optimizer: Optimizer, weight: Tensor, where: Tensor) -> None:
    """Set what an optimizer remembers of these positions to what it would begin with."""
    if isinstance(inner := getattr(optimizer, "optim", None), Optimizer):  # ZeroRedundancyOptimizer: of this rank
        return _forget(inner, weight, where)
    settings = next((group for group in optimizer.param_groups if any(p is weight for p in group["params"])), None)
    if settings is None:
        return None
    if has_history(optimizer) and where.any():  # flat vectors, which lead to where the weights are not any more
        optimizer.state.clear()
    for kind, value in optimizer.state.get(weight, {}).items():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            local(value).masked_fill_(where.to(value.device), begins(kind, settings))


def _as_read(where: Tensor, weight: Tensor) -> Tensor:
    """The part of a whole mask that lies in this process, in the weights' own memory order."""
    where = part_like(where, weight)
    if weight.dim() == 4 and local(weight).is_contiguous(memory_format=torch.channels_last):
        return where.contiguous(memory_format=torch.channels_last)
    return where


def _zeroed(gradient: Tensor, where: Tensor) -> Tensor:
    """A gradient with pruned entries zeroed; the sparse gradient of an embedding stays sparse."""
    if gradient.layout != torch.sparse_coo:
        # `masked_fill` would copy into another memory order than channels-last weights and gradients have.
        return torch.where(where, gradient.new_zeros(()), gradient)
    gradient = gradient.coalesce()
    rows = gradient.indices()
    values = gradient.values().masked_fill(where[tuple(rows)], 0)
    return torch.sparse_coo_tensor(
        rows, values, gradient.shape, device=values.device, is_coalesced=True, check_invariants=False
    )
