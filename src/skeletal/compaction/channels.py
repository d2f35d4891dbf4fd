"""Which channels of which tensors can go."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from skeletal.compaction.labels import Vectors, input_sizes, label_channels
from skeletal.compaction.padding import fill_up, layer_widths, must_not_be_zero
from skeletal.compaction.rules.classify import Known, classify
from skeletal.compaction.rules.rule import LIVE, ZERO, Norm, Product


@dataclass(frozen=True)
class Channels:
    """What was found; each vector has one entry per channel that the node had."""

    known: Known
    keep: Vectors
    """bool; a node that is not here keeps all"""
    padding: Vectors
    """bool; channels of zeros, kept only to pad a width"""
    state: Vectors
    """ZERO, CONSTANT or LIVE"""
    read: Vectors
    """bool; whether the channel changes the output or gets a gradient"""
    relied_on: dict[str, Tensor]
    """by parameter or buffer name: entries that had to be zero for a channel to count as zero"""


def find_channels(module: fx.GraphModule, mask: Mapping[int, Tensor], multiple_of: int = 1) -> Channels:
    """Find the channels that have an effect, or may get one in training, and those tied to them.

    A channel can go if nothing reads it, or if it is zero and stays zero. Zero means that its kept weights read only
    zeros and that everything added to it is zero. A bias that is zero now stays zero only as long as no gradient
    reaches it, for example because an activation such as ReLU stops gradients where its input is exactly 0. Which
    activations do so depends on what is zero: so first assume that all zeros stay, find those that gradients then
    reach, give them up, and repeat until there are none. By induction over training steps, the others stay zero under
    any optimizer whose step is 0 where gradient, value and its own memory are 0.

    Args:
        module: traced, with shapes (see `skeletal.compaction.tracing.trace.trace`).
        mask: bool, by the id of the parameter.
        multiple_of: layer widths are padded with zeros to a multiple of this (see `skeletal.compaction.padding`).

    """
    known = classify(module, mask)
    layers = [(node, rule) for node, rule in known.rules.items() if isinstance(rule, Product | Norm)]
    while True:
        state = _states(known)
        read = _read(module, known, state)
        if not sum(rule.added.demote(read[node]) for node, rule in layers):
            break
    needed = {node: read[node] & (state[node] != ZERO) for node in known.rules}
    keep, padding = _closed(module, known, needed, multiple_of)
    relied_on: dict[str, Tensor] = {}
    for node, rule in layers:
        zero = state[node] == ZERO
        relied_on[rule.added.name] = rule.added.relied_on & zero
        if isinstance(rule, Norm):
            mean = f"{rule.target}.running_mean"
            relied_on[mean] = rule.centred & rule.scaled & zero
    return Channels(known, keep, padding, state, read, relied_on)


def _inputs(known: Known, node: fx.Node, vectors: Vectors, otherwise: int) -> list[Tensor]:
    """A rule's inputs; those of whole tensors are filled."""
    return [
        vectors[source] if source in vectors else torch.full((size,), otherwise, dtype=torch.uint8, device="cpu")
        for source, size in zip(known.rules[node].inputs, input_sizes(known, node), strict=True)
    ]


def _states(known: Known) -> Vectors:
    state: Vectors = {}
    for node, rule in known.rules.items():
        state[node] = rule.state(*_inputs(known, node, state, LIVE))
    return state


def _read(module: fx.GraphModule, known: Known, state: Vectors) -> Vectors:
    """Which channels change the output, or get a gradient."""
    read = {node: torch.zeros(len(vector), dtype=torch.bool, device="cpu") for node, vector in state.items()}
    for node in reversed(module.graph.nodes):
        if node in known.holds:
            for source in node.all_input_nodes:
                if source in read:
                    read[source].fill_(True)
        elif node in known.rules:
            rule = known.rules[node]
            for source, found in zip(
                rule.inputs, rule.reads(read[node], *_inputs(known, node, state, LIVE)), strict=True
            ):
                if source in read:
                    read[source] |= found
    return read


def _closed(module: fx.GraphModule, known: Known, needed: Vectors, multiple_of: int) -> tuple[Vectors, Vectors]:
    """The least that can be kept: channels that belong together, equal groups, no tensor without a channel.

    Returns:
        That, padded to multiples; and the channels that only serve as padding.

    """
    labels = label_channels(known)
    keep = torch.zeros(labels.count, dtype=torch.bool, device="cpu")
    keep[labels.whole] = True
    for node, need in needed.items():
        keep[labels.of[node][need]] = True

    grouped = [
        (rule, labels.entered[node][0], labels.of[node])
        for node, rule in known.rules.items()
        if isinstance(rule, Product) and rule.groups > 1
    ]

    def balance(keep: Tensor) -> None:
        while grouped:
            before = keep.clone()
            for rule, inputs, outputs in grouped:
                rule.balance(keep, inputs, outputs)
            if torch.equal(before, keep):
                return

    while True:
        before = keep.clone()
        for own in labels.of.values():
            if not keep[own].any():
                keep[own[0]] = True
        balance(keep)
        if torch.equal(before, keep):
            break

    def by_node(found: Tensor) -> Vectors:
        return {node: found[own] for node, own in labels.of.items()}

    unsafe = torch.zeros(labels.count, dtype=torch.bool, device="cpu")
    for node, rule in known.rules.items():
        if must_not_be_zero(module, node, rule):
            unsafe[labels.of[node]] = True
    filled = fill_up(keep, layer_widths(labels.of, known.rules), unsafe, multiple_of, balance)
    return by_node(filled), by_node(filled & ~keep)
