"""Networks that do what few do: each gets the mask that it would get otherwise, or is refused in words that help."""

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import skeletal
from skeletal.core.diagnosis.optimality import local_optimality
from skeletal.core.diagnosis.saliency import measure_saliency
from skeletal.core.errors import CollapsedError

LABELLED = [(torch.randn(32, 6, generator=torch.Generator().manual_seed(i)), torch.arange(32) % 3) for i in range(4)]


class Listed(nn.Module):
    """Reads its second layer through a list of parameters, as hand-written recurrent networks do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.flat = [self.b.weight, self.b.bias]

    def forward(self, x):
        return self.c(functional.linear(self.a(x).relu(), *self.flat).relu())


@pytest.mark.parametrize("method", ["snip", "grasp", "force"])
@pytest.mark.parametrize("used", [False, True])
def test_a_weight_that_is_read_elsewhere_is_not_taken_for_useless(method, used):
    model = Listed()
    if used:
        model(LABELLED[0][0]).sum().backward()  # it has a gradient already, which is added to
    with pytest.raises(ValueError, match=r"b.weight is used through another reference than its module's own"):
        skeletal.prune(model, LABELLED, density=0.2, method=method)
    assert (model.b.weight.grad is not None) == used


@pytest.mark.parametrize(
    "norm, name", [(parametrizations.weight_norm, "parametrizations.weight.original1"), (weight_norm, "weight_v")]
)
@pytest.mark.parametrize("method", ["random", "magnitude", "snip", "force"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_no_unit_of_a_weight_norm_is_emptied(method, norm, name):
    model = nn.Sequential(norm(nn.Linear(6, 32)), nn.ReLU(), nn.Linear(32, 3))
    weights = [f"0.{name}", "2.weight"]
    with pytest.raises(CollapsedError, match=rf"no weight is left in unit \d+ of 0.{name} \(32, 6\)"):
        skeletal.prune(model, LABELLED, density=0.1, method=method, prunable=weights, on_collapse="keep")
    mask = skeletal.prune(model, LABELLED, density=0.95, method=method, prunable=weights)
    mask.attach(model)
    assert model(LABELLED[0][0]).isfinite().all()


class Noisy(nn.Module):
    """Dropout by a generator of the model's own."""

    def __init__(self, kind):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
        self.own, self.drawn = (torch.Generator() if kind == "own" else None), []

    def forward(self, x):
        keep = torch.rand(32, generator=self.own).lt(0.5)
        self.drawn.append(keep)
        return self.layers[2](self.layers[1](self.layers[0](x)) * keep)


@pytest.mark.parametrize("kind", ["own", "torch's"])
@pytest.mark.parametrize("method", ["grasp", "prospr", "ntk-sap"])
def test_both_passes_of_a_step_draw_the_same(method, kind):
    model = Noisy(kind)
    drawn = []
    model.register_forward_hook(lambda *_: drawn.append(model.drawn[-1]))
    steps = {"steps": 1} if method == "ntk-sap" else {}
    skeletal.prune(model, LABELLED, density=0.3, method=method, **steps)
    different = {tuple(keep.tolist()) for keep in drawn[:-1]}  # the last looks for a path
    assert len(different) <= len(drawn) // 2, "a pass was not drawn again"


class Sources(nn.Module):
    """A block whose noise comes from torch, from a generator of its own, from numpy or from Python."""

    own = torch.Generator().manual_seed(5)

    def __init__(self, kind):
        super().__init__()
        self.layer, self.beside, self.kind, self.generator = nn.Linear(32, 32), nn.Linear(32, 32), kind, Sources.own

    def forward(self, x):
        draw = {
            "torch": lambda: torch.rand(32),
            "own": lambda: torch.rand(32, generator=self.generator),
            "numpy": lambda: torch.from_numpy(np.random.rand(32).astype(np.float32)),
            "python": lambda: torch.tensor([random.random() for _ in range(32)]),
        }[self.kind]()
        return self.beside((self.layer(x) * draw.add(0.1)).relu()) + x


@pytest.mark.parametrize("kind", ["torch", "own", "numpy", "python"])
def test_recomputed_blocks_draw_the_same(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), Sources(kind), Sources(kind), nn.Linear(32, 3))
    masks = [
        skeletal.prune(model, LABELLED, density=0.3, method="force", steps=4, recompute=recompute)
        for recompute in (False, True)
    ]
    assert masks[0] == masks[1]


class Refilled:
    """Batches that all lie in the memory of the first."""

    def __iter__(self):
        x, y = torch.empty(32, 6), torch.empty(32, dtype=torch.long)
        for inputs, targets in LABELLED:
            x.copy_(inputs)
            y.copy_(targets)
            yield x, y


