"""Sparse layers equal torch's own on the masked weight, in any mode."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import BlockedMaxPool, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from skeletal.engine.plan.recent import MOST
from tests.engine.modules.pairs import SMALL, conv, full_of_rubbish, linear, norm_of, same
from tests.engine.sparse_cases import blocked_as, cases, close

__all__ = ["full_of_rubbish"]


@given(cases(), st.sampled_from(["sparse", "dense"]))
def test_convolution_on_tensors(case, path):
    sparse, dense = conv(case)
    sparse.path = path
    same(sparse, dense, case.mask, case.images)


@settings(max_examples=20)
@given(cases())
def test_convolution_in_single_precision(case):
    sparse, dense = conv(case, torch.float32)
    same(sparse, dense, case.mask, case.images.float())


@pytest.mark.parametrize("examples", [0, 1, LANES - 1, LANES, LANES + 1, 2 * LANES, 3 * LANES, 40])
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_linear_on_any_batch(examples, path):
    for bias in (True, False):
        sparse, dense, mask = linear(bias=bias)
        sparse.path = path
        same(sparse, dense, mask, torch.randn(examples, 7, dtype=torch.float64))


@pytest.mark.parametrize("size", [(7,), (2, 3, 7), (1, LANES, 7), (2, 0, 7)])
def test_linear_on_any_number_of_dimensions(size):
    sparse, dense, mask = linear()
    same(sparse, dense, mask, torch.randn(size, dtype=torch.float64))


@pytest.mark.parametrize("inputs, outputs", [(1, 1), (1, 9), (9, 1), (60, 50)])
def test_linear_of_any_size(inputs, outputs):
    sparse, dense, mask = linear(inputs, outputs)
    same(sparse, dense, mask, torch.randn(LANES + 3, inputs, dtype=torch.float64))


@pytest.mark.parametrize("keep", [False, True])
def test_all_or_nothing(keep):
    dense = nn.Linear(6, 4).double()
    sparse = SparseLinear(dense, torch.full((4, 6), keep))
    dense.weight.data *= keep
    same(sparse, dense, sparse.mask, torch.randn(5, 6, dtype=torch.float64))
    assert sparse.values.numel() == 24 * keep and torch.equal(sparse.mask, torch.full((4, 6), keep))


def test_gradcheck_of_layers():
    sparse, _ = conv()
    x = SMALL.images.requires_grad_()

    def convolve(x, *parameters):
        return torch.func.functional_call(sparse, dict(zip(("weight", "bias"), parameters, strict=True)), (x,))

    assert gradcheck(convolve, (x, *sparse.parameters()))
    full, _, _ = linear()

    def multiply(x, *parameters):
        return torch.func.functional_call(full, dict(zip(("weight", "bias"), parameters, strict=True)), (x,))

    assert gradcheck(multiply, (torch.randn(3, 7, dtype=torch.float64, requires_grad=True), *full.parameters()))


def test_frozen_parameters_and_inputs_get_no_gradient():
    for frozen in ("weight", "bias", None):
        sparse, dense = conv()
        for layer in (sparse, dense):
            if frozen:
                layer.get_parameter(frozen).requires_grad_(False)
            layer(SMALL.images).square().sum().backward()
        for name, parameter in sparse.named_parameters():
            expected = dense.get_parameter(name).grad
            assert (parameter.grad is None) == (expected is None) == (name == frozen)
            if expected is not None:
                close(parameter.grad, expected[SMALL.mask] if name == "weight" else expected)
    frozen = SparseLinear(nn.Linear(3, 2).requires_grad_(False), torch.ones(2, 3, dtype=torch.bool))
    assert not frozen(torch.ones(1, 3)).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    sparse, dense = conv()
    flat, full, _ = linear()
    norm = norm_of(SMALL.outputs, "usual").eval()
    with mode():
        assert not sparse(SMALL.images).requires_grad
        close(sparse(SMALL.images), dense(SMALL.images))
        fused = ConvNorm(sparse, norm, 0, relu=False)(blocked_as(0, torch.float64)(SMALL.images))[0]
        close(to_images(fused), norm(dense(SMALL.images)))
        features = torch.randn(3, 7, dtype=torch.float64)
        close(flat(features), full(features))
    same(sparse, dense, SMALL.mask, SMALL.images)  # with the tables made in that mode
    same(flat, full, flat.mask, torch.randn(3, 7, dtype=torch.float64))


def test_tables_of_many_sizes_do_not_pile_up():
    sparse, dense = conv()
    pool = BlockedMaxPool(nn.MaxPool2d(2), halo=0)
    for size in range(4, 4 + 2 * MOST):
        images = SMALL.random(2, 4, size, size)
        close(sparse(images), dense(images))
        close(to_images(pool(blocked_as(0, torch.float64)(images))), F.max_pool2d(images, 2))
    assert len(sparse._plans) == len(pool._windows) == MOST
    flat, full, mask = linear()
    for blocks in range(1, 3 * MOST):
        same(flat, full, mask, SMALL.random(blocks * LANES - 3, 7))
        assert blocks > MOST // 2 or blocks in flat._plans, "few sizes have tables of their own"
    assert len(flat._plans) <= MOST


def test_copies_share_tables_and_nothing_else():
    sparse, _ = conv()
    sparse(SMALL.images)
    copied = copy.deepcopy(sparse)
    assert [*copied._plans.values()] == [*sparse._plans.values()] and copied._plans is not sparse._plans
    copied.values.data.zero_()
    assert sparse.values.ne(0).any()


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    dense = nn.Conv2d(2, 3, (3, 5), padding=padding, dilation=(2, 1)).double()
    mask = torch.rand(dense.weight.shape) < 0.5
    sparse = SparseConv2d(dense, mask)
    dense.weight.data *= mask
    same(sparse, dense, mask, torch.randn(2, 2, 7, 6, dtype=torch.float64))


@pytest.mark.parametrize("examples", [1, LANES, LANES + 3, 2 * LANES])
def test_outputs_can_be_changed_in_place_and_viewed(examples):
    """As torch's own can: they are contiguous, and nobody's views."""
    sparse, dense = conv()
    images = SMALL.random(examples, 4, 4, 5)
    block = blocked_as(1, torch.float64)
    pairs = [(sparse(images), dense(images)), (blocked.global_mean(block(images)), images.mean((2, 3), True))]
    for bias in (True, False):
        flat, full, _ = linear(80, 5, bias=bias)
        pairs.append((flat(images.flatten(1)), full(images.flatten(1))))
    with torch.no_grad():
        pairs.append((to_images(block(images)), images.clone()))
    for out, expected in pairs:
        close(out.mul_(2).view(-1), expected.mul_(2).view(-1))
    unpacked = to_images(block(images.requires_grad_()))
    assert (torch.autograd.grad(unpacked.mul_(3).sum(), images)[0] == 3).all()
