"""Does any path lead from the input to the output?"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.batches import forward, map_tensors, to_device
from skeletal.core.borrow import device_of, state_of
from skeletal.core.selection import Tensors

_STATISTICS = {"running_mean": 0.0, "running_var": 1.0}


@torch.no_grad()
def reaches_output(model: nn.Module, mask: Tensors, batch: Any) -> bool:
    """Whether the output of a masked network still depends on its input, judged by the mask alone.

    The network runs twice, in eval mode, on different random inputs. So that only the absence of a path can
    make the outputs equal, and no unlucky ReLU or zero weight, whatever cannot open or close a path is made
    harmless: kept weights become random and positive, divided by the largest sum that enters a unit (no
    overflow, however deep), biases 0, norm scales 1, batch-norm statistics 0 and 1, floating-point inputs
    positive. Integer inputs, such as tokens, are drawn anew from the batch's own values.

    Args:
        model: in any mode; the caller restores it (see `borrowed`).
        mask: bool, by parameter name.
        batch: any batch of the kind the model takes; only its shapes and integers are used.

    """
    generator = torch.Generator().manual_seed(0)
    parameters = {name for name, _ in model.named_parameters()}
    state = state_of(model)
    for name, value in state.items():
        leaf = name.rpartition(".")[2]
        if leaf in _STATISTICS:
            value.fill_(_STATISTICS[leaf])
        elif leaf.endswith("bias"):
            state[name] = torch.zeros_like(value)
        elif value.dim() == 1 and name in parameters:
            state[name] = torch.ones_like(value)
    for name, keep in mask.items():
        size = (0.5 + torch.rand(keep.shape, generator=generator)).to(keep.device) * keep
        largest = size.flatten(1).sum(1).max() if size.dim() > 1 else size.max()
        state[name] = (size / largest.clamp(min=1e-30)).to(state[name].dtype)

    model.eval()
    generator = torch.Generator().manual_seed(0)
    probes = [to_device(_redraw(batch, scale, generator), device_of(model)) for scale in (1.0, 2.0)]
    one, two = (list(_outputs(forward(model, state, probe))) for probe in probes)
    return any(_differ(a, b) for a, b in zip(one, two, strict=True))


def _redraw(batch: Any, scale: float, generator: torch.Generator) -> Any:
    """A batch of two examples like the given one, with other inputs; labels are kept, they enter no output."""

    def draw(tensor: Tensor) -> Tensor:
        shape = (min(2, tensor.shape[0]), *tensor.shape[1:]) if tensor.dim() else ()
        if tensor.is_floating_point():
            return scale * torch.rand(shape, generator=generator).to(tensor.dtype)
        if tensor.dtype == torch.bool or not tensor.numel():
            return tensor[:2] if tensor.dim() else tensor
        values = tensor.flatten().cpu()
        picks = torch.randint(len(values), shape, generator=generator)
        return values[picks]

    if isinstance(batch, Mapping):
        return {
            key: value if key == "attention_mask" else map_tensors(draw, value) for key, value in _two(batch).items()
        }
    return map_tensors(draw, batch[0]), _two(batch[1])


def _two(tree: Any) -> Any:
    return map_tensors(lambda tensor: tensor[:2] if tensor.dim() else tensor, tree)


def _outputs(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs.float()
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            if key != "loss":
                yield from _outputs(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from _outputs(value)


def _differ(one: Tensor, two: Tensor) -> bool:
    # Rounding can differ between two runs on equal hidden values; a path, however thin, changes far more,
    # since without biases the output scales with the input.
    size = max(one.abs().max().item(), two.abs().max().item()) if one.numel() else 0.0
    return size > 0 and (one - two).abs().max().item() > 1e-5 * size
