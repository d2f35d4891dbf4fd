"""How the network computes while it is scored: in float32 or under bfloat16 autocast, and in which memory order."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import map_tensors
from skeletal.core.model.preserve import device_of
from skeletal.core.model.tensors import widen

PRECISIONS = ("float32", "bfloat16")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or none at all, whatever the caller has switched on.

    Raises:
        ValueError: bfloat16 on a device that has no autocast.

    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    if precision == "bfloat16":
        raise ValueError(f"precision='bfloat16' needs autocast, which {device.type} lacks: use precision='float32'")
    return nullcontext()


def in_float32(outputs: Any) -> Any:
    """A model's outputs with every floating-point tensor in at least float32, in their own container."""

    def widened(tensor: Tensor) -> Tensor:
        return widen(tensor) if tensor.is_floating_point() else tensor

    if isinstance(outputs, MutableMapping):  # in place: Hugging Face's outputs are mappings with attributes, too
        for key in list(outputs):
            outputs[key] = map_tensors(widened, outputs[key])
        return outputs
    return map_tensors(widened, outputs)


def prefers_channels_last(model: nn.Module, precision: str) -> bool:
    """Whether channels-last is the faster memory order for images, as measured (docs/cost.md, docs/gpu.md).

    In bfloat16 it makes every convolution faster; in float32, on a CPU, it makes 1x1 convolutions faster and larger
    ones slower. On devices other than CPUs and NVIDIA's, and in other number formats, the caller's own order stays.
    """
    device = device_of(model).type
    if device not in ("cpu", "cuda"):
        return False
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # Not `module.weight`: where it is parametrized, as in spectral norm, reading it computes it, and writes to buffers.
    weights = [parameter for module in convolutions for parameter in module.parameters()]
    if not weights or any(weight.dtype != torch.float32 for weight in weights):
        return False
    pointwise = sum(set(module.kernel_size) == {1} for module in convolutions)
    return precision == "bfloat16" or (device == "cpu" and 2 * pointwise >= len(convolutions))


def autocast_as_inputs(
    arguments: tuple[Any, ...], options: Mapping[str, Any], parameters: Iterator[nn.Parameter]
) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 if inputs are of that type and weights are not; else leave autocast as it is."""
    found = []
    map_tensors(lambda tensor: found.append(tensor.dtype) or tensor, (arguments, dict(options)))
    if torch.bfloat16 in found:
        for parameter in parameters:
            if parameter.dtype == torch.float32:
                return torch.autocast(parameter.device.type, torch.bfloat16)
    return nullcontext()
