from hypothesis import given
from hypothesis import strategies as st

from skeletal.harness.output.pareto import on_front

numbers = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_a_point_is_on_the_front_if_no_other_beats_it(points):
    def beaten(point):
        cost, gain = point
        return any(c <= cost and g >= gain and (c, g) != point for c, g in points)

    assert on_front(points) == [not beaten(point) for point in points]
