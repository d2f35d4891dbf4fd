"""Sums over paths in networks that normalize, make numbers of their own, or have no gradient; in float64."""

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.pruning.criteria.exclusion import path_exclusion
from skeletal.core.pruning.criteria.flow import synaptic_flow
from skeletal.core.pruning.methods import METHODS
from tests.cases import images, mlp

NORMS = {
    "batch": nn.BatchNorm2d,
    "batch without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "group": lambda c: nn.GroupNorm(2, c),
    "layer": lambda c: nn.LayerNorm([c, 6, 6]),
    "rms": lambda c: nn.RMSNorm([c, 6, 6]),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "instance without scale": nn.InstanceNorm2d,
    "instance with statistics": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
}
FOLLOWING = ("synflow", "px", "npb", "phew")


def convolutional(norm):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    with torch.no_grad():
        for module in (model[1], model[4]):
            if (scale := getattr(module, "weight", None)) is not None:
                scale.uniform_(-1.5, 1.5)
    return model.double()


def flow_of(model, shape, density=1.0):
    weights = {
        name: weight.detach() * (torch.rand(weight.shape) < density)
        for name, weight in model.named_parameters()
        if "norm" not in name and weight.dim() > 1 and not (weight.dim() == 3 and weight.shape[1:] == (6, 6))
    }
    return synaptic_flow(model, weights, (torch.randn(2, *shape), None))


@pytest.mark.parametrize("name", NORMS)
def test_flow_is_the_same_through_every_layer_and_never_negative(name):
    scores = flow_of(convolutional(NORMS[name]), (3, 6, 6), 0.7)
    totals = torch.stack([score.sum() for score in scores.values()])
    assert len(totals) == 3 and totals.min() > 0
    torch.testing.assert_close(totals, totals[:1].expand(3))
    assert all((score >= 0).all() for score in scores.values())


class Reference(nn.Module):
    """What every norm becomes: its scale, by hand."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * (self.scale if self.scale.dim() > 1 else self.scale.view(-1, 1, 1))


@pytest.mark.parametrize("name", ["group", "layer", "rms", "instance"])
@pytest.mark.parametrize("method", FOLLOWING)
def test_a_norm_counts_as_its_scale(name, method):
    normed, scaled = convolutional(NORMS[name]).eval(), convolutional(NORMS[name])
    for at in (1, 4):
        if method == "px":  # what is open is seen with the norms; let none close anything
            normed[at + 1] = scaled[at + 1] = nn.Identity()
        scaled[at] = Reference(scaled[at].weight)
    batch = (torch.rand(4, 3, 6, 6).double(), torch.zeros(4, dtype=torch.long))
    names = [n for n, w in normed.named_parameters() if w.dim() == 4 or n == "8.weight"]
    found = [
        skeletal.prune(model, [batch], density=0.4, method=method, prunable=names, on_collapse="keep")
        for model in (normed, scaled)
    ]
    assert found[0] == found[1]


class Block(nn.Module):
    """A transformer's block on patches, with ReLU."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 3, 3), nn.Linear(8, 4)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.query, self.key, self.value, self.out, self.up, self.down = (
            nn.Linear(*pair) for pair in 4 * [(8, 8)] + [(8, 16), (16, 8)]
        )

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        h = self.norm1(x)
        weights = (self.query(h) @ self.key(h).transpose(1, 2)).softmax(-1)
        x = x + self.out(weights @ self.value(h))
        x = x + self.down(self.up(self.norm2(x)).relu())
        return self.head(self.norm3(x).mean(1))


def test_flow_of_a_transformer_block_is_conserved_but_for_queries_and_keys():
    torch.manual_seed(0)
    totals = {name: float(score.sum()) for name, score in flow_of(Block().double(), (3, 6, 6)).items()}
    assert totals["patches.weight"] == pytest.approx(totals["head.weight"])
    assert totals["value.weight"] == pytest.approx(totals["out.weight"])
    assert totals["up.weight"] == pytest.approx(totals["down.weight"])
    assert 0 < totals["value.weight"] < totals["head.weight"]
    # All tokens of an input of ones are equal, so that attention is uniform, whatever queries and keys are.
    assert abs(totals["query.weight"]) + abs(totals["key.weight"]) < 1e-9 * totals["head.weight"]


class Skips(nn.Module):
    """Activations before layers: what goes around a layer is what the activation has read."""

    def __init__(self, joined):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.c, self.joined = nn.Linear(8 if joined else 4, 2, bias=False), joined

    def forward(self, x):
        h = self.a(x)
        after = self.b(h.relu())
        return self.c(torch.cat([torch.relu(h), after + h], 1) if self.joined else h + after)


