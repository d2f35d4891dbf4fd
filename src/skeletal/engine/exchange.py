"""Put layers over kept weights in place of torch's own, where that is sure to change nothing."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.tracing.agreement import CannotRunError, Reference
from skeletal.compaction.tracing.tracer import acts_as_its_class
from skeletal.core.model.state.snapshot import copied
from skeletal.engine.codegen.packed_bf16 import COMPUTES
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from skeletal.engine.ops.once import once_differentiable

_KINDS: dict[Any, Any] = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}


def exchange(module: nn.Module, masks: Mapping[str, Tensor], example: Any) -> tuple[list[str], str]:
    """Exchange what can be exchanged, in place.

    A graph calls its layers in ways that are known. Other code, of a network that could not be traced or of a part that
    was kept whole, may do anything with a layer: read its weight, ask for its class, write to it. There, and where the
    graph itself reads a layer's weight, perhaps to write to it, layers are exchanged only if the network gives the same
    results with them as before (see `Reference`).

    Returns:
        The names of the layers that were exchanged, and why others were not, or "".

    """
    unknown = _called_by_other_code(module)
    if not any(unknown(name) for name in _exchangeable(module, masks)):
        return make_sparse(module, masks), ""
    why = _why_not(module, masks, example)
    if why is None:
        return make_sparse(module, masks), ""
    what = "in parts kept whole, or read elsewhere, " if isinstance(module, fx.GraphModule) else ""
    note = f"layers {what}keep dense weights, held at 0: with others, {why}"
    return make_sparse(module, masks, but=unknown), note


def _called_by_other_code(module: nn.Module) -> Callable[[str], bool]:
    if not isinstance(module, fx.GraphModule):
        return lambda name: True
    called, read = (
        {str(node.target) for node in module.graph.nodes if node.op == op} for op in ("call_module", "get_attr")
    )
    return lambda name: name not in called or f"{name}.weight" in read  # which the graph may then write to


def _why_not(module: nn.Module, masks: Mapping[str, Tensor], example: Any) -> str | None:
    trial = copied(module)
    kept: dict[str, Tensor] = {}
    for name in make_sparse(trial, masks):  # others were compiled before, as parts of other networks
        layer: Any = trial.get_submodule(name)
        layer.path, kept[f"{name}.weight"] = "dense", layer.positions
        layer.register_forward_hook(_once)
    try:
        return Reference(module, example).difference(trial, kept)
    except CannotRunError as error:
        return str(error)


class _Once(torch.autograd.Function):
    """A copy, without a second derivative, as the kernels have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()  # not a view: those may not be written to

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor]:  # pyrefly: ignore [bad-override]
        return (gradient,)


def _once(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return _Once.apply(out)


def make_sparse(
    module: nn.Module, masks: Mapping[str, Tensor], but: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Replace the convolutions and linear layers that a mask covers, in place; the names of those replaced.

    It skips those whose weight or bias another module shares, those with hooks or parametrizations, and any that `but`
    names.
    """
    names = [name for name in _exchangeable(module, masks) if not but(name)]
    for name in names:
        path, _, leaf = name.rpartition(".")
        layer: Any = module.get_submodule(name)
        setattr(module.get_submodule(path), leaf, _KINDS[type(layer)](layer, masks[f"{name}.weight"]))
    return names


def _exchangeable(module: nn.Module, masks: Mapping[str, Tensor]) -> list[str]:
    uses = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
    return [
        name
        for name, layer in module.named_modules()
        if name
        and type(layer) in _KINDS
        and f"{name}.weight" in masks
        and _plain(layer)
        and all(uses[id(own)] == 1 for own in layer._parameters.values() if own is not None)
    ]


def _plain(layer: Any) -> bool:
    """Whether a layer is what its class says, without parametrizations, real-valued, and pads with equal zeros."""
    own = not acts_as_its_class(layer) or nn.utils.parametrize.is_parametrized(layer)
    if own or layer.weight.dtype not in COMPUTES:
        return False
    return not isinstance(layer, nn.Conv2d) or (
        layer.padding_mode == "zeros" and not (layer.padding == "same" and _uneven(layer))
    )


def _uneven(layer: Any) -> bool:
    return any(d * (k - 1) % 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
