"""Whether a path is left, against brute force: following kept weights one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.core.diagnosis.connectivity import reaches_output
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.weights import prunable_weights
from tests.cases import ZOO, Residual, Tokens, images


def reaches(model, mask, batch):
    with preserve_model(model, training=True, seed=0):
        return reaches_output(model, mask, batch)[0]


@given(st.integers(0, 10_000), st.floats(0.02, 0.5), st.integers(1, 4))
def test_multilayer_perceptron_against_following_every_path(seed, density, depth):
    generator = torch.Generator().manual_seed(seed)
    sizes = [6, *[7] * depth, 3]
    layers = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs)]
    model = nn.Sequential(*layers)
    mask = {name: torch.rand(w.shape, generator=generator) < density for name, w in prunable_weights(model).items()}
    reached = torch.ones(6, dtype=torch.bool)
    for keep in mask.values():
        reached = (keep & reached).any(1)
    assert reaches(model, mask, (torch.randn(4, 6), torch.zeros(4))) is bool(reached.any())


@pytest.mark.parametrize("name", ZOO)
def test_dense_networks_reach_and_empty_ones_do_not(name):
    make, data = ZOO[name]
    model = make()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    assert reaches(model, mask, data()[0])
    empty = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    assert not reaches(model, empty, data()[0])


def test_a_skip_connection_carries_the_signal_past_an_empty_layer():
    model = Residual()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["block.0.weight"].zero_()
    assert reaches(model, mask, images()[0])
    mask["stem.weight"].zero_()
    assert not reaches(model, mask, images()[0])


def test_zero_norm_scales_biases_and_dead_units_close_no_path():
    model = Residual()
    with torch.no_grad():
        model.stem.bias.fill_(-1e3)
        model.block[1].weight.zero_()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    assert reaches(model, mask, images()[0])


def test_fifty_layers_neither_overflow_nor_vanish():
    model = nn.Sequential(nn.Flatten(), *[nn.Sequential(nn.Linear(30, 30), nn.ReLU()) for _ in range(50)])
    mask = {name: torch.eye(30, dtype=torch.bool) for name, _ in prunable_weights(model).items()}
    assert reaches(model, mask, (torch.randn(2, 30), None))
    dense = {name: torch.ones_like(keep) for name, keep in mask.items()}
    assert reaches(model, dense, (torch.randn(2, 30), None))


class Ending(nn.Module):
    """A deep plain network whose output hardly moves: its signal shrinks, and the last layer adds a constant."""

    def __init__(self, last):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), *[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(16)])
        self.head = nn.Sequential(nn.Linear(64, 4), last)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Softmax(1), nn.Sigmoid()], ids=lambda last: type(last).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_weak_signal_is_not_lost_beside_a_constant(last, seed):
    model = Ending(last)
    generator = torch.Generator().manual_seed(seed)
    weights = prunable_weights(model)
    mask = {name: torch.rand(w.shape, generator=generator) < 0.03 for name, w in weights.items()}
    reached = torch.ones(64, dtype=torch.bool)
    for keep in mask.values():
        reached = (keep & reached).any(1)
    # A path to every output is none to their softmax, if all were alike; random weights are not.
    assert reaches(model, mask, (torch.randn(3, 64), None)) is bool(reached.any())


class Awkward(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.f, self.head = kind, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, other=None):
        if self.kind == "fixed batch":
            x = x.view(16, 6)
        elif self.kind == "graph":
            x = torch.zeros_like(x).index_add(0, other[0], x[other[1]])
        elif self.kind == "random in eval mode":
            x = x * 0 + torch.nn.functional.dropout(self.f(x), training=True).sum() * 0 + x
        x = self.head(torch.relu(self.f(x)))
        if self.kind == "random in eval mode":
            x = nn.functional.dropout(x, training=True)
        return x.bool() if self.kind == "no floats" else x


def awkward_batch(kind):
    x = torch.randn(16, 6)
    inputs = (x, torch.randint(16, (2, 50))) if kind == "graph" else x
    return inputs, torch.zeros(16, dtype=torch.long)


@pytest.mark.parametrize("kind", ["fixed batch", "graph", "random in eval mode"])
def test_awkward_models_are_judged_right(kind):
    model = Awkward(kind)
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    assert reaches(model, mask, awkward_batch(kind)) is True
    mask["f.weight"].zero_()
    assert reaches(model, mask, awkward_batch(kind)) is False


def test_what_cannot_be_probed_is_unknown_and_the_mask_is_not_lost():
    model = Awkward("no floats")
    mask = skeletal.prune(model, [awkward_batch("")], density=0.5, method="magnitude")
    assert mask.metadata["connected"] is None
    constant = [{"input_ids": torch.zeros(2, 5, dtype=torch.long), "labels": torch.zeros(2, 5, dtype=torch.long)}]
    assert skeletal.prune(Tokens(), constant, density=0.5, method="random").metadata["connected"] is None


def test_empty_layers_without_batches_are_warned_of():
    with pytest.warns(skeletal.CollapseWarning, match="not known"):
        skeletal.prune(Ending(nn.Identity()), density=0.0002, method="random")
