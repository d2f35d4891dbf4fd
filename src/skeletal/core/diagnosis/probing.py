"""Run a stranger's model on made-up inputs."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import map_tensors
from skeletal.core.model.cudnn import trying_all
from skeletal.core.model.preserve import differentiable, preserve_attributes

Value = TypeVar("Value")

# Two examples suffice for most models; some need the whole batch, some have constants in single precision.
ATTEMPTS: tuple[tuple[int | None, torch.dtype | None], ...] = ((2, torch.float64), (None, torch.float64), (None, None))
_MANY = 2**13  # numbers in a batch: two images of CIFAR, hundreds of rows of a table


def first_that_runs(model: nn.Module, functions: Iterable[Callable[[], Value]]) -> Value:
    """The value of the first function that does not fail, with gradients enabled.

    What each leaves in the model's attributes is removed, such as a state that would not fit other examples.
    """
    failed: Exception = RuntimeError("nothing was tried")
    for function in functions:
        try:
            with differentiable(), preserve_attributes(model), trying_all(False):
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


def many_of(batch: Any) -> Any:
    """The whole batch, or the first examples of a large one, at least two."""
    sizes = []
    map_tensors(lambda tensor: sizes.append((len(tensor), tensor.numel())) or tensor if tensor.dim() else tensor, batch)
    lengths, numbers = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    return shorten(batch, max(2, max(lengths) * _MANY // max(sum(numbers), 1)))


def outputs_of(outputs: Any, *, losses: bool = False) -> Iterator[Tensor]:
    """The floating-point tensors that a model returned, in any container.

    Args:
        outputs: what it returned.
        losses: also what a dict has under "loss"; otherwise only if there is nothing else.

    """
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        named = [value for key, value in outputs.items() if losses or key != "loss"]
        found = [tensor for value in named for tensor in outputs_of(value, losses=losses)]
        yield from found or outputs_of(outputs.get("loss"))
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from outputs_of(value, losses=losses)
    elif dataclasses.is_dataclass(outputs):
        fields = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
        yield from outputs_of(fields, losses=losses)


def differ(one: Tensor, two: Tensor) -> bool:
    """Whether two outputs differ by more than rounding, which two runs on equal hidden values may differ by."""
    size = max(one.abs().max().item(), two.abs().max().item()) if one.numel() else 0.0
    tolerance = 1e-10 if one.dtype == torch.float64 else 1e-5
    return size > 0 and (one - two).abs().max().item() > tolerance * size
