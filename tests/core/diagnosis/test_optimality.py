from functools import cache
from itertools import combinations
from math import comb

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.diagnosis.optimality import LocalOptimality, _few, local_optimality
from skeletal.core.model.tensors import flatten, unflatten
from skeletal.core.pruning.along_run import optimality_along_run
from tests.cases import Residual, convnet, images, mlp, random_mask
from tests.unchanged import assert_same, everything_about


class Tiny:
    """Ten weights in doubles, two batches, and S, ∇L and FORCE written out on flat vectors."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False)).double()
        self.batches = [(torch.randn(5, 3).double(), torch.randint(2, (5,))) for _ in range(2)]
        self.theta = torch.cat([w.detach().flatten() for w in self.model.parameters()])

        self.gradient = cache(self._gradient)

    def _gradient(self, kept):
        weights = torch.zeros(10).double()
        weights[list(kept)] = self.theta[list(kept)]
        weights.requires_grad_()
        loss = 0.0
        for x, y in self.batches:
            logits = torch.tanh(x @ weights[:6].view(2, 3).T) @ weights[6:].view(2, 2).T
            loss = loss + nn.functional.cross_entropy(logits, y) / 2
        return torch.autograd.grad(loss, weights)[0]

    def saliency(self, kept):
        return sum(abs(self.theta[i] * self.gradient(frozenset(kept))[i]).item() for i in kept)

    def force(self, before, count):
        worth = (self.theta * self.gradient(frozenset(before))).abs()
        return set(sorted(before, key=lambda i: -worth[i])[:count])

    def swapped(self, before, after, p):
        """All of (ζ, c_{t+1} ∪ S+)."""
        for out in combinations(sorted(after), p):
            for back in combinations(sorted(before - after), p):
                yield (after - set(out)) | set(back), after | set(back)

    def ratio(self, c, smaller):
        """Eq. 11 at w = θ."""
        inside, removed = sorted(c), sorted(c - smaller)
        change = (self.gradient(frozenset(c)) - self.gradient(frozenset(smaller)))[inside].abs().max().item()
        return change / self.theta[removed].abs().sum().item() if removed else 0.0

    def mask(self, kept):
        flat = torch.zeros(10, dtype=torch.bool)
        flat[list(kept)] = True
        return unflatten(flat, dict(self.model.named_parameters()))

    def measure(self, before, after, p, **options):
        return local_optimality(self.model, self.batches, self.mask(after), self.mask(before), swaps=p, **options)


EVERY = set(range(10))


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_epsilon_and_smoothness_against_every_swap(seed, p):
    tiny = Tiny(seed)
    before = tiny.force(EVERY, 8)
    after = tiny.force(before, 4)
    found = tiny.measure(before, after, p, samples=10**4)
    gains = [tiny.saliency(swapped) - tiny.saliency(after) for swapped, _ in tiny.swapped(before, after, p)]
    pairs = []
    for swapped, union in tiny.swapped(before, after, p):
        pairs += [(before, swapped), (union, after), (union, swapped)]
    smoothness = max(tiny.ratio(c, smaller) for c, smaller in pairs)
    assert found.exact
    assert sorted(found.gains) == pytest.approx(sorted(gains))
    assert found.epsilon == pytest.approx(max(0, *gains))
    assert found.saliency == pytest.approx(tiny.saliency(after))
    assert found.smoothness == pytest.approx(smoothness)
    assert found.bound == pytest.approx(2 * smoothness * p * tiny.theta.abs().max().item() ** 2 * 8)
    assert found.holds and found.margin > 0

    # Definition 2 at w = θ over all sub-masks of every mask between c_{t+1} and c_t, of which Λ needs only some.
    largest = max(
        tiny.ratio(after | set(extra), set(smaller))
        for size in range(len(before - after) + 1)
        for extra in combinations(before - after, size)
        for left in range(len(after) + size)
        for smaller in combinations(after | set(extra), left)
    )
    assert 0 < found.smoothness <= largest * (1 + 1e-12)


def test_samples_never_exceed_the_exact_numbers_and_reach_them():
    tiny = Tiny(1)
    after = tiny.force(EVERY, 4)
    exact = tiny.measure(EVERY, after, 2, samples=90)  # 6 x 15 swaps
    sampled = [tiny.measure(EVERY, after, 2, samples=89, seed=seed) for seed in range(6)]
    assert exact.exact and not any(found.exact for found in sampled)
    assert len(exact.gains) == 90 and all(len(found.gains) == 90 for found in sampled)
    assert all(set(found.gains) <= set(exact.gains) for found in sampled)
    assert all(found.smoothness <= exact.smoothness for found in sampled)
    assert max(max(found.gains) for found in sampled) == max(exact.gains)
    assert max(found.smoothness for found in sampled) == exact.smoothness


def test_whether_there_are_few_swaps_is_known_without_huge_numbers():
    for number in range(1, 12):
        for swaps in range(1, number + 1):
            for most in (1, 5, 30, 1000):
                assert min(_few(number, swaps, most), most + 1) == min(comb(number, swaps), most + 1)
    assert _few(10**9, 10**8, 32) == 33


@pytest.mark.parametrize("seed", range(3))
def test_the_promising_swap_comes_first(seed):
    """Against ∇S by automatic differentiation."""
    tiny = Tiny(seed)
    after = {0, 3, 4, 6, 9}
    kept = tiny.mask(after)

    def saliency(flat):
        weights = unflatten(flat, kept)
        loss = sum(
            nn.functional.cross_entropy(torch.func.functional_call(tiny.model, weights, (x,)), y)
            for x, y in tiny.batches
        )
        (gradient,) = torch.autograd.grad(loss / 2, flat, create_graph=True)
        return (tiny.theta * gradient).abs()

    point = (tiny.theta * flatten(kept)).requires_grad_()
    worth = saliency(point)
    (slope,) = torch.autograd.grad(worth[sorted(after)].sum(), point)
    expected = worth.detach() + tiny.theta * slope
    out = min(after, key=lambda i: expected[i])
    back = max(EVERY - after, key=lambda i: expected[i])
    found = tiny.measure(EVERY, after, 1, samples=2)
    assert found.gains[0] == pytest.approx(tiny.saliency((after - {out}) | {back}) - tiny.saliency(after))


def linear(values):
    """L(w) = w · x, whose gradient nothing changes: Λ is 0, and S(c) a sum of constants."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
    batches = [(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.zeros(1))]
    return model, batches, lambda outputs, targets: outputs.sum()


