"""Each criterion against a slower truth, in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.tensors import flatten
from skeletal.core.pruning.quotas import erdos_renyi, uniform
from skeletal.core.pruning.scores import FLOOR
from tests.cases import Tokens, convnet, images, mlp, tokens


def doubles(batches):
    return [(x.double(), y) for x, y in batches]


def steps_of(model, batches, **settings):
    seen = []
    mask = skeletal.prune(model, batches, on_step=seen.append, **settings)
    return mask, seen


def test_mean_gradient_is_that_of_the_average_loss():
    model, batches = mlp().double(), doubles(images())
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    gradients, loss = Derivatives(model, Cycle(batches), 3).gradient(weights)
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


@given(st.floats(0.001, 1), st.integers(0, 9))
@settings(max_examples=25)
@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
def test_a_floor_keeps_the_best_of_every_layer_and_then_the_best_of_all(density, seed):
    """The slower truth: sort each layer, take the floor, then sort what is left of all."""
    model, batches = mlp(seed).double(), doubles(images(1, seed=seed))
    count = max(2, round(density * 4040))
    _, (step,) = steps_of(model, batches, density=count / 4040, steps=1, method="force-floor")
    _, (plain,) = steps_of(model, batches, density=count / 4040, steps=1)
    part = int(FLOOR * count / 2)
    left, expected = [], set()
    for name, score in plain.scores.items():
        order = sorted(((-value, i) for i, value in enumerate(score.flatten().tolist()) if value))
        expected |= {(name, i) for _, i in order[:part]}
        left += [(value, name, i) for value, i in order[part:]]
    expected |= {(name, i) for _, name, i in sorted(left)[: count - len(expected)]}
    assert {
        (name, i) for name, keep in step.mask.items() for i in keep.flatten().nonzero().flatten().tolist()
    } == expected


def test_a_floor_holds_at_every_step_and_never_brings_a_weight_back():
    _, seen = steps_of(convnet(), images(4), density=0.02, steps=6, method="force-floor")
    masks = [flatten(step.mask) for step in seen]
    assert not any((later & ~earlier).any() for earlier, later in itertools.pairwise(masks))
    for step in seen:
        part = int(FLOOR * step.kept / 3)
        assert all(int(keep.sum()) >= min(part, keep.numel()) for keep in step.mask.values())


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
    gradients, _ = Derivatives(model, Cycle(batches), 3).gradient(weights)
    for name, score in seen[0].scores.items():
        assert torch.equal(score, (weights[name] * gradients[name]).abs())


def test_grasp_against_an_explicit_hessian():
    """Eq. 4 in float64: the Hessian of the loss averaged over three batches, written out."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10)
    ).double()
    batches = [(x.double(), y) for x, y in images(3, size=2)]
    mask, (step,) = steps_of(model, batches, density=0.3, method="grasp", batches_per_step=3)
    names = list(mask)
    shapes = [model.get_parameter(name).shape for name in names]
    theta = torch.cat([model.get_parameter(name).detach().flatten() for name in names])

    def average_loss(flat):
        pieces = flat.split([shape.numel() for shape in shapes])
        state = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return sum(
            torch.nn.functional.cross_entropy(torch.func.functional_call(model, state, (x,)), y) for x, y in batches
        ) / len(batches)  # fmt: skip

    hessian = torch.autograd.functional.hessian(average_loss, theta)
    gradient = torch.autograd.functional.jacobian(average_loss, theta)
    score = theta * (hessian @ gradient)
    torch.testing.assert_close(flatten(step.scores), score)
    # "max over c of the sum of -θ_i [Hg]_i over pruned i": the pruned are the largest of -θ Hg.
    pruned = ~flatten(dict(mask))
    assert (-score[pruned]).min() >= (-score[~pruned]).max()


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7, 0.95])
def test_grasp_prunes_what_lowers_the_gradient_before_what_does_nothing(density):
    """Eq. 4 with dead units, whose weights have a score of 0: the sum over the pruned is the largest there is."""
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3)).double()
    torch.nn.init.constant_(model[0].bias[:8], -100.0)
    batches = [(torch.randn(64, 10).double(), torch.randint(3, (64,)))]
    mask, (step,) = steps_of(model, batches, density=density, method="grasp")
    score, keep = flatten(step.scores), flatten(dict(mask))
    best = -score.sort().values[: int((~keep).sum())].sum()
    assert int((score.abs() < 1e-300).sum()) == 8 * 13  # dead, and not more
    torch.testing.assert_close(-score[~keep].sum(), best)
    assert not (keep & (score < 0)).any() or keep[score >= 0].all()


