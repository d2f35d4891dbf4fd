"""What the tests of the sparse engine share: convolutions of every shape, memory full of rubbish, invariants."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from skeletal.engine.codegen.packed_bf16 import LANES, examples_of
from skeletal.engine.kernels import arena
from skeletal.engine.modules.blocked import Blocked, storage_type, to_blocks
from skeletal.engine.plan import plan
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid

BATCHES = (1, 2, 3, LANES - 1, LANES, LANES + 1, 2 * LANES, 2 * LANES + 5, 40)
MASKS = ("none", "all", "few", "half", "half", "no first output", "no last input", "one")


@dataclass(frozen=True)
class Case:
    """A convolution, its mask and its input."""

    shape: Shape
    examples: int
    inputs: int
    outputs: int
    height: int
    width: int
    kept: str
    seed: int
    """of weights and inputs"""

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(self.seed + len(size)), dtype=torch.float64)

    @property
    def images(self) -> Tensor:
        return self.random(self.examples, self.inputs, self.height, self.width)

    @property
    def mask(self) -> Tensor:
        size = self.outputs, self.inputs // self.shape.groups, *self.shape.kernel
        noise = torch.rand(size, generator=torch.Generator().manual_seed(self.seed))
        mask = noise < {"none": 0.0, "all": 1.1, "few": 0.15}.get(self.kept, 0.5)
        if self.kept == "no first output":
            mask[0] = False
        if self.kept == "no last input":
            mask[:, -1] = False
        if self.kept == "one":
            mask = noise == noise.max()
        return mask

    @property
    def layer(self) -> nn.Conv2d:
        """The dense layer; what the mask does not keep is not zero, so that reading it would show."""
        s = self.shape
        made = nn.Conv2d(self.inputs, self.outputs, s.kernel, s.stride, s.padding, s.dilation, s.groups).double()
        made.weight.data = self.random(*made.weight.shape)
        made.bias.data = self.random(self.outputs)
        return made


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Strides, paddings larger than needed, dilations, groups up to depthwise, maps of one pixel, rows left over."""
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, stride, padding, dilation = pair(1, 5), pair(1, 4), pair(0, 3), pair(1, 2)
    if draw(st.booleans()):  # what networks have
        kernel, dilation = (kernel[0],) * 2, (1, 1)
        stride, padding = (min(2, stride[0]),) * 2, (kernel[0] // 2,) * 2
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inputs = groups * draw(st.integers(1, 1 if groups == 3 else 4))
    outputs = groups * draw(st.integers(1, 4))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    height, width = (draw(st.integers(size, max(size, most))) for size, most in zip(least, (6, 18), strict=True))
    return Case(
        Shape(stride, padding, dilation, groups, kernel),
        draw(st.sampled_from(BATCHES)), inputs, outputs, height, width,
        draw(st.sampled_from(MASKS)), draw(st.integers(0, 10**6)),
    )  # fmt: skip


@contextmanager
def small_windows() -> Generator[None]:
    """Tiling the input channels into parts as only wide layers do."""
    with mock.patch.object(plan, "_WINDOW", 256), mock.patch.object(plan, "_WORTH", 1):
        yield


@contextmanager
def rubbish() -> Generator[None]:
    """Memory of the arena is full of NaN: whoever does not write all of it is found out."""

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full(shape, float("nan") if dtype.is_floating_point else 255, dtype=dtype)

    with mock.patch.object(arena, "empty", empty):
        yield


@contextmanager
def threads(count: int) -> Generator[None]:
    """As many threads as that."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_clean(storage: Tensor, grid: MapGrid, examples: int) -> None:
    """Zeros around the maps, and where there is no example."""
    rest, lanes = storage.detach().clone(), examples_of(storage.dtype)
    assert rest.shape == (-(-examples // lanes), storage.shape[1], grid.numbers(storage.dtype)[3])
    inside = grid.inside(rest)
    absent = torch.arange(inside.shape[0] * lanes).view(-1, lanes) >= examples
    assert not (inside != 0).permute(0, 4, 1, 2, 3)[absent].any(), "an absent example is not 0"
    inside.zero_()
    assert not rest.ne(0).any(), "halo or gap is not 0"


def close(one: Tensor | None, two: Tensor | None, what: str = "") -> None:
    """Equal to the precision of their type."""
    assert one is not None and two is not None, what
    assert one.shape == two.shape, f"{what}: {one.shape} and {two.shape}"
    double = one.dtype == torch.float64
    tolerance = 1e-11 if double else 1e-4
    assert torch.allclose(one.double(), two.double(), rtol=tolerance, atol=tolerance, equal_nan=True), (
        f"{what}: {(one - two).abs().max()}"
    )


def blocked_as(halo: int, weights: torch.dtype, bf16: bool = True) -> Callable[[Tensor], Blocked]:
    """From images to blocked maps of a `storage_type`."""
    return lambda images: to_blocks(images, halo, storage_type(weights, bf16))
