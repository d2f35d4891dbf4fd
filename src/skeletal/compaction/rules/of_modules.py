"""The rule of a module: a table from its type to what finds the rule."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.rules import reshaping
from skeletal.compaction.rules.operations import (
    ACTIVATIONS,
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    PASSES,
    POOLS,
    RESIZES,
)
from skeletal.compaction.rules.pointwise import at_zero
from skeletal.compaction.rules.rule import Added, Map, Norm, Product, Rule
from skeletal.compaction.tracing.tracer import drops_paths


@dataclass(frozen=True)
class Call:
    """A module called on one tensor."""

    node: fx.Node
    module: Any
    source: fx.Node
    axes: Mapping[fx.Node, int]
    """where tensors that follow rules have their channels"""
    mask: Mapping[int, Tensor]
    """bool, by the id of the parameter"""

    @property
    def axis(self) -> int | None:
        """The axis of the channels in its input."""
        return self.axes.get(self.source)

    @property
    def dims(self) -> int:
        """The number of dimensions of its input."""
        return len(self.source.meta["shape"])

    @property
    def target(self) -> str:
        """Its name."""
        return str(self.node.target)


def of_module(call: Call) -> Rule | None:
    """The rule of a call; None if none is known."""
    handler = MODULES.get(type(call.module))
    if handler is None:
        handler = _passed if drops_paths(call.module) else None
    if handler is None or (call.axis is None and handler is not _product):  # only a product begins channels
        return None
    return handler(call)


def _product(call: Call) -> Product | None:
    module, dims, linear = call.module, call.dims, isinstance(call.module, nn.Linear)
    axis = dims - 1 if linear else 1
    if dims < 2 or call.axes.get(call.source, axis) != axis or not (linear or dims == len(module.kernel_size) + 2):
        return None
    groups, transposed = (1, False) if linear else (module.groups, module.transposed)
    keep = call.mask.get(id(module.weight))
    keep = torch.ones(module.weight.shape, dtype=torch.bool, device="cpu") if keep is None else keep.cpu()
    pairs = keep.flatten(2).any(2) if keep.dim() > 2 else keep
    blocks = pairs.unflatten(0, (groups, -1))  # per group (outputs, inputs), or the other way round
    if transposed:
        blocks = blocks.transpose(1, 2)
    bias = module.bias
    added = Added(f"{call.target}.bias", bias, call.mask.get(id(bias)), groups * blocks.shape[1])
    return Product((call.source,), axis, call.target, torch.block_diag(*blocks).bool(), added, groups, transposed)


def _batch_norm(call: Call) -> Norm | None:
    return _norm(call) if call.axis == 1 else None


def _instance_norm(call: Call) -> Norm | None:
    return _norm(call) if call.axis == 1 and call.dims == INSTANCE_NORMS[type(call.module)] else None


def _norm(call: Call) -> Norm:
    module = call.module
    channels = module.num_features
    scaled = call.mask.get(id(module.weight)) if module.affine else None
    mean = module.running_mean
    everywhere = torch.ones(channels, dtype=torch.bool, device="cpu")
    bias = module.bias if module.affine else None
    return Norm(
        (call.source,),
        1,
        call.target,
        everywhere if scaled is None else scaled.cpu(),
        everywhere if mean is None else mean.detach().eq(0).cpu(),
        Added(f"{call.target}.bias", bias, call.mask.get(id(bias)), channels),
    )


def _slopes(call: Call) -> Map | None:
    """A parameter for each channel (PReLU)."""
    return Map((call.source,), 1, target=call.target) if call.axis == 1 else None


def _activation(call: Call) -> Map:
    asked = copy.deepcopy(call.module)
    asked.training = False
    return Map((call.source,), call.axis or 0, *at_zero(asked))


def _passed(call: Call) -> Map:
    return Map((call.source,), call.axis or 0)


def _pooled(call: Call) -> Map | None:
    return _resized(call) if call.dims == int(type(call.module).__name__[-2]) + 2 else None


def _resized(call: Call) -> Map | None:
    return Map((call.source,), 1) if call.axis == 1 else None


def _flattened(call: Call) -> Rule | None:
    return reshaping.flattened(call.node, call.axes)


MODULES: dict[Any, Callable[[Call], Rule | None]] = {
    **dict.fromkeys(CONVOLUTIONS, _product),
    nn.Linear: _product,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(INSTANCE_NORMS, _instance_norm),
    nn.PReLU: _slopes,
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(PASSES, _passed),
    **dict.fromkeys(POOLS, _pooled),
    **dict.fromkeys(RESIZES, _resized),
    nn.Flatten: _flattened,
}
