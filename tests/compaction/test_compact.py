"""A compact network equals its masked one: output, gradients and statistics, before and after training."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.compaction.slices import paste
from skeletal.core.diagnosis.effective import effective_weights
from skeletal.harness.models import create
from skeletal.harness.models.resnet import BasicBlock, Bottleneck, resnet
from skeletal.harness.models.vgg import vgg
from tests.cases import random_mask
from tests.engine.blocks import Plain, assert_exact, mask_of, network, off_the_kinks

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_random_networks_stay_exact(seed):
    model = network(seed)
    assert_exact(model, mask_of(model, seed), X)


def left_in(small, mask):
    """The kept weights that are still there, in the original's shapes."""
    nothing = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    return {name: paste(keep, small.slices[name], nothing[name]) for name, keep in small.mask.items()}


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_no_effective_weight_goes(seed):
    model = network(seed).eval()
    mask = mask_of(model, seed)
    effective, _ = effective_weights(copy.deepcopy(model), mask, (X, None))
    left = left_in(skeletal.compact(model, mask, X), mask)
    for name, useful in effective.items():
        assert not (useful & ~left[name]).any(), name


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_in_a_chain_nothing_else_stays(seed):
    # Effective weights are found by gradients, in a way that has nothing to do with the analysis of channels.
    model = network(seed, blocks=(Plain,)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()
    mask = mask_of(model, seed)
    effective, on_constant = effective_weights(copy.deepcopy(model), mask, (X, None))
    needed = {name: effective[name] | on_constant[name] for name in mask}
    left = left_in(skeletal.compact(model, mask, X), mask)
    for name in mask:
        assert not (needed[name] & ~left[name]).any(), name
    if all(need.any() for need in needed.values()):  # else an empty layer keeps one channel
        assert all(torch.equal(left[name], needed[name]) for name in mask)


OURS = {
    "vgg": lambda: vgg((8, 8, "M", 16, 16, "M", 24, 24), num_classes=5, in_channels=3, image_size=8),
    "bottleneck": lambda: resnet(Bottleneck, (2, 1), 4, num_classes=5, in_channels=3, image_size=8),
    "basic": lambda: resnet(BasicBlock, (1, 2), 6, num_classes=5, in_channels=3, image_size=8),
    "stable": lambda: resnet(BasicBlock, (1, 1), 6, num_classes=5, in_channels=3, image_size=8, stable=True),
    "lenet5": lambda: create("lenet5", num_classes=5, image_size=12, seed=0),
}


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("name", OURS)
def test_networks_of_ours(name, density):
    torch.manual_seed(0)
    model = OURS[name]().double()
    x = torch.randn(2, 3, 12 if name == "lenet5" else 8, 12 if name == "lenet5" else 8, dtype=torch.float64)
    small = assert_exact(model, skeletal.Mask(random_mask(model, density)), x)
    assert not small.report.held
    if density < 0.1:
        assert small.report.macs[1] < small.report.macs[0]


SMALL = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25, dropout=0.0),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 3), 8, num_classes=5),
    "test_efficientnet": lambda: create("timm:test_efficientnet", num_classes=5, seed=0),
    "test_resnet": lambda: create("timm:test_resnet", num_classes=5, seed=0),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_of_torchvision_and_timm(name):
    torch.manual_seed(0)
    model = SMALL[name]().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert_shrinks(model, x, 0.03, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnext50_32x4d", "mobilenet_v2", "densenet121", "googlenet", "vgg19-cifar"]
)
def test_large_networks(name):
    model = create(name, seed=0).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it would draw other numbers
    # A norm that sees two nearly equal values, on 1x1 maps, makes much of rounding errors; so does a training step.
    size = 64 if name == "resnext50_32x4d" else 32
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_shrinks(model, x, 0.003, steps=0)


def assert_shrinks(model, x, density, steps):
    mask = skeletal.Mask(random_mask(model, density))
    off_the_kinks(model, mask, x)
    small = assert_exact(model, mask, x, steps, lr=1e-3)
    assert not small.report.held and small.report.macs[1] < 0.9 * small.report.macs[0]