@pytest.mark.parametrize("joined", [False, True])
def test_px_leaves_the_input_of_an_activation_as_it_is(joined):
    model, x = Skips(joined).double(), torch.randn(5, 3).double()
    torch.manual_seed(3)
    mask = {name: torch.rand(weight.shape) < 0.6 for name, weight in model.named_parameters()}
    kept = {name: model.get_parameter(name).detach() * keep for name, keep in mask.items()}
    found = path_exclusion(Derivatives(model, Cycle([(x, None)]), 1), kept, mask)
    opened = (x @ kept["a.weight"].T > 0).double()
    paths = []  # of each: its input, output, weights and the hidden unit whose activation it passes, if any
    for i, a, o in [(i, a, o) for i in range(3) for a in range(4) for o in range(2)]:
        start = ("a.weight", (a, i))
        skip = 4 if joined else 0  # where the sum begins in what the last layer reads
        paths.append((i, o, [start, ("c.weight", (o, a + skip))], None))
        if joined:
            paths.append((i, o, [start, ("c.weight", (o, a))], a))
        for b in range(4):
            paths.append((i, o, [start, ("b.weight", (b, a)), ("c.weight", (o, b + skip))], a))
    reached = torch.zeros(2).double()
    for i, o, path, gate in paths:
        if all(mask[name][at] for name, at in path):
            reached[o] += (x[:, i].square() * (1 if gate is None else opened[:, gate])).sum()
    expected = {name: torch.zeros_like(weight) for name, weight in kept.items()}
    for _, o, path, _ in paths:
        square = torch.stack([kept[name][at] ** 2 for name, at in path]).prod()
        for name, at in path:
            expected[name][at] += reached[o] * square
    factor = sum(score.sum() for score in found.values()) / sum(score.sum() for score in expected.values())
    for name, score in found.items():
        torch.testing.assert_close(score, factor * expected[name])


class Makes(nn.Module):
    """Multiplies by a matrix that its forward makes."""

    def __init__(self, matrix):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.matrix = nn.Linear(6, 6), nn.Linear(6, 3), matrix

    def forward(self, x):
        x = self.one(x)
        return self.two(torch.relu(x @ self.matrix(x)))


def rows():
    return [(torch.rand(8, 6), torch.randint(3, (8,)))]


@pytest.mark.parametrize("method", FOLLOWING)
def test_networks_may_make_numbers_of_the_default_type(method):
    steps = None if METHODS[method].one_shot else 3
    found = [
        skeletal.prune(Makes(matrix), rows(), density=0.5, method=method, steps=steps)
        for matrix in (lambda x: torch.eye(6), lambda x: torch.eye(6, dtype=x.dtype))
    ]
    assert found[0] == found[1] and torch.get_default_dtype() == torch.float32


NAMING = {
    "made": lambda x: torch.eye(6, dtype=torch.float32),
    "like another": lambda x: x.new_ones(6, 6, dtype=torch.float32).tril().triu(),
    "float()": lambda x: torch.eye(6, dtype=torch.long).float(),
    "to": lambda x: (2 * torch.eye(6, dtype=torch.bfloat16).to(torch.float32) + 0 * x.float().to(torch.float32)[0]) / 2,
    "given a type": lambda x: torch.eye(6, dtype=torch.long).to(device=x.device, dtype=torch.float32),
}


@pytest.mark.parametrize("naming", NAMING)
@pytest.mark.parametrize("method", FOLLOWING)
def test_networks_may_name_a_type(method, naming):
    steps = None if METHODS[method].one_shot else 3
    found = [
        skeletal.prune(Makes(matrix), rows(), density=0.5, method=method, steps=steps)
        for matrix in (NAMING[naming], lambda x: torch.eye(6, dtype=x.dtype))
    ]
    assert found[0] == found[1] and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("method", FOLLOWING)
def test_networks_that_hold_numbers_of_another_type_are_refused_with_the_reason(method):
    held = torch.eye(6)
    with pytest.raises(ValueError, match=f"{method} runs the network in double precision, .*numbers from buffers, or"):
        skeletal.prune(Makes(lambda x: held), rows(), density=0.5, method=method)
    assert torch.get_default_dtype() == torch.float32


class Detached(nn.Sequential):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("method", ["snip", "synflow", "px", "phew", "ntk-sap"])
def test_networks_under_no_grad_are_refused_with_the_reason(method):
    with pytest.raises(ValueError, match="not depend on the prunable weights: computed under no_grad, or detached"):
        skeletal.prune(Detached(nn.Linear(6, 3)), rows(), density=0.5, method=method)


class Closed(nn.Sequential):
    def forward(self, x):
        return 0 * super().forward(x)


@pytest.mark.parametrize("method", ["magnitude", "synflow", "ntk-sap", "snip", "force", "grasp", "px"])
def test_a_collapse_names_batches_only_where_they_are_looked_at(method):
    model = Closed(*mlp())
    for weight in model.parameters():
        nn.init.zeros_(weight)
    with pytest.raises(skeletal.CollapsedError) as caught:
        skeletal.prune(model, images(1), density=0.1, method=method, steps=None if METHODS[method].one_shot else 2)
    assert ("batches" in str(caught.value)) == (method not in ("magnitude", "synflow", "ntk-sap"))
