"""Run a stranger's model on made-up inputs."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import map_tensors
from skeletal.core.model.preserve import differentiable, preserve_attributes

Value = TypeVar("Value")

# Two examples suffice for most models; some need the whole batch, some have constants in single precision.
ATTEMPTS: tuple[tuple[int | None, torch.dtype | None], ...] = ((2, torch.float64), (None, torch.float64), (None, None))


def first_that_runs(model: nn.Module, functions: Iterable[Callable[[], Value]]) -> Value:
    """The value of the first function that does not fail, with gradients enabled.

    What each leaves in the model's attributes is removed, such as a state that would not fit other examples.
    """
    failed: Exception = RuntimeError("nothing was tried")
    for function in functions:
        try:
            with differentiable(), preserve_attributes(model):
                return function()
        except Exception as error:  # a stranger's model may raise anything; the last and plainest attempt is reported
            failed = error
    raise ValueError(f"{type(model).__name__} does not run on this example: {type(failed).__name__}: {failed}")


def shorten(batch: Any, examples: int | None) -> Any:
    """The first examples of a batch, along the first dimension of each tensor; None takes all.

    A batch with a sparse tensor stays whole: the tensor holds a graph's neighbours, or cannot be sliced.
    """
    layouts = set()
    map_tensors(lambda tensor: layouts.add(tensor.layout) or tensor, batch)
    if layouts - {torch.strided}:
        return batch
    return map_tensors(lambda tensor: tensor[:examples] if tensor.dim() else tensor, batch)


def outputs_of(outputs: Any) -> Iterator[Tensor]:
    """The floating-point tensors that a model returned, in any container, except a loss."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            if key != "loss":
                yield from outputs_of(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from outputs_of(value)
    elif dataclasses.is_dataclass(outputs):
        yield from outputs_of({field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)})
