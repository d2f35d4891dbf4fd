"""Small networks with the habits of real code that a graph of operations loses, and one without any."""

import random
from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F


class Base(nn.Module):
    """Two convolutions, a batch norm and a head; kinds differ in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def body(self, x):
        return torch.relu(self.norm(self.one(x)))

    def forward(self, x):
        return self.head(torch.relu(self.two(self.body(x))).mean((2, 3)))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


double = Doubled.apply  # as many bind it


class NoGrad(Base):
    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
        return self.head(self.two(x).mean((2, 3)))


class NoGradInside(Base):
    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.Frozen(nn.Conv2d(3, 3, 1), nn.ReLU())

    def forward(self, x):
        return super().forward(self.stem(x))


class Inference(Base):
    def forward(self, x):
        with torch.inference_mode():
            mean = self.two(self.body(x)).mean().clone()
        return super().forward(x) + mean.clone()


class Detached(Base):
    def forward(self, x):
        return self.head(self.two(self.body(x).detach()).mean((2, 3)))


class DataRead(Base):
    def forward(self, x):
        x = self.body(x)
        return self.head((self.two(x) + x.data).mean((2, 3)))


class Island(Base):
    def forward(self, x):
        x = self.body(x)
        with torch.autocast("cpu", enabled=False):
            return self.head(self.two(x).mean((2, 3)))


class OwnFunction(Base):
    def forward(self, x):
        return self.head(double(self.two(self.body(x))).mean((2, 3)))


class Module(nn.Module):
    """A part; what it does stands in the kind that holds it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.scale, self.seen = function, nn.Parameter(torch.ones(1)), None

    def forward(self, x):
        return self.function(self, x)


def skipping(self, x):
    return x if self.training and torch.rand(1).item() < 0.5 else x * self.scale + 1


def pythons(self, x):
    return x * (1 + random.random() if self.training else 1)


def storing(self, x):
    self.seen = x
    return x * self.scale


def straight_through(self, x):
    return double(x) * self.scale


def asking(self, x):
    return x * self.scale if float(x.abs().max()) > 0.5 else x + self.scale  # a sum is 0 but for rounding after a norm


def branching(self, x):
    return x * self.scale if isinstance(x, torch.Tensor) else x


def by_mode(self, x):
    return x * self.scale if self.training else x.abs()


def asking_autocast(self, x):
    return x * self.scale * (2 if torch.is_autocast_enabled("cpu") else 1)


def warming(self, x):
    self.seen = (self.seen or 0) + 1
    return x * self.scale * min(1, self.seen / 9)


def island(self, x):
    with torch.autocast("cpu", enabled=False):
        return x * self.scale


class Holding(Base):
    """A part that cannot be written down between layers that can."""

    def __init__(self, function) -> None:
        super().__init__()
        self.part = Module(function)

    def forward(self, x):
        return self.head(torch.relu(self.two(self.part(self.body(x)))).mean((2, 3)))


class Adding(Base):
    """Adds to a buffer of zeros that is new in every pass."""

    def forward(self, x):
        total = torch.zeros(6)
        total += self.norm.weight.detach()
        return super().forward(x) + total.sum()


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.count.add_(1)
        return super().forward(x) * self.count.clamp(min=1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(12, 5)

    def forward(self, x):
        return F.linear(torch.relu(self.one(x.flatten(1)[:, :12])), self.one.weight.t())


class Cosine(Base):
    def forward(self, x):
        x = torch.relu(self.two(self.body(x))).mean((2, 3))
        return 16 * F.linear(F.normalize(x), F.normalize(self.head.weight))


class Penalty(Base):
    def forward(self, x):
        return super().forward(x), sum(m.weight.abs().mean() for m in self.modules() if isinstance(m, nn.Conv2d))


class Momentum(Base):
    """A slow copy of the head, moved in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(6, 4).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.slow.weight.data.mul_(0.9).add_(self.head.weight, alpha=0.1)
        x = self.two(self.body(x)).mean((2, 3))
        return self.head(x) + self.slow(x)


class Clipping(Base):
    """Writes to weights in every pass, as code that clips or normalizes them does."""

    def forward(self, x):
        with torch.no_grad():
            self.two.weight.clamp_(-0.1, 0.1)
            self.one.weight.data.mul_(0.9)
        return super().forward(x)


class Patched(Base):
    """Has layers whose forward pass someone has replaced, as libraries that move weights between devices do."""

    def __init__(self) -> None:
        super().__init__()
        self.two.forward = MethodType(lambda layer, x: nn.Conv2d.forward(layer, x) + 1, self.two)
        self.norm.forward = MethodType(lambda norm, x: nn.BatchNorm2d.forward(norm, x) * 2, self.norm)


class Keyword(Base):
    def forward(self, x):
        return self.head(input=self.two(input=self.body(x)).mean((2, 3)))


class Stride(Base):
    def forward(self, x):
        x = self.body(x)
        x = F.conv2d(x, self.two.weight, self.two.bias, self.two.stride, self.two.padding, self.two.dilation)
        return self.head(x.mean((2, 3))) * self.head.out_features


class Tempered(Base):
    """Has an attribute that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 0.5

    def forward(self, x):
        return super().forward(x) / self.temperature


class Optional(Base):
    """Asks whether it was given something, and by `is`, which is no operation."""

    def forward(self, x, keep=None, twice=False):
        out = super().forward(x if keep is None else x * keep)
        return out * 2 if twice is True else out


class Force(Base):
    """Returns a derivative, as energy models do."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(
            self.head(torch.tanh(self.two(self.one(x))).mean((2, 3))).sum(), x, create_graph=True
        )
        return force.mean((2, 3))


class Merging(Base):
    """An adapter that is merged into the weight outside of training."""

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.delta, self.merged = nn.Linear(6, 4), nn.Parameter(torch.ones(4, 6) / 10), False

        def train(self, mode=True):
            if mode == self.merged:
                self.base.weight.data += self.delta.data * (-1 if mode else 1)
                self.merged = not mode
            return super().train(mode)

        def forward(self, x):
            return self.base(x) if self.merged else self.base(x) + F.linear(x, self.delta)

    def __init__(self) -> None:
        super().__init__()
        self.head = self.Adapter()


WHOLE = {kind.__name__: kind for kind in (Inference, Island, OwnFunction, Counting, Optional)}
"""kept whole, since the network's own forward pass does it"""
PARTS = {
    f.__name__: (lambda f=f: Holding(f))
    for f in (skipping, pythons, storing, straight_through, asking, by_mode, asking_autocast, island, warming)
}
"""one part is kept whole, under its name"""
TRACED = {
    kind.__name__: kind
    for kind in (
        Base,
        NoGrad,
        NoGradInside,
        Detached,
        DataRead,
        Momentum,
        Tied,
        Cosine,
        Keyword,
        Stride,
        Tempered,
        Clipping,
    )
}
"""written down as one graph"""
EITHER = {kind.__name__: kind for kind in (Adding, Penalty, Merging, Patched)} | {
    "branching": lambda: Holding(branching)
}
KINDS = WHOLE | PARTS | TRACED | EITHER
