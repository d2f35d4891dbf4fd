"""Multiply-accumulates of the masked layers, with all their weights and with the kept ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from skeletal.core.diagnosis.probing import first_that_runs, shorten
from skeletal.core.model.batches import forward, map_tensors, to_device
from skeletal.core.model.preserve import device_of, state_of, with_parameters
from skeletal.core.model.tensors import Tensors, counts
from skeletal.core.model.weights import stored, weights_and_biases


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


@dataclass(frozen=True)
class Uses:
    """How often some examples use each weight, by parameter name: integers that broadcast to the weight's shape."""

    forward: Tensors
    """as often as the gradient with respect to the weight does"""
    inputs: Tensors
    """by the gradient with respect to the layer's inputs: as often, or never if they depend on no other parameter"""
    sizes: dict[str, int]
    """how many weights there are"""
    examples: int

    def macs(self, mask: Mapping[str, Tensor] | None = None) -> Macs:
        """Multiply-accumulates per example; weights that the mask does not cover are kept."""
        forward, inputs = (self._total(uses, {}) for uses in (self.forward, self.inputs))
        kept: dict[str, Tensor | int] = {name: mask[name] for name in self.forward if name in mask} if mask else {}
        # Where all weights of a layer are used equally often, their number says it all.
        kept |= counts({name: mask[name] for name in kept if self.forward[name].numel() == 1} if mask else {})
        kept_forward, kept_inputs = (self._total(uses, kept) for uses in (self.forward, self.inputs))
        totals = forward, kept_forward, 2 * forward + inputs, 2 * kept_forward + kept_inputs
        return Macs(*(round(total / self.examples) for total in totals))

    def _total(self, uses: Tensors, kept: Mapping[str, Tensor | int]) -> int:
        return sum(_in_sum(times, self.sizes[name], kept.get(name)) for name, times in uses.items())


def _in_sum(times: Tensor, size: int, keep: Tensor | int | None) -> int:
    if keep is None:
        return int(times.sum()) * (size // max(times.numel(), 1))
    if isinstance(keep, int):
        return keep * int(times)
    return int((keep.cpu().sum_to_size(times.shape) * times).sum())


def count_macs(model: nn.Module, mask: Mapping[str, Tensor], batch: Any) -> Macs:
    """Count what one forward pass really does; see `count_uses`, whose arguments these are."""
    return count_uses(model, mask, batch).macs(mask)


def count_uses(model: nn.Module, weights: Mapping[str, Tensor], batch: Any) -> Uses:
    """Count how often one forward pass uses each weight: in the module that owns it, or by a function of torch's.

    Functions are those that layers call, such as `F.linear(x, layer.weight)` in a module's own forward pass.

    Args:
        model: in eval mode; the caller restores it (see `preserve_model`).
        weights: by parameter name, or a mask, fitting the model. Weights other than those of linear layers,
            convolutions and attention projections count nothing.
        batch: any batch of the kind the model takes. One example of it is run or, if the model refuses that, the whole
            batch: then examples are counted along the first dimension of its first tensor.

    Raises:
        ValueError: the model does not run on this batch.

    """
    return first_that_runs(model, [lambda n=n: _count(model, weights, shorten(batch, n)) for n in (1, None)])


def _count(model: nn.Module, weights: Mapping[str, Tensor], batch: Any) -> Uses:
    forwards: Tensors = {}
    inputs: Tensors = {}
    inside: list[nn.Module] = []
    """the modules with weights whose forward pass is going on: what they call is counted with them"""

    def add(name: str, positions: Tensor, training: Tensor) -> None:
        for uses, times in ((forwards, positions), (inputs, training - 2 * positions)):
            uses[name] = uses[name] + times if name in uses else times

    def of_module(owned: dict[str, str], module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for leaf, times in _uses(module, [*args, *kwargs.values()], output).items():
            if (name := owned.get(leaf)) is not None:
                add(name, *times)

    def leave(*_: Any) -> None:
        inside.pop()

    def of_function(name: str, times: tuple[Tensor, Tensor]) -> None:
        if not inside:
            add(name, *times)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad or name in weights}
    state = {
        name: value.requires_grad_(name in trained and value.is_floating_point())
        for name, value in state_of(model).items()
    }
    names = _names(model, weights)
    hooks = []
    for module, owned in _owners(model, names).items():
        hooks.append(module.register_forward_pre_hook(lambda module, _: inside.append(module)))
        hooks.append(module.register_forward_hook(partial(of_module, owned), with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, always_call=True))  # also with an error, which may be caught
    stand_ins = {id(state[name]): names[id(p)] for name, p in model.named_parameters() if id(p) in names}
    try:
        with _Functions(stand_ins, of_function):
            with_parameters(model, state, lambda: forward(model, to_device(batch, device_of(model))))
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: weights[name].numel() for name in forwards}
    return Uses(forwards, inputs, sizes, max(_examples(batch), 1))


class _Functions(TorchFunctionMode):
    """Tells of every function of torch's that multiplies with one of the weights, given by their ids, with names."""

    def __init__(self, weights: Mapping[int, str], tell: Callable[[str, tuple[Tensor, Tensor]], None]) -> None:
        super().__init__()
        self._weights, self._tell = weights, tell

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _DIRECT | _TRANSPOSED:
            read, weight = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("input", "weight")))
            if (name := self._weights.get(id(weight))) is not None:
                by_channel = read if func in _TRANSPOSED else output  # of as many channels as the weight has rows
                self._tell(name, _often(by_channel.numel() // max(len(weight), 1), read))
        return output


_DIRECT = {F.linear, F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def _names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[int, str]:
    """The names that weights are asked for by, by the ids of the model's parameters."""
    return {id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in weights}


def _owners(model: nn.Module, names: Mapping[int, str]) -> dict[nn.Module, dict[str, str]]:
    """The modules that own the weights, with each weight's name in the module and in the model."""
    owners: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        leaves: dict[str, Tensor | None] = {leaf: stored(module, leaf) for leaf in weights_and_biases(module)[0]}
        if isinstance(module, nn.MultiheadAttention):  # which never calls its output projection
            leaves["out_proj.weight"] = module.out_proj.weight
        if owned := {leaf: names[id(weight)] for leaf, weight in leaves.items() if id(weight) in names}:
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
    return {"weight": _often(output.numel() // max(channels, 1), inputs[0])}


def _often(positions: int, read: Tensor) -> tuple[Tensor, Tensor]:
    """Once per position forward, two or three times in training; the first layer's input has no gradient."""
    return torch.tensor(positions, device="cpu"), torch.tensor(positions * (2 + read.requires_grad), device="cpu")


def _examples(batch: Any) -> int:
    sizes: list[int] = []
    inputs = batch if isinstance(batch, Mapping) else batch[0]
    map_tensors(lambda tensor: sizes.append(len(tensor) if tensor.dim() else 1) or tensor, inputs)
    return sizes[0] if sizes else 1
