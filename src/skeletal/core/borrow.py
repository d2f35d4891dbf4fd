"""Use a caller's model, and leave it and the random state as they were found."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from skeletal.core.selection import Tensors


@contextmanager
def borrowed(model: nn.Module, *, training: bool, seed: int) -> Iterator[None]:
    """Set train or eval mode and seed every global random generator; restore all of it after.

    Parameters and buffers need no restoring: scoring never lets the model use its own (see `state_of`).
    """
    modes = {module: module.training for module in model.modules()}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        try:
            model.train(training)
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            random.setstate(python)
            if numpy:
                numpy.random.set_state(numpy_state)


def state_of(model: nn.Module) -> Tensors:
    """Stand-ins for a model's parameters and buffers: parameters detached (not copied), buffers cloned.

    A forward pass on them neither writes to the model, as batch norm's running statistics would, nor reaches
    the hooks of its parameters, nor computes gradients that no one asked for.
    """
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    return parameters | {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies, and its batches therefore have to go."""
    return next(model.parameters()).device


def widen(tensor: Tensor) -> Tensor:
    """At least float32: products of half-precision weights and gradients underflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