def test_grasp_of_a_network_without_signal_collapses():
    model = mlp()
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    with pytest.raises(skeletal.CollapsedError):
        skeletal.prune(model, images(1), density=0.3, method="grasp")


def test_grasp_draws_the_same_dropout_for_both_factors():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 10)
    )
    batches = images(2, size=2)
    mask, (step,) = steps_of(model.double(), doubles(batches), density=0.5, method="grasp")
    names = list(mask)
    leaves = {name: model.get_parameter(name).detach().requires_grad_() for name in names}
    torch.manual_seed(0)
    x, y = doubles(batches)[0]
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(model, leaves, (x,)), y)
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    along = sum((g * g.detach()).sum() for g in first)
    for name, product in zip(names, torch.autograd.grad(along, list(leaves.values())), strict=True):
        torch.testing.assert_close(step.scores[name], leaves[name].detach() * product)


def test_iterative_grasp_is_grasp_at_the_masked_weights():
    """E.2: each step takes the criterion at θ̄, and starts as GRASP does."""
    model, batches = mlp().double(), doubles(images(1))
    _, one = steps_of(model, batches, density=0.3, method="grasp")
    _, many = steps_of(model, batches, density=0.3, method="grasp-iterative", steps=3)
    for name in one[0].scores:
        assert torch.equal(one[0].scores[name], many[0].scores[name])
        assert (many[1].scores[name][~many[0].mask[name]] == 0).all()
    masks = [flatten(step.mask) for step in many]
    assert not any((later & ~earlier).any() for earlier, later in zip(masks, masks[1:], strict=False))


def test_synflow_against_the_sum_over_all_paths():
    """R = Σ over paths of Π|w|, so a weight's score is the sum over the paths through it."""
    torch.manual_seed(0)
    sizes = (3, 4, 3, 2)
    layers = [torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    batches = [(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))]
    mask, seen = steps_of(model, batches, density=0.5, method="synflow", steps=2)
    for step, before in zip(seen, (None, seen[0].mask), strict=True):
        weights = [layer.weight.detach().double().abs() for layer in layers]
        if before is not None:
            weights = [w * keep for w, keep in zip(weights, before.values(), strict=True)]
        expected = [torch.zeros_like(w) for w in weights]
        for path in itertools.product(*map(range, sizes)):
            edges = [(after, at) for at, after in zip(path, path[1:], strict=False)]
            product = math.prod(w[edge].item() for w, edge in zip(weights, edges, strict=True))
            for total, edge in zip(expected, edges, strict=True):
                total[edge] += product
        for score, total in zip(step.scores.values(), expected, strict=True):
            torch.testing.assert_close(score, total)
    assert mask.metadata["connected"]


def test_synflow_ignores_data_norm_statistics_and_mode():
    model = convnet()
    plain = skeletal.prune(model, images(1), density=0.1, method="synflow", steps=5)
    model(100 * images(1)[0][0])  # moves running statistics
    assert skeletal.prune(model.eval(), images(1, seed=9), density=0.1, method="synflow", steps=5, seed=3) == plain


