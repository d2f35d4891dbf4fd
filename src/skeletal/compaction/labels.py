"""Which channels of which tensors belong together: those with one label are kept or removed together."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from skeletal.compaction.rules.classify import Known
from skeletal.compaction.rules.rule import Product

Vectors = dict[fx.Node, Tensor]


@dataclass(frozen=True)
class Labels:
    """A label, int64, for each channel of each tensor of a graph."""

    count: int
    """labels are below this; not all of them are in use"""
    of: Vectors
    """by the node that makes the tensor"""
    entered: dict[fx.Node, list[Tensor]]
    """of the inputs of each rule"""
    whole: Tensor
    """labels that have to stay: those of inputs, outputs and operations that need all channels"""


def label_channels(known: Known, *, whole_groups: bool = False) -> Labels:
    """Find the channels that belong together.

    Args:
        known: what is known of the graph.
        whole_groups: the channels of a group of a grouped convolution belong together, too.

    """
    labels: Vectors = {}
    equal: list[tuple[Tensor, Tensor]] = []
    entered: dict[fx.Node, list[Tensor]] = {}
    count = 0

    def unused(size: int) -> Tensor:
        nonlocal count
        count += size
        return torch.arange(count - size, count, device="cpu")

    whole: list[Tensor] = []
    for node, rule in known.rules.items():
        inputs = []
        for source, size in zip(rule.inputs, input_sizes(known, node), strict=True):
            inputs.append(labels[source] if source in labels else unused(size))
            if source not in labels:
                whole.append(inputs[-1])
        new = unused(len(rule.pairs)) if isinstance(rule, Product) else torch.empty(0, device="cpu")
        labels[node] = rule.labels(new, *inputs)
        entered[node] = inputs
        equal += rule.equal(*inputs)
        if whole_groups and isinstance(rule, Product) and rule.groups > 1:
            sides = [side.view(rule.groups, -1) for side in (inputs[0], labels[node])]
            equal += [(side, sides[0][:, :1].expand_as(side)) for side in sides]
    whole += [labels[source] for node in known.holds for source in node.all_input_nodes if source in labels]

    merged = _merged(count, equal)
    return Labels(
        count,
        {node: merged[own] for node, own in labels.items()},
        {node: [merged[own] for own in inputs] for node, inputs in entered.items()},
        merged[torch.cat(whole)] if whole else torch.empty(0, dtype=torch.int64, device="cpu"),
    )


def input_sizes(known: Known, node: fx.Node) -> list[int]:
    """How many channels each input of a rule has."""
    rule = known.rules[node]
    if isinstance(rule, Product):
        return [rule.pairs.shape[1]]
    return [source.meta["shape"][known.axis.get(source, rule.axis)] for source in rule.inputs]


def _merged(count: int, equal: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The smallest of all labels that a label equals."""
    merged = torch.arange(count, device="cpu")
    while True:
        before = merged.clone()
        for one, two in equal:
            least = torch.minimum(merged[one], merged[two])
            for side in (one, two):
                merged.scatter_reduce_(0, side.flatten(), least.flatten(), "amin")
        merged = merged[merged]
        if torch.equal(before, merged):
            return merged
