"""A lowered network is the masked one: output, gradients and running statistics, whatever stands between its layers."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.engine.exchange import make_sparse
from skeletal.engine.lower import lower
from skeletal.engine.modules.layers import Sparse
from tests.engine.blocks import mask_of, network
from tests.engine.networks import (
    NETS,
    Concatenated,
    Flattened,
    Net,
    NormWithoutConv,
    ResidualAfterNorm,
    Statistics,
    Strided,
    TwoBranches,
    conv,
    made,
)
from tests.engine.sparse_cases import rubbish


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
    sizes = [(0, 6, 6), (1, 6, 6), (19, 6, 6)] + ([] if kind is Flattened else [(2, 9, 7), (2, 13, 16)])
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
