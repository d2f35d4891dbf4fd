"""Every random choice as a function of a key, so that a batch can be made again without its predecessors."""

import torch
from torch import Tensor

from skeletal.core.seeds import seed_of


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator of its own for `key`. The global generator is never touched."""
    return torch.Generator().manual_seed(seed_of(*key))


def order(examples: int, *, train: bool, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: int64 `(examples,)`, shuffled by (seed, epoch) to train, else rising"""
    if not train:
        return torch.arange(examples)
    return torch.randperm(examples, generator=generator("order", seed, epoch))


def divide(examples: int, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split `range(examples)` at random into training and validation parts: two rising int64 vectors.

    The validation part has `round(validation * examples)` members, drawn by `seed` and nothing else. It is
    not stratified: the paper's appendix A says no more than "10% of the training data".
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation is a fraction of the training set in [0, 1), got {validation}")
    shuffled = torch.randperm(examples, generator=generator("validation", seed))
    held_out = round(validation * examples)
    return shuffled[held_out:].sort().values, shuffled[:held_out].sort().values


def batch_range(examples: int, batch_size: int, *, start: int, drop_last: bool) -> range:
    """Return the indices of the batches of a pass that begins at batch `start`.

    Raises:
        ValueError: `batch_size` below 1, or `start` outside the pass.

    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    count = examples // batch_size if drop_last else -(-examples // batch_size)
    if not 0 <= start <= count:
        raise ValueError(f"start={start} is outside the pass of {count} batches of {batch_size} ({examples} examples)")
    return range(start, count)
