"""Whether a path is left, against brute force: following kept weights one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skeletal.core.borrow import borrowed
from skeletal.core.connectivity import reaches_output
from skeletal.core.weights import prunable_weights
from tests.cases import ZOO, Residual, images


def reaches(model, mask, batch):
    with borrowed(model, training=True, seed=0):
        return reaches_output(model, mask, batch)


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
