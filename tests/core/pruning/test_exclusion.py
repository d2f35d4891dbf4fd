"""PX against an enumeration of all paths and an explicit tangent kernel; in float64."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.pruning.criteria.exclusion import _Activations, _Gates, path_exclusion
from tests.cases import images
from tests.ranks import in_ranks

SIZES = (3, 4, 3, 2)


class Skipping(nn.Module):
    """Three layers, the second inside a skip connection; an activation that overwrites its input among them."""

    def __init__(self, slope):
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise((3, 4, 4, 2)))
        self.first, self.second = nn.LeakyReLU(slope, inplace=True), nn.ReLU()
        self.double()

    def forward(self, x):
        first, second, third = self.layers
        x = first(x)
        self.first(x)
        return third(self.second(second(x)) + x)

    def paths(self, x):
        """Of one example: for each path its input, its output, its weights and what its activations let through."""
        one, two, three = (layer.weight for layer in self.layers)
        before = self.layers[0](x)
        opened = torch.where(before > 0, torch.ones(()), torch.full((), self.first.negative_slope)).double()
        inner = (self.layers[1](opened * before) > 0).double()
        for i, a, o in itertools.product(range(3), range(4), range(2)):
            start, gate = ("0", (a, i)), opened[a]
            yield i, o, (start, ("2", (o, a))), gate
            for b in range(4):
                yield i, o, (start, ("1", (b, a)), ("2", (o, b))), gate * inner[b]
        assert one.shape[1] == 3 and two.shape == (4, 4) and three.shape[0] == 2


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.dim() > 1}


def derivatives_of(model, batches):
    return Derivatives(model, Cycle(batches), len(batches))


def enumerated(model, kept, mask, x):
    """Σ_p a² x² and Σ_p Πθ² of each output, and the score of each weight, path by path."""
    state = {**dict(model.named_parameters()), **kept}
    scores = {name: torch.zeros_like(value) for name, value in kept.items()}
    reached, values = torch.zeros(2).double(), []
    with torch.no_grad():
        for name, value in state.items():
            model.get_parameter(name).copy_(value)
        for example in x:
            for i, o, path, gate in model.paths(example):
                if all(mask[f"layers.{layer}.weight"][index] for layer, index in path):
                    reached[o] += gate**2 * example[i] ** 2
        for _, o, path, _ in model.paths(x[0]):
            square = torch.stack([kept[f"layers.{layer}.weight"][index] ** 2 for layer, index in path]).prod()
            values.append((o, path, square))
        for o, path, square in values:
            for layer, index in path:
                scores[f"layers.{layer}.weight"][index] += reached[o] * square
    return scores


@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_scores_are_those_of_all_paths_counted_one_by_one(slope, density):
    model, torch_state = Skipping(slope), torch.manual_seed(5)
    weights, x = weights_of(model), torch.randn(7, 3).double()
    mask = {name: torch.rand(value.shape, generator=torch_state) < density for name, value in weights.items()}
    kept = {name: value * mask[name] for name, value in weights.items()}
    found = path_exclusion(derivatives_of(model, [(x, None)]), kept, mask)
    expected = enumerated(model, kept, mask, x)
    factor = sum(score.sum() for score in found.values()) / sum(score.sum() for score in expected.values())
    for name, score in found.items():
        torch.testing.assert_close(score, factor * expected[name])
        assert score.equal(score.abs()) and not score[~mask[name]].any()


def test_the_two_sums_over_paths_bound_the_trace_of_the_tangent_kernel():
    """For each output; and the second sum's gradient by squared weights is the norm of the paths' Jacobian."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *itertools.chain(*((nn.Linear(a, b, bias=False), nn.ReLU()) for a, b in itertools.pairwise(SIZES)))
    )[:-1]
    model, x = model.double(), torch.randn(5, 3).double()
    weights = dict(model.named_parameters())
    jacobian = jacrev(lambda values: functional_call(model, values, (x,)))(weights)  # (5, 2, *shape)
    traces = sum(entry.square().flatten(2).sum((0, 2)) for entry in jacobian.values())
    hidden = [layer(x) > 0 for layer in (model[:1], model[:3])]
    one, two, three = (layer.weight for layer in (model[0], model[2], model[4]))
    for o in range(2):
        arriving = kernel = 0.0
        for i, a, b in itertools.product(range(3), range(4), range(3)):
            arriving += (x[:, i] ** 2 * hidden[0][:, a] * hidden[1][:, b]).sum()
            along = torch.stack([one[a, i], two[b, a], three[o, b]])
            kernel += sum(along[[j for j in range(3) if j != left]].prod() ** 2 for left in range(3))
        assert 0 < traces[o] <= arriving * kernel
    mask = {name: torch.ones_like(value, dtype=torch.bool) for name, value in weights.items()}
    scores = path_exclusion(derivatives_of(model, [(x, None)]), {n: w.detach() for n, w in weights.items()}, mask)
    layers = [score.sum() for score in scores.values()]
    torch.testing.assert_close(layers[1:], layers[:-1])  # every path passes every layer: nothing is lost between them


