"""Channels of zeros that pad widths to a multiple, for hardware that multiplies in tiles, as GPUs do."""

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
    """Keep more channels until the width of every layer is a multiple, or its original width.

    An added channel has no effect, or it would have been kept already. It becomes a channel of zeros (see
    `skeletal.compaction.slices`): the weights that make it are 0, so it is finite; the weights that read it are 0, so
    it gets no gradient. Both hold after any step of an optimizer that leaves a parameter alone if its value and
    gradient are 0.

    Args:
        keep: bool by label (see `Rule`); not changed.
        widths: the labels of what each layer makes.
        unsafe: bool by label: channels that must not be zeros.
        multiple_of: of all widths.
        balance: keeps more channels, in place, until groups are equal.

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
    """Whether an operation would turn zeros into infinity or NaN: times 0, either gives NaN."""
    if isinstance(rule, Norm):
        layer: Any = module.get_submodule(rule.target)
        return layer.eps == 0
    return node.target in _DIVIDES and node.args[0] is not rule.inputs[0]


def layer_widths(labels: Mapping[fx.Node, Tensor], rules: Mapping[fx.Node, Rule]) -> dict[fx.Node, Tensor]:
    """The labels of what convolutions and linear layers make."""
    return {node: labels[node] for node, rule in rules.items() if isinstance(rule, Product)}
