"""Gradients on a compiled skeleton against the dense network's, in float64; and prune with both."""

import copy
import inspect
import re
import subprocess
import sys
import warnings
from unittest import mock

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.passes import listening
from skeletal.core.model.tensors import flatten
from skeletal.core.model.weights import prunable_weights
from skeletal.core.pruning.prune import prune as core_prune
from skeletal.engine import scoring
from skeletal.engine.codegen import amx
from skeletal.engine.scoring import SkeletonDerivatives
from tests.cases import Residual, convnet, images
from tests.unchanged import assert_same, everything_about


def residual():
    model = Residual()
    model.dropout = nn.Dropout(0)
    return model


class Unused(nn.Module):
    """A network one of whose layers never runs, beside a sequence that only runs dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.never = nn.Conv2d(6, 6, 3)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.line(torch.relu(self.stem(x)).flatten(2)).mean(2))


class Fickle(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.inner = convnet()

    def forward(self, x):
        return self.inner(x if x.sum() > 0 else -x)


NETWORKS = {"convnet": lambda: convnet(width=16), "residual": residual, "unused": Unused}


def doubles(count=3):
    return [(x.double(), y) for x, y in images(count)]


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return NETWORKS[name]().double()


def nested_masks(weights, densities, seed=0):
    noise = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) for name, w in weights.items()}
    for density in densities:
        yield {name: value < density for name, value in noise.items()}


@pytest.fixture
def early():
    """On the skeleton from the first pruned weight on."""
    with mock.patch.dict(scoring.BREAK_EVEN, float32=0.9, bfloat16=0.9):
        yield


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("bn_mode", "average", "count"), [("train", "signed", 1), ("eval", "signed", 2), ("train", "absolute", 2)]
)
def test_gradients_of_kept_weights_are_the_dense_networks(early, name, bn_mode, average, count):
    model = made(name)
    with torch.no_grad():
        model.get_parameter(next(iter(prunable_weights(model)))).view(-1)[::3] = 0  # kept, though 0
    theta = {n: w.detach().clone() for n, w in prunable_weights(model).items()}
    options = count, None, bn_mode, average
    ours, truth = (kind(model, Cycle(doubles()), *options) for kind in (SkeletonDerivatives, Derivatives))
    found, densities = [], (0.8, 0.5, 0.45, 0.2, 0.15, 0.05)
    for mask in nested_masks(theta, densities):
        kept = {n: w * mask[n] for n, w in theta.items()}
        (gradient, loss), (expected, right) = ours.gradient(kept, mask), truth.gradient(kept)
        assert loss == pytest.approx(right, rel=1e-12)
        assert gradient.keys() == expected.keys()
        for n, keep in mask.items():
            torch.testing.assert_close(gradient[n], expected[n] * keep, rtol=1e-9, atol=1e-12)
        found.append(ours.plans)
    assert ours.why_dense is None
    assert found == [1, 1, 1, 2, 2, 3]  # anew only when half of a plan's weights are gone
    assert ours.batches.taken == truth.batches.taken == len(densities) * count


@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_bfloat16_is_close_to_float32(early, name):
    """As close as the dense network's own gradient in bfloat16, or twice as far at most."""
    model = made(name).float()
    theta = {n: w.detach().clone() for n, w in prunable_weights(model).items()}
    (mask,) = nested_masks(theta, [0.5])
    kept = {n: w * mask[n] for n, w in theta.items()}
    found = {}
    for label, kind, precision in (
        ("truth", Derivatives, "float32"),
        ("dense", Derivatives, "bfloat16"),
        ("ours", SkeletonDerivatives, "bfloat16"),
    ):
        derivatives = kind(model, Cycle(images(2)), 2, precision=precision)
        gradient, _ = derivatives.gradient(kept, mask)
        found[label] = flatten({n: g * mask[n] for n, g in gradient.items()})
    off = {label: float((g - found["truth"]).norm() / found["truth"].norm()) for label, g in found.items()}
    assert derivatives.plans == 1
    assert all(g.dtype == torch.float32 for g in found.values())
    assert 0 < off["ours"] < 2 * off["dense"] < 0.5


