"""Sparse layers equal torch's own on the masked weight, for any input, in any mode."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from skeletal.engine.codegen.packed_bf16 import LANES
from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import Blocked, BlockedMaxPool, Elementwise, ToBlocks, can_pool, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from skeletal.engine.ops.images import Pack
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from tests.engine.sparse_cases import Case, assert_clean, cases, close, rubbish

SMALL = Case(Shape((1, 2), (1, 1), (1, 1), 2, (3, 2)), 3, 4, 6, 4, 5, "half", 3)
NAN = float("nan")


@pytest.fixture(autouse=True)
def full_of_rubbish():
    """What a layer does not write is NaN."""
    with rubbish():
        yield


def conv(case=SMALL, dtype=torch.float64):
    """A layer of a case, and the dense one that it stands for."""
    dense = case.layer
    sparse = SparseConv2d(dense, case.mask).to(dtype)
    dense.weight.data *= case.mask
    return sparse, dense.to(dtype)


def linear(inputs=7, outputs=5, dtype=torch.float64, bias=True):
    dense = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(0)) < 0.4
    sparse = SparseLinear(dense, mask)
    dense.weight.data *= mask
    return sparse, dense, mask


def gradients(output, *tensors):
    """For a loss that tells every number of the output apart."""
    slope = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    return torch.autograd.grad(output, tensors, slope)


def same(sparse, dense, mask, x):
    """Output, and gradients of input, weight and bias."""
    ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    out, expected = sparse(ours), dense(theirs)
    close(out, expected, "output")
    grad_x, grad_values, *of_bias = gradients(out, ours, *sparse.parameters())
    dense_x, of_weight, *dense_bias = gradients(expected, theirs, *dense.parameters())
    for one, two in ((grad_x, dense_x), (grad_values, of_weight[mask]), *zip(of_bias, dense_bias, strict=True)):
        close(one, two, "gradient")


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


def norm_of(channels, kind):
    """A batch norm with statistics and parameters as after training."""
    options = {"affine": False} if kind == "no affine" else {}
    options |= {"momentum": None} if kind == "cumulative" else {}
    options |= {"track_running_stats": False} if kind == "no statistics" else {}
    norm = nn.BatchNorm2d(channels, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(5)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        if tensor is not None:
            tensor.data.normal_(generator=generator)
    if norm.running_var is not None:
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return norm


NORMS = ["usual", "no affine", "cumulative", "no statistics"]


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
    block = ToBlocks(1, torch.float64)
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


def test_gradients_of_storages_are_clean():
    """What layers hand back to each other has zeros around it, too, whatever its examples."""
    sparse, _ = conv()
    norm = norm_of(SMALL.outputs, "usual")
    x = ToBlocks(1, torch.float64)(SMALL.images)
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
        block = ToBlocks(1, torch.float64)
        return to_images(ConvNorm(self.convolution, self.norm, 0, relu=True)(block(x), block(other))[0])


def test_gradcheck_of_convolution_and_norm():
    joined = Joined(conv()[0], nn.BatchNorm2d(SMALL.outputs, track_running_stats=False).double())
    names, parameters = zip(*joined.named_parameters(), strict=True)

    def run(x, other, *parameters):
        return torch.func.functional_call(joined, dict(zip(names, parameters, strict=True)), (x, other))

    other = SMALL.random(3, 6, 4, 3).requires_grad_()
    assert gradcheck(run, (SMALL.images.requires_grad_(), other, *parameters))


def pooled(images, layer):
    return BlockedMaxPool(layer, halo=1)(ToBlocks(1, images.dtype)(images))


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


def test_nan_stays_nan():
    images = torch.ones(LANES + 2, 2, 5, 5, dtype=torch.float64)
    images[0, 0, 0, 0] = images[LANES, 1, 2, 2] = NAN
    layer = nn.MaxPool2d(3, 2, 1)
    assert torch.equal(to_images(pooled(images, layer)).isnan(), layer(images).isnan())
    norm = norm_of(2, "usual").eval()
    block = ToBlocks(0, torch.float64)(images)
    with torch.no_grad():
        alone, _ = ConvNorm(None, norm, 0, relu=True)(block)
        assert torch.equal(to_images(alone).isnan(), images.isnan())
        dense = nn.Conv2d(2, 2, 3, padding=1).double()
        everything = torch.ones_like(dense.weight, dtype=torch.bool)
        sparse = SparseConv2d(dense, everything)
        for training in (True, False):
            fused, _ = ConvNorm(sparse, norm.train(training), 1, relu=True)(block)
            assert torch.equal(to_images(fused).isnan(), torch.relu(norm(dense(images))).isnan())
            added, _ = ConvNorm(sparse, norm, 1, relu=True)(ToBlocks(0, torch.float64)(torch.ones_like(images)), block)
            assert to_images(added).isnan().sum() >= 2
    assert torch.equal(blocked.global_mean(block).isnan(), images.mean((2, 3), True).isnan())
    assert torch.equal(to_images(Elementwise(torch.relu)(block)).isnan(), images.isnan())


def test_a_network_that_diverges_does_not_warn():
    sparse, _ = conv(dtype=torch.float32)
    images = torch.full((3, 4, 4, 5), 3e38, requires_grad=True)
    for relu in (True, False):
        out, _ = ConvNorm(sparse, nn.BatchNorm2d(SMALL.outputs), 0, relu)(ToBlocks(1, torch.float32)(images))
        (gradient,) = torch.autograd.grad(to_images(out).sum(), images)
        assert not to_images(out).isfinite().all() and not gradient.isfinite().all()


@pytest.mark.parametrize("examples", [1, LANES, LANES + 3])
def test_mean_sum_and_concatenation(examples):
    one, two = (torch.randn(examples, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    block, wider = ToBlocks(0, torch.float64), ToBlocks(2, torch.float64)
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


@given(st.integers(0, 2 * LANES + 1), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_packing_is_undone_by_unpacking(examples, channels, height, width, halo):
    images = torch.randn(examples, channels, height, width)
    grid = MapGrid(height, width, halo)
    storage = pack(images, grid)
    assert torch.equal(unpack(storage, grid, examples), images)
    assert_clean(storage, grid, examples)


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
        fused = ConvNorm(sparse, norm, 0, relu=False)(ToBlocks(0, torch.float64)(SMALL.images))[0]
        close(to_images(fused), norm(dense(SMALL.images)))
        features = torch.randn(3, 7, dtype=torch.float64)
        close(flat(features), full(features))
    same(sparse, dense, SMALL.mask, SMALL.images)  # with the tables made in that mode
    same(flat, full, flat.mask, torch.randn(3, 7, dtype=torch.float64))


def test_what_a_convolution_hands_on_collects_gradients():
    sparse, dense = conv()
    ours, theirs = (SMALL.images.requires_grad_() for _ in range(2))
    out, passed = sparse(ToBlocks(0, torch.float64)(ours))
    again, passed_again = sparse(passed)
    total = (to_images(out) * 2 + to_images(again)).square().sum() + to_images(passed_again).pow(3).sum()
    expected = (3 * dense(theirs)).square().sum() + theirs.pow(3).sum()
    close(total, expected)
    close(torch.autograd.grad(total, ours)[0], torch.autograd.grad(expected, theirs)[0])
    only = to_images(sparse(ToBlocks(0, torch.float64)(ours))[1]).sum()
    assert (torch.autograd.grad(only, ours)[0] == 1).all()


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
    block = ToBlocks(1, torch.float64)
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


def test_a_single_image_without_its_batch():
    sparse, dense = conv()
    same(sparse, dense, SMALL.mask, SMALL.images[0])


def test_an_empty_batch():
    sparse, dense = conv()
    same(sparse, dense, SMALL.mask, SMALL.images[:0])
    with torch.no_grad():
        block = ToBlocks(1, torch.float64)(SMALL.images[:0])
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
        ConvNorm(None, norm, 0, relu=False)(ToBlocks(0, torch.float64)(SMALL.images[:1, :, :1, :1]))


def test_maps_of_other_sizes_are_not_combined():
    block = ToBlocks(0, torch.float64)
    whole = block(SMALL.images)
    norm = norm_of(4, "usual")
    for other in (block(SMALL.images[:1]), block(SMALL.images[:, :, :1]), block(SMALL.images[..., :2])):
        for combine in (blocked.add, lambda x, y: blocked.concatenate([x, y]), ConvNorm(None, norm, 0, relu=False)):
            with pytest.raises(ValueError, match="cannot combine maps"):
                combine(whole, other)


def test_large_means_do_not_spoil_the_variance():
    """Mean 30 times the deviation, in single precision."""
    images = torch.randn(40, 2, 9, 9, generator=torch.Generator().manual_seed(0)) + 30
    norm = nn.BatchNorm2d(2)
    block = ToBlocks(0, torch.float32)(images)
    out, _ = ConvNorm(None, norm, 0, relu=False)(Blocked(block.storage, block.grid, block.examples))
    expected = F.batch_norm(images.double(), None, None, training=True)
    assert (to_images(out) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("arguments", POOLS[:-1], ids=str)
def test_max_pooling_of_maps_that_are_still_to_be_normalised(arguments, relu):
    sparse, _ = conv()
    maps, _ = ConvNorm(sparse, norm_of(SMALL.outputs, "usual"), 1, relu)(ToBlocks(1, torch.float64)(SMALL.images))
    settled = Blocked(maps.storage, maps.grid, maps.examples)
    assert maps.affine is not None
    found, expected = (BlockedMaxPool(nn.MaxPool2d(*arguments), 1)(x) for x in (maps, settled))
    assert_clean(found.storage, found.grid, found.examples)
    assert torch.equal(found.storage, expected.storage)
    slope = torch.sin(torch.arange(expected.storage.numel(), dtype=torch.float64)).view_as(expected.storage)
    one, two = (torch.autograd.grad(x.storage, sparse.values, slope, retain_graph=True)[0] for x in (found, expected))
    assert torch.equal(one, two)


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
    block, pool = ToBlocks(1, torch.float64), nn.MaxPool2d(2)
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
