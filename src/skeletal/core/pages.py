"""Keep freed memory for the next step, instead of giving it back to the system and asking for it again.

A training step frees and allocates gigabytes of activations. glibc hands large blocks back to the kernel at once, and
every page that it asks for again is zeroed and mapped anew: on a virtual machine up to 40% of a step's time.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_LARGEST = 32 * 2**20  # what glibc's own, adaptive threshold ends at once large blocks have been freed


@contextmanager
def keep_pages() -> Iterator[None]:
    """Let malloc keep what is freed inside the `with` block; at its end it goes back to the system.

    Holes that nothing fits into stay, too, so the peak can be higher. Without glibc nothing happens.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    except (TypeError, OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        libc.malloc_trim(0)
