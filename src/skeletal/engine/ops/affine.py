"""Maps whose batch norm is still to be done: what reads them does it on the way."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import slots
from skeletal.engine.codegen.threads import share
from skeletal.engine.kernels import arena, elementwise
from skeletal.engine.ops.once import once_differentiable
from skeletal.engine.plan.grid import MapGrid


class Affine(NamedTuple):
    """`number * scale + shift`, by channel, then not below 0 with `relu`."""

    scale: np.ndarray
    shift: np.ndarray
    relu: bool

    @property
    def numbers(self) -> tuple[np.ndarray, np.ndarray, int]:
        """As kernels take it."""
        return self.scale, self.shift, int(self.relu)


class ReluGradientFusion:
    """A promise between the maker of maps that end with a ReLU and their reader.

    The gradient of such maps counts only where they are above 0. To find that out, their maker would have to read
    them twice more on the way back, and write a gradient for the branch that was added. A convolution that is their
    only reader has them at hand when it writes their gradient, and sets to 0 what does not count.
    """

    def __init__(self) -> None:
        self.readers = 0
        self.convolutions = 0

    @property
    def fuses(self) -> bool:
        """Whether the only reader is a convolution: materialized when a forward pass has ended."""
        return self.readers == self.convolutions == 1


def before(affine: Affine | None, kind: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """What kernels do to the numbers they read: nothing without an affine; `kind` of number they compute in."""
    return (np.empty(0, kind), np.empty(0, kind), 0) if affine is None else affine.numbers


class Materialize(torch.autograd.Function):
    """Do it, for readers of plain maps: `apply(raw, affine, grid, examples)`.

    The gradient of such maps is by convention that of what they stand for, so it passes through unchanged: their
    maker sends it back through batch norm.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, affine: Affine, grid: MapGrid, examples: int) -> Tensor:
        out = arena.empty(tuple(raw.shape), raw.dtype)
        blocks, channels, _ = raw.shape
        share(
            elementwise.shared_scale_shift, blocks * channels, slots(raw), slots(out), grid.slots, channels,
            affine.scale, affine.shift, slots(None, raw), int(affine.relu), examples,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        return gradient, None, None, None
