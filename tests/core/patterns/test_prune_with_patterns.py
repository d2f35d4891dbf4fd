import re
import warnings

import pytest
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import skeletal
from skeletal.core.updates.rigl import RigL
from tests.cases import ZOO, convnet, images, mlp
from tests.core.patterns.truth import groups_of

PATTERNS = ["channels", "fan-in", "2:4", "4x4"]


def options(method):
    return {} if skeletal.METHODS[method].one_shot else {"steps": 3}


def follows(pattern, mask):
    """Whether every layer consists of whole groups, the first of each kind for constant fan-in."""
    for keep in mask.values():
        units = keep.flatten(2) if keep.dim() > 2 else keep.unsqueeze(2)
        everything = torch.ones_like(units)
        if pattern == "fan-in":
            assert len(set(units.flatten(1).sum(1).tolist())) == 1
        elif ":" in pattern:
            allowed = groups_of(pattern, units.float(), units)
            assert sum(map(len, allowed)) == int(units.sum())
        elif "x" in pattern:
            for group in groups_of(pattern, units.float(), everything):
                assert len({bool(units[at]) for at in group}) == 1
        else:  # the rest of a layer's inputs and outputs is gone, so that what is left is dense
            assert torch.equal(units, units.any((1, 2))[:, None, None] & units.any((0, 2))[:, None] & everything)
    return True


@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning", "ignore:.*so layers keep other numbers")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", list(skeletal.METHODS))
def test_every_method_finds_masks_of_every_pattern(method, pattern):
    seen = []
    asked = {"density": 0.3, "method": method, "pattern": pattern, "on_collapse": "keep"} | options(method)
    mask = skeletal.prune(convnet(), images(), on_step=seen.append, **asked)
    assert all(follows(pattern, step.mask) for step in seen)
    assert all(step.kept == sum(int(keep.sum()) for keep in step.mask.values()) for step in seen)
    assert mask.metadata["pattern"] == pattern
    count = round(0.3 * mask.total)
    assert mask.kept == count if pattern == "2:4" else 0 < mask.kept <= count
    if method in ("random", "force"):
        assert mask == skeletal.prune(convnet(), images(), **asked)


@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
@pytest.mark.parametrize(("pattern", "differs"), [("channels", True), ("4x4", True), ("2:4", False), ("fan-in", False)])
def test_a_method_that_counts_by_layers_says_where_a_pattern_does_not(pattern, differs):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for method in ("random-erk", "snip"):
            skeletal.prune(convnet(), images(), density=0.3, method=method, pattern=pattern, on_collapse="keep")
    ours = [warning for warning in said if "layers keep other numbers" in str(warning.message)]
    assert len(ours) == differs and all(warning.filename == __file__ for warning in ours)


@pytest.mark.parametrize("method", ["snip", "force", "force-regrow", "grasp-iterative"])
def test_patterns_that_allow_everything_change_nothing(method):
    def found(pattern):
        return skeletal.prune(
            convnet(), images(), density=0.1, method=method, pattern=pattern, on_collapse="keep", **options(method)
        )

    assert found("4:4") == found("1x1") == found(None)


def test_scores_are_those_without_a_pattern():
    def first_scores(pattern):
        steps = []
        skeletal.prune(convnet(), images(), density=0.3, steps=2, pattern=pattern, on_step=steps.append)
        return steps[0].scores

    plain = first_scores(None)
    for pattern in PATTERNS:
        assert all(torch.equal(score, plain[name]) for name, score in first_scores(pattern).items())


@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")  # blocks of largest weights leave "everything" no path
@pytest.mark.parametrize(("model", "batches"), [ZOO["everything"], ZOO["tokens"]])
def test_any_network_can_follow_a_pattern(model, batches):
    for pattern in ("fan-in", "1:2", "2x2"):
        mask = skeletal.prune(model(), batches(), density=0.3, method="magnitude", pattern=pattern)
        assert 0.25 < mask.density <= 0.301


def test_two_of_four_is_what_torch_compresses():
    """The half that torch keeps of each row, and where it was, give back every weight."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # other seeds have units that are dead on these images, whose weights have no score
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 32))
    mask = skeletal.prune(model, images(), density=0.5, method="snip", pattern="2:4")
    assert mask.density == 0.5
    mask.attach(model)
    for name, keep in mask.items():
        assert (keep.view(-1, 4).sum(1) == 2).all()
        weight = model.get_parameter(name).detach().half()
        compressed, places = sparse_semi_structured_from_dense_cutlass(weight)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(compressed, places), weight)


def test_two_of_four_counts_input_channels_at_each_position_of_a_kernel():
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.5, method="snip", pattern="2:4")
    inner = mask["3.weight"]  # (16, 8, 3, 3)
    assert inner.unflatten(1, (-1, 4)).sum(2).max() == 2
    assert mask["0.weight"].sum(1).max() == 2  # 3 inputs, as if there were a fourth


def test_a_density_that_a_pattern_does_not_allow_is_refused_with_one_that_it_does():
    with pytest.raises(ValueError, match="at most") as told:
        skeletal.prune(mlp(), images(), density=0.6, method="snip", pattern="2:4")
    largest = float(re.findall(r"[\d.]+$", str(told.value))[0])
    assert largest == 0.5
    assert skeletal.prune(mlp(), images(), density=largest, method="snip", pattern="2:4").density == largest
    with pytest.raises(ValueError, match="density has to be at least") as told:
        skeletal.prune(convnet(), images(), density=0.001, method="snip", pattern="channels")
    with pytest.raises(ValueError, match="keeps together"):
        skeletal.prune(mlp(), images(), density=0.002, method="snip", pattern="16x16")


def test_weights_of_a_pattern_that_have_no_score_are_reported():
    def only_first(point):
        return {name: (w != 0) * (torch.arange(w.numel()).view_as(w) < 12) * 1.0 for name, w in point.weights.items()}

    asked = {"density": 0.2, "score": only_first, "method": "snip", "pattern": "2x2"}
    with pytest.raises(skeletal.CollapsedError, match="in which no weight has"):
        skeletal.prune(mlp(), images(), **asked)
    with pytest.warns(skeletal.CollapseWarning, match="carry no signal"):
        mask = skeletal.prune(mlp(), images(), on_collapse="keep", **asked)
    assert 0 < mask.metadata["filled"][0]["weights"] < mask.kept


def test_a_pattern_is_kept_on_disk_and_held_against_moving(tmp_path):
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.3, method="snip", pattern="2:4")
    mask.save(tmp_path / "mask")
    loaded = skeletal.Mask.load(tmp_path / "mask")
    assert loaded == mask
    assert loaded.metadata["pattern"] == "2:4"
    assert "pattern: 2:4" in str(loaded)
    assert skeletal.diagnose(model, loaded, images(1)[0]).effective <= mask.kept
    with pytest.raises(ValueError, match="pattern 2:4"):
        skeletal.repair(loaded, model)
    assert mask.shuffled(0).metadata["pattern"] is None
    skeleton = loaded.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="RigL moves single weights"):
        skeletal.MaskUpdate(skeleton, optimizer, RigL(every=1), steps=10)
