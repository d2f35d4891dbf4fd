"""Inputs made for a network in place of its data, of the kind that it takes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skeletal.core.diagnosis.probing import shorten
from skeletal.core.diagnosis.structure import stored_values, with_values
from skeletal.core.model.batches import forward, map_inputs, to_device
from skeletal.core.model.preserve import device_of
from skeletal.core.pruning.criteria.norms import Unnormalized


def made_inputs(model: nn.Module, batch: object, make: Callable[[Tensor], Tensor], method: str) -> Any:
    """The batch on the model's device, each floating-point input replaced by what `make` makes of its values.

    Raises:
        ValueError: the network takes no floating-point input; names the method.

    """
    floats = []

    def made(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        floats.append(make(stored_values(tensor)))
        return with_values(tensor, floats[-1])

    inputs = map_inputs(made, to_device(batch, device_of(model)))
    if not floats:
        raise ValueError(f"{method} follows paths from floating-point inputs; this network takes none")
    return inputs


def one_of_ones(model: nn.Module, batch: object, method: str) -> Any:
    """A single example that is 1 everywhere, in doubles; see `made_inputs`."""
    return made_inputs(model, shorten(batch, 1), lambda values: torch.ones_like(values, dtype=torch.float64), method)


def tensor_from(model: nn.Module, inputs: object, method: str) -> Tensor:
    """What the model returns.

    Raises:
        ValueError: it returns something else than a tensor; names the method.

    """
    outputs = forward(model, inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{method} needs a model that returns a tensor, not {type(outputs).__name__}")
    return outputs


class _InDoubles(TorchFunctionMode):
    """Where code names a floating-point type, as `x.float()` or `torch.ones(3, dtype=torch.half)`, it gets doubles."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            func, args = Tensor.double, args[:1]
        return func(*map(_double, args), **{name: _double(value) for name, value in (kwargs or {}).items()})


_CASTS = Tensor.float, Tensor.half, Tensor.bfloat16


def _double(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


@contextmanager
def along_paths(method: str) -> Generator[None]:
    """What runs inside takes sums over paths, forwards and backwards: in doubles, also where it names another type.

    Norms only scale (see `Unnormalized`).

    Raises:
        ValueError: the network has numbers of another type all the same, as in a plain attribute; names the method.

    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Unnormalized(), _InDoubles():
            yield
    except RuntimeError as error:
        if "type" not in str(error):
            raise
        raise ValueError(
            f"{method} runs the network in double precision, where it fails: {error}."
            " Let its forward take numbers from buffers, or make them of its input's type"
        ) from error
    finally:
        torch.set_default_dtype(before)


def check_dependent(outputs: Tensor, method: str) -> None:
    """Make sure that gradients can be taken.

    Raises:
        ValueError: the outputs have none; names the method.

    """
    if not outputs.requires_grad:
        raise ValueError(
            f"{method}: the outputs do not depend on the prunable weights: computed under no_grad, or detached?"
        )
