"""Loss, top-1 and top-5 of a network, weighted by examples."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.model.batches import cross_entropy
from skeletal.core.model.distributed import everyone
from skeletal.core.model.preserve import preserve_mode

AT_ONCE = 4
"""training batches that a GPU evaluates at once"""


@dataclass(frozen=True)
class Scores:
    """What a network scored on a set of examples."""

    loss: float
    """mean cross-entropy in nats; NaN when an output is"""
    top1: float
    """percent of examples whose class has the highest output"""
    top5: float
    """percent of examples whose class is among the five highest outputs, or among all when there are fewer"""
    examples: int


def class_ranks(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many classes are ahead of the right one, per example: (N, classes), (N,) -> (N,).

    Among equal outputs the lower class comes first, as in a stable sort: a collapsed network, whose outputs are
    all equal, scores as well as chance and not 100%. A NaN among an example's outputs puts its rank beyond any k.
    """
    own = outputs.gather(1, targets[:, None])
    classes = torch.arange(outputs.shape[1], device=outputs.device)
    ahead = (outputs > own) | ((outputs == own) & (classes < targets[:, None]))
    return ahead.sum(1).masked_fill(outputs.isnan().any(1), torch.iinfo(torch.int64).max)


def scored(loss: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """A batch's mean loss, and how many examples have their class first, and among the first five: float32 (3,)."""
    ranks = class_ranks(outputs.detach(), targets)
    return torch.stack([loss.detach().float(), (ranks < 1).sum().float(), (ranks < 5).sum().float()])


@dataclass
class Tally:
    """Running sums over batches. Results stay on their device until `materialize`, so that a GPU need not wait."""

    loss: float = 0.0
    top1: int = 0
    top5: int = 0
    examples: int = 0
    _pending: list[tuple[int, Tensor]] = field(default_factory=list, repr=False)

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count one batch; `loss` is its mean."""
        self.append(len(targets), scored(loss, outputs, targets))

    def append(self, examples: int, row: Tensor) -> None:
        """Count a batch by what `scored` gives; `row` is read when the tally is materialized, and not kept."""
        self._pending.append((examples, row))

    def newest(self) -> Tensor:
        """What `scored` gave for the batch that was counted last, if it has not been materialized yet."""
        return self._pending[-1][1].cpu()

    def materialize(self) -> list[float]:
        """Fetch what was added since the last call, and return the loss of each of those batches."""
        rows = torch.stack([row for _, row in self._pending]).tolist() if self._pending else []  # one wait for all
        for (examples, _), (loss, top1, top5) in zip(self._pending, rows, strict=True):
            self.loss += loss * examples
            self.top1 += int(top1)
            self.top5 += int(top5)
            self.examples += examples
        self._pending.clear()
        return [loss for loss, _, _ in rows]

    def sums(self) -> dict[str, Any]:
        """The sums so far, as the keyword arguments of a tally that continues from here."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "examples": self.examples}

    def gather(self) -> None:
        """Add up the sums of all ranks; every one of them then has the same."""
        self.materialize()
        rows = everyone(self.sums())
        self.loss, self.top1, self.top5, self.examples = (sum(row[name] for row in rows) for name in self.sums())

    def scores(self) -> Scores:
        """Means over all examples so far."""
        self.materialize()
        n = self.examples
        return Scores(loss=self.loss / n, top1=100 * self.top1 / n, top5=100 * self.top5 / n, examples=n)


def to_device(inputs: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """Move a batch to `device`; images, which have four dimensions, also into the memory order asked for."""
    images = channels_last and inputs.dim() == 4
    return inputs.to(device, non_blocking=True, memory_format=torch.channels_last if images else torch.preserve_format)


def batch_to_score(batch_size: int, device: torch.device) -> int:
    """How many examples a network scores at once that trains on `batch_size`.

    Without gradients there is memory for more images, and a GPU has fewer launches to wait for.
    """
    return batch_size * (AT_ONCE if device.type == "cuda" else 1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str,
    bf16: bool = False,
    channels_last: bool = False,
    shared: bool = False,
    split: str | None = None,
) -> Scores:
    """Score `model` on all `batches` in evaluation mode, without gradients.

    The model is moved to `device` and stays there; its parameters, buffers and modes are otherwise unchanged.
    With `shared` batches, of which each rank has its part, the sums of all ranks are added up.
    With `bf16` the forward pass runs under autocast and the loss in float32. A NaN output counts as wrong,
    and the loss is then NaN.

    Raises:
        ValueError: there is no example; says so of the `split` of the data, if it is named.

    """
    device = torch.device(device)
    model.to(device)
    tally = Tally()
    with preserve_mode(model, training=False):
        for inputs, targets in batches:
            if not len(targets):
                continue
            inputs, targets = to_device(inputs, device, channels_last), targets.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                outputs = model(inputs)
            outputs = outputs.float()
            tally.add(cross_entropy(outputs, targets), outputs, targets)
    if shared:
        tally.gather()
    tally.materialize()
    if tally.examples == 0 and split is not None:
        remedy = ", or train without: --validation 0" if split == "validation" else ""
        raise ValueError(f"none of the {split} images can be decoded: mend them{remedy}")
    if tally.examples == 0:
        raise ValueError("there is nothing to evaluate: the batches hold no example")
    return tally.scores()
