"""Layers are exchanged for sparse ones where those can take their place, and only there."""

import copy

import torch
from torch import nn

import skeletal
from skeletal.engine.exchange import make_sparse
from skeletal.engine.optimizer_state import to_dense
from tests.cases import images, mlp, random_mask


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


class Shared(nn.Module):
    """Two layers with a bias in common, and two of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.b.bias = self.a.bias

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(self.stem(x).mean((2, 3)))))))


def test_a_bias_that_two_layers_share_stays_shared():
    torch.manual_seed(0)
    model = Shared().double()
    with torch.no_grad():
        model.a.bias.fill_(0.3)
    mask = skeletal.Mask(random_mask(model, 0.3, seed=1))
    slow, batches = copy.deepcopy(model), [(x.double(), y) for x, y in images(5)]
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    assert fast.sparse_layers().keys() == {"stem", "head"}
    mask.attach(slow)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9) for network in (fast, slow)]
    for x, y in batches:
        for network, optimizer in zip((fast, slow), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        found = to_dense(fast, {name: {"slope": weight.grad} for name, weight in fast.named_parameters()})
        for name, entries in found.items():
            expected = slow.get_parameter(name).grad * mask.get(name, 1)
            torch.testing.assert_close(entries["slope"], expected, rtol=1e-9, atol=1e-12)
    dense = fast.to_dense()
    assert dense.a.bias is dense.b.bias
    for network in (fast, dense):
        torch.testing.assert_close(network(batches[0][0]), slow(batches[0][0]), rtol=1e-9, atol=1e-12)


def head_on(part):
    torch.manual_seed(1)
    return Joined(part).double()


class Joined(nn.Module):
    """Cannot be traced."""

    def __init__(self, part):
        super().__init__()
        self.part, self.head = part, nn.Linear(10, 3)

    def forward(self, x):
        x = self.part(x)
        return self.head(x) if x.isfinite().all() else x


def test_a_network_with_a_compiled_part_can_be_compiled():
    part, batch = mlp().double(), images()[0][0].double()
    mask = skeletal.Mask(random_mask(part, 0.5))
    inner = skeletal.compile(part, mask, batch, path="sparse")
    mask.attach(part)
    head = skeletal.Mask({"head.weight": torch.rand(3, 10) < 0.5})
    dense = head_on(part)
    head.attach(dense)
    for outer in (head, None):
        network = head_on(copy.deepcopy(inner))
        fast = skeletal.compile(network, outer, batch, path="sparse" if outer else "auto")
        expected = dense if outer is not None else head_on(part)
        torch.testing.assert_close(fast(batch), expected(batch), rtol=1e-9, atol=1e-12)


class ByHand(nn.Module):
    """Cannot be traced; says itself what it does with its layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.follow(x)


class InPlace(ByHand):
    def follow(self, x):
        return self.two(self.one(x).relu_())


class Force(ByHand):
    """Returns the slope of an energy: its training takes second derivatives."""

    def follow(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.two(self.one(x)).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_layers_of_networks_that_cannot_be_traced_stay_dense_only_if_those_take_second_derivatives():
    torch.manual_seed(0)
    for kind, exchanged in ((InPlace, {"one", "two"}), (Force, set())):
        model, x = kind().double(), torch.randn(4, 6).double()
        mask = skeletal.Mask(random_mask(model, 0.5))
        fast = skeletal.compile(model, mask, x, path="sparse")
        assert fast.sparse_layers().keys() == exchanged
        mask.attach(model)
        slopes = []
        for network in (fast, model):
            leaf = x.clone().requires_grad_()
            slopes.append(torch.autograd.grad(network(leaf).pow(2).sum(), leaf)[0] if exchanged else network(leaf))
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)
