"""Memory for activations that is kept from one step to the next.

Fresh memory from the system costs several times what writing to it costs: each page is zeroed and mapped at its first
touch, and large tensors go back to the system when they die. Here they come back to a list of free blocks.
"""

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_SMALL = 1 << 18  # bytes that the system's own allocator keeps at hand

_free: dict[int, list[np.ndarray]] = defaultdict(list)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU; its memory is used again once nothing refers to it any more."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype)
    try:
        block = _free[size].pop()
    except IndexError:
        block = np.empty(size + _ALIGNMENT, np.uint8)  # numpy asks for huge pages, which torch does not
    start = -block.ctypes.data % _ALIGNMENT
    loan = block[start : start + size]
    # The tensor holds on to `loan`, and nothing else does; when both are gone the block is free again.
    weakref.finalize(loan, _free[size].append, block)
    return torch.from_numpy(loan).view(dtype).view(shape)


def release() -> int:
    """Give all blocks that are free back to the system; how many bytes those were."""
    size = sum(block.nbytes for blocks in _free.values() for block in blocks)
    _free.clear()
    return size
