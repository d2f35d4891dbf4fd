"""Each criterion against a slower truth, in float64."""

import pytest
import torch

import skeletal
from skeletal.core.batches import Cycle
from skeletal.core.gradients import mean_gradient
from skeletal.core.selection import flatten
from tests.cases import convnet, images, mlp


def doubles(batches):
    return [(x.double(), y) for x, y in batches]


def steps_of(model, batches, **settings):
    seen = []
    mask = skeletal.prune(model, batches, on_step=seen.append, **settings)
    return mask, seen


def test_mean_gradient_is_that_of_the_average_loss():
    model, batches = mlp().double(), doubles(images())
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    gradients, loss = mean_gradient(model, weights, Cycle(batches), 3)
    average = sum(torch.nn.functional.cross_entropy(model(x), y) for x, y in batches) / 3
    average.backward()
    assert loss == pytest.approx(average.item())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)


def test_force_score_is_the_derivative_with_respect_to_the_mask():
    """Eq. 5 by finite differences: perturb one entry of c at ĉ, with everything else pruned as it is."""
    model, batches = convnet(width=3).double(), doubles(images(1))
    model[4].momentum = 0.0
    _, seen = steps_of(model, batches, density=0.5, steps=3)
    before, step = seen[1].mask, seen[2]  # the third scores are taken at the second mask
    weights = {name: model.get_parameter(name).detach().clone() for name in before}

    def loss(c):
        changed = {name: weights[name] * c[name] for name in c}
        state = {name: b.clone() for name, b in model.named_buffers()} | changed
        outputs = torch.func.functional_call(model, state, (batches[0][0],))
        return torch.nn.functional.cross_entropy(outputs, batches[0][1]).item()

    generator = torch.Generator().manual_seed(0)
    for name in before:
        for index in torch.randint(weights[name].numel(), (6,), generator=generator).tolist():
            c = {other: keep.double() for other, keep in before.items()}
            if not c[name].view(-1)[index]:
                assert step.scores[name].view(-1)[index] == 0
                continue
            c[name].view(-1)[index] = 1 + 1e-6
            above = loss(c)
            c[name].view(-1)[index] = 1 - 1e-6
            slope = abs(above - loss(c)) / 2e-6
            assert step.scores[name].view(-1)[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_regrow_scores_pruned_weights_as_if_they_came_back():
    model, batches = mlp().double(), doubles(images(1))
    _, seen = steps_of(model, batches, density=0.3, steps=2, method="force-regrow")
    first, second = seen
    leaves = {n: (model.get_parameter(n).detach() * m).requires_grad_() for n, m in first.mask.items()}
    outputs = torch.func.functional_call(model, leaves, (batches[0][0],))
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, batches[0][1]), list(leaves.values()))
    for (name, score), gradient in zip(second.scores.items(), gradients, strict=True):
        torch.testing.assert_close(score, (model.get_parameter(name).detach() * gradient).abs())
    assert any((score[~first.mask[name]] > 0).any() for name, score in second.scores.items())


def test_regrow_lets_pruned_weights_return_and_force_does_not():
    batches = images(4)
    for method, returns in (("force-regrow", True), ("force", False)):
        _, seen = steps_of(mlp(), batches, density=0.02, steps=8, method=method)
        masks = [flatten(step.mask) for step in seen]
        assert any((later & ~earlier).any() for earlier, later in zip(masks, masks[1:], strict=False)) is returns


def test_grasp_it_keeps_the_largest_squared_gradients():
    """Eq. 17, one step, in float64 where squares cannot underflow."""
    model, batches = mlp().double(), doubles(images(1))
    mask = skeletal.prune(model, batches, density=0.1, method="grasp-it", steps=1)
    torch.nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    squares = torch.cat([model.get_parameter(name).grad.square().flatten() for name in mask])
    expected = torch.zeros_like(squares, dtype=torch.bool)
    expected[squares.argsort(descending=True, stable=True)[: mask.kept]] = True
    assert torch.equal(flatten(dict(mask)), expected)


def test_snip_mb_averages_signed_gradients_before_the_absolute_value():
    model, batches = mlp(), images(3)
    _, seen = steps_of(model, batches, density=0.5, method="snip", batches_per_step=3)
    weights = {name: model.get_parameter(name).detach() for name in seen[0].mask}
    gradients, _ = mean_gradient(model, weights, Cycle(batches), 3)
    for name, score in seen[0].scores.items():
        assert torch.equal(score, (weights[name] * gradients[name]).abs())


def test_magnitude_and_random():
    model = mlp()
    mask = skeletal.prune(model, density=0.2, method="magnitude")
    sizes = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in mask])
    assert sizes[flatten(dict(mask))].min() >= sizes[~flatten(dict(mask))].max()
    mask = skeletal.prune(model, density=0.5, method="random", seed=1)
    shares = [float(keep.float().mean()) for keep in mask.values()]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)
    assert mask != skeletal.prune(model, density=0.5, method="random", seed=2)
