import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.masks import selection
from skeletal.core.masks.selection import top
from skeletal.core.model.tensors import flatten, unflatten

scores = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("-inf"), 1e-42]), min_size=1, max_size=60)


@given(scores, st.data())
def test_top_equals_a_stable_sort(values, data):
    count = data.draw(st.integers(0, len(values)))
    by_sorting = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    kept = top(torch.tensor(values, dtype=torch.float64), count)
    assert sorted(by_sorting) == kept.nonzero().flatten().tolist()


@given(st.integers(0, 1000), st.integers(1, 500))
def test_top_of_random_scores_is_exact(seed, size):
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    kept = top(values, size // 3)
    assert kept.sum() == size // 3
    if 0 < size // 3 < size:
        assert values[kept].min() >= values[~kept].max()


def test_unflatten_inverts_flatten():
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4), "c": torch.randn(1, 2, 2)}
    back = unflatten(flatten(tensors), tensors)
    assert all(torch.equal(tensors[name], back[name]) for name in tensors)


def test_top_of_sorted_scores_does_not_take_forever():
    for values in (torch.arange(300_000.0), torch.arange(300_000.0).flip(0)):
        for count in (3, 150_000, 299_000):
            assert values[top(values, count)].min() == 300_000 - count


ORDERS = {
    "random": lambda v: v,
    "rising": lambda v: v.sort().values,
    "falling": lambda v: v.sort(descending=True).values,
    "few values": lambda v: (v * 3).round(),
    "one value": torch.zeros_like,
    "mostly pruned": lambda v: torch.where(v.frac().abs() < 0.97, -torch.inf, v),
    "what the sample sees is all there is": lambda v: torch.where(torch.arange(len(v)) % 15 == 0, v, -torch.inf),
    "what the sample does not see": lambda v: torch.where(torch.arange(len(v)) % 15 == 0, 9.0, v),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 7, 30, 500, 5000, 11_900, 11_999, 12_000])
def test_top_by_way_of_a_sample_equals_a_stable_sort(order, count, monkeypatch):
    monkeypatch.setattr(selection, "SAMPLE", 800)
    scores = ORDERS[order](torch.randn(12_000, generator=torch.Generator().manual_seed(count)))
    expected = torch.zeros(12_000, dtype=torch.bool)
    expected[scores.argsort(descending=True, stable=True)[:count]] = True
    assert torch.equal(top(scores, count), expected)


def test_a_sample_leaves_few_candidates(monkeypatch):
    monkeypatch.setattr(selection, "SAMPLE", 800)
    scores = torch.randn(12_000, generator=torch.Generator().manual_seed(0))
    candidates, rank = selection._bracket(scores, 6000)
    assert rank < len(candidates) < 3000
