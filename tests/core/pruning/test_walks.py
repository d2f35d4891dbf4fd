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
    for number, mode, name, *step in steps:
        for walk, into, out in torch.stack(step, 1).tolist():
            rank = 2 * (number + walk) + (mode == "again")  # walks from inputs and from outputs take turns
            first[name, out, into] = min(rank, first.get((name, out, into), rank))
    for name, score in scores.items():
        for out, into in itertools.product(*map(range, score.shape)):
            expected = first.get((name, out, into))
            if expected is not None:
                assert score[out, into] == pytest.approx(1 / (1 + expected))
            else:
                assert 0 < score[out, into] < 1 / (1 + max(first.values()))


@pytest.mark.parametrize("sizes", [(256, 10), (10, 256), (129, 128), (5, 3)])
def test_every_unit_of_input_and_output_begins_walks_in_turn(steps, sizes):
    model = nn.Sequential(nn.Linear(sizes[0], 32), nn.ReLU(), nn.Linear(32, sizes[1]))
    weights = {name: torch.ones_like(value) for name, value in model.named_parameters() if value.dim() > 1}
    count = sum(value.numel() for value in weights.values()) * 3 // 10
    heavy_paths(model, weights, (torch.zeros(1, sizes[0]), None), count, torch.Generator().manual_seed(0))
    inputs = [into for _, mode, name, _, into, _ in steps if (mode, name) == ("onwards", "0.weight")]
    outputs = [out for _, mode, name, _, _, out in steps if (mode, name) == ("again", "2.weight")]
    for begun, units in zip((inputs, outputs), sizes, strict=True):
        times = torch.bincount(torch.cat(begun), minlength=units)
        assert times.max() - times.min() <= 1 and times.sum() == len(begun) * WALKS
    assert len(inputs) == len(outputs)


@pytest.mark.parametrize("shape", [(3, 8, 8), (10, 4, 6), (16, 12), (7, 9), (12, 1, 4), (5,)])
def test_channels_features_and_elements_of_examples_begin_in_turn_alike(shape):
    walk, total = walks._Walk({}, torch.Generator()), math.prod(shape)
    begun = []
    for number in range(0, 2 * total, WALKS):
        walk.begin(number)
        begun += torch.stack(walks._starts(walk, torch.zeros(WALKS, *shape))[1:], 1).tolist()
        for dim, length in enumerate(shape):
            times = torch.bincount(torch.tensor([place[dim] for place in begun]), minlength=length)
            assert times.max() - times.min() <= 1
    assert len(set(map(tuple, begun[:total]))) == total
    assert begun[total : 2 * total] == begun[:total]


@pytest.mark.parametrize("density", [0.01, 0.02, 0.1, 0.5])
def test_walks_from_both_ends_count_at_every_density(steps, density):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    mask = skeletal.prune(model, [(torch.zeros(2, 64), None)], density=density, method="phew")
    first = {}
    for number, mode, name, walk, into, out in steps:
        ranks = 2 * (number + walk) + (mode == "again")
        for rank, *place in torch.stack([ranks, out, into], 1).tolist():
            first[name, *place] = min(rank, first.get((name, *place), rank))
    kept = [first[name, *place] for name, keep in mask.items() for place in keep.nonzero().tolist()]
    onwards = sum(rank % 2 == 0 for rank in kept)
    assert 0.3 < onwards / len(kept) < 0.7
    begun = [mask["0.weight"].any(0), mask["2.weight"].any(1)]
    walked = max(kept) // 2  # in either direction, the last one apart
    assert all(units[:walked].all() for units in begun)


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
