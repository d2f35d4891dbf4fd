"""Small networks, one for everything that may stand between two layers."""

import torch
from torch import nn
from torch.nn import functional as F

import skeletal
from tests.cases import random_mask


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def joined(inputs, outputs, relu=True, **options):
    parts = [conv(inputs, outputs, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))


class Net(nn.Module):
    """A stem of 4 channels, what is to be tested, and a head of 2 numbers; `images` counts ways back to tensors."""

    images = 0

    def __init__(self):
        super().__init__()
        self.stem = joined(3, 4)
        self.one, self.two = joined(4, 4), joined(4, 4, relu=False)
        self.norm = nn.BatchNorm2d(4)
        self.plain = conv(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.last = conv(4, 4)
        self.head = nn.Linear(4, 2)

    def middle(self, x):
        raise NotImplementedError

    def forward(self, x):
        return self.head(self.last(self.middle(self.stem(x))).mean((2, 3)))


class ResidualAfterNorm(Net):
    def middle(self, x):
        return self.relu(self.two(self.one(x)) + x)


class ResidualBeforeNorm(Net):
    def middle(self, x):
        return F.relu(x + self.two(self.one(x)), inplace=True)


class TwoBranches(Net):
    def middle(self, x):
        return self.relu(self.one(x) + self.two(x))


class TwoNorms(Net):
    def middle(self, x):
        shortcut = self.norm(self.plain(x))
        branch = self.two(x)
        branch += shortcut
        return torch.relu(branch)


class SumOfPlain(Net):
    def middle(self, x):
        return torch.add(self.plain(x), self.last(x)) + x


class Doubled(Net):
    images = 1  # the sum of a map and itself is left to torch

    def middle(self, x):
        return x + x


class Concatenated(Net):
    def __init__(self):
        super().__init__()
        self.last = conv(12, 4, groups=2)

    def middle(self, x):
        return torch.cat([self.one(x), self.plain(x), x], dim=1)


class ConcatenatedBatch(Net):
    images = 2

    def middle(self, x):
        return torch.cat([self.one(x), x], 0)


class NormWithoutConv(Net):
    def middle(self, x):
        return F.relu(self.norm(x))


class NormFirst(Net):
    def middle(self, x):
        return self.plain(F.relu(self.norm(x))) + x


class NormOfShared(Net):
    """The convolution has another reader, so the norm cannot join it."""

    def middle(self, x):
        y = self.plain(x)
        return self.relu(self.norm(y)) + y


class ReluOfShared(Net):
    """The norm has another reader, so the ReLU cannot join it."""

    def middle(self, x):
        y = self.two(x)
        return F.relu(y) + y


class InPlaceReluOfShared(Net):
    def middle(self, x):
        y = self.two(x)
        z = self.relu(y)
        return y + self.one(z)


class AddOfShared(Net):
    def middle(self, x):
        y = self.two(x)
        return self.relu(y + x) + y


class SecondAddition(Net):
    def middle(self, x):
        return self.two(x) + x + self.plain(x)


class Activations(Net):
    def __init__(self):
        super().__init__()
        self.acts = nn.Sequential(
            nn.SiLU(inplace=True), nn.Identity(), nn.LeakyReLU(0.2), nn.Dropout(0), nn.ELU(), nn.GELU()
        )

    def middle(self, x):
        return torch.tanh(self.acts(self.plain(x))) + F.hardswish(F.relu6(self.two(x), inplace=True)) + F.silu(x)


class NotZeroAtZero(Net):
    images = 1

    def middle(self, x):
        return torch.sigmoid(x)


class Pooled(Net):
    def __init__(self):
        super().__init__()
        self.pools = nn.Sequential(nn.MaxPool2d(3, 2, 1), joined(4, 4), nn.MaxPool2d(2, padding=1))

    def middle(self, x):
        return self.pools(x)


class PooledOddly(Net):
    images = 2

    def __init__(self):
        super().__init__()
        self.pools = nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), joined(4, 4), nn.MaxPool2d(2, 1, dilation=2))

    def middle(self, x):
        return self.pools(x)


class UnknownBetween(Net):
    images = 3

    def middle(self, x):
        x = F.avg_pool2d(self.one(x), 2) * 2
        x = self.plain(x).softmax(1)
        return F.pad(self.two(x), (1, 0, 2, 0))


class UnknownReader(Net):
    """One tensor serves all who do not know blocks."""

    images = 1

    def middle(self, x):
        return self.plain(x * torch.sigmoid(x) + x.flip(3))


class InPlaceOfImages(Net):
    images = 2

    def middle(self, x):
        y = self.two(x)
        y.mul_(2)
        return self.plain(y) + y


class Scaled(Net):
    """Squeeze and excitation."""

    images = 2

    def __init__(self):
        super().__init__()
        self.pool, self.down = nn.AdaptiveAvgPool2d(1), conv(4, 4, 1)

    def middle(self, x):
        x = self.one(x)
        return x * torch.sigmoid(self.down(self.pool(x)))


class Strided(Net):
    def __init__(self):
        super().__init__()
        self.one, self.two = joined(4, 4, stride=2), joined(4, 4, relu=False, groups=4)
        self.around = nn.Sequential(nn.Conv2d(4, 4, 1, 2, bias=False), nn.BatchNorm2d(4))

    def middle(self, x):
        return self.relu(self.two(self.one(x)) + self.around(x))


class Flattened(Net):
    images = 1

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 3)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(torch.flatten(self.pool(self.one(self.stem(x))), 1))


class Statistics(Net):
    """Batch norms of every kind."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(
            [
                nn.BatchNorm2d(4, momentum=None),
                nn.BatchNorm2d(4, affine=False),
                nn.BatchNorm2d(4, track_running_stats=False),
                nn.BatchNorm2d(4, eps=0.1, momentum=0.5),
            ]
        )
        self.convs = nn.ModuleList(conv(4, 4, bias=i % 2 == 0) for i in range(4))

    def middle(self, x):
        for convolution, norm in zip(self.convs, self.norms, strict=True):
            x = norm(convolution(x)) + x
        return self.norms[0](x)


class Reused(Net):
    """One convolution on maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def middle(self, x):
        return self.plain(self.pool(self.plain(x)))


class SeveralOutputs(Net):
    images = 1

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([self.head(self.last(x).mean((2, 3))), x.flatten(1)], 1)


class InputShared(Net):
    """The network's input goes to two convolutions and to an operation that does not know blocks."""

    images = 0

    def __init__(self):
        super().__init__()
        self.beside = conv(3, 4)

    def forward(self, x):
        y = self.beside(x) + self.stem(x)
        return self.head(self.last(y).mean((2, 3))) + x.mean()


NETS = list(Net.__subclasses__())


def made(kind, density=0.5, seed=0):
    """A network after some training, with a mask that leaves none of its layers empty."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                if module.running_mean is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
    mask = random_mask(model, density, seed)
    for keep in mask.values():
        keep.view(-1)[0] = True
    return model, skeletal.Mask(mask)
