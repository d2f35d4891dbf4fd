"""Which channels of a network can go as a whole: what masks of the pattern "channels" choose among."""

from typing import Any

import torch
from torch import nn

from skeletal.compaction.labels import label_channels
from skeletal.compaction.rules.classify import classify
from skeletal.compaction.rules.rule import Product
from skeletal.compaction.tracing.trace import UntraceableError, state_tensors, trace
from skeletal.core.model.layout import layouts
from skeletal.core.model.state.snapshot import copied
from skeletal.core.patterns.channels import Coupling
from skeletal.core.patterns.names import CHANNELS


def couple(model: nn.Module, weights: dict[str, nn.Parameter], example: Any) -> Coupling:
    """Find which channels each weight writes and reads.

    A channel can go if all weights that write it are among `weights`, and if the rules of compaction know all
    operations that read it. Of a grouped convolution, whole groups go.

    Args:
        model: any module; not changed.
        weights: that the mask covers, by parameter name.
        example: a batch.

    Raises:
        ValueError: the network cannot be traced.

    """
    work = copied(model)
    names = {id(tensor): name for name, tensor in state_tensors(work).items() if name in weights}
    shapes = {name: layout.units(weights[name]).shape[:2] for name, layout in layouts(model, weights).items()}
    try:
        traced = trace(work, example)
    except UntraceableError as error:
        raise ValueError(
            f"the pattern {CHANNELS} needs a network that can be analysed ({error}): choose another pattern"
        ) from error
    known = classify(traced, {})
    labels = label_channels(known, whole_groups=True)
    layers = {node: rule for node, rule in known.rules.items() if isinstance(rule, Product)}
    names_of = {node: names.get(id(traced.get_submodule(rule.target).weight)) for node, rule in layers.items()}

    goes = torch.zeros(labels.count, dtype=torch.bool, device="cpu")
    for node in layers:
        goes[labels.of[node]] = True
    goes[labels.whole] = False
    for node in layers:
        if names_of[node] is None:
            goes[labels.of[node]] = False
    count = int(goes.sum())
    number = torch.where(goes, goes.cumsum(0) - 1, count)

    writes = {name: torch.full((outputs,), count, device="cpu") for name, (outputs, _) in shapes.items()}
    reads = {name: torch.full(shape, count, device="cpu") for name, shape in shapes.items()}
    for node, rule in layers.items():
        if (name := names_of[node]) is not None:
            outputs, inputs = shapes[name]
            writes[name] = number[labels.of[node]]
            group = number[labels.entered[node][0]].view(rule.groups, 1, inputs)
            reads[name] = group.expand(rule.groups, outputs // rule.groups, inputs).reshape(outputs, inputs)
    return Coupling(count, writes, reads, tuple(dict.fromkeys(reason for reason in known.holds.values() if reason)))
