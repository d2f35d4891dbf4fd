"""Operations on many tensors at once, against the same taken one by one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.model.tensors import counts, not_finite

VALUES = st.sampled_from([0.0, 1.0, -2.5, 3e38, -3e38, math.inf, -math.inf, math.nan])
TENSORS = st.lists(st.lists(VALUES, max_size=4), max_size=4).map(
    lambda rows: {f"w{i}": torch.tensor(row, dtype=torch.float32) for i, row in enumerate(rows)}
)


@given(TENSORS)
def test_not_finite_names_the_first(tensors):
    """Finite entries whose sum overflows are finite."""
    wrong = [name for name, tensor in tensors.items() if not all(map(math.isfinite, tensor.tolist()))]
    assert not_finite(tensors) == (wrong[0] if wrong else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_overflowing_sum_is_not_taken_for_infinity(dtype):
    fine = {"a": torch.randn(1000, dtype=dtype), "b": torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)}
    assert not_finite(fine) is None
    for bad in ([torch.inf], [-torch.inf], [torch.nan], [torch.inf, -torch.inf]):
        assert not_finite(fine | {"c": torch.cat([fine["a"], torch.tensor(bad, dtype=dtype)])}) == "c"


@given(TENSORS)
def test_counts_are_those_of_each(tensors):
    assert counts(tensors) == {name: sum(x != 0 for x in tensor.tolist()) for name, tensor in tensors.items()}
