"""ProsPr against unrolled training, NTK-SAP against an explicit Jacobian; in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.pruning.criteria import kernel
from skeletal.core.pruning.criteria.kernel import normal, tangent_kernel_saliency
from tests.cases import images, mlp

ENTROPY = nn.functional.cross_entropy


def doubles(count, size=2):
    return [(x.double(), y) for x, y in images(count, size=size)]


def small(*, dropout=0.0):
    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 10)]
    return nn.Sequential(*layers).double()


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.dim() > 1}


def state_of(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def unrolled(model, batches, each, rate, momentum):
    """d(loss after training)/d(initial weights) by autograd through every step, nothing clever about it."""
    first = {name: weight.requires_grad_() for name, weight in weights_of(model).items()}
    weights, velocity = first, {name: torch.zeros_like(weight) for name, weight in first.items()}
    losses = []
    for step in range(len(batches) // each):
        some = batches[step * each : (step + 1) * each]
        loss = sum(ENTROPY(functional_call(model, state_of(model) | weights, (x,)), y) for x, y in some) / each
        losses.append(loss.item())
        if step == len(batches) // each - 1:
            return dict(zip(first, torch.autograd.grad(loss, list(first.values())), strict=True)), losses
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        velocity = {name: momentum * velocity[name] + g for name, g in zip(weights, gradients, strict=True)}
        weights = {name: weight - rate * velocity[name] for name, weight in weights.items()}
    raise AssertionError


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize(("steps", "momentum"), [(0, 0.0), (1, 0.9), (3, 0.0), (4, 0.9)])
def test_the_gradient_through_steps_of_training_is_that_of_the_unrolled_graph(steps, momentum, each):
    model, batches = small(), doubles((steps + 1) * each)
    expected, losses = unrolled(model, batches, each, 0.3, momentum)
    before = copy.deepcopy(model.state_dict())
    derivatives = Derivatives(model, Cycle(batches), each)
    found, loss = derivatives.unrolled_gradient(weights_of(model), steps=steps, rate=0.3, momentum=momentum)
    assert loss == pytest.approx(losses[0]) and derivatives.batches.taken == len(batches)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_prospr_scores_by_three_steps_and_a_loss_after_them():
    model, batches, seen = small(), doubles(4), []
    mask = skeletal.prune(model, batches, density=0.3, method="prospr", on_step=seen.append)
    expected, losses = unrolled(model, batches, 1, 0.5, 0.9)
    weights = weights_of(model)
    for name, score in seen[0].scores.items():
        torch.testing.assert_close(score, (weights[name] * expected[name]).abs())
    assert len(seen) == 1 and seen[0].loss == pytest.approx(losses[0])
    flat = torch.cat([score.flatten() for score in seen[0].scores.values()])
    kept = torch.cat([keep.flatten() for keep in mask.values()])
    assert mask.kept == round(0.3 * mask.total) and flat[kept].min() >= flat[~kept].max()


def test_both_passes_of_a_step_draw_the_same_dropout():
    """With dropout the gradient is that of a function, too: it does not change when asked for again."""
    model, batches = small(dropout=0.5), doubles(3)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        derivatives = Derivatives(model, Cycle(batches), 1)
        found.append(derivatives.unrolled_gradient(weights_of(model), steps=2, rate=0.3)[0])
    for name, one in found[0].items():
        assert torch.equal(one, found[1][name])

    def loss_after(weights):
        torch.manual_seed(5)
        derivatives = Derivatives(model, Cycle(batches), 1)
        for _ in range(2):
            seed = int(torch.randint(2**31, ()))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                gradient, _ = derivatives.gradient(weights)
            weights = {name: weight - 0.3 * gradient[name] for name, weight in weights.items()}
        return derivatives.gradient(weights)[1]

    start = weights_of(model)
    for name, index in (("1.weight", (2, 3)), ("5.weight", (4, 1))):
        sides = []
        for sign in (1, -1):
            moved = {other: weight.clone() for other, weight in start.items()}
            moved[name][index] += sign * 1e-6
            sides.append(loss_after(moved))
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(found[0][name][index].item(), rel=1e-5)


def test_absolute_averages_have_no_meaning_for_prospr():
    with pytest.raises(ValueError, match="no meaning for a gradient through training steps"):
        skeletal.prune(mlp(), images(4), density=0.5, method="prospr", average="absolute")


def test_ntk_sap_against_an_explicit_jacobian(monkeypatch):
    """For a small Δ the score is |∂(Δ'J'JΔ)/∂c|, J of all outputs by all weights, whose J'J has the kernel's trace."""
    monkeypatch.setattr(kernel, "SPREAD", 1e-8)
    model, (batch,) = small(), doubles(1)
    weights = weights_of(model)
    mask = {name: torch.rand(weight.shape) < 0.7 for name, weight in weights.items()}
    score = tangent_kernel_saliency(model, weights, mask, batch, torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    x = normal(batch[0], generator)
    drawn = {name: normal(weight, generator) * weight.square().mean().sqrt() for name, weight in weights.items()}
    delta = {name: normal(weight, generator) for name, weight in weights.items()}
    mask_now = {name: keep.double().requires_grad_() for name, keep in mask.items()}

    def outputs(values):
        masked = {name: value * mask_now[name] for name, value in values.items()}
        return functional_call(model, state_of(model) | masked, (x,))

    jacobian = jacrev(outputs)(drawn)  # (12, 10, *shape) of each weight
    moved = sum((jacobian[name] * delta[name]).flatten(2).sum(2) for name in weights)
    expected = torch.autograd.grad(moved.square().sum(), list(mask_now.values()))
    for found, truth in zip(score.values(), expected, strict=True):
        torch.testing.assert_close(found / 1e-16, truth.abs(), rtol=1e-4, atol=1e-5)


def test_ntk_sap_looks_at_neither_data_nor_weights():
    model, turned = mlp(), mlp()
    with torch.no_grad():
        for layer in (turned[1], turned[3]):
            layer.weight.copy_(layer.weight.flip(-1))
    masks = [
        skeletal.prune(model, images(1), density=0.1, method="ntk-sap", steps=5),
        skeletal.prune(model, images(1, seed=9), density=0.1, method="ntk-sap", steps=5),
        skeletal.prune(turned, images(1), density=0.1, method="ntk-sap", steps=5),
    ]
    differ = [sum(int((masks[0][name] ^ keep).sum()) for name, keep in mask.items()) for mask in masks]
    assert differ[:2] == [0, 0] and differ[2] <= 2  # mean squares are summed in another order
    other = skeletal.prune(model, images(1), density=0.1, method="ntk-sap", steps=5, seed=1)
    assert other != masks[0] and masks[0].kept == round(0.1 * masks[0].total)


def test_ntk_sap_says_what_it_cannot_score():
    class Two(nn.Linear):
        def forward(self, input):
            return (super().forward(input),)

    with pytest.raises(ValueError, match="ntk-sap needs a model that returns a tensor, not tuple"):
        skeletal.prune(Two(4, 4), [(torch.randn(3, 4), None)], density=0.5, method="ntk-sap")
    with pytest.raises(ValueError, match="ntk-sap sends noise through the network"):
        skeletal.prune(
            nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)),
            [(torch.ones(3, 2, dtype=torch.long), None)], density=0.5, method="ntk-sap",
        )  # fmt: skip
