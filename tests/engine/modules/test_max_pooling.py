"""Max pooling of blocked maps is torch's, with ties, and of maps that are still to be normalised."""

import pytest
import torch
from torch import nn

from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.modules.blocked import Blocked, BlockedMaxPool, can_pool, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from tests.engine.modules.pairs import SMALL, conv, full_of_rubbish, gradients, norm_of, pooled
from tests.engine.sparse_cases import assert_clean, blocked_as

__all__ = ["full_of_rubbish"]
POOLS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((1, 2), (2, 1), 0), (2, 1, 1), (4, 3, 2), ((3, 2), 2, (1, 0)), (5, 5, 0)]


@pytest.mark.parametrize("arguments", POOLS, ids=str)
@pytest.mark.parametrize("examples", [1, LANES, LANES + 3])
def test_max_pooling_with_ties(arguments, examples):
    layer = nn.MaxPool2d(*arguments)
    numbers = torch.randint(-2, 3, (examples, 3, 7, 6), generator=torch.Generator().manual_seed(0)).double()
    numbers[0, :, 2:5] = -float("inf")
    ours, theirs = (numbers.clone().requires_grad_() for _ in range(2))
    out = pooled(ours, layer)
    assert can_pool(layer)
    assert_clean(out.storage, out.grid, examples)
    found, expected = to_images(out), layer(theirs)
    assert torch.equal(found, expected)
    assert torch.equal(*(gradients(one, two)[0] for one, two in ((found, ours), (expected, theirs))))


def test_what_max_pooling_leaves_to_torch():
    assert can_pool(nn.MaxPool2d(16))
    odd = (nn.MaxPool2d(17), nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, ceil_mode=True))
    assert not any(can_pool(layer) for layer in (*odd, nn.MaxPool2d(2, return_indices=True)))


@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("arguments", POOLS[:-1], ids=str)
def test_max_pooling_of_maps_that_are_still_to_be_normalised(arguments, relu):
    sparse, _ = conv()
    maps, _ = ConvNorm(sparse, norm_of(SMALL.outputs, "usual"), 1, relu)(blocked_as(1, torch.float64)(SMALL.images))
    settled = Blocked(maps.storage, maps.grid, maps.examples)
    assert maps.affine is not None
    found, expected = (BlockedMaxPool(nn.MaxPool2d(*arguments), 1)(x) for x in (maps, settled))
    assert_clean(found.storage, found.grid, found.examples)
    assert torch.equal(found.storage, expected.storage)
    slope = torch.sin(torch.arange(expected.storage.numel(), dtype=torch.float64)).view_as(expected.storage)
    one, two = (torch.autograd.grad(x.storage, sparse.values, slope, retain_graph=True)[0] for x in (found, expected))
    assert torch.equal(one, two)
