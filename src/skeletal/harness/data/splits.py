"""What a data set looks like from outside: three splits, each a source of repeatable batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""images, float32 `(B, C, H, W)`, normalized; labels, int64 `(B,)`"""
Examples = TypeVar("Examples", Tensor, list)


@dataclass(frozen=True)
class Share:
    """A rank's part of every batch: example `rank`, and every `ranks`-th after it.

    Together the ranks' parts make up the batch, without overlap; their sizes differ by at most one, and parts of small
    last batches may be empty.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, batch: Examples) -> Examples:
        """The rank's examples of a batch."""
        return batch[self.rank :: self.ranks]  # type: ignore[bad-return]


WHOLE = Share()


def digest_of(*parts: bytes) -> str:
    """A short digest of parts that follow each other."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


class Batches(Protocol):
    """One pass over a split, or the rest of one. Iterating twice gives the same batches twice."""

    def __len__(self) -> int:
        """Return how many batches an iteration yields."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...


class Split(Protocol):
    """Examples with their labels."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """Return the class of every example: int64, `(len(self),)`."""
        ...

    def batches(
        self,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        drop_last: bool = False,
    ) -> Batches:
        """Return one pass: shuffled and augmented if `train`, else in order and as the images are.

        Order and augmentation depend on (seed, epoch, batch) and on nothing else, so `start=k` gives exactly
        the batches k, k + 1, ... of the uninterrupted pass. The last batch may be smaller unless `drop_last`.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A data set: training images are `(channels, image_size, image_size)`, labels are below `num_classes`.

    `validation` is cut from the training part and may be empty; `test` is its own, to be read at the end.
    """

    name: str
    num_classes: int
    channels: int
    image_size: int
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    @cached_property
    def fingerprint(self) -> str:
        """Tells other examples of the same name, and other splits of them, from these: a digest, and the sizes.

        The digest is of all labels and some pixels, or of all file names and some file sizes; of a split of your own it
        is of its labels. Whichever seed splits the examples, it stays.
        """
        digests = [getattr(part, "digest", None) or _digest_of_labels(part) for part in (self.train, self.test)]
        sizes = " + ".join(str(len(part)) for part in (self.train, self.validation, self.test))
        return f"{digest_of(*map(str.encode, digests))} ({sizes} examples)"

    def blank(self) -> Tensor:
        """An image of zeros, as a batch of one."""
        return torch.zeros(1, self.channels, self.image_size, self.image_size)


def _digest_of_labels(split: Split) -> str:
    return digest_of(split.labels.cpu().numpy().tobytes())


class Stream:
    """Training batches without end: epoch 0, 1, 2, ..., each shuffled and augmented anew, all batches full.

    A split smaller than `batch_size` comes as one whole batch per epoch. Of a split divided over ranks (see `Share`)
    each rank gets its part of every batch.

    Raises:
        ValueError: the split is empty, or a batch has fewer examples than there are ranks.

    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        if not len(split):
            raise ValueError("an empty split gives no batches")
        self.split = split
        self.batch_size = min(batch_size, len(split))
        self.seed = seed
        ranks = getattr(split, "share", WHOLE).ranks
        if self.batch_size < ranks:
            raise ValueError(f"a batch of {self.batch_size} examples cannot be divided over {ranks} processes")

    def __iter__(self) -> Iterator[Batch]:
        return self.starting_at(0)

    def starting_at(self, batch: int) -> Iterator[Batch]:
        """Iterate from a batch on, counted from 0 over all epochs: the same batches again."""
        first, start = divmod(batch, len(self.split) // self.batch_size)
        for epoch in count(first):
            yield from self.split.batches(
                self.batch_size, train=True, seed=self.seed, epoch=epoch, start=start, drop_last=True
            )
            start = 0


_EPOCHS = 10
"""in which each class has to come up where batches are balanced"""


class BalancedStream:
    """Training batches without end that hold equally many examples of every class.

    As GRASP's public code collects them: batches are drawn until every class has its examples, and the surplus is
    thrown away. The paper prefers plain batches, "since it is simpler" (appendix A), and so do we by default.

    Args:
        split: whole, also where there are several ranks.
        batch_size: at most so many examples per batch.
        seed: of order and augmentation.
        num_classes: classes to balance.
        share: which examples of a balanced batch are given.

    Raises:
        ValueError: `batch_size` is smaller than the number of classes, or a class has no example, or none that can be
            decoded.

    """

    def __init__(self, split: Split, batch_size: int, seed: int, num_classes: int, share: Share = WHOLE) -> None:
        if batch_size < num_classes:
            raise ValueError(
                f"a balanced batch needs an example of each of {num_classes} classes, not {batch_size} in all"
            )
        missing = set(range(num_classes)) - set(split.labels.tolist())
        if missing:
            raise ValueError(f"there are no examples of class {min(missing)} to balance batches with")
        self.plain = Stream(split, batch_size, seed)
        self.per_class, self.num_classes, self.share = batch_size // num_classes, num_classes, share

    def starting_at(self, batch: int) -> Iterator[Batch]:
        """Iterate from a batch on, counted from 0. Earlier batches are also collected, and thrown away."""
        return islice(self, batch, None)

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[list[Tensor]] = [[] for _ in range(self.num_classes)]
        missing, patience = set(range(self.num_classes)), _EPOCHS * len(self.plain.split) // self.plain.batch_size
        for number, (images, labels) in enumerate(self.plain, 1):
            missing -= set(labels.tolist())
            if missing and number >= patience:  # an epoch's last batch is left out, but not always the same images
                raise ValueError(
                    f"no image of class {min(missing)} came in {_EPOCHS} epochs to balance batches: can they be read?"
                )
            for image, label in zip(images, labels.tolist(), strict=True):
                if len(waiting[label]) < self.per_class:
                    waiting[label].append(image)
            if all(len(found) == self.per_class for found in waiting):
                balanced = torch.stack([image for found in waiting for image in found])
                classes = torch.arange(self.num_classes, device=labels.device).repeat_interleave(self.per_class)
                yield self.share.of(balanced), self.share.of(classes)
                waiting = [[] for _ in range(self.num_classes)]
