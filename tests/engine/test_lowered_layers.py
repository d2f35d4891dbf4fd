"""Layers keep what is theirs when a network is lowered: their class, mode and settings, and when they run."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import skeletal
from tests.cases import random_mask

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(model, x=X):
    """The network compiled, and the masked one, in double precision."""
    model = model.double()
    mask = skeletal.Mask(random_mask(model, 0.4))
    fast = skeletal.compile(model, mask, x, path="sparse")
    mask.attach(model)
    return fast, model


def assert_same(fast, slow, x=X, modes=(True, True, False)):
    """Outputs, gradients and statistics; None leaves each part's mode."""
    for mode in modes:
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        if mode is not None:
            fast.train(mode), slow.train(mode)
        found, expected = fast(ours), slow(theirs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        slope = torch.sin(torch.arange(found.numel()).double()).view(found.shape)
        torch.testing.assert_close(
            *(torch.autograd.grad(out, of, slope)[0] for out, of in ((found, ours), (expected, theirs))),
            rtol=1e-8, atol=1e-9,
        )  # fmt: skip
        for name, buffer in slow.named_buffers():
            torch.testing.assert_close(
                fast.get_submodule(name.rpartition(".")[0]).get_buffer(name.split(".")[-1]), buffer
            )


def around(*layers):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    return nn.Sequential(*stem, *layers, nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))


def unlike(kind, *arguments, change=lambda x: x * 1.5 + 0.25):
    """A layer of a subclass that does something else, and that torch.fx cannot follow."""

    class Other(kind):
        def forward(self, x):
            return change(super().forward(x)) if float(x.abs().max()) >= 0 else x

    return Other(*arguments)


LAYERS = [
    (nn.ReLU,), (nn.ReLU6,), (nn.LeakyReLU,), (nn.SiLU,), (nn.GELU,), (nn.Hardswish,), (nn.Tanh,), (nn.ELU,),
    (nn.Identity,), (nn.Dropout, 0.0), (nn.MaxPool2d, 2), (nn.AdaptiveAvgPool2d, 1), (nn.BatchNorm2d, 8),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer[0].__name__)
@pytest.mark.parametrize("behind_norm", [True, False])
def test_a_subclass_does_what_it_does(layer, behind_norm):
    fast, slow = pair(around(unlike(*layer)) if behind_norm else around(nn.MaxPool2d(1), unlike(*layer)))
    assert_same(fast, slow)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer[0].__name__)
def test_a_subclass_may_have_another_shape(layer):
    padded = unlike(*layer, change=lambda x: F.pad(x, (1, 0, 1, 0)))
    assert_same(*pair(around(padded)))


def drawn(network, x=X):
    """Whether a network draws random numbers."""
    before = torch.get_rng_state()
    network(x)
    return not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("after", [False, True], ids=["before compiling", "after compiling"])
def test_dropout_has_a_mode_of_its_own(after):
    """Switched off in training; on in evaluation, as for Monte Carlo dropout."""
    for training in (True, False):
        model = around(nn.ReLU(), nn.Dropout(0.5)).train(training)
        if not after:
            model.get_submodule("3").train(not training)
        fast, slow = pair(model)
        for network in (fast, slow):
            network.get_submodule("3").train(not training)
        assert [part.training for part in fast.modules() if isinstance(part, nn.Dropout)] == [not training]
        assert drawn(fast) == drawn(slow) == (not training)
        if training:
            assert_same(fast, slow, modes=(None,))


def test_dropout_follows_its_probability():
    fast, _ = pair(around(nn.Dropout(0.0)))
    assert not drawn(fast)
    fast.get_submodule("2").p = 0.5
    assert drawn(fast)
    fast.get_submodule("2").p = 1.0
    bias = fast.to_dense()[3].bias
    fast.get_submodule("4").eval()
    torch.testing.assert_close(fast(X), copy.deepcopy(fast.to_dense()[4])(bias.view(1, 8, 1, 1).expand(5, 8, 8, 8)))


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (nn.LeakyReLU(0.01), "negative_slope", 0.5),
        (nn.ELU(), "alpha", 3.0),
        (nn.GELU(), "approximate", "tanh"),
        (nn.ReLU6(), "max_val", 0.5),
        (nn.MaxPool2d(2), "stride", 1),
        (nn.MaxPool2d(3, 2, 1), "kernel_size", 2),
        (nn.MaxPool2d(3, 2), "ceil_mode", True),
        (nn.MaxPool2d(3, 2, 1), "dilation", 2),
        (nn.AdaptiveAvgPool2d(1), "output_size", 3),
    ],
    ids=str,
)
def test_settings_may_change(layer, name, value):
    fast, slow = pair(around(layer))
    assert_same(fast, slow)
    for network in (fast, copied := copy.deepcopy(fast), slow):
        setattr(network.get_submodule("2"), name, value)
    assert_same(copied, copy.deepcopy(slow))
    assert_same(fast, slow)


class Parts(nn.Module):
    """A convolution, a norm, and another convolution behind them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)


class ReadsStatistics(Parts):
    def forward(self, x):
        y = self.norm(self.conv(x))
        scale = self.norm.running_var.sum()
        return self.last(torch.relu(y)) * scale


class ReadsThemFirst(Parts):
    def forward(self, x):
        variance = self.norm.running_var[None]
        y = self.norm(self.conv(x))
        scale = variance.sum()
        return self.last(torch.relu(y)) * scale


class WritesStatistics(Parts):
    def forward(self, x):
        y = self.norm(self.conv(x))
        self.norm.running_mean.data.mul_(0.5)
        return self.last(torch.relu(y))


class Siamese(Parts):
    def forward(self, x):
        one = self.norm(self.conv(x))
        two = self.norm(self.conv(x.flip(3) * 2 + 1))
        return self.last(torch.relu(two) - torch.relu(one))


class Levels(Parts):
    def forward(self, x):
        maps = [self.norm(self.conv(level)) for level in (x, F.avg_pool2d(x, 2))]
        return torch.cat([self.last(torch.relu(y)).mean((2, 3)) for y in reversed(maps)], 1)


class Shared(Parts):
    """Another norm counts in the same tensors."""

    def __init__(self):
        super().__init__()
        self.double()
        self.other = nn.BatchNorm2d(8, affine=False, dtype=torch.float64)
        self.other.running_mean, self.other.running_var = self.norm.running_mean, self.norm.running_var

    def forward(self, x):
        one = self.norm(self.conv(x))
        two = self.other(self.conv(x * 3))
        return self.last(torch.relu(two) - torch.relu(one))


class Monitor(nn.Module):
    """Keeps a norm beside the network's parts, and code that torch.fx cannot follow."""

    def __init__(self, norm):
        super().__init__()
        self.norms = [norm]

    def forward(self, x):
        return x * self.norms[0].running_var.sum() if float(x.sum()) == float(x.sum()) else x


class Monitored(Parts):
    def __init__(self):
        super().__init__()
        self.monitor = Monitor(self.norm)

    def forward(self, x):
        y = self.norm(self.conv(x))
        scale = self.monitor(x)
        return self.last(torch.relu(y)) * scale.mean()


class Unused(Parts):
    """Its statistics change although nothing reads its output."""

    def forward(self, x):
        y = self.conv(x)
        self.norm(y)
        return self.last(torch.relu(y))


ORDERS = [ReadsStatistics, ReadsThemFirst, WritesStatistics, Siamese, Levels, Shared, Monitored, Unused]


@pytest.mark.parametrize("kind", ORDERS)
def test_norms_run_when_the_network_runs_them(kind):
    assert_same(*pair(kind()))
