"""The way back from a compact network: types, and modes in which nothing can be trained."""

import pytest
import torch
from torch import nn

import skeletal

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def masked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, skeletal.prune(model, density=0.2, method="random", seed=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dense_network_has_the_type_of_now(dtype):
    model, mask = masked()
    small = skeletal.compact(model, mask, X)
    assert small.model.get_submodule("0").out_features < 16
    small.model.to(dtype)
    mask.attach(model)
    dense, slow = small.to_dense(), model.to(dtype)
    torch.testing.assert_close(dense.state_dict(), slow.state_dict(), rtol=0, atol=0)
    state = {name: value * 1.5 for name, value in slow.state_dict().items()}
    small.load_dense(state)
    torch.testing.assert_close(small.dense_state(), state, rtol=0, atol=0)


def test_a_buffer_that_no_one_uses_changes_its_type_with_the_rest():
    model, mask = masked()
    model.register_buffer("beside", torch.full((2,), 0.1))
    small = skeletal.compact(model, mask, X)
    small.model.double()
    assert small.to_dense().beside.dtype == torch.float64


def test_a_network_made_in_inference_mode_can_be_trained():
    model, mask = masked()
    with torch.inference_mode():
        small = skeletal.compact(model, mask, X)
        dense = small.to_dense()
    for network in (small.model, dense):
        network(X).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
