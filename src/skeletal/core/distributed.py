"""Pruning on several processes at once (torchrun): means over all ranks, and agreement on the rest.

Every exchange begins with a meeting, `everyone`. There a rank that has failed says so, and all the others stop,
too: nobody waits for a message that will never come. With one process all of this does nothing.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from skeletal.core.selection import Tensors

Value = TypeVar("Value")
BUCKET = 25_000_000  # numbers a message, about


class PeerError(RuntimeError):
    """Another rank has failed, or cannot be reached any more."""


def ranks() -> int:
    """How many processes prune together: 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def everyone(value: Value, failure: str = "") -> list[Value]:
    """What each rank brings along, in order of rank.

    Raises:
        PeerError: another rank has brought a failure.

    """
    if ranks() == 1:
        return [value]
    brought: list[Any] = [None] * ranks()
    _exchange(dist.all_gather_object, brought, (failure, value))
    for rank, (failed, _) in enumerate(brought):
        if failed and not failure:
            raise PeerError(f"stopped, because rank {rank} has failed: {failed}")
    return [value for _, value in brought]


@contextmanager
def together() -> Iterator[None]:
    """Tell the other ranks of an error within, at the meeting where they wait; each then raises a `PeerError`."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        with suppress(PeerError):  # this rank's own error matters more
            everyone(None, failure=f"{type(error).__name__}: {error}")
        raise


def agree(held: Mapping[str, object], remedy: str) -> None:
    """Make sure that all ranks hold the same under each name: tensors to the bit, other things as they print.

    Raises:
        ValueError: on every rank, with the name and the remedy.

    """
    if ranks() == 1:
        return
    first, *others = everyone({name: _digest(value) for name, value in held.items()})
    for rank, other in enumerate(others, 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ValueError(f"ranks 0 and {rank} differ in {name}: {remedy}")


def _digest(value: object) -> bytes:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    content = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).digest()


def average_over_ranks(tensors: Tensors) -> None:
    """Replace each tensor by its mean over the ranks, in place and in few messages."""
    if ranks() == 1:
        return
    for bucket in _buckets(tensors.values()):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        _exchange(dist.all_reduce, flat)
        pieces = flat.div_(ranks()).split([tensor.numel() for tensor in bucket])
        for tensor, piece in zip(bucket, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    buckets: dict[Any, list[Tensor]] = defaultdict(list)
    before: Counter[Any] = Counter()
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        buckets[kind, before[kind] // BUCKET].append(tensor)
        before[kind] += tensor.numel()
    return buckets.values()


def _exchange(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise PeerError(f"lost touch with the other ranks: {error}") from error
