"""What an activation makes of nothing is no path from the input, though a gradient goes through it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skeletal.core.diagnosis.diagnose import diagnose
from tests.cases import random_mask
from tests.core.diagnosis.following import followed

MAKE_SOMETHING = [nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, nn.LogSigmoid, lambda: nn.Softmax(1)]


def counts(model, mask, example):
    found = diagnose(model, mask, example)
    return {layer.name: (layer.effective, layer.on_constant, layer.dead) for layer in found.layers}, found


@pytest.mark.parametrize("activation", MAKE_SOMETHING)
def test_without_a_path_nothing_is_effective(activation):
    model = nn.Sequential(nn.Linear(3, 2, bias=False), activation(), nn.Linear(2, 2, bias=False))
    mask = {"0.weight": torch.zeros(2, 3).bool(), "2.weight": torch.ones(2, 2).bool()}
    numbers, found = counts(model, mask, torch.randn(2, 3))
    assert not found.connected and found.narrowest is None
    assert numbers == {"0.weight": (0, 0, 0), "2.weight": (0, 4, 0)}


@given(st.sampled_from(MAKE_SOMETHING[:4]), st.integers(0, 999), st.floats(0.05, 0.6), st.booleans())
def test_paths_are_those_followed_from_channel_to_channel(activation, seed, density, image):
    if image:
        layers = [nn.Conv2d(2, 4, 3, padding=1), activation(), nn.Conv2d(4, 4, 3, padding=1, bias=False), activation(),
                  nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)]  # fmt: skip
    else:
        layers = [nn.Linear(2, 4), activation(), nn.Linear(4, 4, bias=False), activation(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers)
    mask = random_mask(model, density, seed)
    effective, _ = followed(mask, dict.fromkeys(mask, True), torch.ones(2, dtype=torch.bool))
    numbers, _ = counts(model, mask, torch.randn(2, 2, 8, 8) if image else torch.randn(2, 2))
    assert {name: found[0] for name, found in numbers.items()} == {n: int(keep.sum()) for n, keep in effective.items()}


class Gated(nn.Module):
    """Squeeze and excitation: where nothing is left of the gate, half of everything passes."""

    def __init__(self):
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return self.head(x * torch.sigmoid(self.gate(x)))


def test_a_gate_that_is_pruned_away_closes_no_path():
    model = Gated()
    mask = {name: torch.ones_like(p).bool() for name, p in model.named_parameters() if p.dim() > 1}
    mask["gate.weight"][:] = False
    numbers, _ = counts(model, mask, torch.randn(2, 3))
    assert numbers == {"body.weight": (12, 0, 0), "gate.weight": (0, 0, 0), "head.weight": (8, 0, 0)}


class Tokens(nn.Module):
    """Embeddings, positions and a class token count as inputs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(5, 4), nn.Parameter(torch.randn(3, 4))
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.head(torch.sigmoid(self.first(self.embedding(tokens) + self.position))).mean(1)


def test_what_is_looked_up_or_learned_counts_as_an_input():
    model = Tokens()
    mask = {name: torch.ones_like(model.get_parameter(name)).bool() for name in ("first.weight", "head.weight")}
    mask["first.weight"][0] = False
    numbers, _ = counts(model, mask, torch.randint(5, (2, 3)))
    assert numbers == {"first.weight": (12, 0, 0), "head.weight": (6, 2, 0)}


class Sent(nn.Module):
    """Each example goes to one of two experts: where nothing enters, all go to the second."""

    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = (nn.Linear(n, m, bias=False) for n, m in ((3, 4), (4, 2), (4, 2)))

    def forward(self, x):
        hidden, there = torch.sigmoid(self.body(x)), x.sum(1) > 3
        return torch.cat([self.first(hidden[there]), self.second(hidden[~there])])


class Divides(Sent):
    """Refuses to run on zeros."""

    def forward(self, x):
        if not x.any():
            raise ValueError("an empty image")
        return self.second(torch.sigmoid(self.body(x))) + self.first(torch.sigmoid(self.body(x)))


@pytest.mark.parametrize("network", [Sent, Divides])
def test_a_network_that_goes_another_way_on_zeros_is_judged_by_its_gradients(network):
    model = network()
    mask = {name: torch.ones_like(weight).bool() for name, weight in model.named_parameters()}
    numbers, _ = counts(model, mask, torch.randn(8, 3))
    assert numbers == {"body.weight": (12, 0, 0), "first.weight": (8, 0, 0), "second.weight": (8, 0, 0)}
