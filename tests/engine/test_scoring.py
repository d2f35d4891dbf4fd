"""Gradients on a compiled skeleton against the dense network's, in float64; and prune with both."""

import copy
import warnings

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.passes import listening
from skeletal.core.model.tensors import flatten
from skeletal.core.model.weights import prunable_weights
from skeletal.engine.scoring import SkeletonDerivatives
from tests.cases import convnet, images
from tests.engine.scored import NETWORKS, doubles, early, made, prune
from tests.unchanged import assert_same, everything_about

__all__ = ["early"]


def nested_masks(weights, densities, seed=0):
    noise = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) for name, w in weights.items()}
    for density in densities:
        yield {name: value < density for name, value in noise.items()}


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


def test_the_same_numbers_every_time():
    scores = []
    masks = [prune(convnet(width=16), on_step=lambda step: scores.append(flatten(step.scores))) for _ in range(2)]
    assert masks[0] == masks[1]
    for one, two in zip(scores[:8], scores[8:], strict=True):
        assert torch.equal(one, two)


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