@pytest.mark.parametrize("method", ["force", "force-floor", "grasp-it"])
@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_prune_finds_the_same_mask_step_by_step(early, name, method):
    model, seen, passes = made(name), {"dense": [], "sparse": []}, []
    before, state = everything_about(model), torch.get_rng_state()
    with listening(passes.append):
        masks = {
            engine: skeletal.prune(
                model,
                doubles(),
                density=0.1,
                method=method,
                steps=6,
                engine=engine,
                on_step=seen[engine].append,
            )
            for engine in seen
        }
    assert passes[:6] == passes[6:] and len(passes) == 12  # what is counted does not depend on the engine
    for dense, sparse in zip(*seen.values(), strict=True):
        assert sparse.loss == pytest.approx(dense.loss, rel=1e-10)
        assert sparse.mask.keys() == dense.mask.keys()
        previous = seen["dense"][dense.step - 2].mask if dense.step > 1 else None
        for n, score in sparse.scores.items():
            keep = torch.ones_like(score) if previous is None else previous[n]
            torch.testing.assert_close(score * keep, dense.scores[n] * keep, rtol=1e-8, atol=1e-14)
    assert masks["dense"] == masks["sparse"]
    assert {e: (m.metadata["engine"], m.metadata["why_dense"]) for e, m in masks.items()} == {
        "dense": ("dense", None),
        "sparse": ("sparse", None),
    }
    assert_same(before, everything_about(model))
    assert torch.equal(state, torch.get_rng_state())


def prune(model, **options):
    settings = dict(density=0.05, steps=8, engine="sparse") | options
    return skeletal.prune(model, settings.pop("batches", None) or images(), **settings)


