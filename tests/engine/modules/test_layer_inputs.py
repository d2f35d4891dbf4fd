"""Layers take any input that torch's take, and refuse what does not fit."""

import pytest
import torch
from torch import nn

from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d
from tests.engine.modules.pairs import SMALL, conv, full_of_rubbish, linear, norm_of, pooled, same
from tests.engine.sparse_cases import blocked_as, close

__all__ = ["full_of_rubbish"]
NOT_CONTIGUOUS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, 0)[::2],
    "flipped batch": lambda x: x.flip(0).permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3).flip(0),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("how", NOT_CONTIGUOUS.values(), ids=NOT_CONTIGUOUS)
def test_inputs_need_not_be_contiguous(how):
    sparse, dense = conv()
    x = how(SMALL.images)
    out, expected = sparse(x), dense(x)
    close(out, expected)
    slope = torch.ones((), dtype=torch.float64).expand_as(expected)  # a gradient need not be, either
    for one, two in zip(
        torch.autograd.grad(out, sparse.bias, slope, retain_graph=True),
        torch.autograd.grad(expected, dense.bias, slope, retain_graph=True),
        strict=True,
    ):
        close(one, two)
    close(
        torch.autograd.grad(out, sparse.values, slope)[0],
        torch.autograd.grad(expected, dense.weight, slope)[0][SMALL.mask],
    )
    flat, full, _ = linear(5)
    for features in (x[:, 0, 0], x[:, 0].transpose(1, 2).contiguous().transpose(1, 2)):
        close(flat(features), full(features))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_other_types_are_computed_in_the_type_of_the_weights(dtype):
    sparse, dense = conv(dtype=torch.float32)
    images = (10 * SMALL.images).to(dtype)
    out = sparse(images)
    assert out.dtype == torch.float32
    close(out, dense(images.float()))
    flat, full, _ = linear(dtype=torch.float32)
    features = torch.arange(21).view(3, 7).to(dtype)
    assert flat(features).dtype == torch.float32
    close(flat(features), full(features.float()))
    if dtype.is_floating_point:
        images.requires_grad_()
        assert torch.autograd.grad(sparse(images).sum(), images)[0].dtype == dtype


def test_a_single_image_without_its_batch():
    sparse, dense = conv()
    same(sparse, dense, SMALL.mask, SMALL.images[0])


def test_an_empty_batch():
    sparse, dense = conv()
    same(sparse, dense, SMALL.mask, SMALL.images[:0])
    flat, full, mask = linear()
    for features in (torch.zeros(0, 7), torch.zeros(0, 3, 7), torch.zeros(3, 0, 7)):
        same(flat, full, mask, features.double())
    with torch.no_grad():
        block = blocked_as(1, torch.float64)(SMALL.images[:0])
        assert to_images(pooled(SMALL.images[:0], nn.MaxPool2d(2))).shape == (0, 4, 2, 2)
        assert blocked.global_mean(block).shape == (0, 4, 1, 1)


def test_inputs_that_do_not_fit_are_refused():
    sparse, _ = conv()
    with pytest.raises(ValueError, match="4 channels got maps of 3"):
        sparse(SMALL.images[:, :3])
    flat, _, _ = linear()
    with pytest.raises(ValueError, match=r"7 features got a tensor \(2, 6\)"):
        flat(torch.zeros(2, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="3 x 1 pixels is too small"):
        SparseConv2d(nn.Conv2d(4, 1, 3), torch.ones(1, 4, 3, 3, dtype=torch.bool))(torch.zeros(1, 4, 3, 1))
    with pytest.raises(ValueError, match="not symmetric"):
        SparseConv2d(nn.Conv2d(1, 1, 2, padding="same"), torch.ones(1, 1, 2, 2, dtype=torch.bool))
    norm = norm_of(4, "usual")
    with pytest.raises(ValueError, match="1 value per channel"):
        ConvNorm(None, norm, 0, relu=False)(blocked_as(0, torch.float64)(SMALL.images[:1, :, :1, :1]))
