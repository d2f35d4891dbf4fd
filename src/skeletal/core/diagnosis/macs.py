"""Multiply-accumulates of the masked layers, with all their weights and with the kept ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from skeletal.core.diagnosis.probing import first_that_runs, shorten
from skeletal.core.model.batches import forward, map_tensors, to_device
from skeletal.core.model.preserve import device_of, state_of, with_parameters
from skeletal.core.model.weights import weights_and_biases


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates per example in the layers a mask covers: weights times the positions they are used at.

    Positions are those of a convolution's output (of a transposed one's input), or tokens; positions on
    padding also count. Norms, attention's own products and layers outside the mask do not count.
    """

    forward_dense: int
    forward_kept: int
    training_dense: int
    """forward, backward to the weights, and backward to the inputs where they depend on other parameters"""
    training_kept: int


def count_macs(model: nn.Module, mask: Mapping[str, Tensor], batch: Any) -> Macs:
    """Count what one forward pass really does, through hooks on the modules that own the masked weights.

    Args:
        model: in eval mode; the caller restores it (see `preserve_model`).
        mask: bool, by parameter name, fitting the model. Weights other than those of linear layers,
            convolutions and attention projections count nothing.
        batch: any batch of the kind the model takes. One example of it is run or, if the model refuses that, the whole
            batch: then examples are counted along the first dimension of its first tensor.

    Raises:
        ValueError: the model does not run on this batch.

    """
    return first_that_runs(model, [lambda n=n: _count(model, mask, shorten(batch, n)) for n in (1, None)])


def _count(model: nn.Module, mask: Mapping[str, Tensor], batch: Any) -> Macs:
    totals = [0, 0, 0, 0]

    def add(owned: dict[str, Tensor], module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for leaf, (positions, training) in _uses(module, [*args, *kwargs.values()], output).items():
            if (keep := owned.get(leaf)) is not None:
                for i, times in enumerate((positions, training)):
                    totals[2 * i] += int(times.sum()) * (keep.numel() // times.numel())
                    totals[2 * i + 1] += int((keep.sum_to_size(times.shape) * times).sum())

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad or name in mask}
    state = {
        name: value.requires_grad_(name in trained and value.is_floating_point())
        for name, value in state_of(model).items()
    }
    hooks = [
        module.register_forward_hook(partial(add, owned), with_kwargs=True)
        for module, owned in _owners(model, mask).items()
    ]
    try:
        with_parameters(model, state, lambda: forward(model, to_device(batch, device_of(model))))
    finally:
        for hook in hooks:
            hook.remove()
    examples = max(_examples(batch), 1)
    return Macs(*(round(total / examples) for total in totals))


def _owners(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[nn.Module, dict[str, Tensor]]:
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in mask}
    owners: dict[nn.Module, dict[str, Tensor]] = {}
    for module in model.modules():
        leaves: dict[str, Tensor | None] = {
            leaf: module._parameters.get(leaf) for leaf in weights_and_biases(module)[0]
        }
        if isinstance(module, nn.MultiheadAttention):  # which never calls its output projection
            leaves["out_proj.weight"] = module.out_proj.weight
        if owned := {leaf: mask[names[id(weight)]] for leaf, weight in leaves.items() if id(weight) in names}:
            owners[module] = owned
    return owners


def _uses(module: nn.Module, inputs: list[Any], output: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """How often each weight is used, forward and in training: tensors that broadcast to the weight's shape."""
    if isinstance(module, nn.MultiheadAttention):
        query, key, value = (_often(x.numel() // x.shape[-1], x) for x in inputs[:3])
        rows, trained = (
            torch.cat([times.repeat(module.embed_dim, 1) for times in kind])  # (3E, 1)
            for kind in zip(query, key, value, strict=True)
        )
        return {
            "in_proj_weight": (rows, trained),
            "q_proj_weight": query,
            "k_proj_weight": key,
            "v_proj_weight": value,
            "out_proj.weight": _often(int(query[0]), output[0]),
        }
    if isinstance(module, _ConvNd) and module.transposed:
        return {"weight": _often(inputs[0].numel() // module.in_channels, inputs[0])}
    channels = module.out_channels if isinstance(module, _ConvNd) else output.shape[-1]
    return {"weight": _often(output.numel() // channels, inputs[0])}


def _often(positions: int, read: Tensor) -> tuple[Tensor, Tensor]:
    """Once per position forward, two or three times in training; the first layer's input has no gradient."""
    return torch.tensor(positions), torch.tensor(positions * (2 + read.requires_grad))


def _examples(batch: Any) -> int:
    sizes: list[int] = []
    inputs = batch if isinstance(batch, Mapping) else batch[0]
    map_tensors(lambda tensor: sizes.append(len(tensor) if tensor.dim() else 1) or tensor, inputs)
    return sizes[0] if sizes else 1
