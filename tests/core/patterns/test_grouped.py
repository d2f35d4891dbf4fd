from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.core.patterns.choice import pattern_of
from skeletal.core.patterns.grouped import fitting
from skeletal.core.patterns.pattern import Patterned
from tests.core.patterns import truth

PATTERNS = ["fan-in", "2:4", "1:3", "3:3", "2x2", "3x1", "1x1"]
shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=3)


def layers(drawn):
    """One layer of each shape (outputs, inputs, positions)."""
    return nn.ModuleDict({f"layer{i}": nn.Conv1d(n, m, k) for i, (m, n, k) in enumerate(drawn)})


def on(pattern, model):
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    return Patterned(pattern_of(pattern), model, weights, None), weights


def places(masks):
    return {(name, *at) for name, keep in masks.items() for at in keep.nonzero().tolist()}


def scores_of(weights, seed):
    """Many ties, zeros and negative numbers; exact in binary, so that sums do not depend on their order."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(-2, 4, w.shape, generator=generator) / 4 for name, w in weights.items()}


@settings(max_examples=25)
@given(st.sampled_from(PATTERNS), shapes, st.integers(0, 999), st.floats(0, 1))
def test_a_choice_is_that_of_loops_over_weights(pattern, drawn, seed, density):
    patterned, weights = on(pattern, layers(drawn))
    scores = scores_of(weights, seed)
    available = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for share in (1.0, density, density / 2):  # nested, as in the steps of a progressive method
        count = round(share * patterned.largest)
        kept, filled = truth.choose(pattern, scores, available, count)
        if count and not kept:
            with pytest.raises(ValueError, match="keeps together"):
                patterned.choose(scores, available, count)
            return
        found = patterned.choose(scores, available, count)
        assert places(found.keep) == kept
        assert found.filled == filled
        available = found.keep


@given(st.sampled_from(["2:4", "1:2", "2:3"]), st.integers(0, 999), st.integers(1, 9))
def test_n_of_m_keeps_the_best_of_all_masks_and_exactly_as_many_as_asked(pattern, seed, count):
    patterned, weights = on(pattern, layers([(2, 5, 1)]))
    scores = {name: score.abs() for name, score in scores_of(weights, seed).items()}
    available = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    count = min(count, patterned.largest)
    (score,), (keep,) = scores.values(), patterned.choose(scores, available, count).keep.values()
    n, m = map(int, pattern.split(":"))

    def allowed(chosen):
        counts = {}
        for at in chosen:
            counts[at // 5, at % 5 // m] = counts.get((at // 5, at % 5 // m), 0) + 1
        return max(counts.values()) <= n

    best = max(float(score.flatten()[list(c)].sum()) for c in combinations(range(10), count) if allowed(c))
    assert keep.sum() == count
    assert allowed(keep.flatten().nonzero().flatten().tolist())
    assert float(score[keep].sum()) == best


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 5)), max_size=12), st.integers(0, 30))
def test_items_are_taken_in_order_each_if_it_fits(items, count):
    taken, room = [], count
    for i in sorted(range(len(items)), key=lambda i: (-items[i][0], i)):
        if items[i][1] <= room:
            taken.append(i)
            room -= items[i][1]
    values, sizes = (torch.tensor([item[side] for item in items]) for side in (0, 1))
    assert fitting(values.double(), sizes, count).nonzero().flatten().tolist() == sorted(taken)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_units_are_the_same_in_any_layout(pattern):
    """A transposed convolution holds (inputs, outputs / groups, ...): its units are those of the same matrix."""
    plain, swapped = nn.Conv1d(6, 4, 2), nn.ConvTranspose1d(6, 4, 2)
    grouped = nn.ConvTranspose1d(6, 4, 2, groups=2)
    score = torch.rand(4, 6, 2, dtype=torch.float64)
    found = {}
    for name, layer in (("plain", plain), ("swapped", swapped), ("grouped", grouped)):
        patterned, weights = on(pattern, layer)
        own = {
            "plain": score,
            "swapped": score.transpose(0, 1),
            "grouped": score[:, :3].reshape(2, 2, 3, 2).transpose(1, 2).flatten(0, 1),
        }
        available = {"weight": torch.ones_like(own[name], dtype=torch.bool)}
        assert own[name].shape == weights["weight"].shape
        found[name] = patterned.choose({"weight": own[name]}, available, 12).keep["weight"]
    assert torch.equal(found["plain"], found["swapped"].transpose(0, 1))
    half, _ = on(pattern, nn.Conv1d(3, 4, 2))
    ones = {"weight": torch.ones(4, 3, 2, dtype=torch.bool)}
    as_plain = half.choose({"weight": score[:, :3]}, ones, 12).keep["weight"]
    assert torch.equal(found["grouped"].unflatten(0, (2, 3)).transpose(1, 2).flatten(0, 1), as_plain)


def test_a_function_of_your_own_is_a_pattern():
    def diagonals(scores):
        outputs, inputs, positions = scores.shape
        number = (torch.arange(outputs)[:, None] + torch.arange(inputs)) % inputs
        return number[:, :, None].expand(outputs, inputs, positions).contiguous()

    patterned, _ = on(diagonals, nn.Linear(4, 4, bias=False))
    assert patterned.name == "diagonals"
    score = {"weight": torch.arange(16.0).view(4, 4)}
    keep = patterned.choose(score, {"weight": torch.ones(4, 4, dtype=torch.bool)}, 7).keep["weight"]
    assert keep.nonzero().tolist() == [[0, 0], [1, 3], [2, 2], [3, 1]]  # all four have the same mean
    with pytest.raises(ValueError, match="group number"):
        on(lambda scores: scores, nn.Linear(4, 4))


@pytest.mark.parametrize("wrong", ["2:1", "0:4", "4x0", "2;4", "rows", ""])
def test_an_unknown_pattern_is_refused_with_those_there_are(wrong):
    with pytest.raises(ValueError, match="channels, fan-in, N:M"):
        pattern_of(wrong)


def test_names_are_read_as_people_write_them():
    assert pattern_of(None) is None
    assert [pattern_of(name).name for name in ("Fan_In", " 2:4 ", "4X4")] == ["fan-in", "2:4", "4x4"]
    with pytest.raises(TypeError, match="pattern is int"):
        pattern_of(4)
    with pytest.raises(ValueError, match=r"skeletal\.prune"):
        pattern_of("channels")
    with pytest.raises(ValueError, match="no inputs"):
        Patterned(pattern_of("2:4"), nn.Linear(4, 4), dict(nn.Linear(4, 4).named_parameters()), None)


def test_fan_in_never_prunes_a_weight_better_than_one_it_keeps_in_a_unit():
    score = torch.tensor([[3.0, -9.0, 0.0], [3.0, -1.0, -2.0]])
    mask = skeletal.prune(
        nn.Linear(3, 2, bias=False), density=4 / 6, method="random", score=lambda _: {"weight": score.clone()},
        pattern="fan-in",
    )  # fmt: skip
    assert mask["weight"].tolist() == [[True, True, False], [True, True, False]]
