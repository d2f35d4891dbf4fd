"""A lowered network is the masked one: output, gradients and running statistics, whatever stands between its layers."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import skeletal
from skeletal.engine.exchange import make_sparse
from skeletal.engine.lower import lower
from skeletal.engine.modules.layers import Sparse
from tests.cases import random_mask
from tests.engine.blocks import mask_of, network
from tests.engine.sparse_cases import rubbish


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


class Lowering:
    """Both forms of a network: without dead channels and dense, and lowered."""

    def __init__(self, model, mask, example, paths=None):
        compacted = skeletal.compact(model, mask, example)
        assert compacted.report.whole is None, compacted.report.whole
        self.dense, self.mask = compacted.model, compacted.mask
        self.module = copy.deepcopy(compacted.model)
        make_sparse(self.module, compacted.mask)
        self.layers = {name: part for name, part in self.module.named_modules() if isinstance(part, Sparse)}
        for name, path in (paths or {}).items():
            self.layers[name].path = path
        self.lowered = lower(self.module, self.module.graph)
        for name, part in self.lowered.parts.items():
            self.module.add_module(name, part)

    def __call__(self, x):
        with rubbish():
            return self.lowered.forward(self.module, x)

    def train(self, mode):
        self.module.train(mode)
        self.dense.train(mode)

    def compare(self, x):
        """Output, gradients and statistics of one step."""
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        out, expected = self(ours), self.dense(theirs)
        assert_close(out, expected, "output")
        slope = torch.sin(torch.arange(out.numel()).double()).view(out.shape)
        for output, module in ((out, self.module), (expected, self.dense)):
            module.zero_grad(set_to_none=True)
            with rubbish():
                output.backward(slope)
        assert_close(ours.grad, theirs.grad, "input gradient")
        parameters = dict(self.module.named_parameters())
        for name, parameter in self.dense.named_parameters():
            found, gradient = parameters.pop(name).grad, parameter.grad
            if gradient is None or found is None:
                assert (gradient is None or not gradient.any()) and (found is None or not found.any()), name
            elif name.rpartition(".")[0] in self.layers and name.endswith("weight"):
                assert_close(found, gradient[self.mask[name]], name)
            else:
                assert_close(found, gradient, name)
        assert not parameters
        self.compare_buffers()

    def compare_buffers(self):
        for name, buffer in self.dense.named_buffers():
            assert_close(self.module.get_buffer(name).double(), buffer.double(), name)


def assert_close(one, two, what):
    assert one.shape == two.shape and one.dtype == two.dtype, what
    assert torch.allclose(one, two, rtol=1e-9, atol=1e-8), f"{what}: {(one - two).abs().max()}"


def batch(examples=3, height=6, width=6):
    return torch.randn(examples, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", NETS)
def test_lowered_networks_are_exact(kind):
    model, mask = made(kind)
    both = Lowering(model, mask, batch())
    assert both.layers
    both.train(True)
    for step in range(2):
        both.compare(batch() + step)
    both.train(False)
    both.compare(batch())
    with torch.no_grad():
        assert_close(both(batch()), both.dense(batch()), "evaluation")
        both.train(True)
        assert_close(both(batch()), both.dense(batch()), "training without gradients")
    both.compare_buffers()


@pytest.mark.parametrize("kind", NETS)
def test_maps_stay_blocked(kind):
    """What is a tensor again, and how often, is what the layout does not know."""
    model, mask = made(kind)
    code = Lowering(model, mask, batch()).lowered.code
    assert len(re.findall(r"to_images\(", code)) == kind.images, code


@pytest.mark.parametrize("kind", NETS)
def test_other_batches_and_images_than_the_example(kind):
    model, mask = made(kind)
    both = Lowering(model, mask, batch())
    sizes = [(1, 6, 6), (19, 6, 6)] if kind is Flattened else [(1, 6, 6), (19, 6, 6), (2, 9, 7), (2, 13, 16)]
    for training in (False, True):
        both.train(training)
        for size in sizes:
            both.compare(batch(*size))


@pytest.mark.parametrize("kind", NETS)
def test_some_layers_dense(kind):
    model, mask = made(kind)
    names = list(Lowering(model, mask, batch()).layers)
    for start in (0, 1):
        both = Lowering(model, mask, batch(), dict.fromkeys(names[start::2], "dense"))
        for training in (True, False):
            both.train(training)
            both.compare(batch())
    everything = Lowering(model, mask, batch(), dict.fromkeys(names, "dense"))
    assert "first(" not in everything.lowered.code
    everything.train(True)
    everything.compare(batch())


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_other_densities(density):
    for kind in (TwoBranches, Concatenated, Statistics, Strided):
        model, mask = made(kind, density, seed=1)
        both = Lowering(model, mask, batch())
        both.train(True)
        both.compare(batch())


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_random_networks(seed):
    """Of all blocks that `compact` is tested with, with empty layers and channels that are only a constant."""
    model = network(seed)
    x = batch(5, 4, 4)
    both = Lowering(model, mask_of(model, seed), x)
    both.train(False)
    both.compare(x)
    with torch.no_grad():
        assert_close(both(x), both.dense(x), "evaluation")


def test_everything_in_one_pass_without_gradients():
    model, mask = made(ResidualAfterNorm)
    code = Lowering(model, mask, batch()).lowered.code
    assert len(re.findall(r"blocked_\d+\(", code)) == 4, "input, stem, and two convolutions with norm and ReLU"
    assert "relu" not in code and "add" not in code


def test_dropout_follows_the_mode():
    model, mask = made(NormWithoutConv)
    model.stem.append(nn.Dropout(0.5))
    both = Lowering(model, mask, batch())
    both.train(False)
    both.compare(batch())
    both.train(True)
    with torch.no_grad():
        assert not torch.equal(both(batch()), both(batch()))


def test_the_masked_original_is_the_truth():
    """Not only the compact network: the original architecture, pruned weights 0."""
    for kind in NETS:
        model, mask = made(kind, 0.3)
        both = Lowering(model, mask, batch())
        mask.attach(model)
        for training in (True, False):
            both.train(training)
            model.train(training)
            with torch.no_grad():
                assert_close(both(batch()), model(batch()), kind.__name__)


class ScatterWeights(Net):
    """Maps of one size for the example only: pooling leaves one pixel of 6 x 6, the size of the mean."""

    def __init__(self):
        super().__init__()
        self.pool, self.shrink = nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(6)
        self.down = conv(4, 4, 1)

    def middle(self, x):
        return self.shrink(x) + self.down(self.pool(x))


def test_sizes_that_were_alike_by_chance_are_refused():
    model, mask = made(ScatterWeights, 1.0)
    both = Lowering(model, mask, batch())
    both.train(False)
    both.compare(batch())
    with pytest.raises(ValueError, match="cannot combine maps"):
        both(batch(2, 12, 12))


def test_layers_that_cannot_be_sparse_stay():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding_mode="reflect", padding=1),
        nn.Conv2d(2, 2, 2, padding="same"),
        nn.ConvTranspose2d(2, 2, 2),
        nn.Conv2d(2, 2, 3).bfloat16(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3),
    )
    model[5].register_forward_hook(lambda *_: None)
    masks = {f"{i}.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool) for i in range(7)}
    assert make_sparse(model, masks) == ["6"]
    assert type(model[7]) is nn.Conv2d