def test_the_same_numbers_every_time():
    scores = []
    masks = [prune(convnet(width=16), on_step=lambda step: scores.append(flatten(step.scores))) for _ in range(2)]
    assert masks[0] == masks[1]
    for one, two in zip(scores[:8], scores[8:], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dense_above_break_even(precision, monkeypatch):
    monkeypatch.setattr(amx, "available", lambda: False)
    break_even = scoring.BREAK_EVEN[precision]
    with mock.patch.object(SkeletonDerivatives, "_make", side_effect=AssertionError):
        prune(convnet(), density=break_even, steps=3, precision=precision)
        with pytest.raises(AssertionError):
            prune(convnet(), density=break_even / 5, steps=3, precision=precision)


@pytest.mark.skipif(not amx.available(), reason="no matrix unit")
def test_with_a_matrix_unit_bfloat16_needs_no_dense_step(monkeypatch):
    with mock.patch.object(SkeletonDerivatives, "_make", side_effect=AssertionError), pytest.raises(AssertionError):
        prune(convnet(), density=0.5, steps=1, precision="bfloat16")
    monkeypatch.setattr(Derivatives, "gradient", no_dense_step(Derivatives.gradient))
    mask = prune(convnet(), density=0.2, steps=4, precision="bfloat16")
    assert mask.metadata["why_dense"] is None and mask.density == pytest.approx(0.2, abs=0.001)


def no_dense_step(gradient):
    """Fails where a gradient is asked of the user's own network."""

    def checked(self, weights, mask=None):
        assert not isinstance(self, SkeletonDerivatives)
        return gradient(self, weights, mask)

    return checked


def test_networks_that_need_whole_batches(early):
    """A few examples will not do to plan for them."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 10)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)).view(12, 512))

    model = Whole()
    masks = [prune(copy.deepcopy(model), density=0.1, steps=3, engine=e) for e in ("dense", "sparse")]
    assert masks[1].metadata["why_dense"] is None
    assert (flatten(masks[0]) == flatten(masks[1])).float().mean() > 0.99


def test_batches_of_other_sizes_are_no_matter(early):
    batches = [(x[:n].double(), y[:n]) for n, (x, y) in zip((12, 5, 9), images(3), strict=True)]
    masks = [prune(made("residual"), batches=batches, density=0.1, engine=e) for e in ("dense", "sparse")]
    assert masks[0] == masks[1]


def test_a_score_that_asks_at_other_weights_is_answered_densely(early):
    def everywhere(at):
        gradient, _ = at.derivatives.gradient(at.weights)
        return {n: (at.kept[n] * g).abs() for n, g in gradient.items()}

    masks = [
        prune(made("convnet"), batches=doubles(), score=everywhere, engine=e, density=0.2) for e in ("dense", "sparse")
    ]
    assert masks[0] == masks[1]


def test_grasps_second_derivative_stays_dense(early):
    options = dict(batches=doubles(), method="grasp-iterative", density=0.3, steps=2)
    assert prune(made("residual"), **options) == prune(made("residual"), engine="dense", **options)


@pytest.mark.parametrize("on_collapse", ["raise", "keep"])
def test_a_collapse_is_the_same(early, on_collapse):
    def run(engine):
        model = made("convnet")
        with torch.no_grad():
            model[3].weight[:, :-1] = 0  # kept weights without a score
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", skeletal.CollapseWarning)
                mask = prune(model, batches=doubles(), density=0.4, steps=3, engine=engine, on_collapse=on_collapse)
        except skeletal.CollapsedError as error:
            return str(error)
        return flatten(dict(mask)).tolist(), mask.metadata["filled"]

    assert run("sparse") == run("dense")


def test_not_even_one_path_left(early):
    """Everything that is kept is dead: gradients are 0, and no error."""
    model = made("convnet")
    theta = {n: w.detach() for n, w in prunable_weights(model).items()}
    mask = {n: torch.full_like(w, n != "3.weight", dtype=torch.bool) for n, w in theta.items()}
    kept = {n: w * mask[n] for n, w in theta.items()}
    ours, truth = (kind(model, Cycle(doubles()), 1) for kind in (SkeletonDerivatives, Derivatives))
    (gradient, loss), (expected, right) = ours.gradient(kept, mask), truth.gradient(kept)
    assert loss == pytest.approx(right, rel=1e-12)
    for n, keep in mask.items():
        torch.testing.assert_close(gradient[n], expected[n] * keep, rtol=1e-9, atol=1e-12)
    nothing = {n: torch.zeros_like(keep) for n, keep in mask.items()}
    gradient, _ = ours.gradient({n: torch.zeros_like(w) for n, w in theta.items()}, nothing)
    assert not flatten(gradient).any()


def test_what_cannot_be_compiled_is_scored_densely_and_says_so(early):
    for model, why in (
        (Fickle(), "torch.fx cannot trace it"),
        (convnet().bfloat16(), "float32 and float64 on the CPU"),
    ):
        batches = [(x.to(next(model.parameters()).dtype), y) for x, y in images()]
        ours, dense = (prune(copy.deepcopy(model), batches=batches, density=0.2, engine=e) for e in ("sparse", "dense"))
        assert ours == dense
        assert why in ours.metadata["why_dense"]
    frozen = convnet()
    frozen[0].weight.requires_grad_(False)
    mask = prune(frozen, prunable=["0.weight", "3.weight"])
    assert mask.metadata["why_dense"].startswith("0.weight is frozen")


def test_infinite_gradients_name_the_weight(early):
    def loss(outputs, targets):
        return (outputs * 0).sum().sqrt()

    with pytest.raises(skeletal.NonFiniteError, match=r"the gradient of 0\.weight"):
        skeletal.prune(
            made("convnet"),
            doubles(),
            density=0.3,
            score=lambda at: {n: w.abs() for n, w in at.weights.items()} if at.mask["0.weight"].all() else at.gradient,
            loss=loss,
            steps=3,
            engine="sparse",
        )


def test_refusals():
    with pytest.raises(ValueError, match=r"'force-regrow' scores pruned weights, too.*use engine='dense'"):
        prune(convnet(), method="force-regrow")
    with pytest.raises(ValueError, match=r"unknown engine 'fast'.*There are dense, sparse"):
        prune(convnet(), engine="fast")


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import torch, skeletal
model, batches = torch.nn.Linear(6, 3), [(torch.randn(8, 6), torch.arange(8) % 3)]
assert skeletal.prune(model, batches, density=0.5, steps=2).kept == 9
try:
    skeletal.prune(model, batches, density=0.5, steps=2, engine="sparse")
except ImportError as error:
    print(error)
"""


def test_without_numba_dense_scoring_works_and_sparse_scoring_says_what_it_needs():
    said = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True).stdout
    assert re.search(r"engine='sparse' needs numba, which does not load here \(.*numba.*\): use engine='dense'", said)


def test_an_engine_of_ones_own_is_asked_at_every_mask():
    class Counting(Derivatives):
        name, everywhere, kept = "counting", False, []

        def gradient(self, weights, mask=None):
            self.kept.append(sum(int(keep.sum()) for keep in mask.values()))
            assert all(not weight[~mask[name]].any() for name, weight in weights.items())
            return super().gradient(weights, mask)

    counts = []
    mask = prune(convnet(), engine=Counting, on_step=lambda step: counts.append(step.kept))
    assert mask == prune(convnet(), engine="dense")
    assert Counting.kept == [mask.total, *counts[:-1]]
    assert mask.metadata["engine"] == "counting"
    with pytest.raises(ValueError, match="'force-regrow' scores pruned weights, too"):
        prune(convnet(), engine=Counting, method="force-regrow")


def test_the_public_function_shows_every_argument():
    assert inspect.signature(skeletal.prune) == inspect.signature(core_prune)
    assert skeletal.prune.__doc__ == core_prune.__doc__


def test_methods_without_data_pay_no_heed():
    options = dict(density=0.1, method="random")
    assert skeletal.prune(convnet(), engine="sparse", **options) == skeletal.prune(convnet(), **options)
