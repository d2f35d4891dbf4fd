import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.pruning.algorithm import Step
from skeletal.core.pruning.prune import prune
from skeletal.core.pruning.ranking import Ranking
from tests.cases import convnet, images, random_mask

pytestmark = pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
DENSITY = 0.02


def ranked(method, density=DENSITY, **options):
    ranking, steps = Ranking(method), []

    def both(step):
        ranking(step)
        steps.append(step)

    options = {"on_collapse": "keep", **options}
    return ranking, prune(convnet(), images(), density=density, method=method, on_step=both, **options), steps


@pytest.mark.parametrize("method", ["snip", "grasp", "magnitude", "random"])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.03])
def test_one_pass_of_a_one_shot_method_serves_every_density(method, density):
    ranking, smallest, _ = ranked(method)
    own = prune(convnet(), images(), density=density, method=method, on_collapse="keep")
    assert ranking.mask(own.kept) == own
    assert ranking.mask(smallest.kept) == smallest


@pytest.mark.parametrize("method", ["force", "grasp-it", "grasp-iterative", "synflow", "force-regrow"])
def test_a_run_ranks_its_own_mask_first(method):
    ranking, mask, steps = ranked(method, steps=4)
    assert ranking.mask(mask.kept) == mask
    assert ranking.keep_within_layers(mask).keys() == mask.keys()
    assert all(torch.equal(keep, mask[name]) for name, keep in ranking.keep_within_layers(mask).items())
    if method != "force-regrow":
        for step in steps:
            assert ranking.mask(step.kept) == step.mask


def test_an_exponential_run_passes_the_masks_of_shorter_ones():
    """k_t of T steps to d are k_t of T/2 steps to sqrt(d): on the same stream of batches, the same masks."""
    ranking, _, _ = ranked("force", density=1 / 4, steps=6)  # of 1528 weights, so that nothing is rounded
    half = prune(convnet(), images(), density=1 / 2, steps=3, on_collapse="keep")
    assert ranking.mask(half.kept) == half


def step_of(number, mask, scores):
    return Step(number, 2, sum(map(sum, mask.values())), 0.0, None,
                {name: torch.tensor(bits, dtype=torch.bool) for name, bits in mask.items()},
                {name: torch.tensor(values) for name, values in scores.items()})  # fmt: skip


def test_the_order_by_hand():
    ranking = Ranking("force")
    ranking(step_of(1, {"a": [1, 1, 0], "b": [1, 0]}, {"a": [5.0, 3.0, 1.0], "b": [4.0, 2.0]}))
    ranking(step_of(2, {"a": [0, 1, 0], "b": [0, 0]}, {"a": [6.0, 8.0, 9.0], "b": [7.0, 9.0]}))
    order = ["a1", "b0", "a0", "b1", "a2"]  # survivor; left at step 2 by those scores; left at step 1 by the first
    for count in range(6):
        kept = ranking.keep(count)
        assert {f"{name}{i}" for name in "ab" for i in kept[name].nonzero().flatten().tolist()} == set(order[:count])
    within = ranking.keep_within_layers({"a": torch.tensor([0, 0, 1]), "b": torch.tensor([1, 1])})
    assert {name: keep.tolist() for name, keep in within.items()} == {"a": [False, True, False], "b": [True, True]}


def test_a_weight_without_a_score_comes_after_negative_ones():
    ranking = Ranking("grasp")
    ranking(step_of(1, {"a": [1, 0, 0]}, {"a": [0.0, -1.0, 2.0]}))
    assert [ranking.keep(count)["a"].tolist() for count in (1, 2)] == [
        [True, False, False],
        [True, False, True],
    ], "what survived comes first"
    ranking = Ranking("grasp")
    ranking(step_of(1, {"a": [0, 0, 0]}, {"a": [0.0, -1.0, 2.0]}))
    assert ranking.keep(2)["a"].tolist() == [False, True, True]


@pytest.fixture(scope="module")
def force():
    return ranked("force", steps=3)[0]


@given(st.floats(0, 1), st.integers(0, 2**31), st.integers(0, 1000), st.integers(0, 1000))
def test_layers_get_their_counts_and_masks_are_nested(force, density, seed, one, two):
    like = random_mask(convnet(), density, seed)
    within = force.keep_within_layers(like)
    assert {name: int(keep.sum()) for name, keep in within.items()} == {
        name: int(keep.sum()) for name, keep in like.items()
    }
    total = sum(keep.numel() for keep in like.values())
    smaller, larger = sorted((one % (total + 1), two % (total + 1)))
    inner, outer = force.keep(smaller), force.keep(larger)
    assert sum(int(keep.sum()) for keep in inner.values()) == smaller
    assert all((outer[name] | ~inner[name]).all() for name in inner)


def test_what_is_refused(force):
    with pytest.raises(ValueError, match="nothing is ranked yet"):
        Ranking("force").keep(1)
    with pytest.raises(ValueError, match="9,999,999 weights are to be kept of the network, which has"):
        force.keep(9_999_999)
    with pytest.raises(ValueError, match="of another network"):
        force.keep_within_layers(random_mask(convnet(width=4), 0.5))
