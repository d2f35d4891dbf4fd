"""What a data set looks like from outside: three splits, each a source of repeatable batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""images, float32 `(B, C, H, W)`, normalized; labels, int64 `(B,)`"""


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


class Stream:
    """Training batches without end: epoch 0, 1, 2, ..., each shuffled and augmented anew, all batches full.

    A split smaller than `batch_size` comes as one whole batch per epoch.

    Raises:
        ValueError: the split is empty.

    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        if not len(split):
            raise ValueError("an empty split gives no batches")
        self.split = split
        self.batch_size = min(batch_size, len(split))
        self.seed = seed

    def __iter__(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self.split.batches(self.batch_size, train=True, seed=self.seed, epoch=epoch, drop_last=True)