def test_by_hand_the_best_mask_has_epsilon_zero_and_the_worst_breaks_the_bound():
    model, batches, loss = linear([1.0, -1.0, 1.0, -1.0])  # worth 1, 2, 4, 8
    best, worst = ({"weight": torch.tensor([keep]).bool()} for keep in ([0, 0, 1, 1], [1, 1, 0, 0]))
    found = local_optimality(model, batches, best, loss=loss)
    assert (found.epsilon, found.bound, found.holds, found.margin) == (0, 0, True, 2)
    assert sorted(found.gains) == [-7, -6, -3, -2]
    found = local_optimality(model, batches, worst, loss=loss)
    assert (found.epsilon, found.bound, found.holds, found.margin) == (7, 0, False, -7)
    assert (found.saliency, found.relative, found.smoothness) == (3, 7 / 3, 0)
    found = local_optimality(model, batches, worst, loss=loss, swaps=2)
    assert found.gains == (9,) and found.exact


def test_a_violated_bound_is_one_whose_epsilon_is_larger():
    def case(*gains):
        return LocalOptimality(2, gains, False, 1.0, 0.5, 3.0, before=10, kept=5, margin=0.0)

    assert case(0.0).bound == 2 * 0.5 * 2 * 9 * 10
    assert case(-1.0, 180.0).holds
    assert not case(-1.0, 180.1).holds
    assert case(-1.0).epsilon == 0


