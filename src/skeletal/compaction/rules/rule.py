"""What is known of one operation: which channels belong together, which are zero, which of its inputs are read."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

ZERO, CONSTANT, LIVE = 0, 1, 2  # states of a channel: stays 0; the same for every input; depends on the input


@dataclass(eq=False)
class Rule:
    """An operation that works channel by channel; the kinds below say where they differ.

    States are uint8 vectors with one entry per channel. Labels are int64 vectors: channels with the same label, in any
    tensors, are kept or removed together.
    """

    inputs: tuple[fx.Node, ...]
    axis: int
    """where the output has its channels"""

    def labels(self, new: Tensor, *inputs: Tensor) -> Tensor:
        """The output's labels, given those of the inputs and, for layers that make channels, unused ones."""
        return inputs[0]

    def equal(self, *inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of labels that have to become the same."""
        return []

    def state(self, *inputs: Tensor) -> Tensor:
        """The output's states, given those of the inputs."""
        return inputs[0]

    def reads(self, read: Tensor, *inputs: Tensor) -> list[Tensor]:
        """For each input, the channels that matter, by value or by gradient, to the output channels that are read.

        Args:
            read: bool, the output's channels.
            inputs: their states.

        """
        return [read]


class Added:
    """What a layer adds to its channels. A 0 stays 0 as long as no gradient reaches it: `demote` where one does."""

    def __init__(self, name: str, parameter: Tensor | None, keep: Tensor | None, channels: int) -> None:
        self.name = name
        self.state = torch.zeros(channels, dtype=torch.uint8, device="cpu")
        self._kept = torch.zeros(channels, dtype=torch.bool, device="cpu")
        if parameter is not None:
            self._kept = ~self._kept if keep is None else keep.cpu()
            self.state[self._kept & parameter.detach().ne(0).cpu()] = CONSTANT
        self._trained = parameter is not None and parameter.requires_grad

    def demote(self, read: Tensor) -> bool:
        """Turn zeros that a gradient trains into constants; return whether there were any."""
        moved = read & self._kept & (self.state == ZERO) if self._trained else torch.zeros_like(read)
        self.state[moved] = CONSTANT
        return bool(moved.any())

    @property
    def relied_on(self) -> Tensor:
        """Kept entries that count as zero because they are zero and stay zero."""
        return self._kept & (self.state == ZERO)


@dataclass(eq=False)
class Product(Rule):
    """A convolution or linear layer: its outputs are channels of their own."""

    target: str
    pairs: Tensor
    """(outputs, inputs): where any weight is kept"""
    added: Added
    groups: int
    transposed: bool

    def labels(self, new: Tensor, *inputs: Tensor) -> Tensor:
        """Unused ones."""
        return new

    def state(self, *inputs: Tensor) -> Tensor:
        """The highest state that a kept weight reads or the bias makes."""
        found = self.added.state.clone()
        for state in (CONSTANT, LIVE):
            found[(self.pairs & (inputs[0] == state)).any(1)] = state
        return torch.maximum(found, self.added.state)

    def reads(self, read: Tensor, *inputs: Tensor) -> list[Tensor]:
        """What kept weights read for those outputs."""
        return [self.pairs[read].any(0)]

    def balance(self, keep: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Keep more channels until all remaining groups are equal.

        The weight has one dimension across all groups, where each group has to keep the same number of channels, and
        one inside a group, where all groups have to keep the same channels.

        Args:
            keep: bool by label; changed.
            inputs: their labels.
            outputs: likewise.

        """
        across, inside = (inputs, outputs) if self.transposed else (outputs, inputs)
        across, inside = across.view(self.groups, -1), inside.view(self.groups, -1)
        alive = keep[across].any(1) | keep[inside].any(1)
        across, inside = across[alive], inside[alive]
        same = keep[inside].any(0)
        same[0] |= not same.any()
        keep[inside[:, same]] = True
        most = max(int(keep[across].sum(1).max()), 1)
        for group in across[keep[across].sum(1) < most]:
            while int(keep[group].sum()) < most:
                keep[group[~keep[group]][0]] = True


@dataclass(eq=False)
class Norm(Rule):
    """Batch or instance norm: what comes in as zero leaves as the bias."""

    target: str
    scaled: Tensor
    """where the scale is not pruned"""
    centred: Tensor
    """where the running mean is 0, so that 0 stays 0 in eval mode, too"""
    added: Added

    def state(self, *inputs: Tensor) -> Tensor:
        """The input's state; at least a constant where the norm's own mean or bias makes one."""
        moved = torch.where(self.centred, inputs[0], inputs[0].clamp(min=CONSTANT))
        return torch.maximum(torch.where(self.scaled, moved, ZERO), self.added.state)

    def reads(self, read: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Nothing where the scale is pruned."""
        return [read & self.scaled]


@dataclass(eq=False)
class Map(Rule):
    """A function of each channel by itself: activations, pools, averages over positions."""

    keeps_zero: bool = True
    """f(0) = 0"""
    stops_at_zero: bool = False
    """f(0) = 0 and f'(0) = 0: no gradient passes where the input is 0"""
    target: str | None = None
    """a module with one parameter per channel"""

    def state(self, *inputs: Tensor) -> Tensor:
        """At least a constant, unless f(0) = 0."""
        return inputs[0] if self.keeps_zero else inputs[0].clamp(min=CONSTANT)

    def reads(self, read: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Nothing where zeros stop the gradient."""
        return [read & (inputs[0] != ZERO) if self.stops_at_zero else read]


@dataclass(eq=False)
class Join(Rule):
    """A sum or a product of two tensors, channel by channel: both keep the channels that either needs."""

    multiplies: bool

    def equal(self, *inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Both inputs."""
        return [(inputs[0], inputs[1])]

    def state(self, *inputs: Tensor) -> Tensor:
        """The higher one; zero for a product with zero."""
        one, two = inputs
        both = torch.maximum(one, two)
        return torch.where((one == ZERO) | (two == ZERO), ZERO, both) if self.multiplies else both

    def reads(self, read: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Both, except where a channel is multiplied by zero."""
        one, two = inputs
        return [read & (two != ZERO), read & (one != ZERO)] if self.multiplies else [read, read]


@dataclass(eq=False)
class Gather(Rule):
    """Channels in another order or number: concatenated, flattened with their positions, cut into pieces."""

    index: Tensor
    """into the inputs' channels, one input after the other"""

    def labels(self, new: Tensor, *inputs: Tensor) -> Tensor:
        """Those of the same channels."""
        return torch.cat(inputs)[self.index]

    def state(self, *inputs: Tensor) -> Tensor:
        """Those of the same channels."""
        return torch.cat(inputs)[self.index]

    def reads(self, read: Tensor, *inputs: Tensor) -> list[Tensor]:
        """The same channels."""
        sizes = [len(vector) for vector in inputs]
        found = torch.zeros(sum(sizes), dtype=torch.bool, device="cpu")
        found[self.index[read]] = True
        return list(found.split(sizes))
