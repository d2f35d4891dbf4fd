"""Blocked maps hold what tensors hold: packed from any layout, added, concatenated, averaged, and NaN where it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import Elementwise, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d
from skeletal.engine.ops.images import Pack
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from tests.engine.modules.pairs import SMALL, full_of_rubbish, gradients, norm_of, pooled
from tests.engine.sparse_cases import assert_clean, blocked_as, close

__all__ = ["full_of_rubbish"]
NAN = float("nan")


@given(st.integers(0, 2 * LANES + 1), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_packing_is_undone_by_unpacking(examples, channels, height, width, halo):
    images = torch.randn(examples, channels, height, width)
    grid = MapGrid(height, width, halo)
    storage = pack(images, grid)
    assert torch.equal(unpack(storage, grid, examples), images)
    assert_clean(storage, grid, examples)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a part": lambda x: x[:, 1:3, ::2],
    "one for all": lambda x: x[:1].expand(37, -1, -1, -1),
    "turned": lambda x: x.transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_images_of_any_layout_and_type_into_blocks(layout, given, stored):
    numbers = torch.randn(37, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 50
    images = LAYOUTS[layout](numbers.abs().to(given) if given == torch.uint8 else numbers.to(given))
    grid = MapGrid(*images.shape[2:], 1)
    storage = Pack.apply(images, grid, stored)
    assert_clean(storage, grid, 37)
    assert torch.equal(unpack(storage, grid, 37), images.to(stored))
    if images.is_floating_point():
        images = images.detach().requires_grad_()
        slope = torch.sin(torch.arange(images.numel()).view(images.shape)).to(stored)
        (found,) = torch.autograd.grad(Pack.apply(images, grid, stored), images, pack(slope, grid))
        assert found.dtype == given and torch.equal(found, slope.to(given))


@pytest.mark.parametrize("examples", [1, LANES, LANES + 3])
def test_mean_sum_and_concatenation(examples):
    one, two = (torch.randn(examples, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    block, wider = blocked_as(0, torch.float64), blocked_as(2, torch.float64)
    for ours, theirs in (
        (blocked.global_mean(block(one)), one.mean((2, 3), True)),
        (to_images(blocked.add(block(one), wider(one))), one + one),
        (to_images(blocked.concatenate([wider(one), block(two[:, :2])])), torch.cat([one, two[:, :2]], 1)),
        (to_images(blocked.with_halo(block(one), 3)), one),
        (to_images(Elementwise(F.silu)(wider(one))), F.silu(one)),
    ):
        close(ours, theirs)
        close(gradients(ours, one)[0], gradients(theirs, one)[0])
    for maps in (
        blocked.add(block(one), wider(two)),
        blocked.concatenate([wider(one), block(two)]),
        Elementwise(F.gelu)(wider(one)),
        blocked.with_halo(wider(one), 1),
    ):
        assert_clean(maps.storage, maps.grid, examples)
    assert gradcheck(lambda x: blocked.global_mean(wider(x)), one[:2, :1].detach().requires_grad_())


def test_maps_of_other_sizes_are_not_combined():
    block = blocked_as(0, torch.float64)
    whole = block(SMALL.images)
    norm = norm_of(4, "usual")
    for other in (block(SMALL.images[:1]), block(SMALL.images[:, :, :1]), block(SMALL.images[..., :2])):
        for combine in (blocked.add, lambda x, y: blocked.concatenate([x, y]), ConvNorm(None, norm, 0, relu=False)):
            with pytest.raises(ValueError, match="cannot combine maps"):
                combine(whole, other)


def test_nan_stays_nan():
    images = torch.ones(LANES + 2, 2, 5, 5, dtype=torch.float64)
    images[0, 0, 0, 0] = images[LANES, 1, 2, 2] = NAN
    layer = nn.MaxPool2d(3, 2, 1)
    assert torch.equal(to_images(pooled(images, layer)).isnan(), layer(images).isnan())
    norm = norm_of(2, "usual").eval()
    block = blocked_as(0, torch.float64)(images)
    with torch.no_grad():
        alone, _ = ConvNorm(None, norm, 0, relu=True)(block)
        assert torch.equal(to_images(alone).isnan(), images.isnan())
        dense = nn.Conv2d(2, 2, 3, padding=1).double()
        everything = torch.ones_like(dense.weight, dtype=torch.bool)
        sparse = SparseConv2d(dense, everything)
        for training in (True, False):
            fused, _ = ConvNorm(sparse, norm.train(training), 1, relu=True)(block)
            assert torch.equal(to_images(fused).isnan(), torch.relu(norm(dense(images))).isnan())
            added, _ = ConvNorm(sparse, norm, 1, relu=True)(
                blocked_as(0, torch.float64)(torch.ones_like(images)), block
            )
            assert to_images(added).isnan().sum() >= 2
    assert torch.equal(blocked.global_mean(block).isnan(), images.mean((2, 3), True).isnan())
    assert torch.equal(to_images(Elementwise(torch.relu)(block)).isnan(), images.isnan())
