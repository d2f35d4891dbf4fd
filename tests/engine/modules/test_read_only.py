"""The weight of a layer over kept weights is read as a dense one, and cannot be written to."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skeletal.engine.modules.layers import SparseConv2d, SparseLinear

WRITES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "an operator": lambda layer: layer.weight.__iadd__(1),
    "an initialization": lambda layer: nn.init.normal_(layer.weight),
    "an entry": lambda layer: layer.weight.__setitem__(0, 1.0),
    "a view": lambda layer: layer.weight.T[0].zero_(),
    "what is detached": lambda layer: layer.weight.detach().zero_(),
    "data": lambda layer: layer.weight.data.zero_(),
    "other data": lambda layer: setattr(layer.weight, "data", torch.zeros(3, 4)),
    "out=": lambda layer: torch.zeros(3, 4, out=layer.weight),
    "several at once": lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    "another weight": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(3, 4))),
}


def linear():
    torch.manual_seed(0)
    return SparseLinear(nn.Linear(4, 3), torch.rand(3, 4) < 0.5)


@pytest.mark.parametrize("way", WRITES)
def test_writing_is_refused(way):
    layer = linear()
    before = layer.values.detach().clone()
    with torch.no_grad(), pytest.raises(AttributeError, match="made of its kept values"):
        WRITES[way](layer)
    assert torch.equal(layer.values, before)


EXCHANGES = [
    nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm,
    nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.orthogonal,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_exchanging_the_weight_is_refused(exchange):
    layer = linear()
    with pytest.raises(RuntimeError, match="parametrizations: apply those to the dense network, and compile that"):
        exchange(layer)
    if exchange is not nn.utils.weight_norm:  # which takes it out unseen
        layer(torch.ones(2, 4)).sum().backward()
        return
    with pytest.raises(RuntimeError, match="cannot be exchanged"):
        layer(torch.ones(2, 4))


def test_reading_gives_plain_tensors_with_gradients():
    layer, x = linear(), torch.randn(2, 4)
    results = [
        layer.weight * 2,
        F.linear(x, layer.weight),
        layer.weight.abs().mean(),
        torch.stack([layer.weight, layer.weight]),
        torch.zeros(3, 4).add_(layer.weight),
        layer.weight.clone(),
    ]
    assert all(type(result) is torch.Tensor and result.requires_grad for result in results)
    torch.stack([result.sum() for result in results]).sum().backward()
    dense = layer.dense_weight().detach().requires_grad_()
    (dense * 6).sum().backward()  # twice, two of them, an addition, a copy; mean and product follow
    expected = dense.grad + torch.sign(dense.detach()) / 12 + x.sum(0)
    torch.testing.assert_close(layer.values.grad, expected[layer.mask])
    layer.weight.clone().zero_()  # a copy is the caller's


def test_what_tables_were_made_for_stays():
    layer = SparseConv2d(nn.Conv2d(3, 4, 3), torch.ones(4, 3, 3, 3, dtype=torch.bool))
    with pytest.raises(AttributeError, match="the stride this layer has"):
        layer.stride = (2, 2)
    with pytest.raises(AttributeError, match="the in_features this layer has"):
        linear().in_features = 5
