"""PHEW: walks are drawn as enumerating all paths says, and every weight that is kept lies on one."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.pruning.criteria import walks
from skeletal.core.pruning.criteria.walks import WALKS, heavy_paths
from tests.cases import Everything, Residual, Tokens, convnet, images, tokens


def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def steps(monkeypatch):
    """Every step that counted: first number of its walks, mode, layer, walks, input units, output units."""
    seen, take = [], walks._Walk.take

    def noted(self, name, choice, where):
        assert where.all()  # with one way only nothing is gone in vain
        seen.append((self.number, self.mode, name, choice.walk, choice.into, choice.out))
        take(self, name, choice, where)

    monkeypatch.setattr(walks._Walk, "take", noted)
    return seen


def paths_of(seen, mode):
    """(input, hidden, output) of every walk in one direction."""
    taken = [(name, into, out) for _, how, name, walk, into, out in seen if how == mode]
    for one, two in zip(taken[::2], taken[1::2], strict=True):
        (_, first, middle), (_, again, last) = sorted((one, two), key=lambda step: step[0])
        assert torch.equal(middle, again) and len(middle) == WALKS
        yield from map(tuple, torch.stack([first, middle, last], 1).tolist())


@pytest.mark.parametrize("onwards", [True, False])
def test_walks_are_drawn_as_enumerating_all_paths_says(steps, onwards):
    model = small()
    weights = {name: model.get_parameter(name).detach() for name in ("0.weight", "3.weight")}
    for seed in range(30):
        heavy_paths(model, weights, (torch.zeros(1, 3), None), 20, torch.Generator().manual_seed(seed))
    found = Counter(paths_of(steps, "onwards" if onwards else "again"))
    first, second = (weight.abs().double() for weight in weights.values())
    total = sum(found.values())
    assert total >= 30 * WALKS
    for i, j, k in itertools.product(range(3), range(4), range(2)):
        if onwards:  # Q(i, j) = |θ_ji| / Σ_j |θ_ji|
            chance = first[j, i] / first[:, i].sum() * second[k, j] / second[:, j].sum() / 3
        else:
            chance = second[k, j] / second[k].sum() * first[j, i] / first[j].sum() / 2
        # units take turns: a walk's first one is not drawn, so that counts vary less than binomially
        assert abs(found[i, j, k] / total - chance) < 5 * math.sqrt(chance * (1 - chance) / total)


def test_a_weight_is_scored_by_the_first_walk_that_took_it(steps):
    model = small()
    weights = {name: model.get_parameter(name).detach() for name in ("0.weight", "3.weight")}
    scores = heavy_paths(model, weights, (torch.zeros(1, 3), None), 19, torch.Generator().manual_seed(0))
    first = {}
    for number, _, name, *step in steps:
        for walk, into, out in torch.stack(step, 1).tolist():
            first[name, out, into] = min(number + walk, first.get((name, out, into), number + walk))
    for name, score in scores.items():
        for out, into in itertools.product(*map(range, score.shape)):
            expected = first.get((name, out, into))
            if expected is not None:
                assert score[out, into] == pytest.approx(1 / (1 + expected))
            else:
                assert 0 < score[out, into] < 1 / (1 + max(first.values()))


class Nothing(nn.Module):
    def forward(self, x):
        return x * 0


class Grouped(nn.Module):
    """Groups, strides, pooling, a skip connection with a layer, two-dimensional features."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 12, 3, groups=4, padding=1)
        self.short, self.norm = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.hidden, self.head = nn.Linear(12 * 9, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(self.norm(self.grouped(x)) + self.short(x), 2)
        return self.head(torch.sigmoid(self.hidden(x.flatten(1))))


@pytest.mark.parametrize("make", [convnet, Residual, Grouped])
def test_what_is_kept_lies_on_paths_whatever_connects_the_layers(make):
    torch.manual_seed(0)
    model = make()
    for density in (0.02, 0.1):
        mask = skeletal.prune(model, images(1), density=density, method="phew")
        found = skeletal.diagnose(model, mask, images(1)[0][0])
        assert mask.kept == round(density * mask.total) and mask.metadata["connected"]
        assert mask.kept - found.effective <= 3  # of the last walk, which the count may cut


def test_high_densities_end_and_are_exact():
    mask = skeletal.prune(convnet(), images(1), density=0.97, method="phew")
    assert mask.kept == round(0.97 * mask.total)
    assert mask == skeletal.prune(convnet(), images(1, seed=4), density=0.97, method="phew")  # data do not count


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (Everything, images(1, channels=4), "transposed.weight is of ConvTranspose2d: leave it out with prunable="),
        (lambda: Tokens(tie=False), tokens(1), "phew walks through linear layers and convolutions"),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), [(torch.ones(3, 2).long(), None)],
         "takes no floating-point input"),
        (lambda: nn.Sequential(nn.Linear(4, 4), Nothing(), nn.Linear(4, 2)), [(torch.ones(3, 4), None)],
         "phew found no way through the network"),
    ],
)  # fmt: skip
def test_what_cannot_be_walked_through_is_refused_and_left_as_found(model, batches, message):
    model = model()
    with pytest.raises(ValueError, match=message):
        skeletal.prune(model, batches, density=0.1, method="phew")
    assert not any("forward" in vars(module) for module in model.modules())
