"""Parameters and buffers that more than their layer reads are not cut: outputs, gradients, statistics stay the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import skeletal

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Base(nn.Module):
    """Nothing reads the first five channels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.first(x))))


class Reads(Base):
    def forward(self, x):
        return super().forward(x) + self.norm.running_var.sum()


class Shares(Base):
    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(8)
        self.double()  # which later would give each its own
        self.other.running_mean, self.other.running_var = self.norm.running_mean, self.norm.running_var

    def forward(self, x):
        first = self.first(x)
        return self.last(F.relu(self.norm(first)) + F.relu(self.other(2 * first)))


class Refers(nn.Module):
    """A part that a graph cannot hold, with a layer, a parameter or a method that it has not registered."""

    def __init__(self, *found):
        super().__init__()
        self.found = list(found)

    def forward(self, y, x):
        for found in self.found:
            read = found if isinstance(found, nn.Parameter) else found(x)
            y = y + read.pow(2).mean() if y.sum() < 1e9 else y
        return y


class Penalized(Base):
    def __init__(self, find):
        super().__init__()
        self.part = Refers(find(self.first))

    def forward(self, x):
        return self.part(super().forward(x), x)


def layer():
    return Penalized(lambda first: first)


def parameter():
    return Penalized(lambda first: first.weight)


def method():
    return Penalized(lambda first: first.forward)


def passes(network):
    """Outputs in both modes and the input's gradient, over two steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        x = X.clone().requires_grad_()
        optimizer.zero_grad()
        out = network.train()(x)
        out.pow(2).mean().backward()
        optimizer.step()
        yield from (out, x.grad, network.eval()(X))


@pytest.mark.parametrize("make", [Reads, Shares, layer, parameter, method])
def test_as_the_masked_network(make):
    torch.manual_seed(0)
    model = make().double()
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() == 4}
    mask["last.weight"][:, :5] = False
    small = skeletal.compact(model, mask, X)
    assert any("shares its parameters or buffers" in held for held in small.report.held), small.report.held
    skeletons = skeletal.Mask(mask).attach(model), skeletal.Mask(small.mask).attach(small.model)
    for want, found in zip(passes(model), passes(small.model), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    assert len(skeletons) == 2


def test_without_others_that_read_them_layers_are_cut():
    model = Base().double()
    mask = {"last.weight": torch.ones(4, 8, 3, 3, dtype=torch.bool)}
    mask["last.weight"][:, :5] = False
    small = skeletal.compact(model, mask, X).model
    assert small.get_submodule("first").out_channels == small.get_submodule("norm").num_features == 3
