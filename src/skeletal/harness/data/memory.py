"""Data sets that fit in memory: the whole set as uint8, augmented a batch at a time, where the network is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from skeletal.harness.data.augment import Draws, crop_and_flip, draw, normalize
from skeletal.harness.data.draws import batch_range, divide, generator, order
from skeletal.harness.data.errors import DataError
from skeletal.harness.data.specs import Spec
from skeletal.harness.data.splits import WHOLE, Batch, Data, Share, digest_of

CPU = torch.device("cpu")


class Part(NamedTuple):
    """Images and labels as read from files."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64


class Arrays(NamedTuple):
    """What every reader of an in-memory layout returns."""

    train: Part
    test: Part
    classes: tuple[str, ...]


def checked(images: Tensor, labels: Tensor, spec: Spec, source: object) -> Part:
    """Return the part if `labels` and shapes fit `spec`, else raise a DataError that names `source`."""
    shape = (len(labels), spec.channels, spec.image_size, spec.image_size)
    if labels.ndim != 1 or tuple(images.shape) != shape:
        raise DataError(f"{source}: images of shape {tuple(images.shape)}, expected {shape} for {spec.name}")
    wrong = ((labels < 0) | (labels >= spec.num_classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        last = spec.num_classes - 1
        raise DataError(f"{source}: label {int(labels[at])} of example {at} is not in 0..{last} ({spec.name})")
    return Part(images, labels)


_moved: Any = WeakTensorKeyDictionary()
"""what of a tensor lies on which device: moved there once, however many parts, runs and splits use it"""


def _on(device: torch.device, part: Part) -> Part:
    return Part(*(_copy_on(device, tensor) for tensor in (part.images, part.labels)))


def _copy_on(device: torch.device, tensor: Tensor) -> Tensor:
    copies = _moved.setdefault(tensor, {})
    if device not in copies:
        copies[device] = tensor.to(device)
    return copies[device]


@dataclass(frozen=True)
class MemorySplit:
    """The examples `members` of a part; parts are shared between splits, never copied."""

    part: Part
    members: Tensor  # (n,) int64
    spec: Spec
    device: torch.device = CPU
    """where batches are made"""
    share: Share = WHOLE
    """which examples of each batch are made"""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def labels(self) -> Tensor:
        """Return the class of every example: int64, `(len(self),)`."""
        return self.part.labels[self.members]

    @property
    def digest(self) -> str:
        """Of the whole part, whatever is a member: of all labels and about 1,000 images."""
        images = self.part.images[:: max(1, len(self.part.images) // 1000)]
        return digest_of(self.part.labels.numpy().tobytes(), images.numpy().tobytes())

    @property
    def there(self) -> Part:
        """Return the part on the device where batches are made."""
        return self.part if self.device == CPU else _on(self.device, self.part)

    def batches(
        self,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        drop_last: bool = False,
    ) -> "MemoryBatches":
        """Return one pass, as `Split.batches` says."""
        indices = batch_range(len(self), batch_size, start=start, drop_last=drop_last)
        return MemoryBatches(self, batch_size, indices, train, seed, epoch)


@dataclass(frozen=True)
class MemoryBatches:
    """The batches `indices` of one pass."""

    split: MemorySplit
    batch_size: int
    indices: range
    train: bool
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        spec, device, share = self.split.spec, self.split.device, self.split.share
        part, levels = self.split.there, Levels.of(spec, device)
        shuffled = order(len(self.split), train=self.train, seed=self.seed, epoch=self.epoch)
        members = self.split.members[shuffled].to(device)
        for k in self.indices:
            batch = members[k * self.batch_size : (k + 1) * self.batch_size]
            draws = None
            if self.train:
                drawn = draws_of(spec, len(batch), self.seed, self.epoch, k)
                draws = Draws(*(_sent(share.of(d), device) for d in drawn))
            yield made(part, share.of(batch), draws, spec.padding, levels)


class Levels(NamedTuple):
    """What images are normalized by, on their device."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    @classmethod
    def of(cls, spec: Spec, device: torch.device) -> "Levels":
        """Those of a data set."""
        return cls(torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device))


def draws_of(spec: Spec, batch_size: int, seed: int, epoch: int, batch: int) -> Draws:
    """The augmentation of one training batch, drawn on the CPU even for a GPU, so that it is the same everywhere."""
    random = generator("augment", seed, epoch, batch)
    return draw(batch_size, padding=spec.padding, flip=spec.flip, generator=random)


def made(part: Part, members: Tensor, draws: Draws | None, padding: int, levels: Levels) -> Batch:
    """The batch of the examples `members`, cropped and flipped where there are draws, normalized; all on one device."""
    images = part.images[members]
    if draws is not None:
        images = crop_and_flip(images, draws, padding)
    return normalize(images, *levels), part.labels[members]


class EpochPlan(NamedTuple):
    """Every choice of a training epoch made at once: row k is batch k, and a short last row is padded with zeros."""

    members: Tensor  # (steps, batch_size) int64: numbers in the part
    draws: Draws  # each (steps, batch_size)


def plan_epoch(split: MemorySplit, batch_size: int, *, seed: int, epoch: int) -> EpochPlan:
    """What the batches of `split.batches(batch_size, train=True, seed=seed, epoch=epoch)` are made of; on the CPU."""
    sizes = [len(rows) for rows in torch.arange(len(split)).split(batch_size)]
    shape = len(sizes), batch_size
    plan = EpochPlan(
        torch.zeros(shape, dtype=torch.int64),
        Draws(*(torch.zeros(shape, dtype=kind) for kind in (torch.int64, torch.int64, torch.bool))),
    )
    shuffled = split.members[order(len(split), train=True, seed=seed, epoch=epoch)]
    plan.members.view(-1)[: len(split)] = shuffled
    for k, size in enumerate(sizes):
        drawn = draws_of(split.spec, size, seed, epoch, k)
        for row, values in zip(plan.draws, drawn, strict=True):
            row[k, :size] = values
    return plan


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    # From pinned memory: a copy from any other waits until the GPU has finished its work.
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def assemble(arrays: Arrays, spec: Spec, *, validation: float, seed: int) -> Data:
    """Return the data set with `validation` of the training part held out."""
    kept, held_out = divide(len(arrays.train.labels), validation, seed)
    return Data(
        name=spec.name,
        num_classes=spec.num_classes,
        channels=spec.channels,
        image_size=spec.image_size,
        classes=arrays.classes,
        train=MemorySplit(arrays.train, kept, spec),
        validation=MemorySplit(arrays.train, held_out, spec),
        test=MemorySplit(arrays.test, torch.arange(len(arrays.test.labels)), spec),
    )
