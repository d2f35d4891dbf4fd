"""Use a caller's model, and leave it and the random state as they were found."""

from collections.abc import Callable, Container, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call

from skeletal.core.model.state.random_state import (
    RandomState,
    generators_elsewhere,
    is_generator,
    seed_all,
    state_setter,
)
from skeletal.core.model.state.reach import reachable
from skeletal.core.model.state.snapshot import Snapshot
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import refuse_lazy

Value = TypeVar("Value")


def generators_of(model: nn.Module) -> list[Any]:
    """What a model may draw from besides the global generators: torch's on its devices, and those that it holds."""
    return [*generators_elsewhere(model), *(found.value for found in reachable(model) if is_generator(found.value))]


class Draws:
    """The states of the global random generators and of some others, as they are now."""

    def __init__(self, generators: Iterable[Any]) -> None:
        self._global, self._others = RandomState(), [state_setter(generator) for generator in generators]

    def restore(self) -> None:
        """Put them back."""
        self._global.restore()
        for reset in self._others:
            reset()


@contextmanager
def preserve_random_state(model: nn.Module) -> Generator[None]:
    """Restore the global random states of torch, Python and numpy, of torch on the model's devices, and of generators
    that the model holds.
    """
    before = Draws(generators_of(model))
    try:
        yield
    finally:
        before.restore()


@contextmanager
def preserve_mode(model: nn.Module, *, training: bool) -> Generator[None]:
    """Train or eval mode; every module gets its own mode back, because parts of a network may have been frozen.

    Sets flags without calling `train()`: a model's own `train` may do more, such as merge adapters into weights. Below
    a module that has its own and is already in the mode, flags stay as that module has set them.
    """
    modes = [(module, module.training) for module in model.modules()]
    set_mode(model, training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def acts_on_mode(module: nn.Module) -> bool:
    """Whether a module's class has a `train` or `eval` of its own."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def set_mode(module: nn.Module, training: bool) -> None:
    """Set the flags of train or eval mode, as `preserve_mode` does, permanently."""
    if acts_on_mode(module) and module.training == training:
        return
    module.training = training
    for part in module.children():
        set_mode(part, training)


@contextmanager
def differentiable() -> Generator[None]:
    """Gradients, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def preserve_attributes(model: nn.Module, loss: object = None) -> Generator[None]:
    """Restore what is attached to a model besides parameters and buffers, even if only copies of it have run.

    Copies share what the model's hooks and functions write to: closures and tables outside of it. Also
    restored are the modules and tensors that a loss can reach, with the values of their parameters and buffers.

    Raises:
        ValueError: a lazy layer has no shape yet; once it has one, it cannot be restored.

    """
    refuse_lazy(model)
    before = Snapshot(model, loss)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def preserve_model(model: nn.Module, *, training: bool, seed: int, loss: object = None) -> Generator[None]:
    """Set train or eval mode and seed the model's global random generators; restore everything afterwards.

    Parameters and buffers need no restoring: scoring never lets the model use its own (see `with_parameters`). What a
    forward pass leaves in attributes, such as cached tables or activations, is removed again. Modules
    that a loss can reach are restored, but keep their mode.
    """
    with preserve_attributes(model, loss), preserve_random_state(model), preserve_mode(model, training=training):
        seed_all(seed, model)
        yield


@contextmanager
def preserve_values(model: nn.Module) -> Generator[None]:
    """Restore parameters and buffers, for forward passes that run on a model's own."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def state_of(model: nn.Module, without: Container[str] = ()) -> Tensors:
    """Copies of a model's parameters and buffers, detached, except of the parameters named in `without`.

    Copies, since a forward pass may write: batch norm to its statistics, an embedding with `max_norm` to its weight.
    A model on the meta device has only shapes: zeros on the CPU stand in for its values.
    """
    return {
        name: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().clone()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if name not in without
    }


class _Using(nn.Module):
    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function()


def with_parameters(model: nn.Module, state: Tensors, function: Callable[[], Value]) -> Value:
    """Call a function while `state` stands in place of the model's parameters and buffers.

    The function may also run a backward pass: activation checkpointing recomputes parts of the forward pass
    there, and has to find the same weights.

    Where a parameter requires a gradient, its stand-in does, too, though it may be asked for by nobody: reentrant
    activation checkpointing drops what lies behind a block none of whose inputs requires one.
    """
    registered = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    stand_ins = {id(tensor): state[name] for name, tensor in registered if name in state}
    if torch.is_grad_enabled():
        for parameter in model.parameters():
            stand_in = stand_ins.get(id(parameter))
            if parameter.requires_grad and stand_in is not None and not stand_in.requires_grad:
                stand_ins[id(parameter)] = stand_in.detach().requires_grad_()
    using = _Using(model, function)
    # Each place once, by one name: torch puts a stand-in back in place of the parameter where a module has two.
    places = {
        f"{path}.{leaf}": stand_ins[id(tensor)]
        for path, module in using.named_modules()
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None and id(tensor) in stand_ins
    }
    return functional_call(using, places, (), tie_weights=False)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter, where batches have to go; the CPU for the meta device."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