def test_synflow_ignores_the_biases_of_every_layer():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.attention = torch.nn.LSTM(3, 4), torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x):
            x, _ = self.rnn(x.movedim(1, 0))
            return self.head(self.attention(x, x, x)[0][-1])

    model, batches = Network(), [(torch.randn(5, 6, 3), torch.zeros(5, dtype=torch.long))]
    weights = [name for name, weight in model.named_parameters() if "bias" not in name]
    found = []
    for bias in (0.0, 1.0):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in weights:
                    parameter.fill_(bias)
        found.append(steps_of(model, batches, density=0.5, method="synflow", steps=1, prunable=weights)[1][0].scores)
    assert all(torch.equal(found[0][name], found[1][name]) for name in weights)
    assert all(score.any() for score in found[0].values())


def test_synflow_neither_overflows_nor_vanishes_where_a_network_is_very_deep():
    torch.manual_seed(0)
    deep = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(200)], torch.nn.Linear(64, 10))
    for layer in deep:
        torch.nn.init.kaiming_normal_(layer.weight)
    mask, (step,) = steps_of(
        deep, [(torch.randn(2, 64), torch.zeros(2).long())], density=0.5, method="synflow", steps=1
    )
    assert mask.metadata["connected"]
    total = [float(score.sum()) for score in step.scores.values()]  # conservation: the same flow through every layer
    assert total == pytest.approx([total[0]] * len(total))


def test_synflow_needs_floating_point_inputs():
    with pytest.raises(ValueError, match="synflow sends an input of ones"):
        skeletal.prune(Tokens(), tokens(), density=0.5, method="synflow")


shapes = st.lists(
    st.one_of(st.tuples(*[st.integers(1, 12)] * 2), st.tuples(*[st.integers(1, 8)] * 4)), min_size=1, max_size=7
).map(lambda found: {str(i): shape for i, shape in enumerate(found)})


@given(shapes, st.floats(0.001, 1))
def test_erk_quotas_against_a_solved_scale(found, density):
    """The slower truth: the scale ε with Σ min(1, ε Σd/Πd) Πd = k, by bisection."""
    sizes = {name: math.prod(shape) for name, shape in found.items()}
    count = max(1, round(density * sum(sizes.values())))
    quotas = erdos_renyi(found, count)
    low, high = 0.0, float(max(sizes.values()))
    for _ in range(200):
        scale = (low + high) / 2
        kept = sum(min(size, scale * sum(found[name])) for name, size in sizes.items())
        low, high = (scale, high) if kept < count else (low, scale)
    assert sum(quotas.values()) == count
    for name, size in sizes.items():
        assert abs(quotas[name] - min(size, high * sum(found[name]))) < 1 + 1e-6
        assert 0 <= quotas[name] <= size


@given(shapes, st.floats(0.001, 1))
def test_uniform_quotas_are_exact_and_even(found, density):
    sizes = {name: math.prod(shape) for name, shape in found.items()}
    count = max(1, round(density * sum(sizes.values())))
    quotas = uniform(found, count)
    assert sum(quotas.values()) == count
    share = count / sum(sizes.values())
    assert all(abs(quotas[name] - share * size) < 1 for name, size in sizes.items())


@pytest.mark.parametrize(("method", "quota"), [("random-uniform", uniform), ("random-erk", erdos_renyi)])
def test_random_masks_fill_their_quotas(method, quota):
    model = convnet()
    mask = skeletal.prune(model, density=0.07, method=method)
    assert mask.kept == round(0.07 * mask.total)
    assert {name: int(keep.sum()) for name, keep in mask.items()} == quota(
        {n: k.shape for n, k in mask.items()}, mask.kept
    )
    assert mask != skeletal.prune(model, density=0.07, method=method, seed=1)


def test_magnitude_and_random():
    model = mlp()
    mask = skeletal.prune(model, density=0.2, method="magnitude")
    sizes = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in mask])
    assert sizes[flatten(dict(mask))].min() >= sizes[~flatten(dict(mask))].max()
    mask = skeletal.prune(model, density=0.5, method="random", seed=1)
    shares = [float(keep.float().mean()) for keep in mask.values()]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)
    assert mask != skeletal.prune(model, density=0.5, method="random", seed=2)
