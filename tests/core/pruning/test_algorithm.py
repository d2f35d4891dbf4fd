"""Algorithm 1 without a network: gradients in closed form go in through the one door, masks come out."""

import inspect
import weakref

import pytest
import torch

import skeletal
from skeletal.core.pruning.algorithm import algorithm_1
from skeletal.core.pruning.methods import METHODS
from tests.cases import images, mlp


class Quadratic:
    """L(w) = ½ Σ_ij w_i A_ij w_j - b·w over two layers, whose gradient is A w - b."""

    def __init__(self):
        draw = torch.Generator().manual_seed(7)
        root = torch.randn(12, 12, generator=draw, dtype=torch.float64)
        self.a, self.b = root @ root.T, torch.randn(12, generator=draw, dtype=torch.float64)
        self.theta = torch.randn(12, generator=draw, dtype=torch.float64)
        self.asked = []

    def layers(self, flat):
        return {"first": flat[:8].view(2, 4), "second": flat[8:]}

    def gradient(self, weights, mask):
        flat = torch.cat([weights[name].flatten() for name in ("first", "second")])
        kept = torch.cat([mask[name].flatten() for name in ("first", "second")])
        self.asked.append(kept)
        assert torch.equal(flat, self.theta * kept)
        value = 0.5 * flat @ self.a @ flat - self.b @ flat
        return self.layers(self.a @ flat - self.b), value.item()


@pytest.mark.parametrize("method", ["force", "force-regrow", "grasp-it", "snip"])
def test_each_mask_is_the_best_of_what_is_left_at_the_one_before(method):
    loss, counts = Quadratic(), [3] if method == "snip" else [9, 6, 4, 3]
    found = [
        (step.step, step.kept, step.density, step.loss, torch.cat([keep.flatten() for keep in step.mask.values()]))
        for step in algorithm_1(
            loss.layers(loss.theta), METHODS[method], counts, loss, torch.Generator(), on_collapse="raise"
        )
    ]
    assert [at[:3] for at in found] == [(t, k, k / 12) for t, k in enumerate(counts, 1)]
    mask = [True] * 12
    for asked, (*_, value, new) in zip(loss.asked, found, strict=True):
        assert asked.tolist() == mask
        w = [x if keep else 0.0 for x, keep in zip(loss.theta.tolist(), mask, strict=True)]
        g = [sum(loss.a[i, j].item() * w[j] for j in range(12)) - loss.b[i].item() for i in range(12)]
        by_definition = sum(w[i] * loss.a[i, j].item() * w[j] for i in range(12) for j in range(12)) / 2
        assert value == pytest.approx(by_definition - sum(b * x for b, x in zip(loss.b.tolist(), w, strict=True)))
        worth = {"grasp-it": g, "force-regrow": [x * y for x, y in zip(loss.theta.tolist(), g, strict=True)]}
        score = worth.get(method, [x * y for x, y in zip(w, g, strict=True)])
        among = range(12) if method == "force-regrow" else [i for i in range(12) if mask[i]]
        best = sorted(among, key=lambda i: -abs(score[i]))[: int(new.sum())]
        mask = [i in best for i in range(12)]
        assert new.tolist() == mask
    assert len(loss.asked) == len(counts)  # one gradient a step


def test_scores_of_a_step_are_gone_when_the_next_one_is_scored():
    earlier: list[weakref.ref] = []

    def score(at):
        assert all(ref() is None for ref in earlier)
        found = {name: weight.abs() + at.gradient[name].abs() for name, weight in at.kept.items()}
        earlier.extend(map(weakref.ref, [*found.values(), *at.kept.values(), *at.gradient.values()]))
        return found

    skeletal.prune(mlp(), images(), density=0.1, steps=4, score=score, on_step=lambda step: None)
    assert len(earlier) == 4 * 3 * 2


def test_it_fits_on_one_screen():
    lines, _ = inspect.getsourcelines(algorithm_1)
    assert len(lines) <= 25
