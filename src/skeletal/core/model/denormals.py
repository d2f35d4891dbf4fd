"""Flush denormal numbers to zero in every thread that computes, and restore the caller's setting afterwards.

Gradients in very sparse networks fall below 1e-38, where an x86 core computes many times slower. The switch
is a register of each thread. GNU OpenMP copies it to its workers only when it creates them, so switching it in
the calling thread alone leaves an older pool as slow as before, and makes results depend on when the pool was
created. Dismissing the pool lets the next parallel operation create one that agrees with the caller. (LLVM's
and Intel's OpenMP copy the register at every parallel region.)
"""

import ctypes
from collections.abc import Generator
from contextlib import contextmanager, suppress

import torch

_OMP_PAUSE_SOFT = 1


def _flushing() -> bool:
    """Whether the calling thread flushes; torch has a setter but no getter."""
    smallest = torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float32, device="cpu")
    return bool(smallest / 2 == 0)


def _dismiss_workers() -> None:
    with suppress(TypeError, OSError, AttributeError):  # without GNU OpenMP there is nothing to dismiss
        ctypes.CDLL(None).omp_pause_resource_all(_OMP_PAUSE_SOFT)


@contextmanager
def flush_denormals() -> Generator[None]:
    """Treat numbers below the smallest normal float (1.2e-38 in float32) as 0 inside the `with` block.

    Covers the calling thread and the OpenMP workers it uses. Nested blocks cost nothing. If the processor
    has no such switch, nothing happens.
    """
    if _flushing() or not torch.set_flush_denormal(True):
        yield
        return
    _dismiss_workers()
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        _dismiss_workers()
