"""Where a split's batches are made, and which part of them: by the device and the rank of this process."""

from dataclasses import replace

import torch

from skeletal.core.model.distributed import rank, ranks
from skeletal.harness.data.folder import FolderSplit
from skeletal.harness.data.memory import MemorySplit
from skeletal.harness.data.splits import Share, Split


def resident(split: Split, device: torch.device) -> Split:
    """The split, with batches for a network on `device`.

    A set that is held in memory moves there once, as bytes, and is augmented there. Every choice is drawn on the CPU as
    before, so that the batches are the same to rounding on any device. Images decoded by workers come in pinned memory
    if the device is a GPU, from where they are copied while it computes.
    """
    return replace(split, device=device) if isinstance(split, MemorySplit | FolderSplit) else split


def shared(split: Split) -> Split:
    """The split with this rank's part of every batch (see `Share`); with one process all of it.

    Raises:
        TypeError: a split of your own, which cannot be divided.

    """
    if ranks() == 1:
        return split
    if not isinstance(split, MemorySplit | FolderSplit):
        raise TypeError(f"a {type(split).__name__} cannot be divided over {ranks()} processes: use one process")
    return replace(split, share=Share(rank(), ranks()))
