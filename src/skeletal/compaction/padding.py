"""Channels of zeros that fill widths up to a multiple, for hardware that multiplies in tiles, as GPUs do."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from skeletal.compaction.rules.rule import Norm, Product, Rule

_DIVIDES = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}


def fill_up(
    keep: Tensor,
    widths: Mapping[fx.Node, Tensor],
    unsafe: Tensor,
    multiple_of: int,
    balance: Callable[[Tensor], None],
) -> Tensor:
    """Keep more channels until the width of every layer is a multiple, or what it was.

    What is added has no effect, or it would be kept already. It becomes a channel of zeros (see
    `skeletal.compaction.slices`): made by weights that are 0, so finite, and read by weights that are 0, so without a
    gradient. Both hold after any step of an optimizer that leaves a parameter of value and gradient 0 alone.

    Args:
        keep: bool by label (see `Rule`); not changed.
        widths: the labels of what each layer makes.
        unsafe: bool by label: channels that must not be zeros.
        multiple_of: of all widths.
        balance: keeps what makes groups alike, in place.

    """
    keep = keep.clone()
    while True:
        before = int(keep.sum())
        for labels in widths.values():
            while int(keep[labels].sum()) % multiple_of:
                free = labels[~keep[labels] & ~unsafe[labels]]
                if not len(free):
                    break
                keep[free[0]] = True
                balance(keep)
        if int(keep.sum()) == before:
            return keep


def must_not_be_zero(module: fx.GraphModule, node: fx.Node, rule: Rule) -> bool:
    """Whether zeros would become infinite, or no number, in an operation: even times 0 that is no number."""
    if isinstance(rule, Norm):
        layer: Any = module.get_submodule(rule.target)
        return layer.eps == 0
    return node.target in _DIVIDES and node.args[0] is not rule.inputs[0]


def layer_widths(labels: Mapping[fx.Node, Tensor], rules: Mapping[fx.Node, Rule]) -> dict[fx.Node, Tensor]:
    """The labels of what convolutions and linear layers make."""
    return {node: labels[node] for node, rule in rules.items() if isinstance(rule, Product)}
