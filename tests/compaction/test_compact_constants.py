"""Channels that no input reaches: removed where they stay 0, left where they emit a bias, or may come to."""

import pytest
import torch
from torch import nn

import skeletal
from tests.compaction.test_compact import X
from tests.engine.blocks import assert_exact


def build(*middle: nn.Module, bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(first, *middle, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()


def only_last_channel(model: nn.Module) -> skeletal.Mask:
    """The first three channels of the first convolution read nothing."""
    mask = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    mask["0.weight"][:3] = False
    return skeletal.Mask(mask)


def norm(**values: float) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(4)
    for name, value in values.items():
        getattr(module, name).data.fill_(value)
    return module


def frozen(module: nn.Module, *names: str) -> nn.Module:
    for name in names:
        getattr(module, name).requires_grad_(False)
    return module


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.act(x + self.norm(self.conv(x)))


@pytest.mark.parametrize(
    ("left", "middle"),
    [
        (1, [nn.ReLU()]),
        (1, [norm(), nn.ReLU()]),
        (1, [norm(), nn.ReLU6(), nn.MaxPool2d(3, 1, 1)]),
        (1, [norm(), nn.Dropout(0.0), nn.ReLU(inplace=True)]),
        (1, [nn.BatchNorm2d(4, affine=False), nn.GELU()]),
        (1, [nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()]),
        (1, [frozen(norm(), "bias"), nn.GELU()]),
        (1, [nn.Tanh(), nn.AvgPool2d(3, 1, 1)]),
        (1, [nn.PReLU(4), nn.Hardswish()]),
        (1, [nn.InstanceNorm2d(4)]),
        (4, [norm(), nn.GELU()]),  # the bias is 0 and will be trained
        (4, [norm(), nn.LeakyReLU()]),
        (4, [norm(), nn.Hardtanh()]),
        (4, [norm(bias=0.5), nn.ReLU()]),
        (4, [norm(bias=-0.5), nn.ReLU()]),  # weight decay may overshoot
        (4, [norm(running_mean=0.5), nn.ReLU()]),  # not 0 in eval mode
        (4, [nn.InstanceNorm2d(4, affine=True)]),
        (4, [nn.Sigmoid()]),
        (4, [norm(), nn.ReLU(), nn.Softplus()]),
        (4, [Skip()]),  # its branch has a bias, and the sum keeps what either side needs
    ],
)
def test_what_stays_zero_goes_and_what_does_not_stays(left, middle):
    model = build(*middle)
    small = assert_exact(model, only_last_channel(model), X)
    assert small.model.get_submodule("0").out_channels == left
    line = small.report.layers[0]
    assert line.outputs == (4, left) and line.removed_zero == 4 - left and line.zero == left - 1


@pytest.mark.parametrize(("left", "act"), [(1, nn.ReLU()), (4, nn.ELU())])
def test_zero_biases_of_convolutions(left, act):
    model = build(act, bias=True)
    nn.init.zeros_(model.get_parameter("0.bias"))
    small = assert_exact(model, only_last_channel(model), X)
    assert small.model.get_submodule("0").out_channels == left


def test_a_constant_read_through_padding_keeps_its_border():
    model = build(nn.ReLU(), bias=True)
    nn.init.constant_(model.get_parameter("0.bias"), 0.5)
    small = assert_exact(model, only_last_channel(model), X)
    assert small.report.layers[0].constant == 3
    assert not small.mask["0.weight"][:3].any()


def test_pruned_scales_and_biases_of_norms():
    model = build(norm(bias=0.5), nn.GELU())
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    mask["1.weight"][:3] = False  # now the bias is all they emit
    mask["1.bias"][:2] = False  # now nothing
    small = assert_exact(model, skeletal.Mask(mask), X)
    assert small.model.get_submodule("1").num_features == 2
    assert small.report.layers[1].constant == 1


def test_a_channel_is_not_read_past_a_zero_it_is_multiplied_with():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False)

        def forward(self, x):
            return self.one(x) * self.two(x)

    model = build(nn.ReLU())
    model[0] = Gate().double()
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    mask["0.two.weight"][:3] = False
    small = assert_exact(model, skeletal.Mask(mask), X)
    assert small.model.get_submodule("0.one").out_channels == 1


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "5.weight"])
def test_an_empty_layer_keeps_a_channel_and_its_biases(name):
    model = build(nn.ReLU(), bias=True)
    mask = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    mask[name].zero_()
    small = assert_exact(model, skeletal.Mask(mask), X)
    if name == "5.weight":  # the output is the last bias alone
        assert [layer.outputs[1] for layer in small.report.layers] == [1, 1, 2]


def test_a_network_without_any_weight_left():
    model = build(norm(), nn.ReLU())
    mask = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    small = assert_exact(model, skeletal.Mask(mask), X)
    assert sum(layer.kept for layer in small.report.layers) == 0
