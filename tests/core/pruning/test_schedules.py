import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.pruning.schedules import SCHEDULES, exponential, linear, visit

sizes = st.integers(1, 10**8).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total)))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@given(sizes, st.integers(1, 400))
def test_falls_strictly_where_room_allows_and_ends_at_kept(schedule, size, steps):
    total, kept = size
    counts = schedule(total, kept, steps)
    assert len(counts) == steps
    assert counts[-1] == kept
    assert all(isinstance(count, int) for count in counts)
    falls = [above - below for above, below in zip([total, *counts], counts, strict=False)]
    if total - kept >= steps:
        assert min(falls) >= 1
    else:
        assert set(falls) <= {0, 1}
        assert sum(falls) == total - kept


@given(st.integers(10**5, 10**8), st.floats(0.001, 0.5), st.integers(1, 100))
def test_follow_the_papers_equations_to_rounding(total, density, steps):
    kept = round(density * total)
    for t, (exp, lin) in enumerate(zip(exponential(total, kept, steps), linear(total, kept, steps), strict=True), 1):
        alpha = t / steps
        assert abs(exp - math.exp(alpha * math.log(kept) + (1 - alpha) * math.log(total))) <= 1
        assert abs(lin - (alpha * kept + (1 - alpha) * total)) <= 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 4], "ends at"),
        ([], "ends at"),
        ([5, 7, 3], "never rise"),
        ([12, 3], "at most 10"),
        ([4.5, 3], "whole"),
    ],
)
def test_own_schedule_is_checked(counts, message):
    with pytest.raises(ValueError, match=message):
        visit(lambda total, kept, steps: counts, 10, 3, 2)
