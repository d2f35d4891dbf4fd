"""The argument `engine` of prune: what is scored densely all the same and says why, and what is refused."""

import copy
import inspect
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.tensors import flatten
from skeletal.core.pruning.prune import prune as core_prune
from skeletal.engine import scoring
from skeletal.engine.codegen import amx
from skeletal.engine.scoring import SkeletonDerivatives
from tests.cases import convnet, images
from tests.engine.scored import doubles, early, made, prune

__all__ = ["early"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dense_above_break_even(precision, monkeypatch):
    monkeypatch.setattr(amx, "available", lambda: False)
    break_even = scoring.BREAK_EVEN[precision]
    with mock.patch.object(SkeletonDerivatives, "_make", side_effect=AssertionError):
        prune(convnet(), density=break_even, steps=3, precision=precision)
        with pytest.raises(AssertionError):
            prune(convnet(), density=break_even / 5, steps=3, precision=precision)


def no_dense_step(gradient):
    """Fails where a gradient is asked of the user's own network."""

    def checked(self, weights, mask=None):
        assert not isinstance(self, SkeletonDerivatives)
        return gradient(self, weights, mask)

    return checked


@pytest.mark.skipif(not amx.available(), reason="no matrix unit")
def test_with_a_matrix_unit_bfloat16_needs_no_dense_step(monkeypatch):
    with mock.patch.object(SkeletonDerivatives, "_make", side_effect=AssertionError), pytest.raises(AssertionError):
        prune(convnet(), density=0.5, steps=1, precision="bfloat16")
    monkeypatch.setattr(Derivatives, "gradient", no_dense_step(Derivatives.gradient))
    mask = prune(convnet(), density=0.2, steps=4, precision="bfloat16")
    assert mask.metadata["why_dense"] is None and mask.density == pytest.approx(0.2, abs=0.001)


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


def penalty(model):
    return sum(weight.square().sum() for weight in model.parameters())


READ = {
    "penalty": lambda model: 1e-2 * penalty(model),
    "value": lambda model: 1e-3 * penalty(model).detach(),
    "buffer": lambda model: model[1].running_mean.square().sum(),
    "again": lambda model: model(torch.ones(2, 3, 8, 8, dtype=torch.float64)).square().mean(),
}


@pytest.mark.parametrize("kind", READ)
def test_a_loss_that_reads_the_network_is_scored_densely(early, kind):
    def run(engine):
        model, scores = made("convnet"), []

        def loss(outputs, targets):
            return nn.functional.cross_entropy(outputs, targets) * (1 + READ[kind](model))

        options = dict(batches=doubles(), density=0.2, steps=4, loss=loss, engine=engine)
        mask = prune(model, on_step=lambda step: scores.append(step.scores), **options)
        assert all(weight.grad is None for weight in model.parameters())
        return mask, scores

    (ours, scores), (dense, expected) = run("sparse"), run("dense")
    assert ours == dense and ours.metadata["why_dense"].startswith("the loss reads the network's weights")
    assert all(torch.equal(flatten(one), flatten(two)) for one, two in zip(scores, expected, strict=True))


def test_a_loss_of_outputs_and_of_other_weights_stays_on_the_skeleton(early):
    head, model = nn.Linear(10, 10).double(), made("convnet")
    head.requires_grad_(requires_grad=False)

    def loss(outputs, targets):
        assert outputs.dtype == next(model.parameters()).dtype  # reads no number
        return nn.functional.cross_entropy(head(outputs), targets) + outputs.square().mean()

    options = dict(batches=doubles(), density=0.2, steps=4, loss=loss)
    masks = [prune(model, engine=engine, **options) for engine in ("sparse", "dense")]
    assert masks[0] == masks[1] and masks[0].metadata["why_dense"] is None


class Fickle(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.inner = convnet()

    def forward(self, x):
        return self.inner(x if x.sum() > 0 else -x)


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
