"""Layers are exchanged for sparse ones where those can take their place, and only there."""

import copy

import torch
from torch import nn

import skeletal
from skeletal.engine.exchange import make_sparse
from skeletal.engine.optimizer_state import to_dense
from tests.cases import images, random_mask


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