@pytest.mark.parametrize("method", ["force", "grasp", "prospr", "px"])
def test_batches_may_share_their_memory(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    settings = {"density": 0.3, "method": method, "batches_per_step": 3, "on_collapse": "keep"}
    assert skeletal.prune(model, Refilled(), **settings) == skeletal.prune(model, LABELLED, **settings)


class Spectra(nn.Module):
    """Takes (N, F, T, 2), real and imaginary parts, which only lie side by side in the caller's own order."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 16, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        z = torch.view_as_complex(x)
        return self.b(self.a(torch.stack([z.abs().log1p(), z.angle()], 1)).relu())


@pytest.mark.parametrize("method", ["force", "grasp"])
def test_images_stay_in_the_callers_order_where_the_network_counts_on_it(method):
    batches = [(torch.randn(4, 9, 7, 2), torch.randn(4, 2, 9, 7))]
    mask = skeletal.prune(Spectra(), batches, density=0.5, method=method, loss=functional.mse_loss, on_collapse="keep")
    assert mask.kept == mask.total // 2


class Upsampling(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.up, self.out = wrap(nn.ConvTranspose1d(8, 4, 4, stride=2)), nn.Conv1d(4, 1, 3)

    def forward(self, x):
        return self.out(self.up(x).tanh())


@pytest.mark.parametrize(
    "wrap, name",
    [
        (lambda layer: layer, "weight"),
        (parametrizations.spectral_norm, "parametrizations.weight.original"),
        (parametrizations.weight_norm, "parametrizations.weight.original1"),
        (spectral_norm, "weight_orig"),
        (weight_norm, "weight_v"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(weight|spectral)_norm.*:FutureWarning")
def test_a_normed_weight_is_read_as_the_layer_reads_it(wrap, name):
    torch.manual_seed(0)
    model = Upsampling(wrap)
    batches = [(torch.randn(4, 8, 10), torch.randn(4, 1, 20))]
    settings = {"method": "snip", "prunable": [f"up.{name}"], "loss": functional.mse_loss, "on_collapse": "keep"}
    mask = skeletal.prune(model, batches, density=0.3, pattern="fan-in", **settings)
    keep = mask[f"up.{name}"]  # (inputs, outputs, kernel)
    assert keep.sum((0, 2)).tolist() == [9] * 4
    found = skeletal.diagnose(model, mask, batches[0][0])
    assert (found.layers[0].live_inputs, found.layers[0].live_outputs) == (int(keep.any(2).any(1).sum()), 4)
    assert found.macs.forward_kept == 9 * 4 * 10


class Fourier(nn.Module):
    """A layer of complex weights between two others."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x):
        return self.b(torch.fft.irfft(torch.fft.rfft(self.a(x)) * self.filter, n=8))


@pytest.mark.parametrize("method", ["synflow", "px", "npb", "phew"])
def test_complex_parameters_are_no_obstacle(method):
    assert skeletal.prune(Fourier(), LABELLED, density=0.5, method=method).kept == 36


class WithADenseForm(nn.Linear):
    def to_dense(self, what):
        raise AssertionError("a method of the network's own")


def test_a_networks_own_methods_are_left_alone():
    model = WithADenseForm(6, 3)
    mask = skeletal.prune(model, density=0.5, method="random")
    mask.attach(model)
    mask.check(model)


class Twice(nn.Module):
    """One layer used twice, under one name or under two."""

    def __init__(self, names):
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        nn.init.normal_(self.a.bias)
        if names == 2:
            self.b, self.again = self.a, self.norm

    def forward(self, x):
        return self.c(torch.relu(self.norm(self.a(torch.relu(self.norm(self.a(x)))))))


@pytest.mark.parametrize("method", ["force", "grasp-it", "synflow", "px", "npb", "phew", "ntk-sap", "prospr"])
def test_a_module_under_two_names_is_as_one_under_one(method):
    batch = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    masks, models = [], []
    for names in (1, 2):
        torch.manual_seed(0)
        models.append(Twice(names))
        registered = [id(p) for module in models[-1].modules() for p in module._parameters.values()]
        several = {"steps": 4} if method in ("force", "grasp-it", "synflow", "px", "ntk-sap") else {}

        def unchanged(step, model=models[-1], registered=registered):
            assert [id(p) for module in model.modules() for p in module._parameters.values()] == registered

        masks.append(
            skeletal.prune(
                models[-1], batch, density=0.4, method=method, on_collapse="keep", on_step=unchanged, **several
            )
        )
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_a_mask_may_use_the_other_name_of_a_tied_weight():
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 3)))
    model.b.weight = model.a.weight
    batch = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    first = skeletal.prune(model, batch, density=0.5, method="snip")
    other = {name.replace("a.", "b."): keep for name, keep in first.items()}
    assert "b.weight" in other
    assert skeletal.diagnose(model, other, batch[0][0]) == skeletal.diagnose(model, first, batch[0][0])
    assert measure_saliency(model, batch, other, count=1) == measure_saliency(model, batch, first, count=1)
    assert local_optimality(model, batch, other) == local_optimality(model, batch, first)


def test_a_pattern_refuses_a_weight_that_two_layers_read_in_two_ways():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"0\.weight \(4, 2, 3, 3\) is the weight of several layers"):
        skeletal.prune(model, density=0.5, method="magnitude", pattern="fan-in")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:.*layers keep other numbers")
@pytest.mark.parametrize("method", ["snip", "phew", "npb", "random-erk"])
@pytest.mark.parametrize("pattern", [None, "2:4", "channels"])
def test_layers_without_weights_are_left_out(method, pattern):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.nothing, self.head = nn.Linear(4, 6), nn.Linear(4, 0), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.cat([torch.relu(self.body(x)), self.nothing(x)], 1))

    model, batch = Partly(), (torch.randn(8, 4), torch.randint(3, (8,)))
    mask = skeletal.prune(model, [batch], density=0.5, method=method, pattern=pattern)
    assert list(mask) == ["body.weight", "head.weight"]
    whole = dict(mask) | {"nothing.weight": torch.ones(0, 4).bool()}
    assert skeletal.diagnose(model, whole, batch[0]).effective == skeletal.diagnose(model, mask, batch[0]).effective
