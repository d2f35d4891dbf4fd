"""Networks that need negative values, large ones or many examples: what a gradient reaches is not called dead."""

import warnings

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.weights import prunable_weights

F = nn.functional


class Layers(nn.Module):
    """Three layers, put together by a function."""

    def __init__(self, forward, middle=8):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(middle, 3)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


class Centred(nn.Conv2d):
    """Weight standardization: every filter has negative weights."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Experts(nn.Module):
    """Each example goes to one of four experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

    def forward(self, x):
        share, which = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            chosen = which == number
            out[chosen] = expert(x[chosen]) * share[chosen, None]
        return out


class TimeFirst(nn.Module):
    """A convolution along the first dimension of (time, batch, features)."""

    def __init__(self):
        super().__init__()
        self.conv, self.o = nn.Conv1d(6, 8, 5, padding=2), nn.Linear(8, 3)

    def forward(self, x):
        return self.o(self.conv(x.permute(1, 2, 0)).relu().mean(2))


NETWORKS = {
    "crelu": lambda: Layers(lambda m, x: m.o(torch.cat([m.a(x).relu(), (-m.b(x)).relu()], 1)), 16),
    "negated": lambda: Layers(lambda m, x: m.o((-m.a(x)).relu() + (-m.b(x)).relu())),
    "minimum": lambda: Layers(lambda m, x: m.o(m.a(x).clamp(max=0) + m.b(x))),
    "threshold": lambda: Layers(lambda m, x: m.o(F.softshrink(m.a(x), 2.0) + m.b(x))),
    "centred": lambda: nn.Sequential(
        Centred(6, 8, 3), nn.ReLU(), Centred(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ),
    "orthogonal": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)
    ),
    "experts": Experts,
    "time first": TimeFirst,
}
INPUTS = {"centred": (8, 6, 6, 6), "time first": (9, 4, 6)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_no_weight_with_a_gradient_is_called_dead(name, seed):
    torch.manual_seed(seed)
    model, shape = NETWORKS[name]().double(), INPUTS.get(name, (32, 6))
    mask = {n: torch.rand(w.shape) < 0.6 for n, w in prunable_weights(model).items()}
    moved = {n: torch.zeros_like(keep) for n, keep in mask.items()}
    for _ in range(30):  # a slower truth: gradients at many weights and inputs, pruned ones zero
        with torch.no_grad():
            for n, w in model.named_parameters():
                w.normal_().mul_(mask.get(n, 1))
        model.zero_grad()
        (model(3 * torch.randn(shape).double()) * torch.randn(3).double()).sum().backward()
        for n in mask:
            moved[n] |= mask[n] & model.get_parameter(n).grad.ne(0)
    found = skeletal.diagnose(model, mask, torch.randn(shape).double())
    assert found.connected
    assert {layer.name: layer.effective + layer.on_constant for layer in found.layers} == {
        n: int(reached.sum()) for n, reached in moved.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = (torch.randn(shape).double(), torch.randint(3, (shape[1 if name == "time first" else 0],)))
        assert skeletal.prune(model, [batch], density=0.7, method="random", seed=seed).metadata["connected"]


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_path_nothing_is_effective_at_any_sign(name):
    torch.manual_seed(0)
    model, shape = NETWORKS[name](), INPUTS.get(name, (32, 6))
    mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    for n in list(mask)[-4 if name == "experts" else -1 :]:
        mask[n].zero_()
    found = skeletal.diagnose(model, mask, torch.randn(shape))
    assert found.connected is False and not found.effective


@pytest.mark.parametrize("seed", range(3))
def test_inputs_that_a_network_refuses_prove_nothing(seed):
    def checked(m, x):
        if x.min() < 0:
            raise ValueError("only positive inputs")
        return m.o(m.a(x).relu() + 0 * m.b(x))

    torch.manual_seed(seed)
    model = Layers(checked)
    mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    found = {layer.name: layer.dead for layer in skeletal.diagnose(model, mask, torch.rand(4, 6)).layers}
    assert found == {"a.weight": 0, "b.weight": 48, "o.weight": 0}
