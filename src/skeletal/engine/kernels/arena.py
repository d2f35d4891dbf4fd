"""Memory for activations that is kept from one step to the next.

Fresh memory from the system costs several times what writing to it costs: each page is zeroed and mapped at its first
touch, and large tensors go back to the system when they die. Here they come back to a list of free blocks.
"""

import math
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_SMALL = 1 << 18  # bytes that the system's own allocator keeps at hand

_free: dict[int, list[np.ndarray]] = defaultdict(list)


class _Loan(np.ndarray):
    """Memory that only a tensor holds on to: when both are gone, its block is free again.

    A `weakref.finalize` would do the same, but takes several times as long as everything else here.
    """

    block: np.ndarray | None = None

    def __del__(self, free: dict[int, list[np.ndarray]] = _free) -> None:
        if self.block is not None:  # else a view of this
            free[self.nbytes].append(self.block)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU; its memory is used again once nothing refers to it any more."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype, device="cpu")
    try:
        block = _free[size].pop()
    except IndexError:
        block = np.empty(size + _ALIGNMENT, np.uint8)  # numpy asks for huge pages, which torch does not
    start = -block.ctypes.data % _ALIGNMENT
    loan = block[start : start + size].view(_Loan)
    loan.block = block
    return torch.from_numpy(loan).view(dtype).view(shape)


def release() -> int:
    """Give all free blocks back to the system; returns how many bytes that was."""
    size = sum(block.nbytes for blocks in _free.values() for block in blocks)
    _free.clear()
    return size
