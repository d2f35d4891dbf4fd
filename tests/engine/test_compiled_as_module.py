"""A compiled network in the hands of code that knows modules: parts, states, hooks, derivatives, inference mode."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

import skeletal
from tests.cases import random_mask

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Softplus()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("shift", torch.zeros(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.block(self.act(self.bn(self.conv(x)))).mean((2, 3)) * self.scale + self.shift)


def pair():
    torch.manual_seed(0)
    model = Network().double()
    mask = skeletal.Mask(random_mask(model, 0.4))
    fast = skeletal.compile(model, mask, X, path="sparse")
    mask.attach(model)
    return fast, model


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["fc", "act", "conv", "block"])
def test_parts_of_a_compiled_network_are_not_replaced(name):
    fast, slow = pair()
    with pytest.raises(AttributeError, match=rf"`{name}` cannot be set: .*replace them in the model, and compile that"):
        setattr(fast, name, nn.Linear(8, 10))
    close(fast(X), slow(X))


def test_a_new_part_has_to_lie_beside_the_network():
    fast, _ = pair()
    with pytest.raises(AttributeError, match=r"`head` cannot be set.*in a module that holds both"):
        fast.head = nn.Linear(4, 2)
    fast.criterion = nn.CrossEntropyLoss()
    assert nn.Sequential(fast, nn.Linear(4, 2).double())(X).shape == (5, 2)


@pytest.mark.parametrize("name", ["conv", "bn", "block", "block.1", "block.2", "fc"])
def test_a_part_replaced_elsewhere_is_not_ignored(name):
    fast, _ = pair()
    for network in (fast, copy.deepcopy(fast)):
        owner, _, leaf = name.rpartition(".")
        before = network.network.get_submodule(name)
        setattr(network.network.get_submodule(owner), leaf, copy.deepcopy(before))
        with pytest.raises(RuntimeError, match=rf"`{name}.*` was replaced.*in the model, and compile that"):
            network(X)
        setattr(network.network.get_submodule(owner), leaf, before)
        network(X)


def without_norms(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(-3), nn.Linear(6, 4),
    ).double()  # fmt: skip
    mask = skeletal.Mask(random_mask(model, 0.4))
    fast = skeletal.compile(model, mask, X, **options)
    mask.attach(model)
    return fast, model


@pytest.mark.parametrize("path", ["sparse", "dense", "auto"])
def test_an_image_without_a_batch_is_taken_where_torch_takes_it(path):
    fast, slow = without_norms(path=path)
    for x in (X[0], X, X[1]):
        for network in (fast, copy.deepcopy(fast)):
            close(network(x), slow(x))
        for network in (fast, slow):
            network.zero_grad()
            network(x).exp().sum().backward()
        close(fast.get_parameter("3.bias").grad, slow[3].bias.grad)
    for network in (fast, slow):
        with pytest.raises(RuntimeError, match=r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d"):
            network(X[None])
    for network in pair():
        with pytest.raises(ValueError, match="expected 4D input"):  # of a norm
            network(X[0])


def test_images_without_a_batch_inside_of_other_arguments_are_told_of():
    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = without_norms(path="dense")[1]

        def forward(self, boxes):
            return self.net(boxes[0])

    model = Boxed()
    fast = skeletal.compile(model, skeletal.Mask(random_mask(model, 0.4)), (([X],), None), path="sparse")
    with pytest.raises(ValueError, match=r"got a tensor \(3, 8, 8\), not \(N, C, H, W\) as for the example batch"):
        fast([X[0]])


def test_a_layer_that_the_code_calls_by_its_name_may_be_replaced():
    fast, slow = pair()
    fast.network.act, slow.act = nn.Tanh(), nn.Tanh()
    close(fast(X), slow(X))


def test_states_may_be_assigned():
    fast, slow = pair()
    state = {name: value + 1 for name, value in slow.state_dict().items()}
    fast.load_state_dict(state, assign=True), slow.load_state_dict(state)
    close(fast.eval()(X), slow.eval()(X))
    with pytest.raises(AttributeError, match="write to `values`"):
        fast.conv.weight = nn.Parameter(torch.zeros(8, 3, 3, 3))


def test_parameters_and_buffers_by_name():
    fast, _ = pair()
    for name, parameter in fast.named_parameters():
        assert fast.get_parameter(name) is parameter
    for name, buffer in fast.named_buffers():
        assert fast.get_buffer(name) is buffer
    with pytest.raises(AttributeError):
        fast.get_parameter("bn.running_mean")


def test_tensors_of_the_network_itself():
    fast, slow = pair()
    swapped = {"scale": torch.full((8,), 2.0).double(), "shift": torch.ones(8).double()}
    expected = slow(X)
    for _ in range(2):
        close(functional_call(fast, swapped, X), functional_call(slow, swapped, X))
        close(fast(X), expected)
    fast.scale = slow.scale = nn.Parameter(torch.full((8,), 3.0).double())
    close(fast(X), slow(X))
    assert fast.get_parameter("scale") is slow.scale


def test_compiled_in_inference_mode():
    with torch.inference_mode():
        fast, _ = pair()
    assert not any(value.is_inference() for value in (*fast.parameters(), *fast.buffers()))
    F.mse_loss(fast(X), torch.zeros(5, 4).double()).backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


def test_hooks_of_all_modules_come_and_go():
    fast, slow = pair()
    for _ in range(2):
        seen = []
        for network in (fast, slow):
            calls = []
            handle = register_module_forward_hook(
                lambda module, inputs, out, calls=calls: (
                    calls.append(out.detach()) if isinstance(module, nn.BatchNorm2d | nn.ReLU) else None
                )
            )
            network.eval()(X)
            handle.remove()
            seen.append(calls)
            code = fast.network.code
        for ours, theirs in zip(*seen, strict=True):
            close(ours, theirs)
        close(fast(X), slow(X))
        assert fast.network.code != code


def test_a_forward_pass_of_its_own_comes_and_goes():
    fast, slow = pair()
    for network in (fast, slow):
        network.get_submodule("block.2").forward = torch.tanh
    close(fast(X), slow(X))
    for network in (fast, slow):
        del network.get_submodule("block.2").forward
    close(fast(X), slow(X))


def penalised(network):
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return slope.pow(2).sum()


def test_second_derivatives_are_refused_where_there_are_none():
    fast, slow = pair()
    fast.eval(), slow.eval()
    with pytest.raises(RuntimeError, match=r"no second derivative: call fast.use\('dense'\)"):
        penalised(fast).backward()
    fast.use("dense")
    fast.zero_grad()
    penalised(fast).backward(), penalised(slow).backward()
    close(fast.get_parameter("bn.weight").grad, slow.bn.weight.grad)
    close(fast.fc.values.grad, slow.fc.weight.grad[skeletal.Mask(random_mask(slow, 0.4))["fc.weight"]])


def test_second_derivatives_by_weights_on_the_dense_path():
    fast, slow = pair()
    fast.eval().use("dense"), slow.eval()
    products, keep = [], skeletal.Mask(random_mask(slow, 0.4))["fc.weight"]
    for network in (fast, slow):
        weight = network.get_parameter("fc.weight")
        (slope,) = torch.autograd.grad(network(X).pow(2).sum(), weight, create_graph=True)
        slope = slope[keep] if slope.dim() > 1 else slope
        products.append(torch.autograd.grad(slope.pow(2).sum(), network.get_parameter("bn.weight"))[0])
    close(*products)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_transforms_are_refused(path):
    fast, _ = pair()
    fast.eval().use(path)
    for transform in (torch.func.grad(lambda x: fast(x).sum()), torch.vmap(lambda x: fast(x[None]))):
        with pytest.raises(RuntimeError, match=r"transform fast.to_dense\(\)"):
            transform(X)
    dense = fast.to_dense()
    assert torch.func.grad(lambda x: dense(x).sum())(X).shape == X.shape
