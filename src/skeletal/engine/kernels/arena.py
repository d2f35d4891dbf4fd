"""Memory for activations that is kept from one step to the next.

Fresh memory from the system costs several times what writing to it costs: each page is zeroed and mapped at its first
touch, and large tensors go back to the system when they die. Here they come back to a list of free blocks.

Sizes between two powers of two share a list, and a block that turns out too small gives way to a larger one. So what is
kept stays near the most that was in use at once, however many sizes there are.
"""

import math
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_SMALL = 1 << 18  # bytes that the system's own allocator keeps at hand

_free: dict[int, list[np.ndarray]] = defaultdict(list)
"""by the bits of a size"""
_NO_BLOCK = np.empty(0, np.uint8)


class _Loan(np.ndarray):
    """Memory that only a tensor holds on to: when both are gone, its block is free again.

    A `weakref.finalize` would do the same, but takes several times as long as everything else here.
    """

    block: np.ndarray | None = None

    def __del__(self, free: dict[int, list[np.ndarray]] = _free) -> None:
        if self.block is not None:  # else a view of this
            free[self.nbytes.bit_length()].append(self.block)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU; its memory is used again once nothing refers to it any more."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype, device="cpu")
    free = _free[size.bit_length()]
    try:
        block = free.pop()
    except IndexError:
        block = _NO_BLOCK
    if block.nbytes < size + _ALIGNMENT:
        del block  # before there is a larger one
        block = np.empty(size + _ALIGNMENT, np.uint8)  # numpy asks for huge pages, which torch does not
    start = -block.ctypes.data % _ALIGNMENT
    loan = block[start : start + size].view(_Loan)
    loan.block = block
    return torch.from_numpy(loan).view(dtype).view(shape)


def release() -> int:
    """Give all free blocks back to the system; returns how many bytes that was."""
    size = sum(block.nbytes for blocks in list(_free.values()) for block in blocks)
    _free.clear()
    return size
