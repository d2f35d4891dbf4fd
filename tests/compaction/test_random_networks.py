"""Random small networks, compacted and compiled, train as the masked originals; see `benchmarks/random_networks.py`."""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.compaction.random_networks import PARTS, differences


@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([0.05, 0.3, 0.7]),
    st.integers(0, 999),
)
@example(["WithoutGradients"], False, 0.05, 0)  # what is made without gradients was handed on
@example(["Residual", "OnlyForward", "WithoutGradients", "relu"], False, 0.3, 0)
def test_as_the_masked_network(parts, nested, density, seed):
    assert not differences(parts, nested, density, seed)
