"""Reentrant activation checkpointing, which asks whether its inputs require a gradient: the scores without it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives


class Words(nn.Module):
    """Blocks behind an embedding, which is not pruned."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.embedding, self.head = reentrant, nn.Embedding(10, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        x = self.embedding(x)
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(x.mean(1))


class Stem(nn.Module):
    """Blocks behind a layer that may be left out."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.stem, self.head = reentrant, nn.Linear(6, 6), nn.Linear(6, 3)
        self.blocks = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        x = self.stem(x)
        if self.reentrant is None:
            return self.head(self.blocks(x))
        return self.head(checkpoint_sequential(self.blocks, 2, x, use_reentrant=self.reentrant))


GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(3, (16,), generator=GENERATOR)
NETWORKS = {
    "words": (Words, [(torch.randint(10, (16, 5), generator=GENERATOR), LABELS)]),
    "stem": (Stem, [(torch.randn(16, 6, generator=GENERATOR).double(), LABELS)]),
}


def scores(name, reentrant, **settings):
    make, batches = NETWORKS[name]
    torch.manual_seed(0)
    steps = []
    skeletal.prune(
        make(reentrant).double(),
        batches,
        density=0.3,
        prunable=lambda name, weight: not name.startswith("stem"),
        on_step=steps.append,
        **settings,
    )
    return steps[-1].scores


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("settings", [{"method": "snip"}, {"method": "force", "steps": 3}], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_behind_what_is_not_pruned_have_their_scores(name, settings, reentrant):
    truth, found = scores(name, None, **settings), scores(name, reentrant, **settings)
    assert all(score.any() for score in truth.values())
    for layer, score in truth.items():
        torch.testing.assert_close(found[layer], score, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("method", ["grasp", "prospr", "synflow", "ntk-sap", "px", "phew"])
def test_what_reentrant_checkpointing_would_leave_out_is_refused(method):
    scores("stem", False, method=method, on_collapse="keep")
    with pytest.raises(ValueError, match=r"reentrant activation checkpointing.*pass use_reentrant=False"):
        scores("stem", True, method=method)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_beside_weights_that_are_not_pruned(name):
    make, batches = NETWORKS[name]
    torch.manual_seed(0)
    model, plain = make(False).double(), make(None).double()
    plain.load_state_dict(model.state_dict())
    names = [name for name, _ in model.named_parameters() if name.endswith("weight") and "block" in name]
    weights = {name: model.get_parameter(name).detach().clone() for name in names}

    def loss(*values):
        outputs = torch.func.functional_call(plain, dict(zip(names, values, strict=True)), (batches[0][0],))
        return F.cross_entropy(outputs, LABELS)

    given = tuple(weights.values())
    _, truth = torch.autograd.functional.hvp(loss, given, torch.func.grad(loss, tuple(range(len(given))))(*given))
    found, _ = Derivatives(model, Cycle(batches), 1).hessian_gradient(weights)
    for name, product in zip(names, truth, strict=True):
        torch.testing.assert_close(found[name], product, rtol=1e-10, atol=1e-14)
    assert all(parameter.grad is None for parameter in model.parameters())
