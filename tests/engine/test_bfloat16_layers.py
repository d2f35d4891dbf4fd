"""Kernels and layers on maps in bfloat16 are those on maps in float32, but for the rounding of what is stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import Blocked, BlockedMaxPool, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from skeletal.engine.ops.calls import run_convolution, run_gradients
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from skeletal.engine.plan.plan import ConvPlan
from tests.engine.half import HALF, autocast, nothing_remembered, same_bits
from tests.engine.sparse_cases import Case, assert_clean, blocked_as, cases, close, rubbish, threads

__all__ = ["nothing_remembered"]
SMALL = Case(Shape((1, 1), (1, 1), (1, 1), 1, (3, 3)), 37, 4, 6, 5, 7, "half", 3)


def planned(case):
    ahead, back = case.shape.halos(case.height, case.width)
    source = MapGrid(case.height, case.width, ahead)
    target = MapGrid(*case.shape.output(case.height, case.width), back)
    return ConvPlan(case.mask, case.shape, source, target, in_parts=False)


@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_kernels_are_those_of_float32_on_rounded_maps(case, affine, added, relu):
    """The same sums in the same order, so the same numbers, rounded once."""
    plan = planned(case)
    values = case.layer.weight.detach()[case.mask].float()
    x = case.images.to(HALF)
    after = {"scale": case.random(case.outputs).float(), "shift": case.random(1, case.outputs)[0].float()}
    after = after if affine else {}
    other = case.random(case.examples, case.outputs, plan.target.height, plan.target.width).to(HALF)
    found = []
    with rubbish():
        for dtype in (HALF, torch.float32):
            beside = pack(other.to(dtype), plan.target)
            packed = pack(x.to(dtype), plan.source)
            out = run_convolution(
                plan, packed, values, case.examples, **after, other=beside if added else None, relu=relu
            )
            grad_x, grad_values = run_gradients(plan, beside, packed, values, case.examples, passed=packed)
            assert_clean(out, plan.target, case.examples)
            assert_clean(grad_x, plan.source, case.examples)
            found.append((out, grad_x, grad_values))
    half, full = found
    for i, grid in ((0, plan.target), (1, plan.source)):
        same_bits(unpack(half[i], grid, case.examples), unpack(full[i], grid, case.examples).to(HALF))
    assert half[2].dtype == torch.float32
    close(half[2] / case.examples, full[2] / case.examples, "weight gradient")


@pytest.mark.parametrize("convolved", [True, False], ids=["after a convolution", "alone"])
def test_statistics_are_of_what_is_stored(convolved):
    sparse = SparseConv2d(SMALL.layer.float(), SMALL.mask)
    channels = SMALL.outputs if convolved else SMALL.inputs
    norm = nn.BatchNorm2d(channels, momentum=1.0)
    x = Blocked(pack(SMALL.images.to(HALF), MapGrid(5, 7, 1)), MapGrid(5, 7, 1), 37)
    out, _ = ConvNorm(sparse if convolved else None, norm, 1, relu=False)(x)
    stored = unpack(out.raw if convolved else x.raw, out.grid, 37).double()
    assert stored.shape[1] == channels
    close(norm.running_mean, stored.mean((0, 2, 3)).float())
    close(norm.running_var, stored.var((0, 2, 3)).float())


def test_any_number_of_threads_gives_the_same():
    plan = planned(SMALL)
    values = SMALL.layer.weight.detach()[SMALL.mask].float()
    x = pack(SMALL.images.to(HALF), plan.source)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(run_convolution(plan, x, values, SMALL.examples))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def pack_grad(images, halo):
    """The storage of images, with a way back for gradients."""
    with autocast():
        return blocked_as(halo, torch.float32)(images).storage


@pytest.mark.parametrize("arguments", [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((3, 2), 2, (1, 0))], ids=str)
@pytest.mark.parametrize("examples", [1, 32, 35])
def test_max_pooling_with_ties_and_nan(arguments, examples):
    layer = nn.MaxPool2d(*arguments)
    numbers = torch.randint(-2, 3, (examples, 3, 7, 6), generator=torch.Generator().manual_seed(0)).to(HALF)
    ours, theirs = (numbers.clone().requires_grad_() for _ in range(2))
    with rubbish():
        out = BlockedMaxPool(layer, halo=1)(Blocked(pack_grad(ours, 0), MapGrid(7, 6, 0), examples))
        found, expected = to_images(out), layer(theirs)
        assert_clean(out.storage, out.grid, examples)
        same_bits(found, expected)
        slope = torch.randint(-3, 4, found.shape, generator=torch.Generator().manual_seed(1)).to(HALF)
        same_bits(*(torch.autograd.grad(y, x, slope)[0] for y, x in ((found, ours), (expected, theirs))))
    numbers.view(-1)[3::11] = float("nan")
    same_bits(
        to_images(BlockedMaxPool(layer, 1)(Blocked(pack(numbers, MapGrid(7, 6, 1)), MapGrid(7, 6, 1), examples))),
        layer(numbers),
    )


@pytest.mark.parametrize("examples", [1, 31, 64])
def test_means_are_added_up_in_float32(examples):
    numbers = torch.full((examples, 2, 16, 16), 1.0).to(HALF).requires_grad_()  # sums of 256, past bfloat16's 8 bits
    with rubbish():
        x = Blocked(pack_grad(numbers, 1), MapGrid(16, 16, 1), examples)
        means = blocked.global_mean(x)
        (slope,) = torch.autograd.grad(means.sum(), numbers)
    same_bits(means, torch.ones(examples, 2, 1, 1).to(HALF))
    same_bits(slope, torch.full_like(slope, 1 / 256))


@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("added", [True, False], ids=["added", ""])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_convolution_norm_addition_relu(training, added, relu):
    """Maps and their gradients as in float32, to bfloat16; parameters, their gradients and statistics in float32."""
    outcomes = []
    for half in (True, False):
        layer = SMALL.layer.float()
        layer.bias = None if training else layer.bias  # whose gradient batch statistics make 0
        sparse = SparseConv2d(layer, SMALL.mask)
        norm = nn.BatchNorm2d(SMALL.outputs).train(training)
        numbers, other = (torch.randn(37, c, 5, 7, generator=torch.Generator().manual_seed(c)) for c in (4, 6))
        numbers, other = (tensor.to(HALF).float().requires_grad_() for tensor in (numbers, other))
        with rubbish(), autocast():
            block = blocked_as(1, torch.float32, half)
            out, passed = ConvNorm(sparse, norm, 1, relu)(block(numbers), block(other) if added else None)
            assert out.storage.dtype == passed.storage.dtype == (HALF if half else torch.float32)
            slope = torch.sin(torch.arange(37 * 6 * 35.0)).view(37, 6, 5, 7)
            of = [numbers, *sparse.parameters(), *norm.parameters(), *([other] if added else [])]
            found = torch.autograd.grad(to_images(out), of, slope.to(out.storage.dtype))
            with torch.no_grad():
                at_once, _ = ConvNorm(sparse, norm.eval(), 1, relu)(block(numbers), block(other) if added else None)
        assert_clean(out.storage, out.grid, 37)
        assert_clean(at_once.storage, at_once.grid, 37)
        assert all(gradient.dtype == torch.float32 for gradient in found)
        statistics = [norm.running_mean, norm.running_var] if training else []
        outcomes.append([to_images(out).detach(), to_images(at_once), *found, *statistics])
    for number, (one, two) in enumerate(zip(*outcomes, strict=True)):
        distance = float((one - two).double().norm() / two.double().norm())
        assert distance < 0.05, f"{number}: {distance}"


def test_statistics_are_exact_to_float32():
    """Of maps far from 0, whose variance bfloat16 sums would lose."""
    numbers = (torch.randn(40, 2, 9, 9, generator=torch.Generator().manual_seed(0)) + 30).to(HALF)
    norm = nn.BatchNorm2d(2, momentum=1.0)
    with autocast():
        ConvNorm(None, norm, 1, relu=True)(blocked_as(1, torch.float32)(numbers.float()))
    close(norm.running_mean, numbers.double().mean((0, 2, 3)).float(), "mean")
    close(norm.running_var, numbers.double().var((0, 2, 3)).float(), "variance")


@pytest.mark.parametrize("size", [(1, 7), (31, 7), (32, 7), (2, 40, 7), (0, 7)])
def test_linear_layer(size):
    dense = nn.Linear(7, 5)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    sparse = SparseLinear(dense, mask)
    dense.weight.data *= mask
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(HALF).float()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with autocast():
        out = sparse(ours)
    expected = dense(theirs)
    assert out.dtype == HALF and out.shape == expected.shape
    assert torch.allclose(out.float(), expected, rtol=0.02, atol=0.02)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(HALF)
    found = torch.autograd.grad(out, (ours, sparse.values, sparse.bias), slope)
    wanted = torch.autograd.grad(expected, (theirs, dense.weight, dense.bias), slope.float())
    for one, two in zip(found, (wanted[0], wanted[1][mask], wanted[2]), strict=True):
        assert one.dtype == torch.float32 and torch.allclose(one, two, rtol=0.02, atol=0.1)


def test_layers_without_kept_weights():
    for layer in (nn.Conv2d(3, 4, 3, padding=1), nn.Linear(3, 4)):
        kind = SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear
        sparse = kind(layer, torch.zeros_like(layer.weight, dtype=torch.bool))
        x = torch.ones(2, 3, 4, 4) if kind is SparseConv2d else torch.ones(2, 3)
        with autocast():
            out = sparse(x.requires_grad_())
        assert out.dtype == HALF and torch.equal(
            out[0].flatten(1).float() if out.dim() == 4 else out[:1].T.float(),
            layer.bias.detach().to(HALF).float()[:, None].expand(4, 16 if out.dim() == 4 else 1),
        )
        out.sum().backward()
        assert not x.grad.any() and sparse.values.numel() == 0
