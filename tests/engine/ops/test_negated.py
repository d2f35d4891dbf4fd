"""Tensors that torch stores with the other sign, as the imaginary part of a conjugate: the sign counts."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import skeletal
from tests.engine.networks import NormWithoutConv, ResidualAfterNorm, made
from tests.engine.sparse_cases import close


class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 2))


KINDS = (ResidualAfterNorm, NormWithoutConv, Linear)


def negated(tensor):
    """The same numbers, stored with the other sign."""
    made = torch._neg_view(-tensor)
    assert made.is_neg() and torch.equal(made, tensor)
    return made


def steps(network, weights, x, slope):
    """What a network makes of it, and the gradients of its input and its weights."""
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    x = x.detach().requires_grad_()
    out = functional_call(network, weights, (x,))
    return out, *torch.autograd.grad(out, [x, *weights.values()], slope)


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_weights_statistics_and_gradients_may_be_stored_with_the_other_sign(kind, training, path):
    model, mask = made(kind)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = skeletal.compile(model, mask, x, path=path).train(training)
    other = copy.deepcopy(plain)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d) and path == "sparse":  # torch's own writes such statistics elsewhere
            module.running_mean = negated(module.running_mean)
    weights, slope = dict(plain.named_parameters()), torch.randn_like(plain(x).detach())
    other.load_state_dict(plain.state_dict())  # that pass counted
    expected = steps(plain, weights, x, slope)
    found = steps(
        other, {name: negated(weight.detach()) for name, weight in weights.items()}, negated(x), negated(slope)
    )
    for one, two in zip(found, expected, strict=True):
        close(one, two)
    for (name, buffer), (_, same) in zip(other.named_buffers(), plain.named_buffers(), strict=True):
        close(buffer, same, name)
    with torch.no_grad():
        close(functional_call(other, weights, (negated(x),)), plain(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_imaginary_part_of_a_conjugate_goes_in_and_a_gradient_like_it_comes_back(kind):
    model, mask = made(kind)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fast = skeletal.compile(model, mask, x, path="sparse")
    mask.attach(model)
    results = []
    for network in (fast, model):
        leaf = x.clone().requires_grad_()
        out = network(torch.fft.fft2(leaf).conj().imag)
        value = torch.complex(torch.zeros_like(out), out).conj().imag.sin().sum()
        results.append((out, torch.autograd.grad(value, leaf)[0]))
    for one, two in zip(*results, strict=True):
        close(one, two)