def test_batches_count_the_same_and_micro_batches_do_not_change_anything():
    model = Skipping(0.1)
    weights = weights_of(model)
    mask = {name: torch.ones_like(value, dtype=torch.bool) for name, value in weights.items()}
    x = torch.randn(8, 3).double()
    whole = path_exclusion(derivatives_of(model, [(x, None)]), weights, mask)
    halves = path_exclusion(derivatives_of(model, [(x[:4], None), (x[4:], None)]), weights, mask)
    small = Derivatives(model, Cycle([(x, None)]), 1, micro_batch=3)
    for name, score in path_exclusion(small, weights, mask).items():
        torch.testing.assert_close(score, whole[name])
        torch.testing.assert_close(halves[name], whole[name])


class Activated(nn.Sequential):
    """Three layers, with an activation between them."""

    def __init__(self, activation):
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3))
        self.activation = activation
        self.double()

    def forward(self, x):
        return self[2](self.activation(self[1](self.activation(self[0](x)))))


def steps_of(activation):
    """The scores at each step of pruning with an activation."""
    scores, x = [], torch.randn(8, 4, generator=torch.Generator().manual_seed(5)).double()
    skeletal.prune(
        Activated(activation), [(x, None)], density=0.4, method="px", steps=4, on_collapse="keep",
        on_step=lambda step: scores.append({name: score.clone() for name, score in step.scores.items()}),
    )  # fmt: skip
    return scores


RELUS = {
    "clamp(min=0)": lambda z: z.clamp(min=0),
    "clamp(0, None)": lambda z: torch.clamp(z, 0.0, None),
    "clamp with a far upper bound": lambda z: torch.clamp(input=z, min=0, max=1e9),
    "clamp_": lambda z: z.clamp_(min=0),
    "clamp_min": lambda z: z.clamp_min(0),
    "clamp_min_": lambda z: torch.clamp_min_(z, 0.0),
    "clip": lambda z: z.clip(0),
    "threshold": lambda z: nn.functional.threshold(z, 0, 0),
    "threshold_": lambda z: nn.functional.threshold_(z, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0),
    "nn.Threshold in place": nn.Threshold(0, 0, inplace=True),
    "hardtanh": lambda z: nn.functional.hardtanh(z, 0, 1e9),
    "by keyword": lambda z: torch.relu(input=z),
    "relu_": torch.relu_,
}


