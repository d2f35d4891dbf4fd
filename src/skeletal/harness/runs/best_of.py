"""The best of several masks, found on other batches each: the one with which the loss falls furthest in 50 steps."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from statistics import fmean

import torch
from torch import nn

from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import everyone
from skeletal.core.model.passes import Passes
from skeletal.core.model.preserve import device_of, preserve_model
from skeletal.core.progress import say, stage
from skeletal.engine.compile import compile
from skeletal.engine.host.availability import available
from skeletal.harness.data import Batch
from skeletal.harness.ledger import Cost, of_all_ranks
from skeletal.harness.meter import Meter
from skeletal.harness.stopwatch import Stopwatch

STEPS = 50
LAST = 10
"""steps at the end, whose mean loss is what counts"""
RATES = (0.1, 0.01, 0.001)
"""learning rates: the first with which any of the networks learns"""
LEARNED = 0.95
"""a loss below this share of where it began, and of what the best constant output has, is learned"""
SPARSE = 0.05
"""the highest density at which the sparse engine trains, on a CPU"""


def best_of(
    number: int,
    find: Callable[[int], Mask],
    model: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    meter: Meter,
) -> Mask:
    """Find several masks, and keep the one whose network has the lowest loss at the end of 50 steps of training.

    docs/before-training.md has what that tells. A mask without a path from input to output stays only where none has
    one. Validation and test images are not looked at. Each rank trains by itself on its own batches; the mean over
    ranks counts.

    Args:
        number: of masks.
        find: the k-th of them, each on other batches.
        model: at its initialization, on the device to train on; left as found.
        batches: training images, the same at every call.
        meter: counts the passes of training.

    Returns:
        The mask; under "best_of" in its metadata: `losses` of all (None where training diverged), at which learning
        `rate`, and which it is. Its cost is that of finding and comparing all.

    Warns:
        UserWarning: none of the networks learns at any of the rates, so that their losses tell nothing.

    Raises:
        ValueError: two masks are the same, as the method looks at no data.

    """
    masks = []
    for k in range(number):
        masks.append(find(k))
        if k == 1 and masks[0] == masks[1]:
            method = masks[0].metadata.get("method")
            raise ValueError(f"{method} finds the same mask on other batches: there is no best of {number}, ask for 1")
    stopwatch = Stopwatch(device_of(model))
    losses, rate = _compare(model, masks, batches, meter)
    best = min(range(number), key=lambda k: (masks[k].metadata.get("connected") is False, losses[k]))
    shown = ", ".join(f"{loss:.4g}" for loss in losses)
    say(f"mask {best + 1} of {number} stays: loss after {STEPS} steps of training {shown}")
    costs = [cost for mask in masks if (cost := Cost.read(mask.metadata.get("cost"))) is not None]
    whole = sum(costs, of_all_ranks(meter.cost + stopwatch.read()))
    chosen = masks[best]
    chosen.metadata["cost"] = whole.record()
    finite = [loss if math.isfinite(loss) else None for loss in losses]
    chosen.metadata["best_of"] = {"losses": finite, "rate": rate, "chosen": best}
    return chosen


def _compare(
    model: nn.Module, masks: list[Mask], batches: Callable[[], Iterable[Batch]], meter: Meter
) -> tuple[list[float], float]:
    of_rates: dict[float, list[float]] = {}
    seen: list[torch.Tensor] = []

    def noted() -> Iterator[Batch]:
        for inputs, targets in batches():
            seen.append(targets.cpu())
            yield inputs, targets

    for rate in RATES:
        found = []
        with stage("training the masks briefly", len(masks), unit="mask") as told:
            for mask in masks:
                meter.turn_to(mask)
                found.append(early_losses(model, mask, noted(), rate=rate, meter=meter))
                told.update(len(found))
        starts, ends = (_over_ranks([loss[at] for loss in found]) for at in (0, 1))
        of_rates[rate] = ends
        constant = fmean(everyone(_of_constant_output(torch.cat(seen))))
        if any(end < LEARNED * min(start, constant) for start, end in zip(starts, ends, strict=True)):
            return ends, rate
    warnings.warn(
        f"no network of the {len(masks)} masks learns within {STEPS} steps, at learning rates of"
        f" {', '.join(map(str, RATES))}: which one is best is chance",
        stacklevel=4,
    )
    rate = min(RATES, key=lambda rate: min(of_rates[rate]))
    return of_rates[rate], rate


def _over_ranks(losses: list[float]) -> list[float]:
    return [fmean(of_ranks) for of_ranks in zip(*everyone(losses), strict=True)]


def _of_constant_output(labels: torch.Tensor) -> float:
    """The cross-entropy of the best output that looks at no image: the entropy of the classes, in nats."""
    counts = torch.bincount(labels).double()
    return float(torch.special.entr(counts / counts.sum()).sum())


def early_losses(
    model: nn.Module,
    mask: Mask,
    batches: Iterable[Batch],
    *,
    rate: float,
    weight_decay: float = 0.0,
    meter: Meter | None = None,
) -> tuple[float, float]:
    """Losses of a skeleton's first 50 steps of SGD with momentum 0.9: before the first, and the mean of the last ten.

    The second is infinite where training diverges. The model is left as found.
    """
    device = device_of(model)
    stream = ((inputs.to(device), targets.to(device)) for inputs, targets in islice(batches, STEPS))
    first = next(stream)
    found = []
    with preserve_model(model, training=True, seed=0):
        network = _network(model, mask, first[0])
        optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay)
        for inputs, targets in chain([first], stream):
            loss = nn.functional.cross_entropy(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if meter is not None:
                meter.add(Passes("gradient", len(targets)))
            found.append(loss.item())
    end = fmean(found[-LAST:])
    return found[0], end if math.isfinite(end) else math.inf


def _network(model: nn.Module, mask: Mask, inputs: torch.Tensor) -> nn.Module:
    """A copy to train: by the sparse engine where few weights are left, on a CPU for which it has kernels."""
    if inputs.device.type == "cpu" and mask.density <= SPARSE and available("float32"):
        return compile(model, mask, inputs, path="sparse").train()
    network = copy.deepcopy(model)
    mask.attach(network)
    return network
