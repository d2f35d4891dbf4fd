"""Kernels have no second derivative: no way that torch takes to one leaves it out without a word."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, hvp, jacobian
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import skeletal
from tests.engine.networks import NETS, Net, conv, made
from tests.engine.sparse_cases import close

REFUSED = "no second derivative"


class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(108, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))


class EndsInSum(Net):
    """A norm with another map added, and nothing behind it that depends on either."""

    def __init__(self):
        super().__init__()
        self.biased = conv(4, 4)

    def forward(self, x):
        x = self.stem(x)
        return (self.norm(self.biased(x)) + x).mean((2, 3))


class EndsInNorm(Net):
    """A norm by itself, and nothing behind it."""

    def forward(self, x):
        x = self.stem(x)
        return self.norm(x + self.plain(x)).mean((2, 3))


class EndsInConvolution(Net):
    def forward(self, x):
        return self.plain(self.stem(x)).mean((2, 3))


ENDS = (EndsInSum, EndsInNorm, EndsInConvolution)


def pair(kind, training=True):
    model, mask = made(kind)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fast = skeletal.compile(model, mask, x, path="sparse").train(training)
    mask.attach(model)
    return fast, model.train(training), x


def derivatives(network, x):
    """The gradient of each parameter and of the input, and what they are of; the loss is linear in the output."""
    asked = {"input": x.clone().requires_grad_()} | dict(network.named_parameters())
    out = network(asked["input"])
    value = (out * torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)).sum()
    found = torch.autograd.grad(value, list(asked.values()), create_graph=True, allow_unused=True)
    return asked, {name: one for name, one in zip(asked, found, strict=True) if one is not None and one.requires_grad}


def second(one, by):
    return torch.autograd.grad(one.pow(2).sum(), by, retain_graph=True, allow_unused=True)[0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", [*NETS, *ENDS, Linear])
def test_each_second_derivative_that_the_dense_network_has_is_refused(kind, training):
    fast, dense, x = pair(kind, training)
    (asked, first), (of_fast, ours) = derivatives(dense, x), derivatives(fast, x)
    refused = 0
    for name, slope in ours.items():
        for by, tensor in of_fast.items():
            expected = second(first[name], asked[by]) if name in first else None
            if expected is None or expected.abs().max() < 1e-9:
                continue
            with pytest.raises(RuntimeError, match=REFUSED):
                second(slope, tensor)
            refused += 1
    assert refused


def penalised(network, x):
    x = x.clone().requires_grad_()
    value = network(x).pow(2).sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    return value + slope.pow(2).sum()


WAYS = {
    "backward": lambda network, x: penalised(network, x).backward(),
    "inputs": lambda network, x: penalised(network, x).backward(inputs=list(network.parameters())),
    "grad": lambda network, x: torch.autograd.grad(penalised(network, x), list(network.parameters())),
    "hessian": lambda network, x: hessian(lambda x: network(x).pow(2).sum(), x),
    "hvp": lambda network, x: hvp(lambda x: network(x).pow(2).sum(), x, x),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_second_derivatives_is_refused_until_it_runs_dense(way):
    fast, _, x = pair(Linear)
    with pytest.raises(RuntimeError, match=REFUSED):
        way(fast, x)
    fast.use("dense")
    way(fast, x)


def test_learning_to_learn_by_second_derivatives_is_refused():
    fast, _, x = pair(Linear)
    weights = dict(fast.named_parameters())
    slopes = torch.autograd.grad(fast(x).pow(2).sum(), list(weights.values()), create_graph=True)
    moved = {name: weight - 0.1 * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
    with pytest.raises(RuntimeError, match=REFUSED):
        functional_call(fast, moved, (x,)).sum().backward()


@pytest.mark.parametrize("kind", [Linear, EndsInSum])
def test_first_derivatives_may_make_a_graph(kind):
    fast, dense, x = pair(kind)
    (_, first), (_, ours) = derivatives(dense, x), derivatives(fast, x)
    close(ours["input"].detach(), first["input"].detach())


def test_a_graph_of_first_derivatives_leaves_no_memory_behind():
    fast, _, x = pair(EndsInSum)
    _, ours = derivatives(fast, x)
    gc.collect()
    gc.disable()
    try:
        left = [weakref.ref(one) for one in ours.values()] + [weakref.ref(ours["input"].grad_fn)]
        del ours
        assert not any(one() is not None for one in left)
    finally:
        gc.enable()


def test_a_graph_of_first_derivatives_of_a_recomputed_network():
    fast, _, x = pair(Linear)
    plain, recomputed = (x.clone().requires_grad_() for _ in range(2))
    (expected,) = torch.autograd.grad(fast(plain).pow(2).sum(), plain)
    value = checkpoint(fast, recomputed, use_reentrant=False).pow(2).sum()
    (found,) = torch.autograd.grad(value, recomputed, create_graph=True)
    close(found.detach(), expected)
    with pytest.raises(RuntimeError, match=REFUSED):
        found.pow(2).sum().backward()


def batched(network, x):
    x = x.clone().requires_grad_()
    out = network(x)
    slopes = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
    return torch.autograd.grad(out, x, slopes, is_grads_batched=True)[0]


def mapped(network, x):
    x = x.clone().requires_grad_()
    out = network(x)
    slopes = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
    return torch.vmap(lambda slope: torch.autograd.grad(out, x, slope, retain_graph=True)[0])(slopes)


BATCHED = {
    "vectorize": lambda network, x: jacobian(network, x, vectorize=True).flatten(0, 1),
    "is_grads_batched": batched,
    "vmap": mapped,
}


@pytest.mark.parametrize("way", BATCHED.values(), ids=BATCHED)
def test_gradients_in_batches_are_refused_until_it_runs_dense(way):
    fast, dense, x = pair(Linear)
    with pytest.raises(RuntimeError, match=r"one gradient at a time.*fast.use\('dense'\)"):
        way(fast, x)
    fast.use("dense")
    close(way(fast, x), way(dense, x))
