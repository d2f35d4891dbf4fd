"""Node-path balance: masks with many paths through many nodes, layer by layer. Without data, and without weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skeletal.core.diagnosis.probing import shorten
from skeletal.core.model.passes import Passes, passed
from skeletal.core.model.preserve import set_mode, with_parameters
from skeletal.core.model.tensors import Tensors
from skeletal.core.pruning.criteria.flow import counting_state
from skeletal.core.pruning.criteria.inputs import along_paths, made_inputs, tensor_from
from skeletal.core.pruning.criteria.layers import Forward, layers_replaced

NODES, KERNELS = 0.01, 1.0
"""α and β of the paper"""
DOWN = 2.0**-500  # scale of the inputs: of the double's range, most is needed above for the number of paths


def balanced_masks(
    model: nn.Module, weights: Tensors, batch: object, quotas: dict[str, int], generator: torch.Generator
) -> Tensors:
    """Each layer's mask of `quotas[name]` weights that maximizes α f_n + (1-α) f_p + β R, in the order they run.

    f_p is the number of paths that leave the layer, f_n that of its input and output channels on a path, and R minus
    that of its empty 2D kernels (NPB, Pham et al. 2023, "Towards Data-Agnostic Pruning At Initialization: What Makes a
    Good Sparse Mask?"); each is relative to its largest value. A path is counted as often as positions of a map let it
    through, and pooling passes on what it passes on. The paper solves an integer program; see `best_counts`.

    Args:
        model: its mode is set to eval; the caller restores it.
        weights: only names and shapes are used.
        batch: shapes of one example's inputs are used.
        quotas: weights to keep in each layer.
        generator: on the CPU; chooses among masks that are equally good.

    Returns:
        1 where a weight is kept, else 0; layers that did not run keep weights at random.

    Raises:
        ValueError: a weight belongs to neither a linear layer nor a convolution, no input is a floating-point number,
            or the model returns no tensor.

    """
    set_mode(model, False)
    masks: Tensors = {}

    def counting(layer: Any, name: str) -> Forward:
        def forward(x: Tensor) -> Tensor:
            linear = isinstance(layer, nn.Linear)
            if name not in masks:
                channels = x.dim() - 1 if linear else x.dim() - len(layer.kernel_size) - 1
                arriving = x.movedim(channels, 0).flatten(1).sum(1) if x.dim() > 1 else x
                groups = 1 if linear else layer.groups
                masks[name] = _mask(arriving.cpu(), weights[name].shape, groups, quotas[name], generator)
            kept = masks[name].to(x)
            return F.linear(x, kept) if linear else layer._conv_forward(x, kept, None)

        return forward

    inputs = made_inputs(model, shorten(batch, 1), lambda x: torch.full_like(x, DOWN, dtype=torch.float64), "npb")
    state = counting_state(model, weights)
    with layers_replaced(model, weights, counting, "npb"), torch.no_grad(), along_paths("npb"):
        with_parameters(model, state, lambda: tensor_from(model, inputs, "npb"))
    passed(Passes("forward", 1, fresh=False))
    for name, weight in weights.items():
        if name not in masks:
            masks[name] = torch.zeros(weight.numel(), dtype=torch.bool, device="cpu")
            masks[name][torch.randperm(weight.numel(), generator=generator, device="cpu")[: quotas[name]]] = True
    return {name: masks[name].view(weight.shape).double() for name, weight in weights.items()}


def best_counts(paths: Tensor, outputs: int, cells: int, groups: int, budget: int) -> Tensor:
    """How many weights each input channel keeps, so that the layer's objective is at its maximum.

    A weight more of a channel adds (1-α) times its paths; β as long as it may go into an empty kernel, which is best
    (all outputs of the channel come before a second weight of a kernel); α if it is the channel's first; and α again
    if its output had none, which can be had for as many weights as there are outputs, whichever channels they are of.
    So what a channel's next weight adds only falls, and taking what adds most, weight by weight, is the maximum.

    Args:
        paths: (inputs,), that reach each input channel. One that none reaches comes last.
        outputs: number of output channels.
        cells: of a kernel, 1 for a linear layer.
        groups: of a convolution.
        budget: weights to keep, at most as many as there are.

    Returns:
        (inputs,), integers that add up to the budget.

    """
    inputs, each = len(paths), outputs // groups
    live = (paths > 0).double()
    path = (1 - NODES) * paths / _most_paths(paths, each * cells, budget)
    kernel, node = KERNELS / max(budget, 1) * live, NODES / (inputs + outputs) * live
    numbers = torch.arange(inputs, device="cpu").view(groups, -1)
    rows = torch.cat([numbers, numbers], 1)  # of each group: first weights of channels, then the next ones
    gains = torch.cat([(path + kernel + node).view(groups, -1), (path + kernel).view(groups, -1)], 1)
    sizes = torch.cat([torch.ones_like(numbers), torch.full_like(numbers, each - 1)], 1)
    order = gains.argsort(dim=1, descending=True, stable=True)
    rows, gains, sizes = (tensor.gather(1, order) for tensor in (rows, gains, sizes))
    before = sizes.cumsum(1) - sizes
    new_outputs = (each - before).clamp(min=0).minimum(sizes) * live[rows].long()  # those with outputs that had none
    gains = torch.cat([(gains + node[rows]).flatten(), gains.flatten(), path])
    sizes = torch.cat(
        [
            new_outputs.flatten(),
            (sizes - new_outputs).flatten(),
            torch.full((inputs,), each * (cells - 1), device="cpu"),
        ]
    )
    rows = torch.cat([rows.flatten(), rows.flatten(), torch.arange(inputs, device="cpu")])
    order = gains.argsort(descending=True, stable=True)
    rows, sizes = rows[order], sizes[order]
    taken = (budget - (sizes.cumsum(0) - sizes)).clamp(min=0).minimum(sizes)
    return torch.zeros(inputs, dtype=torch.long, device="cpu").scatter_add_(0, rows, taken)


def _most_paths(paths: Tensor, each: int, budget: int) -> Tensor:
    """The most paths that a budget lets on, with at most `each` weights of a channel."""
    ranked = paths.sort(descending=True).values
    filled = (budget - each * torch.arange(len(ranked), device="cpu")).clamp(0, each)
    return (ranked * filled).sum().clamp(min=torch.finfo(torch.float64).tiny)


def spread(counts: Tensor, paths: Tensor, outputs: int, groups: int, generator: torch.Generator) -> Tensor:
    """Weights of each kernel, (groups, inputs of a group, outputs of a group): evenly over outputs, in random order."""
    each = outputs // groups
    order = paths.view(groups, -1).argsort(dim=1, descending=True, stable=True)
    ordered = counts.view(groups, -1).gather(1, order)
    start = ordered.cumsum(1) - ordered  # channels go round the outputs, one where the last one has stopped
    place = (torch.arange(each, device="cpu") - start[..., None]) % each
    even = ordered[..., None] // each + (place < ordered[..., None] % each)
    turned = torch.stack([part[:, torch.randperm(each, generator=generator, device="cpu")] for part in even])
    return torch.empty_like(turned).scatter_(1, order[..., None].expand_as(turned), turned)


def _mask(paths: Tensor, shape: torch.Size, groups: int, budget: int, generator: torch.Generator) -> Tensor:
    cells = shape[2:].numel()
    counts = best_counts(paths, shape[0], cells, groups, budget)
    kernels = spread(counts, paths, shape[0], groups, generator).transpose(1, 2).reshape(shape[0], shape[1], 1)
    drawn = torch.rand(shape[0], shape[1], cells, dtype=torch.float32, generator=generator, device="cpu")
    ranks = drawn.argsort(dim=2).argsort(dim=2)
    return (ranks < kernels).view(shape)
