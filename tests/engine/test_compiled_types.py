"""Types that change after compiling, or within a network: right, or refused, and never memory of somebody else."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import skeletal
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from tests.cases import random_mask
from tests.engine.sparse_cases import blocked_as


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 2))


def pair(model, x):
    """The network compiled, and the masked one."""
    mask = skeletal.Mask(random_mask(model, 0.4))
    fast = skeletal.compile(model, mask, x, path="sparse")
    mask.attach(model)
    return fast, model


def assert_same(fast, slow, x, tolerance):
    for training in (True, False):
        found, expected = fast.train(training)(x), slow.train(training)(x)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        found.sum().backward(), expected.sum().backward()
    for name, buffer in slow.named_buffers():
        torch.testing.assert_close(fast.get_buffer(name), buffer, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("before", "after"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_another_type_after_compiling(before, after):
    x = torch.randn(5, 3, 8, 8, dtype=before)
    fast, slow = pair(network().to(before), x)
    assert_same(fast.to(after), slow.to(after), x.to(after), 1e-9 if after == torch.float64 else 1e-4)


def test_functional_call_with_another_type():
    x = torch.randn(5, 3, 8, 8)
    fast, slow = pair(network(), x)
    ours, theirs = (
        {name: value.detach().double() for name, value in (*net.named_parameters(), *net.named_buffers())}
        for net in (fast.eval(), slow.eval())
    )
    expected = functional_call(slow, theirs, x.double())
    torch.testing.assert_close(functional_call(fast, ours, x.double()), expected, rtol=1e-9, atol=1e-9)


def test_layers_of_two_types():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3).double()

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).double())

    x = torch.randn(5, 3, 8, 8)
    fast, slow = pair(Mixed(), x)
    torch.testing.assert_close(fast(x), slow(x), rtol=1e-6, atol=1e-6)
    assert fast(x).dtype == torch.float64


def sparse(layer):
    kind = SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear
    return kind(layer, torch.ones_like(layer.weight, dtype=torch.bool))


def test_maps_of_another_type_are_refused():
    layer, norm = sparse(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)
    with pytest.raises(TypeError, match=r"maps of torch.float64 meet weights of torch.float32"):
        layer(blocked_as(0, torch.float64)(torch.randn(2, 3, 8, 8)))
    maps = blocked_as(0, torch.float32)(torch.randn(2, 3, 8, 8))
    other = blocked_as(0, torch.float64)(torch.randn(2, 8, 6, 6))
    for gradients in (True, False):
        message = pytest.raises(TypeError, match=r"maps of torch.float32, torch.float64 meet weights")
        with torch.set_grad_enabled(gradients), message:
            ConvNorm(layer, norm.eval(), 0, relu=True)(maps, other)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3), nn.Linear(8, 8)], ids=lambda layer: type(layer).__name__)
def test_numbers_of_another_count_are_refused(layer):
    x = torch.randn(2, 3, 8, 8)
    layer = sparse(layer)
    wrong = copy.deepcopy(layer)
    wrong._parameters["weight"] = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="kept weights got 3"):
        wrong(x)
    layer.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="a layer of 8 channels got a bias"):
        layer(x)