def test_what_force_does_not_keep_is_far_from_optimal():
    model, batches = convnet(), images()
    steps = []
    skeletal.prune(model, batches, density=0.2, steps=1, batches_per_step=3, on_step=steps.append)
    (step,) = steps
    worth = flatten(step.scores)
    worst = torch.zeros_like(worth, dtype=torch.bool)
    worst[worth.argsort()[: step.kept]] = True
    good = local_optimality(model, batches, step.mask, swaps=20, samples=8)
    bad = local_optimality(model, batches, unflatten(worst, step.mask), swaps=20, samples=8)
    assert good.margin >= 0 > bad.margin
    assert 10 * good.relative < bad.relative


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_every_step_of_a_run(schedule):
    model, batches = convnet(), images()
    options = dict(density=0.2, swaps=5, samples=4, schedule=schedule)
    mask, found = optimality_along_run(model, batches, steps=6, **options)
    total = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert [step.before for step in found] == [total, *(step.kept for step in found[:-1])]
    assert found[-1].kept == round(0.2 * total)
    assert all(step.holds and step.margin >= 0 and len(step.gains) == 5 for step in found)
    assert mask == skeletal.prune(model, batches, density=0.2, steps=6, batches_per_step=3, schedule=schedule)
    _, (last,) = optimality_along_run(model, batches, steps=6, last_only=True, **options)
    assert last == found[-1]
    mask, (snip,) = optimality_along_run(model, batches, steps=1, **options)
    assert mask == skeletal.prune(model, batches, density=0.2, method="snip", batches_per_step=3)
    assert snip == skeletal.local_optimality(model, batches, mask, swaps=5, samples=4)
    assert last.bound < snip.bound


def test_along_a_run_batches_have_to_be_a_list():
    with pytest.raises(TypeError, match=r"list_iterator, but the saliency has to be of one fixed loss"):
        optimality_along_run(mlp(), iter(images()), density=0.1, steps=2)


def test_steps_that_prune_little_swap_little_and_those_that_prune_nothing_are_left_out():
    def schedule(total, kept, steps):
        return [total, total - 2, kept]

    _, found = optimality_along_run(mlp(), images(), density=0.1, steps=3, swaps=7, samples=2, schedule=schedule)
    assert [step.swaps for step in found] == [2, 7]


def test_left_as_found_and_the_same_twice_with_dropout():
    torch.manual_seed(0)
    model, batches = Residual(), images()
    mask = random_mask(model, 0.3)
    before = everything_about(model)
    first = local_optimality(model, batches, mask, samples=4)
    assert_same(before, everything_about(model))
    assert local_optimality(model, batches, mask, samples=4) == first


def test_weights_that_are_zero():
    model, batches, loss = linear([0.0, 0.0, 1.0, 1.0])
    mask = {"weight": torch.tensor([[0, 1, 0, 0]]).bool()}
    found = local_optimality(model, batches, mask, {"weight": torch.tensor([[1, 1, 0, 0]]).bool()}, loss=loss)
    assert (found.epsilon, found.relative, found.smoothness, found.holds) == (0, 0, 0, True)
    assert local_optimality(model, batches, mask, loss=loss).relative == float("inf")


def test_mistakes():
    model, batches = mlp(), images()
    mask = random_mask(model, 0.5)
    none = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    with pytest.raises(TypeError, match=r"list\(itertools"):
        local_optimality(model, iter(batches), mask)
    with pytest.raises(ValueError, match="swaps=0"):
        local_optimality(model, batches, mask, swaps=0)
    with pytest.raises(ValueError, match=r"weights kept and .* just pruned swaps can be 1 to"):
        local_optimality(model, batches, mask, swaps=4040)
    with pytest.raises(ValueError, match="samples=0"):
        local_optimality(model, batches, mask, samples=0)
    with pytest.raises(ValueError, match="batches is empty"):
        local_optimality(model, [], mask)
    with pytest.raises(ValueError, match="0 just pruned"):
        local_optimality(model, batches, mask, mask)
    with pytest.raises(skeletal.MaskError, match=r"weights of 1\.weight .* kept but were not before"):
        local_optimality(model, batches, mask, none)
    with pytest.raises(skeletal.MaskError, match="different layers"):
        local_optimality(model, batches, mask, {"1.weight": mask["1.weight"]})
    with pytest.raises(skeletal.MaskError, match=r"0\.weight|1\.weight"):
        local_optimality(convnet(), batches, mask)
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        local_optimality(model, batches, mask, bn_mode="trian")
