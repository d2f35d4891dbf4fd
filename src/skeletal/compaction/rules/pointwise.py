"""What a function of one number does to zeros: evaluated, not looked up."""

from collections.abc import Callable

import torch
from torch import Tensor


def at_zero(function: Callable[[Tensor], Tensor], dims: int = 1) -> tuple[bool, bool]:
    """Whether f(0) = 0, and whether f'(0) = 0, too."""
    with torch.enable_grad():
        zero = torch.zeros([1] * dims, requires_grad=True, device="cpu")
        value = function(zero * 1)  # not a leaf, so that it may be changed in place
        slope = torch.autograd.grad(value, zero)[0] if value.requires_grad else zero
    keeps = value.item() == 0
    return keeps, keeps and slope.item() == 0
