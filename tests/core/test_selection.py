import torch
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.selection import flatten, top, unflatten

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
