"""Batches with sparse tensors: a graph's neighbours beside features, or features that are mostly 0."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import skeletal
from tests.cases import random_mask
from tests.unchanged import assert_same, everything_about

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")

LAYOUTS = {"coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr}


class Graph(nn.Module):
    """Two graph convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, neighbours):
        return neighbours @ self.two(F.silu(neighbours @ self.one(x)))


@pytest.fixture(params=LAYOUTS)
def batch(request):
    generator = torch.Generator().manual_seed(0)
    neighbours = torch.eye(6) + (torch.rand(6, 6, generator=generator) < 0.4)
    x, y = torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)
    return (x, LAYOUTS[request.param](neighbours / neighbours.sum(1, keepdim=True))), y


def network():
    torch.manual_seed(0)
    model = Graph()
    return model, skeletal.Mask(random_mask(model, 0.6))


@pytest.mark.parametrize("method", ["force", "grasp-iterative"])
def test_masks_are_those_of_dense_neighbours(batch, method):
    model, _ = network()
    before = everything_about(model)
    (x, neighbours), y = batch
    one, two = (
        skeletal.prune(model, [((x, matrix), y)], density=0.5, method=method, steps=3)
        for matrix in (neighbours, neighbours.to_dense())
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert_same(before, everything_about(model))


def test_synaptic_flow(batch):
    """Through neighbours of weight 1: one weight of the first layer leads to as much as all of its unit do."""
    model, _ = network()
    mask = skeletal.prune(model, [batch], density=0.5, method="synflow", steps=1)
    weights = model.one.weight.detach().abs(), model.two.weight.detach().abs()
    flow = weights[0] * weights[1].sum(0)[:, None], weights[1] * weights[0].sum(1)
    kept = torch.cat([score.flatten() for score in flow]).topk(32).indices.sort().values
    assert torch.equal(torch.cat([keep.flatten() for keep in mask.values()]).nonzero().flatten(), kept)


def test_compact_and_compiled_networks_train_as_the_masked_one(batch):
    model, mask = network()
    small = skeletal.compact(model, mask, batch)
    fast = skeletal.compile(model, mask, batch, path="sparse")
    masked = copy.deepcopy(model)
    mask.attach(masked)
    skeletal.Mask(small.mask).attach(small.model)
    outputs = []
    for one in (masked, small.model, fast):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(one(*batch[0]), batch[1]).backward()
            optimizer.step()
        outputs.append(one(*batch[0]))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def test_diagnosis(batch):
    model, mask = network()
    sparse, dense = (skeletal.diagnose(model, mask, ((batch[0][0], n), batch[1])) for n in _both(batch[0][1]))
    assert sparse == dense and sparse.connected


def _both(tensor):
    return tensor, tensor.to_dense()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [True, False])
def test_whether_anything_leads_from_sparse_features_to_the_output(layout, kept):
    model = nn.Linear(6, 3)
    mask = {"weight": torch.full((3, 6), kept)}
    assert skeletal.diagnose(model, mask, LAYOUTS[layout](torch.eye(6))).connected is kept


def test_cannot_be_cut(batch):
    model, _ = network()
    with pytest.raises(ValueError, match="sparse tensor cannot be cut"):
        skeletal.prune(model, [batch], density=0.5, micro_batch=2)
