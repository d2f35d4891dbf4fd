"""Convolution, norm, addition and ReLU at once are what torch makes of one after the other, gradients included."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import BlockedMaxPool, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d
from skeletal.engine.plan.geometry import Shape
from tests.engine.modules.pairs import SMALL, conv, full_of_rubbish, gradients, norm_of
from tests.engine.sparse_cases import Case, assert_clean, blocked_as, close

__all__ = ["full_of_rubbish"]
NORMS = ["usual", "no affine", "cumulative", "no statistics", "uncounted", "cumulative, uncounted"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("added", [True, False], ids=["added", ""])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("convolved", [True, False], ids=["conv", "alone"])
def test_convolution_norm_addition_relu(convolved, kind, added, relu, training):
    sparse, dense = conv() if convolved else (None, nn.Identity())
    channels = SMALL.outputs if convolved else SMALL.inputs
    norm = norm_of(channels, kind).train(training)
    other_norm = copy.deepcopy(norm)
    fused = ConvNorm(sparse, norm, halo=2, relu=relu)
    images = SMALL.images.requires_grad_()
    other = torch.cos(3 * dense(images)).detach().requires_grad_()
    block = blocked_as(1, torch.float64)
    parameters = [*([] if sparse is None else sparse.parameters()), *norm.parameters()]
    dense_parameters = [*dense.parameters(), *other_norm.parameters()]
    for step in range(2):
        out, passed = fused(block(images), block(other) if added else None)
        expected = other_norm(dense(images))
        expected = expected + other if added else expected
        expected = torch.relu(expected) if relu else expected
        close(to_images(out), expected, f"output, step {step}")
        close(to_images(passed), images)
        assert_clean(out.storage, out.grid, SMALL.examples)
        ours = [images, *([other] if added else []), *parameters]
        theirs = [images, *([other] if added else []), *dense_parameters]
        found = gradients(to_images(out), *ours)
        for one, two in zip(found, gradients(expected, *theirs), strict=True):
            close(one, two[SMALL.mask] if one.shape != two.shape else two, "gradient")
        for name, buffer in norm.named_buffers():
            close(buffer.double(), other_norm.get_buffer(name).double(), name)
    with torch.no_grad():
        out, _ = fused(block(images), block(other) if added else None)
        expected = other_norm(dense(images)) + (other if added else 0)
        close(to_images(out), torch.relu(expected) if relu else expected, "without gradients")
        assert_clean(out.storage, out.grid, SMALL.examples)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("added", [True, False], ids=["added", ""])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("convolved", [True, False], ids=["conv", "alone"])
def test_an_empty_batch_leaves_the_statistics(convolved, kind, added, training):
    sparse, dense = conv() if convolved else (None, nn.Identity())
    norm = norm_of(SMALL.outputs if convolved else SMALL.inputs, kind).train(training)
    other_norm = copy.deepcopy(norm)
    images, block = SMALL.images[:0].requires_grad_(), blocked_as(1, torch.float64)
    other = dense(images).detach().requires_grad_()
    out, _ = ConvNorm(sparse, norm, halo=2, relu=True)(block(images), block(other) if added else None)
    expected = torch.relu(other_norm(dense(images)) + other if added else other_norm(dense(images)))
    close(to_images(out), expected)
    ours = [images, *([] if sparse is None else sparse.parameters()), *norm.parameters()]
    theirs = [images, *dense.parameters(), *other_norm.parameters()]
    for one, two in zip(gradients(to_images(out), *ours), gradients(expected, *theirs), strict=True):
        close(one, two[SMALL.mask] if one.shape != two.shape else two, "gradient")
    for name, buffer in norm.named_buffers():
        close(buffer.double(), other_norm.get_buffer(name).double(), name)


def test_gradients_of_storages_are_clean():
    """What layers hand back to each other has zeros around it, too, whatever its examples."""
    sparse, _ = conv()
    norm = norm_of(SMALL.outputs, "usual")
    x = blocked_as(1, torch.float64)(SMALL.images)
    storages = [x.storage.requires_grad_()]
    first, passed = sparse(x, 1)
    normed, _ = ConvNorm(None, norm, 1, relu=True)(first, first)
    pooled = BlockedMaxPool(nn.MaxPool2d(2, 1, 1), 1)(normed)
    storages += [first.storage, normed.storage, pooled.storage]
    total = (to_images(pooled) ** 2).sum() + to_images(passed).sum() + blocked.global_mean(normed).sum()
    found = torch.autograd.grad(total, storages)
    for gradient, grid in zip(found, (x.grid, first.grid, normed.grid, pooled.grid), strict=True):
        assert gradient.ne(0).any()
        assert_clean(gradient, grid, SMALL.examples)


class Joined(nn.Module):
    def __init__(self, convolution, norm):
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, x, other):
        block = blocked_as(1, torch.float64)
        return to_images(ConvNorm(self.convolution, self.norm, 0, relu=True)(block(x), block(other))[0])


def test_gradcheck_of_convolution_and_norm():
    joined = Joined(conv()[0], nn.BatchNorm2d(SMALL.outputs, track_running_stats=False).double())
    names, parameters = zip(*joined.named_parameters(), strict=True)

    def run(x, other, *parameters):
        return torch.func.functional_call(joined, dict(zip(names, parameters, strict=True)), (x, other))

    other = SMALL.random(3, 6, 4, 3).requires_grad_()
    assert gradcheck(run, (SMALL.images.requires_grad_(), other, *parameters))


def test_a_network_that_diverges_does_not_warn():
    sparse, _ = conv(dtype=torch.float32)
    images = torch.full((3, 4, 4, 5), 3e38, requires_grad=True)
    for relu in (True, False):
        out, _ = ConvNorm(sparse, nn.BatchNorm2d(SMALL.outputs), 0, relu)(blocked_as(1, torch.float32)(images))
        (gradient,) = torch.autograd.grad(to_images(out).sum(), images)
        assert not to_images(out).isfinite().all() and not gradient.isfinite().all()


def test_what_a_convolution_hands_on_collects_gradients():
    sparse, dense = conv()
    ours, theirs = (SMALL.images.requires_grad_() for _ in range(2))
    out, passed = sparse(blocked_as(0, torch.float64)(ours))
    again, passed_again = sparse(passed)
    total = (to_images(out) * 2 + to_images(again)).square().sum() + to_images(passed_again).pow(3).sum()
    expected = (3 * dense(theirs)).square().sum() + theirs.pow(3).sum()
    close(total, expected)
    close(torch.autograd.grad(total, ours)[0], torch.autograd.grad(expected, theirs)[0])
    only = to_images(sparse(blocked_as(0, torch.float64)(ours))[1]).sum()
    assert (torch.autograd.grad(only, ours)[0] == 1).all()


@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("mean", [30, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("convolved", [True, False], ids=["conv", "alone"])
def test_large_means_do_not_spoil_the_variance(convolved, mean, relu):
    """So many times the deviation, in single precision: no further from the truth than the input's own rounding."""
    convolution = nn.Conv2d(2, 2, 1, bias=False)
    convolution.weight.data = torch.eye(2)[..., None, None]
    images = torch.randn(40, 2, 9, 9, generator=torch.Generator().manual_seed(0)) + mean
    norm = nn.BatchNorm2d(2, momentum=1)
    exact = copy.deepcopy(norm).double()
    sparse = SparseConv2d(convolution, convolution.weight != 0) if convolved else None
    out = to_images(ConvNorm(sparse, norm, 0, relu)(blocked_as(0, torch.float32)(images))[0])
    expected = exact(images.double())
    expected = expected.relu() if relu else expected
    assert (out - expected).abs().max() < 2e-7 * mean
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-6, atol=0)
    (found,), (slope,) = gradients(out, norm.weight), gradients(expected, exact.weight)
    assert (found - slope).abs().max() < 1e-6 * mean


