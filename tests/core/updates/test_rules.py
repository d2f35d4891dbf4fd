"""Which weights go and come, against loops over sorted lists."""

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch

import skeletal
from skeletal.core.updates.rule import Moment, Rule

SHAPES = {"a": (4, 3, 3, 3), "b": (10, 12), "c": (7, 5)}


def moment(density=0.3, step=100, steps=1000, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    mask = {name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()}
    weights = {name: torch.randn(keep.shape, generator=generator) * keep for name, keep in mask.items()}
    gradients = {name: torch.randn(keep.shape, generator=generator) for name, keep in mask.items()}
    kept = sum(int(keep.sum()) for keep in mask.values())
    return Moment(**{**dict(weights=weights, mask=mask, gradients=gradients, step=step, steps=steps,
                            begun_with=kept, seed=seed), **others})  # fmt: skip


def lowest(values, among, number):
    return set(sorted(among, key=lambda i: (values[i], -i))[:number])


def kept_of(mask):
    return set(mask.flatten().nonzero().flatten().tolist())


@pytest.mark.parametrize("step", [100, 400, 700])
def test_rigl_is_its_algorithm_1(step):
    at = moment(step=step)
    new = skeletal.RigL().next_mask(at)
    for name, keep in at.mask.items():
        weight, gradient, kept = at.weights[name].flatten().tolist(), at.gradients[name].flatten(), kept_of(keep)
        number = round(0.3 / 2 * (1 + math.cos(step * math.pi / 750)) * len(kept))
        staying = kept - lowest([abs(w) for w in weight], kept, number)
        others = set(range(keep.numel())) - staying
        come = set(sorted(others, key=lambda i: -abs(gradient[i].item()))[:number])
        assert kept_of(new[name]) == staying | come
        assert len(staying | come) == len(kept)


def test_rigl_leaves_a_layer_without_a_gradient_alone():
    at = moment()
    del at.gradients["b"]
    new = skeletal.RigL(fraction=0.9).next_mask(at)
    assert torch.equal(new["b"], at.mask["b"]) and not torch.equal(new["a"], at.mask["a"])


def test_set_takes_from_each_sign_what_is_closest_to_zero():
    at = moment(step=50)
    first = tuple(at.mask["b"].nonzero()[0].tolist())
    at.weights["b"][first] = 0.0  # a weight that has come and never moved is the first of its side to go
    rule, seen = skeletal.SET(every=50), 0
    for name, keep in at.mask.items():
        weight, kept = at.weights[name].flatten().tolist(), kept_of(keep)
        positive = {i for i in kept if weight[i] > 0}
        goes = lowest(weight, positive, round(0.3 * len(positive)))
        goes |= lowest([-w for w in weight], kept - positive, round(0.3 * len(kept - positive)))
        new = kept_of(rule.next_mask(at)[name])
        assert kept - goes <= new and len(new) == len(kept)
        seen += len(new - kept)
    assert seen > 10


def test_set_draws_by_seed_and_step_and_every_place_alike():
    rule = skeletal.SET(every=50, fraction=1.0)
    assert torch.equal(rule.next_mask(moment())["b"], rule.next_mask(moment())["b"])
    draws = [rule.next_mask(moment(seed=0, step=step))["b"] for step in range(300)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 300
    share = torch.stack(draws).float().mean(0)
    expected = float(draws[0].float().mean())
    assert (share - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / 300)


@pytest.mark.parametrize(("begin", "steps"), [(0.0, 1000), (0.25, 1030)])
def test_gradual_follows_its_equation_and_ends_exactly(begin, steps):
    rule, total = skeletal.Gradual(density=0.05, every=50, begin=begin), 10_000
    first, last = math.ceil(begin * steps / 50) * 50, int(0.75 * steps) // 50 * 50
    for step in range(1, steps + 1):
        assert rule.due(step, steps) == (step % 50 == 0 and first < step <= last)
        along = min(max(Fraction(step - first, last - first), Fraction(0)), Fraction(1))
        sparsity = Fraction(95, 100) + (Fraction(1, 2) - Fraction(95, 100)) * (1 - along) ** 3  # from 5,000 weights
        assert abs(rule.count(5000, total, step, steps) - total * (1 - sparsity)) <= Fraction(1, 2)
    assert rule.count(5000, total, last, steps) == 500


def test_gradual_prunes_all_layers_to_one_density_and_keeps_what_a_sparser_one_has():
    at = moment(density=0.9, step=750)
    at.mask["c"] = torch.zeros(7, 5, dtype=torch.bool)
    at.mask["c"][0, :2] = True
    total, begun = sum(math.prod(shape) for shape in SHAPES.values()), at.kept
    new = skeletal.Gradual(density=0.2, every=50).next_mask(moment(weights=at.weights, mask=at.mask, step=750,
                                                                  begun_with=begun))  # fmt: skip
    kept = {name: int(keep.sum()) for name, keep in new.items()}
    assert sum(kept.values()) == round(0.2 * total) and kept["c"] == 2
    assert abs(kept["a"] / 108 - kept["b"] / 120) < 1 / 108 + 1 / 120
    for name in "ab":
        size = at.weights[name].abs()
        assert size[new[name]].min() >= size[at.mask[name] & ~new[name]].max()
        assert not (new[name] & ~at.mask[name]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: skeletal.RigL(every=0), "every is 0"),
        (lambda: skeletal.RigL(end=1.5), r"end is 1\.5"),
        (lambda: skeletal.RigL(fraction=float("nan")), "fraction is nan"),
        (lambda: skeletal.SET(fraction=0.0), r"fraction is 0\.0"),
        (lambda: skeletal.Gradual(density=0.0), r"density is 0\.0"),
        (lambda: skeletal.Gradual(density=0.1, begin=0.8), r"begin is 0\.8"),
        (lambda: skeletal.RigL().check(10, 100, 99), "never moves in 99: choose a smaller every"),
        (lambda: skeletal.RigL(end=0.1).check(10, 100, 1000), "up to 0.1 of the training"),
        (lambda: skeletal.SET(every=5).check(100, 100, 1000), "the mask keeps all weights"),
        (lambda: skeletal.RigL().check(100, 100, 1000), "the mask keeps all weights"),
        (lambda: skeletal.Gradual(density=0.2).check(10, 100, 1000), "the mask begins with 10: choose a density"),
        (lambda: skeletal.Gradual(density=0.001).check(10, 100, 1000), "ends at 0 of 100"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_between_updates_are_whole():
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        skeletal.SET(every=100.0)


def test_a_rule_of_ones_own():
    @dataclass(frozen=True, kw_only=True)
    class Turn(Rule):
        def next_mask(self, at):
            return {name: keep.flip(0) for name, keep in at.mask.items()}

    assert torch.equal(Turn().next_mask(moment())["b"], moment().mask["b"].flip(0))
