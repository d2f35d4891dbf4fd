"""Several processes at once (torchrun): means over all ranks, and agreement on the rest.

Every exchange begins with a meeting, `everyone`. A rank that has failed says so there, and all the others stop,
too: no rank waits for a message that will never come. With one process, all of this does nothing.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from skeletal.core.model.tensors import Tensors

Value = TypeVar("Value")
_TOLD = "the other ranks know"
SHOWN = "rank 0 has the same error"
BUCKET = 25_000_000  # numbers per message, roughly


class PeerError(RuntimeError):
    """Another rank has failed, or can no longer be reached."""


def ranks() -> int:
    """How many processes work together: 1 if there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them: 0 if there is no process group."""
    return dist.get_rank() if ranks() > 1 else 0


def everyone(value: Value, failure: str = "") -> list[Value]:
    """The values that all ranks contribute, in order of rank.

    Raises:
        PeerError: another rank has reported a failure.

    """
    brought = _meet(value, failure)
    for number, (failed, _) in enumerate(brought):
        if failed and not failure:
            raise PeerError(f"stopped, because rank {number} has failed: {failed}")
    return [value for _, value in brought]


def _meet(value: Value, failure: str) -> list[tuple[str, Value]]:
    if ranks() == 1:
        return [(failure, value)]
    brought: list[Any] = [None] * ranks()
    _exchange(dist.all_gather_object, brought, (failure, value))
    return brought


@contextmanager
def together() -> Generator[None]:
    """Report an error in the block to the other ranks, at the meeting where they wait; each then raises a `PeerError`.

    May be nested, and may decorate a function: an error is reported once. An error that rank 0 also has is marked with
    a note, so that it need not be shown several times.
    """
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        if ranks() > 1 and _TOLD not in getattr(error, "__notes__", ()):
            error.add_note(_TOLD)
            failure = f"{type(error).__name__}: {error}"
            with suppress(PeerError):  # this rank's own error matters more
                first = _meet(None, failure)[0][0]
                if rank() and first == failure:
                    error.add_note(SHOWN)
        raise


def on_first(function: Callable[[], Value]) -> Value:
    """What a function returns on rank 0, which alone calls it; the others wait, and stop if it fails."""
    with together():
        found = function() if rank() == 0 else None
    return everyone(found)[0]  # type: ignore[bad-return]


def agree(held: Mapping[str, object], remedy: str) -> None:
    """Make sure that all ranks hold the same under each name: tensors bit for bit, other values as printed.

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


def average_over_ranks(tensors: Tensors, share: float = 1.0) -> None:
    """Replace each tensor with its mean over the ranks, in place and in few messages.

    `share` is this rank's weight, by its examples: their number over the mean number, so that all shares average to 1.
    """
    if ranks() == 1:
        return
    if share != 1:
        torch._foreach_mul_(list(tensors.values()), share)
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
