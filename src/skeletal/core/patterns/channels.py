"""Whole channels: what is left is a narrower network, dense in every layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.choices import at_least
from skeletal.core.model.tensors import Tensors
from skeletal.core.patterns.names import CHANNELS
from skeletal.core.patterns.pattern import Choose, Chosen, Pattern


@dataclass(frozen=True)
class Coupling:
    """Which channel each weight writes and reads. Channels that are added to each other are one channel.

    `count` stands for everything that cannot go: inputs and outputs of the network, and what lies around operations
    that need all channels.
    """

    count: int
    """of channels that can go; they are numbered from 0"""
    writes: Tensors
    """(outputs,) of each weight, int64"""
    reads: Tensors
    """(outputs, inputs) of each weight, int64"""
    held: tuple[str, ...] = ()
    """why other channels cannot go"""


Couple = Callable[[nn.Module, dict[str, nn.Parameter], Any], Coupling]
"""`(model, weights, example)` -> which channels they write and read"""


@dataclass(frozen=True)
class Channels(Pattern):
    """Keep whole channels, those with the highest mean score of the weights that write or read them.

    A channel that goes takes with it all weights that write it and all that read it, so the mask that is left is that
    of a narrower dense network, and the weights kept are all of that network's. The best n channels are kept, n as
    large as the count allows; before all others the best one of each layer, without which there would be no path. Ties
    go to the first channel.

    The mean of all weights that go with a channel, as for groups within a layer: what is kept for the price of a
    weight. By the sum over those that write it, layers that read few inputs lose nearly all of their channels, the
    first one before all others; the mean over those alone trains worse, too (docs/decisions.md has the numbers).
    """

    couple: Couple

    def on(self, model: nn.Module, weights: dict[str, nn.Parameter], example: Any) -> Choose:
        """See `Pattern`."""
        if example is None:
            raise ValueError(f"the pattern {CHANNELS} needs a batch, to see which layers are connected: pass batches")
        coupling = self.couple(model, weights, example)
        return lambda scores, available, count: _choose(coupling, scores, available, count)


def _choose(coupling: Coupling, scores: Tensors, available: Tensors, count: int) -> Chosen:
    channels = coupling.count
    sums, weights = torch.zeros(2, channels + 1, dtype=torch.float64, device="cpu")
    scored = torch.zeros(channels + 1, dtype=torch.bool, device="cpu")
    for name, keep in available.items():
        score, reads = (scores[name] * keep).sum(2), coupling.reads[name]
        writes = coupling.writes[name][:, None].expand_as(reads)
        size, any_score = keep.sum(2).double(), (scores[name] * keep).any(2)
        for side in (writes, torch.where(reads == writes, channels, reads)):  # a weight counts once
            sums += side.flatten().bincount(score.flatten(), minlength=channels + 1)
            weights += side.flatten().bincount(size.flatten(), minlength=channels + 1)
            scored[side[any_score]] = True
    scored[channels] = True  # nothing is chosen there
    values = (sums / weights).masked_fill(~scored, torch.finfo(sums.dtype).min).masked_fill(weights == 0, -torch.inf)
    first = _best_of_each_layer(coupling, values) | (torch.arange(channels + 1, device="cpu") == channels)
    order = values.masked_fill(first, torch.inf).argsort(descending=True, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(channels + 1, device="cpu"))

    # A weight is kept from the moment on when both its channels are.
    enters = {
        name: torch.maximum(place[coupling.writes[name]][:, None], place[coupling.reads[name]]) for name in scores
    }
    sizes = torch.zeros(channels + 1, dtype=torch.int64, device="cpu")
    for name, keep in available.items():
        sizes += enters[name].flatten().bincount(keep.sum(2).flatten().double(), minlength=channels + 1).long()
    kept = int((sizes.cumsum(0) <= count).sum())
    if kept < int(first.sum()):
        least = int(sizes[: int(first.sum())].sum())
        total = sum(keep.numel() for keep in available.values())
        held = f" (in whole: {'; '.join(coupling.held[:3])})" if coupling.held else ""
        raise ValueError(
            f"{count:,} weights are to be kept; one channel of each layer, and all that cannot go, take {least:,}"
            f"{held}: density has to be at least {at_least(least / total)}"
        )
    keep = {name: (at < kept)[:, :, None] & available[name] for name, at in enters.items()}
    return Chosen(keep, int(sizes[:kept][~scored[order[:kept]]].sum()))


def _best_of_each_layer(coupling: Coupling, values: Tensor) -> Tensor:
    """One channel of each layer whose channels can all go, bool by channel."""
    best = torch.zeros(coupling.count + 1, dtype=torch.bool, device="cpu")
    for writes in coupling.writes.values():
        if bool((writes < coupling.count).all()):
            best[writes[values[writes].argmax()]] = True
    return best