@pytest.mark.parametrize("written", RELUS)
def test_a_relu_scores_the_same_however_it_is_written(written):
    for found, expected in zip(steps_of(RELUS[written]), steps_of(nn.functional.relu), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_clamp_to_six_scores_as_relu6():
    clamped, six, open_above = (
        steps_of(lambda z, f=f: f(9 * z)) for f in (lambda z: z.clamp(0, 6), nn.functional.relu6, nn.functional.relu)
    )
    for found, expected in zip(clamped, six, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not clamped[-1]["0.weight"].equal(open_above[-1]["0.weight"])


@pytest.mark.parametrize(
    "bound",
    [
        lambda z: z.clamp(min=1e-9),
        lambda z: nn.functional.threshold(z, 1.0, 2.0),
        lambda z: z.clamp(min=torch.zeros_like(z)),
        lambda z: z.long().clamp(min=0),
    ],
)
def test_bounds_that_are_no_activation_run_as_they_are(bound):
    z = torch.linspace(-3, 3, 7)
    with _Activations() as seen:
        bound(z)
    assert not seen.found
    with _Gates(None):
        gated = bound(z)
    assert gated.equal(bound(z))


def activations_of_torch():
    """Every activation of `torch.nn` that acts on single numbers and leaves 0 at 0."""
    given = {"Threshold": (0.5, 0.0)}
    several = {"MultiheadAttention", "GLU", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    for name in sorted(set(torch.nn.modules.activation.__all__) - several):
        made = getattr(nn, name)(*given.get(name, ())).double()
        if not made(torch.zeros(1).double()).any():
            yield pytest.param(made, id=name)


@pytest.mark.parametrize("activation", list(activations_of_torch()))
def test_every_activation_of_torch_that_leaves_0_at_0_is_seen(activation):
    z = torch.linspace(-4, 4, 9).double()
    with _Activations() as seen:
        after = activation(z)
    (slope,) = seen.found
    torch.testing.assert_close(slope * z, after)
    assert len(steps_of(activation)) == 4


def test_the_list_of_torchs_activations_is_not_empty():
    assert len(list(activations_of_torch())) >= 19


class Pooled(nn.Module):
    """Takes maps of any size; gives maps, or one number per class."""

    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
        self.pool = pool
        self.double()

    def forward(self, x):
        x = self.second(self.first(x).relu())
        return x.mean((2, 3)) if self.pool else x


@pytest.mark.parametrize("pool", [False, True])
def test_batches_of_several_sizes_add_up(pool):
    model = Pooled(pool)
    weights = weights_of(model)
    mask = {name: torch.rand(value.shape) < 0.8 for name, value in weights.items()}
    kept = {name: value * mask[name] for name, value in weights.items()}
    batches = [(torch.randn(4, 2, size, size).double(), None) for size in (5, 6, 7, 6)]
    found = path_exclusion(derivatives_of(model, batches), kept, mask)
    small = path_exclusion(Derivatives(model, Cycle(batches), 4, micro_batch=3), kept, mask)
    expected = {name: torch.zeros_like(value) for name, value in weights.items()}
    for x, _ in batches:  # Σ_p a² x² by hand, and the derivatives of Σ_p Πθ² for this size
        with torch.no_grad():
            opened = (nn.functional.conv2d(x, kept["first.weight"], model.first.bias) > 0).double()
            ones = {name: keep.double() for name, keep in mask.items()}
            hidden = opened * nn.functional.conv2d(x.square(), ones["first.weight"])
            reached = nn.functional.conv2d(hidden, ones["second.weight"], padding=1)
            reached = (reached.mean((2, 3)) if pool else reached).mean(0)
        leaves = {name: value.square().requires_grad_() for name, value in kept.items()}
        hidden = nn.functional.conv2d(torch.ones_like(x[0]), leaves["first.weight"])
        values = nn.functional.conv2d(hidden, leaves["second.weight"], padding=1)
        values = values.mean((1, 2)) if pool else values
        gradients = torch.autograd.grad((reached * values).sum(), list(leaves.values()))
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            expected[name] += leaf.detach() * gradient
    factor = sum(score.sum() for score in found.values()) / sum(score.sum() for score in expected.values())
    for name, score in found.items():
        torch.testing.assert_close(score, factor * expected[name])
        torch.testing.assert_close(small[name], score)
    pruned = skeletal.prune(model, batches, density=0.3, method="px", steps=3, batches_per_step=3)
    assert pruned.kept == round(0.3 * pruned.total)


def maps(size):
    return torch.randn(4, 2, size, size, generator=torch.Generator().manual_seed(size)).double(), None


def scores_of_a_rank(rank, folder):
    model = Pooled(pool=False)
    weights = weights_of(model)
    mask = {name: torch.ones_like(value, dtype=torch.bool) for name, value in weights.items()}
    batches = [maps(size) for size in ((5, 6), (6, 7), (5, 6, 6, 7))[rank]]
    return path_exclusion(derivatives_of(model, batches), weights, mask)


def test_ranks_with_examples_of_other_sizes_find_the_scores_of_one_process(tmp_path):
    one, other = in_ranks(scores_of_a_rank, tmp_path)
    single = scores_of_a_rank(2, None)
    factor = sum(score.sum() for score in one.values()) / sum(score.sum() for score in single.values())
    for name, score in one.items():
        assert score.equal(other[name])
        torch.testing.assert_close(score, factor * single[name])


def test_a_network_of_convolutions_is_pruned_and_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = images(3, size=8)
    mask = skeletal.prune(model, batches, density=0.02, method="px", steps=10)
    assert mask.kept == round(0.02 * mask.total) and mask.metadata["connected"] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = skeletal.prune(model, [(-x, y) for x, y in batches], density=0.02, method="px", steps=10)
    assert other != mask  # it looks at the data


class Changing(nn.Linear):
    """Runs an activation more at each call."""

    calls = 0

    def forward(self, input):
        type(self).calls += 1
        outputs = super().forward(input)
        for _ in range(self.calls % 3):
            outputs = outputs.relu()
        return outputs


class Two(nn.Linear):
    def forward(self, input):
        return (super().forward(input),)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Two(4, 4), torch.randn(3, 4), "px needs a model that returns a tensor, not tuple"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), torch.ones(3, 2).long(), "px follows paths from floating"),
        (Changing(4, 4), torch.randn(3, 4), "its activations were not the same ones"),
    ],
)
def test_it_says_what_it_cannot_score(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        skeletal.prune(model, [(inputs, None)], density=0.5, method="px")
