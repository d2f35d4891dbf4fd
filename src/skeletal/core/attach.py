"""Hold pruned weights at exactly zero, under any optimizer."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from skeletal.core.errors import MaskError
from skeletal.core.selection import Tensors


class Skeleton:
    """A model with its mask attached; `detach` lets go of the model and leaves the zeros where they are.

    Three hooks keep the promise, and `state_dict` keys stay the user's own. The gradient of a pruned weight
    is 0, so clipping, gradient norms and new optimizer state never see it. After every step of any optimizer
    that holds one of the weights they are set to 0 again, which a momentum from before the pruning would
    undo. And they are set to 0 again after `load_state_dict`. PyTorch copies no hooks with `copy.deepcopy`:
    attach the mask to the copy, too.
    """

    def __init__(self, mask: Tensors, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        self._mask = mask
        self._gradient_hooks: list[Any] = []
        self._bind(model)
        for pruned in self._pruned:
            pruned.zero_stale_gradient()
            if optimizer is not None:
                pruned.zero_state(optimizer)
        # The hook of all optimizers also covers those made later, and those inside a wrapper.
        self._other_hooks: list[Any] = [
            register_optimizer_step_post_hook(self._after_step),
            model.register_load_state_dict_post_hook(lambda loaded, _: self._after_load(loaded)),
        ]

    def _bind(self, model: nn.Module) -> None:
        parameters = matching_parameters(self._mask, model)
        for hook in self._gradient_hooks:
            hook.remove()
        self._pruned = [_Pruned(parameters[name], keep) for name, keep in self._mask.items()]
        self._ids = {id(weight) for weight in parameters.values()}
        self._gradient_hooks = [
            weight.register_hook(pruned.zero_gradient)
            for weight, pruned in zip(parameters.values(), self._pruned, strict=True)
            if weight.requires_grad
        ]
        self._zero()

    def detach(self) -> None:
        """Remove every hook. Pruned weights stay zero until something moves them."""
        for hook in [*self._gradient_hooks, *self._other_hooks]:
            hook.remove()
        self._gradient_hooks, self._other_hooks = [], []

    def __enter__(self) -> "Skeleton":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _zero(self) -> None:
        for pruned in self._pruned:
            pruned.zero()

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if any(id(weight) in self._ids for group in optimizer.param_groups for weight in group["params"]):
            self._zero()

    def _after_load(self, model: nn.Module) -> None:
        if {id(weight) for weight in matching_parameters(self._mask, model).values()} != self._ids:
            self._bind(model)  # load_state_dict(assign=True) has put new parameters in place of ours
        else:
            self._zero()


class _Pruned:
    """The pruned positions of one weight; holds the weight weakly, so that hooks keep no model alive."""

    def __init__(self, weight: nn.Parameter, keep: Tensor) -> None:
        self.weight = weakref.ref(weight)
        self._where = ~keep.to(weight.device)

    def where(self, device: torch.device) -> Tensor:
        if self._where.device != device:
            self._where = self._where.to(device)
        return self._where

    def zero_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.where(gradient.device), 0)

    @torch.no_grad()
    def zero(self) -> None:
        # Filling, where multiplying with the mask would leave NaN and -0.
        if (weight := self.weight()) is not None:
            weight.masked_fill_(self.where(weight.device), 0)

    def zero_stale_gradient(self) -> None:
        if (weight := self.weight()) is not None and weight.grad is not None:
            weight.grad.masked_fill_(self.where(weight.device), 0)

    def zero_state(self, optimizer: Optimizer) -> None:
        """Forget what a used optimizer remembers of pruned weights: momentum, second moments, averages."""
        weight = self.weight()
        if weight is None or weight not in optimizer.state:
            return
        for value in optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(self.where(value.device), 0)


def matching_parameters(mask: Tensors, model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters of a mask's names.

    Raises:
        MaskError: a name the model does not have, or another shape.

    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, keep in mask.items():
        if name not in parameters:
            raise MaskError(
                f"the mask has a layer {name!r} that {type(model).__name__} does not have:"
                f" it belongs to another model (this one has {', '.join(list(parameters)[:4])}, ...)"
            )
        if parameters[name].shape != keep.shape:
            raise MaskError(
                f"{name} is {tuple(parameters[name].shape)} in {type(model).__name__} but {tuple(keep.shape)}"
                " in the mask: it belongs to another model"
            )
    return {name: parameters[name] for name in mask}


def check(mask: Tensors, model: nn.Module) -> None:
    """See `Mask.check`."""
    for name, weight in matching_parameters(mask, model).items():
        moved = weight.detach().ne(0) & ~mask[name].to(weight.device)  # NaN counts as moved
        if moved.any():
            first = tuple(moved.nonzero()[0].tolist())
            raise MaskError(
                f"{name}: {int(moved.sum())} of {int((~mask[name]).sum())} pruned weights are not zero,"
                f" the first at {first} = {weight[first].item():g}; attach the mask before training, and to every copy"
            )