READERS = {  # and whether the fusion is kept
    "a convolution": True,
    "a convolution, which hands it on": True,
    "a convolution of which only what it hands on counts": True,
    "two convolutions": False,
    "a mean": False,
    "a convolution and a mean": False,
    "max pooling and a convolution": False,
}


@pytest.mark.parametrize("joined", [True, False], ids=["with norm", "alone"])
@pytest.mark.parametrize("readers", READERS)
def test_who_sets_the_gradient_of_a_sum_to_zero(readers, joined):
    """Whoever reads the result of addition and ReLU, its gradient is that of torch."""
    square = Case(Shape((1, 1), (1, 1), (1, 1), 1, (3, 3)), 3, 4, 4, 4, 5, "half", 3)
    (first, dense_first), (second, dense_second) = (conv(replace(square, seed=seed)) for seed in (3, 4))
    norm, norm_second = norm_of(4, "usual"), norm_of(4, "usual")
    copies = copy.deepcopy(norm), copy.deepcopy(norm_second)
    images, other = square.images.requires_grad_(), torch.cos(square.images).requires_grad_()
    block, pool = blocked_as(1, torch.float64), nn.MaxPool2d(2)
    z, _ = ConvNorm(first, norm, 1, relu=True)(block(images), block(other))
    theirs = torch.relu(copies[0](dense_first(images)) + other)

    def read(x):
        if joined:
            return ConvNorm(second, norm_second, 1, relu=True)(x)
        return second(x, 1)

    def follow(x):
        return torch.relu(copies[1](dense_second(x))) if joined else dense_second(x)

    parts, expected = [], []
    if readers.startswith("max pooling"):
        parts.append(to_images(BlockedMaxPool(pool, 0)(z)))
        expected.append(pool(theirs))
    if "convolution" in readers:
        out, passed = read(z)
        if "only" not in readers:
            parts.append(to_images(out))
            expected.append(follow(theirs))
        if "hands" in readers:
            parts.append(to_images(passed))
            expected.append(theirs)
    if readers == "two convolutions":
        parts.append(to_images(second(z, 1)[0]))
        expected.append(dense_second(theirs))
    if "mean" in readers:
        parts.append(blocked.global_mean(z))
        expected.append(theirs.mean((2, 3), keepdim=True))
    assert z.fusion.fuses == READERS[readers]
    found = gradients(torch.cat([part.flatten() for part in parts]), images, other, first.values)
    truth = gradients(torch.cat([part.flatten() for part in expected]), images, other, dense_first.weight)
    for one, two in zip(found, truth, strict=True):
        close(one, two[square.mask] if one.shape != two.shape else two, readers)
