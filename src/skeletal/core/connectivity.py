"""Does any path lead from the input to the output?"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.batches import forward, map_inputs, map_tensors, to_device
from skeletal.core.borrow import device_of, state_of, within
from skeletal.core.selection import Tensors

_STATISTICS = {"running_mean": 0.0, "running_var": 1.0}


def reaches_output(model: nn.Module, mask: Tensors, batch: Any) -> tuple[bool | None, str]:
    """Whether the output of a masked network still depends on its input, judged by the mask alone.

    The network runs in eval mode, on random inputs. So that only the absence of a path can make its output
    independent of them, and no unlucky ReLU or zero weight, whatever cannot open or close a path is made
    harmless: weights become random and positive, divided by the largest sum that enters a unit (no overflow,
    however deep), biases 0, norm scales 1, batch-norm statistics 0 and 1, floating-point inputs positive. All
    in double precision, so that a signal may shrink by many orders of magnitude. Then the output depends on
    the input if a random projection of it has a non-zero gradient there, or if it changes with it; token
    inputs, which have no gradient, are exchanged for others among the batch's own.

    Args:
        model: in any mode; the caller restores it (see `borrowed`).
        mask: bool, by parameter name.
        batch: any batch of the kind the model takes; only its shapes and integers are used.

    Returns:
        The answer, None where the network cannot be probed, and then the reason.

    """
    reason = ""
    model.eval()
    # Two examples will do for most models; some need their batch whole, some have constants in single precision.
    for examples, dtype in ((2, torch.float64), (None, torch.float64), (None, None)):
        try:
            return _probe(model, _structure(model, mask, dtype), shorten(batch, examples), dtype)
        except Exception as error:  # whatever a stranger's model raises on made-up inputs says nothing of its mask
            reason = f"{type(error).__name__}: {error}"
    return None, reason


def _structure(model: nn.Module, mask: Tensors, dtype: torch.dtype | None) -> Tensors:
    """Stand-ins for all parameters and buffers that let a signal through wherever the mask does."""
    generator = torch.Generator().manual_seed(0)
    parameters = {name for name, _ in model.named_parameters()}
    state = state_of(model)
    for name, value in state.items():
        leaf = name.rpartition(".")[2]
        if not value.is_floating_point():
            continue
        if leaf in _STATISTICS:
            value.fill_(_STATISTICS[leaf])
        elif name in parameters:
            if leaf.endswith("bias"):
                value.zero_()
            elif name in mask or value.dim() > 1:
                value.copy_(_random_weights(mask.get(name, torch.ones_like(value)), generator))
            else:
                value.fill_(1)
        state[name] = value if dtype is None else value.to(dtype)
    return state


def _random_weights(keep: Tensor, generator: torch.Generator) -> Tensor:
    if not keep.numel():
        return keep
    size = (0.5 + torch.rand(keep.shape, generator=generator)).to(keep.device) * keep
    largest = size.flatten(1).sum(1).max() if size.dim() > 1 else size.max()
    return size / largest.clamp(min=1e-30)


def _probe(model: nn.Module, state: Tensors, batch: Any, dtype: torch.dtype | None) -> tuple[bool | None, str]:
    generator = torch.Generator().manual_seed(1)
    floats: list[Tensor] = []

    def run(inputs: Any) -> list[Tensor]:
        torch.manual_seed(0)  # a model that is random in eval mode, too, has to be random in the same way
        found = list(outputs_of(within(model, state, lambda: forward(model, inputs))))
        if any(not torch.isfinite(output).all() for output in found):
            raise OverflowError("the probing signal overflows")
        return found

    def draw(scale: float) -> Any:
        def positive(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            drawn = scale * torch.rand(tensor.shape, generator=generator)
            floats.append(drawn.to(tensor.device, dtype or tensor.dtype).requires_grad_())
            return floats[-1]

        return map_inputs(positive, batch)

    batch = to_device(batch, device_of(model))
    with torch.inference_mode(False), torch.enable_grad():
        one = run(draw(1.0))
        if not one:
            return None, "the model returns no floating-point tensor"
        if floats:
            projection = sum(
                (output * torch.rand(output.shape, generator=generator).to(output)).sum() for output in one
            )
            if isinstance(projection, Tensor) and projection.requires_grad:
                gradients = torch.autograd.grad(projection, floats, allow_unused=True)
                if any(gradient is not None and gradient.ne(0).any() for gradient in gradients):
                    return True, ""
            return any(map(_differ, one, run(draw(2.0)))), ""
        others = [map_inputs(lambda t: _exchange(t, generator), batch) for _ in range(3)]
        if all(_same(batch, other) for other in others):
            return None, "all the batch's inputs are the same"
        return any(any(map(_differ, one, run(other))) for other in others), ""


def _exchange(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dtype == torch.bool or not tensor.numel():
        return tensor
    values = tensor.flatten()
    picks = torch.randint(len(values), tensor.shape, generator=generator)
    return values[picks.to(values.device)]


def _same(one: Any, two: Any) -> bool:
    flat: list[list[Tensor]] = [[], []]
    for tree, found in zip((one, two), flat, strict=True):
        map_tensors(lambda tensor, found=found: found.append(tensor) or tensor, tree)
    return all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


def shorten(batch: Any, examples: int | None) -> Any:
    """The first examples of a batch, along the first dimension of each tensor; None takes all."""
    return map_tensors(lambda tensor: tensor[:examples] if tensor.dim() else tensor, batch)


def outputs_of(outputs: Any) -> Iterator[Tensor]:
    """The floating-point tensors a model returned, in whatever it returned them, except a loss."""
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


def _differ(one: Tensor, two: Tensor) -> bool:
    # Two runs on equal hidden values can differ by rounding; a path changes far more.
    size = max(one.abs().max().item(), two.abs().max().item()) if one.numel() else 0.0
    tolerance = 1e-10 if one.dtype == torch.float64 else 1e-5
    return size > 0 and (one - two).abs().max().item() > tolerance * size
