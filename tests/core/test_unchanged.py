"""No public function leaves anything in the caller's model: tables, activations, counters, modes, computed weights."""

import random
from collections import OrderedDict, defaultdict, deque
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

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


class Eager(dict):
    """A dict whose class is made from other arguments."""

    def __init__(self, size, mode):
        super().__init__()
        self.size = size


class Default(defaultdict):
    def __init__(self):
        super().__init__(list)


class Ordered(OrderedDict):
    def __init__(self, name):
        super().__init__()


class Recent(deque):
    def __init__(self):
        super().__init__(maxlen=3)


class Incomparable:
    """Says neither yes nor no when compared."""

    def __init__(self, answer):
        self.answer = answer

    def __eq__(self, other):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def __hash__(self):
        return id(self)


class Attributes(nn.Module):
    """Keeps what people keep, and writes to it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(108, 3)
        self.names = {parameter: name for name, parameter in self.head.named_parameters()}
        self.keyed = {Incomparable(np.zeros(2)): 0, Incomparable(ValueError("no")): 1, (0, torch.ones(2)): 2}
        self.members = {torch.ones(2), Incomparable(None)}
        self.kinds = Eager(1, "r"), Default(), Ordered("seen"), Recent()
        self.last = 0

    def forward(self, x):
        self.last += 1
        eager, default, ordered, recent = self.kinds
        eager["x"], ordered["x"] = x, x
        default["x"].append(x)
        recent.append(x)
        self.names[x] = "input"
        self.members.add(x)
        self.keyed[(0, torch.ones(2))] = self.keyed.pop(next(iter(self.keyed)))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("function", ["prune snip", "diagnose", "saliency", "optimality"])
def test_attributes_of_any_kind_are_put_back(function):
    model = Attributes()
    mask = skeletal.Mask(random_mask(model, 0.5))
    names, keyed, members = dict(model.names), [*model.keyed.items()], {id(member) for member in model.members}
    for _ in range(2):
        FUNCTIONS[function](model, mask)
        assert model.last == 0 and [len(kind) for kind in model.kinds] == [0, 0, 0, 0]
        assert [type(kind) for kind in model.kinds] == [Eager, Default, Ordered, Recent]
        assert [*map(id, model.names)] == [*map(id, names)] and {*map(id, model.members)} == members
        assert [(id(key), value) for key, value in model.keyed.items()] == [(id(key), value) for key, value in keyed]


MARGIN, TEMPERATURE = Margin(), nn.Parameter(torch.ones(()))


def by_global(outputs, targets):
    return MARGIN(outputs, targets)


def losses(margin, temperature):
    """Ways in which a loss comes to weights and statistics that are not the model's."""
    return {
        "method": margin.forward,
        "lambda": lambda outputs, targets: margin(outputs, targets),
        "temperature": lambda outputs, targets: F.cross_entropy(outputs / temperature, targets),
        "default": lambda outputs, targets, margin=margin: margin(outputs, targets),
        "partial": partial(lambda loss, outputs, targets: loss(outputs, targets), margin),
        "inside": lambda outputs, targets: sum(margin(outputs, targets) for _ in range(2)),
        "wrapped": torch.enable_grad()(lambda outputs, targets: margin(outputs, targets)),
    }


LOSSES = losses(MARGIN, TEMPERATURE) | {
    "global": by_global,
    "global function": lambda outputs, targets: by_global(outputs, targets),
    "global inside": lambda outputs, targets: sum(MARGIN(outputs, targets) / TEMPERATURE for _ in range(2)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_is_a_function_leaves_nothing_in_what_it_reaches(loss):
    model, before = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), everything_about(MARGIN)
    mask = skeletal.prune(model, [BATCH], density=0.5, loss=LOSSES[loss], method="snip")
    measure_saliency(model, [BATCH], mask, count=1, loss=LOSSES[loss])
    skeletal.local_optimality(model, [BATCH], mask, samples=2, loss=LOSSES[loss])
    assert_same(before, everything_about(MARGIN))
    assert TEMPERATURE.grad is None


def test_a_loss_that_is_a_function_may_keep_a_record():
    record, weights = [], [torch.ones((), requires_grad=True)]

    def loss(outputs, targets):
        record.append(F.cross_entropy(outputs * weights[0], targets))
        return record[-1]

    skeletal.prune(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), [BATCH], density=0.5, loss=loss, method="snip")
    assert len(record) == 1 and weights[0].grad is None


@pytest.mark.parametrize("function", [*FUNCTIONS, "prune px", "prune npb", "prune ntk-sap"])
@pytest.mark.parametrize("off", [torch.inference_mode, torch.no_grad])
@pytest.mark.filterwarnings("ignore")
def test_gradients_that_the_caller_has_switched_off(function, off):
    def run(model, mask, batch=BATCH):
        if function in FUNCTIONS:
            return FUNCTIONS[function](model, mask)
        method = function.removeprefix("prune ")
        steps = None if skeletal.METHODS[method].one_shot else 2
        return skeletal.prune(model, [batch], density=0.5, steps=steps, method=method, on_collapse="keep")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    mask = skeletal.Mask(random_mask(model, 0.5))
    truth = run(model, mask)
    with off():
        found, batch = run(model, mask), (BATCH[0] * 1, BATCH[1] * 1)
    if function.startswith("prune"):
        assert found == truth == run(model, mask, batch)
        assert not any(keep.is_inference() for keep in found.values())
