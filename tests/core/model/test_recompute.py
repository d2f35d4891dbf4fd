"""Parts run again on the way back: the same masks to the bit, fewer tensors held, and the model as it was found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.recompute import recomputing
from skeletal.core.model.tensors import flatten
from skeletal.core.model.weights import prunable_weights
from tests.cases import images
from tests.unchanged import assert_same, everything_about


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Conv2d(width, width, 1)
        self.runs = 0

    def forward(self, x, *, scale=1.0):
        self.runs += 1
        return x + scale * self.last(self.dropout(self.body(x)))


class Blocks(nn.Module):
    """Repeated blocks, the second with an argument by name."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x, scale=0.5 + i)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 2, 24, 0.1, batch_first=True), 3)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def sequence(width=8):
    """Long, with modules that write to their input."""
    layers = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(5):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Hardswish(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


NETWORKS = {"blocks": Blocks, "attention": Attention, "sequence": sequence}


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "force", "steps": 4, "batches_per_step": 2},
        {"method": "grasp", "batches_per_step": 2},
        {"method": "force", "steps": 3, "precision": "bfloat16"},
        {"method": "snip", "average": "absolute", "batches_per_step": 2, "micro_batch": 7},
        {"method": "force", "steps": 6, "engine": "sparse"},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_the_same_mask_to_the_bit(name, settings):
    model = made(name)
    before = everything_about(model)
    scores = {}
    masks = {
        again: skeletal.prune(
            model,
            images(3),
            density=0.1,
            recompute=again,
            on_step=lambda step, again=again: scores.setdefault(again, []).append(flatten(step.scores)),
            **settings,
        )
        for again in (False, True)
    }
    assert masks[True] == masks[False]
    assert all(torch.equal(one, two) for one, two in zip(scores[False], scores[True], strict=True))
    assert [masks[again].metadata["recompute"] for again in masks] == [False, True]
    assert_same(before, everything_about(model))
    assert all("forward" not in module.__dict__ for module in model.modules())


def held(model, recompute):
    """Numbers that a forward pass keeps for the way back."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets)

    own = {p.data_ptr() for p in model.parameters()}
    x, y = images(1)[0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if recompute:
            with recomputing(model):
                result = loss(model(x), y)
        else:
            result = loss(model(x), y)
    return sum(size for pointer, size in kept.items() if pointer not in own), result


@pytest.mark.parametrize("name", NETWORKS)
def test_much_less_is_held(name):
    model = made(name)
    assert held(model, recompute=True)[0] < 0.6 * held(model, recompute=False)[0]


def test_every_block_runs_twice():
    model = made("blocks")
    Derivatives(model, Cycle(images(1)), 1, recompute=True).gradient(prunable_weights(model))
    assert [block.runs for block in model.blocks] == [2, 2, 2]


def test_a_part_that_writes_to_its_input_is_refused():
    class Writes(Block):
        def forward(self, x, *, scale=1.0):
            return super().forward(x.mul_(scale))

    model = made("blocks")
    model.blocks = nn.ModuleList([Writes(8) for _ in range(2)])
    with pytest.raises(RuntimeError, match=r"Writes writes to its own input.*leave recompute out"):
        skeletal.prune(model, images(1), density=0.5, method="snip", recompute=True)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_forward_of_the_callers_own_is_put_back():
    model = made("blocks")
    mine = lambda x, scale=1.0: x  # noqa: E731
    model.blocks[1].forward = mine
    skeletal.prune(model, images(1), density=0.5, method="snip", recompute=True, prunable=["stem.weight"])
    assert model.blocks[1].forward is mine


def test_blocks_of_several_parents():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = Block(3), Block(3)
            self.parents = nn.ModuleList([nn.ModuleDict({"one": blocks[0], "two": blocks[1]}) for _ in range(2)])
            self.head = nn.Linear(3, 10)

        def forward(self, x):
            for parent in self.parents:
                x = parent["two"](parent["one"](x))
            return self.head(x.mean((2, 3)))

    model = Shared()
    found = [
        Derivatives(model, Cycle(images(1)), 1, bn_mode="eval", recompute=again).gradient(prunable_weights(model))
        for again in (False, True)
    ]
    for name, gradient in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], gradient, rtol=1e-5, atol=1e-7)
    assert model.parents[0]["one"].runs == 6  # twice before, four times with recomputing
    assert all("forward" not in module.__dict__ for module in model.modules())


class Normed(nn.Module):
    """Layers whose weights come of a power iteration, which goes on with every run, and a count that scales."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.one, self.two = norm(nn.Linear(10, 10)), nn.utils.spectral_norm(nn.Linear(10, 10))
        self.register_buffer("count", torch.ones(()))

    def forward(self, x):
        self.count += 1
        return x + self.two(torch.relu(self.one(x))) / self.count


@pytest.mark.parametrize("which", ["gradient", "hessian_gradient"])
@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_blocks_that_write_to_buffers_start_again_from_the_same(which, bn_mode):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10, momentum=None), nn.Tanh())
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), Normed(), Normed(), *layers, *layers).double()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    batches = [(x.double(), y) for x, y in images(2)]
    plain, again = (
        getattr(Derivatives(model, Cycle(batches), 2, bn_mode=bn_mode, recompute=recompute), which)(weights)[0]
        for recompute in (False, True)
    )
    assert all(gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name
