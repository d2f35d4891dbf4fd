"""No public function leaves anything in the caller's model: tables, activations, counters, modes, computed weights."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.diagnosis.saliency import measure_saliency
from skeletal.core.model.weights import prunable_weights
from tests.cases import random_mask
from tests.unchanged import assert_same, everything_about


class Cluttered(nn.Module):
    """Leaves behind all that a forward pass can, and merges an adapter outside of training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.norm, self.head, self.frozen = nn.BatchNorm2d(4), nn.Linear(4, 3), nn.BatchNorm2d(4)
        self.table, self.calls, self.seen, self.cache, self.kept = None, 0, [], {}, torch.zeros(4)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        with torch.no_grad():
            self.head.bias += 1
        return self

    def forward(self, x):
        self.calls += 1
        if self.table is None:
            self.table = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype) * self.head.bias[0].detach()
        self.seen.append(x.shape[0])
        x = self.frozen(self.norm(torch.relu(self.one(x + self.table))))
        self.cache["feature"] = x
        self.kept += x.detach().mean((0, 2, 3)).to(self.kept.dtype)
        self.register_buffer("late", x.detach().mean(), persistent=False)
        return self.head(self.two(x).mean((2, 3)))


BATCH = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
PRUNE = {
    f"prune {method}": lambda model, mask, method=method: skeletal.prune(
        model, [BATCH], density=0.5, method=method, on_collapse="keep"
    )
    for method in ("force", "snip", "grasp", "synflow", "random", "magnitude")
}
FUNCTIONS = PRUNE | {
    "prune, bn in eval mode": lambda model, mask: skeletal.prune(model, [BATCH], density=0.5, steps=2, bn_mode="eval"),
    "prune sparse": lambda model, mask: skeletal.prune(
        model, [BATCH], density=0.1, steps=2, engine="sparse", on_collapse="keep"
    ),
    "diagnose": lambda model, mask: skeletal.diagnose(model, mask, BATCH[0]),
    "compact": lambda model, mask: skeletal.compact(model, mask, BATCH[0]),
    "compile": lambda model, mask: skeletal.compile(model, mask, BATCH[0]),
    "repair": lambda model, mask: skeletal.repair(mask, model),
    "saliency": lambda model, mask: measure_saliency(model, [BATCH], mask, count=1),
    "optimality": lambda model, mask: skeletal.local_optimality(model, [BATCH], mask, samples=2),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_leaves_the_model_as_it_was(function, used):
    torch.manual_seed(0)
    model = Cluttered()
    mask = skeletal.Mask(random_mask(model, 0.5))
    if used:
        model(BATCH[0])
    before = everything_about(model)
    FUNCTIONS[function](model, mask)
    assert_same(before, everything_about(model))
    assert prunable_weights(model).keys() == mask.keys()
    out = model(BATCH[0])
    assert out.dtype == torch.float32
    out.sum().backward()


class Recorder:
    """Hooks as people write them: an object that is called, its method, closures, and a global table."""

    def __init__(self):
        self.seen = []

    def __call__(self, module, args, out):
        self.seen.append(out)

    def save(self, module, args, out):
        self.seen = [*self.seen, out]


TABLE = {}


def to_table(module, args, out):
    TABLE["out"] = out


def to_given(table, module, args, out):
    table["out"] = out


@pytest.mark.parametrize("function", ["prune snip", "diagnose", "compact", "compile", "saliency"])
def test_nothing_stays_in_what_hooks_write_to(function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    mask = skeletal.Mask(random_mask(model, 0.5))
    called, method, closed, given = Recorder(), Recorder(), {}, {}
    hooks = (called, method.save, lambda module, args, out: closed.update(out=out), partial(to_given, given), to_table)
    for hook in hooks:
        model[2].register_forward_hook(hook)
    for _ in range(2):
        FUNCTIONS[function](model, mask)
        assert not (called.seen or method.seen or closed or given or TABLE)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("pattern", [None, "fan-in"])
def test_spectral_norm_which_writes_when_its_weight_is_read(kind, pattern):
    layer = kind(4, 8, 3, padding=1)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(layer), nn.Flatten(), nn.Linear(512, 5)).eval()
    batches = [(torch.randn(8, 4, 8, 8), torch.randint(5, (8,)))]
    before = everything_about(model)
    skeletal.prune(model, batches, density=0.3, method="random", pattern=pattern)
    assert_same(before, everything_about(model))


class Margin(nn.Module):
    """A loss with weights and statistics of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.weight, self.calls = nn.BatchNorm1d(3), nn.Parameter(torch.eye(3)), 0

    def forward(self, outputs, targets):
        self.calls += 1
        return nn.functional.cross_entropy(self.norm(outputs) @ self.weight, targets)


@pytest.mark.parametrize("graded", [False, True])
def test_a_loss_with_weights_stays_as_it_was(graded):
    model, loss = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), Margin()
    if graded:
        loss(model(BATCH[0]), BATCH[1]).backward()
    before, gradients = everything_about(loss), [p.grad for p in loss.parameters()]
    mask = skeletal.prune(model, [BATCH], density=0.5, loss=loss, method="snip")
    measure_saliency(model, [BATCH], mask, count=1, loss=loss)
    skeletal.local_optimality(model, [BATCH], mask, samples=2, loss=loss)
    assert_same(before, everything_about(loss))
    assert all(p.grad is gradient for p, gradient in zip(loss.parameters(), gradients, strict=True))


class Beside(nn.Module):
    """Keeps a layer, a weight and generators where no registry knows of them."""

    def __init__(self):
        super().__init__()
        self.head, self.layers = nn.Linear(108, 3), [nn.Linear(3, 3), nn.BatchNorm1d(3)]
        self.scale = torch.ones(3, requires_grad=True)
        self.generators = torch.Generator(), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)

    def forward(self, x):
        of_torch, of_python, of_numpy, old = self.generators
        drawn = torch.rand(x.shape, generator=of_torch) + of_python.random() + of_numpy.random() + old.rand()
        return self.layers[1](self.layers[0](self.head((x * drawn).flatten(1)))) * self.scale


def test_weights_and_generators_beside_the_registries_stay_as_they_were():
    model = Beside()
    aside = [*model.layers[0].parameters(), model.scale]
    model.scale.grad = torch.ones(3)
    first = skeletal.prune(model, [BATCH], density=0.5, method="snip")
    assert [None if p.grad is None else p.grad.tolist() for p in aside] == [None, None, [1, 1, 1]]
    assert model.layers[1].running_mean.tolist() == [0, 0, 0]
    assert skeletal.prune(model, [BATCH], density=0.5, method="snip") == first
    of_torch, of_python, of_numpy, old = Beside().generators
    assert torch.equal(of_torch.get_state(), model.generators[0].get_state())
    assert of_python.getstate() == model.generators[1].getstate()
    assert of_numpy.bit_generator.state == model.generators[2].bit_generator.state
    assert old.rand() == model.generators[3].rand()
