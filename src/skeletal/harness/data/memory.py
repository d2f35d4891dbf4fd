"""Data sets that fit in memory: the whole set as uint8, augmented a batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from skeletal.harness.data.augment import crop_and_flip, draw, normalize
from skeletal.harness.data.draws import batch_range, divide, generator, order
from skeletal.harness.data.errors import DataError
from skeletal.harness.data.specs import Spec
from skeletal.harness.data.splits import Batch, Data


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


@dataclass(frozen=True)
class MemorySplit:
    """The examples `members` of a part; parts are shared between splits, never copied."""

    part: Part
    members: Tensor  # (n,) int64
    spec: Spec

    def __len__(self) -> int:
        return len(self.members)

    @property
    def labels(self) -> Tensor:
        """Return the class of every example: int64, `(len(self),)`."""
        return self.part.labels[self.members]

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
        spec, part = self.split.spec, self.split.part
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        members = self.split.members[order(len(self.split), train=self.train, seed=self.seed, epoch=self.epoch)]
        for k in self.indices:
            chosen = members[k * self.batch_size : (k + 1) * self.batch_size]
            images = part.images[chosen]
            if self.train:
                random = generator("augment", self.seed, self.epoch, k)
                draws = draw(len(chosen), padding=spec.padding, flip=spec.flip, generator=random)
                images = crop_and_flip(images, draws, spec.padding)
            yield normalize(images, mean, std), part.labels[chosen]


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
