"""A compiled network comes back from a pickle as it was saved: hooks, what was set on it, shapes of its parameters."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import random_mask

X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))


def double(module, inputs, output):
    return output * 2


def three_more(module, inputs):
    return (inputs[0] + 3,)


def with_option(module, inputs, options, output):
    return output - len(options)


def halve(module, gradients):
    return tuple(gradient / 2 for gradient in gradients)


class Owned(nn.Module):
    """A part with a hook of its own, which belongs to the part it came with."""

    def __init__(self):
        super().__init__()
        self.seen = 0
        self.register_forward_hook(self.count)

    def forward(self, x):
        return torch.tanh(x)

    @staticmethod
    def count(module, inputs, output):
        module.seen += 1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), Owned(), nn.Linear(16, 5))


def compiled(path="sparse"):
    model = network()
    return skeletal.compile(model, skeletal.Mask(random_mask(model, 0.4)), X, path=path)


def saved(fast):
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


FORMS = {"pickle": lambda fast: pickle.loads(pickle.dumps(fast)), "save": saved, "dense": lambda fast: fast.to_dense(),
         "copy": copy.copy, "deepcopy": copy.deepcopy}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_hooks_that_came_or_went_since_are_the_same(form):
    fast = compiled()
    fast.get_submodule("0").register_forward_hook(double)
    fast.get_submodule("1").register_forward_pre_hook(three_more)
    fast.get_submodule("4").register_forward_hook(with_option, with_kwargs=True, always_call=True)
    fast.get_submodule("2").register_full_backward_pre_hook(halve)
    fast.register_forward_pre_hook(three_more)
    fast.register_forward_hook(double)
    seen, gone = fast.get_submodule("3"), fast.get_submodule("3").register_forward_hook(double)
    again = FORMS[form](FORMS[form](fast) if form != "dense" else fast)
    torch.testing.assert_close(again(X), fast(X))
    assert again.get_submodule("3").seen == seen.seen == 1
    for net in (fast, again):
        net(X).sum().backward()
    torch.testing.assert_close(again.get_parameter("0.bias").grad, fast.get_parameter("0.bias").grad)
    gone.remove()
    seen._forward_hooks.clear()
    again = FORMS[form](fast)
    torch.testing.assert_close(again(X), fast(X))
    assert again.get_submodule("3").seen == seen.seen == 2
    assert [value.shape for value in fast.parameters()] == [value.shape for value in compiled().parameters()]


@pytest.mark.parametrize("form", ["pickle", "save", "copy", "deepcopy"])
def test_attributes_that_were_set_come_along(form):
    fast = compiled()
    fast.note, fast.itself, fast.criterion = {"epoch": 3}, [fast], nn.CrossEntropyLoss()
    fast.register_buffer("seen", torch.tensor(7))
    again = FORMS[form](fast)
    assert again.note == {"epoch": 3} and again._buffers["seen"] == 7
    assert isinstance(again.criterion, nn.CrossEntropyLoss)
    if form != "copy":
        assert again.itself[0] is again


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_the_same_channels_are_gone_again(value):
    """A bias that is 0 by now was not when channels were removed, and the other way round."""
    model = network()
    with torch.no_grad():
        model[0].bias[:2], model[0].bias[2:] = 0, 0.05
    mask = random_mask(model, 0.3)
    mask["0.weight"][:4] = False  # constant channels, the first two of them 0
    fast = skeletal.compile(model, skeletal.Mask(mask), X, path="sparse")
    for bias in (value, 0.1):
        with torch.no_grad():
            fast.get_parameter("0.bias").fill_(bias)
        optimizer = torch.optim.Adam(fast.parameters())
        fast(X).sum().backward()
        optimizer.step()
        with torch.no_grad():
            fast.get_parameter("0.bias").fill_(bias)
        for again in (saved(fast), saved(saved(fast))):
            torch.testing.assert_close(again.state_dict(), fast.state_dict(), rtol=0, atol=0)
            torch.testing.assert_close(again(X), fast(X))
            own = torch.optim.Adam(again.parameters())
            own.load_state_dict(optimizer.state_dict())
            assert [own.state[weight]["exp_avg"].shape for weight in again.parameters()] == [
                value.shape for value in again.parameters()
            ]


def test_small_biases_that_a_narrow_type_rounds_to_0_do_not_take_channels_along():
    model = network()
    nn.init.constant_(model[0].bias, 1e-10)
    mask = random_mask(model, 0.3)
    mask["0.weight"][:4] = False
    fast = skeletal.compile(model, skeletal.Mask(mask), X, path="sparse").half()
    again = saved(fast)
    assert not again.get_parameter("0.bias").any()
    assert [value.shape for value in again.parameters()] == [value.shape for value in fast.parameters()]
