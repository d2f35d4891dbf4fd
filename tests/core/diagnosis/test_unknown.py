"""What no gradient reaches is dead only if it changes nothing; else nothing is claimed of it."""

import pytest
import torch
from torch import nn

from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.model.weights import prunable_weights


class Ends(nn.Module):
    """Two layers and a second head; kinds differ in what they make of them."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.one, self.two, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 2)
        self.function = forward

    def forward(self, x):
        return self.function(self, torch.relu(self.one(x)))


@pytest.mark.parametrize(
    ("ends", "dead", "unknown"),
    [
        (lambda self, x: {"logits": self.two(x), "loss": self.aux(x).square().mean()}, [], []),
        (lambda self, x: {"loss": self.two(x).mean() + self.aux(x).square().mean()}, [], []),
        (lambda self, x: self.two((x * 8).round()) + self.aux(x).mean(), [], []),
        (lambda self, x: self.two((x * 8).round()) + self.aux((x * 8).round()).mean(), [], ["one.weight"]),
        (lambda self, x: self.two(x) + (self.aux(x) * 8).floor().mean(), [], ["aux.weight"]),
        (lambda self, x: self.two(x) if not self.training else self.aux(x), [], []),
        (lambda self, x: self.two(x) + 0 * self.aux(x).mean(), ["aux.weight"], []),
    ],
)
def test_what_no_gradient_reaches_is_dead_only_if_it_changes_nothing(ends, dead, unknown):
    torch.manual_seed(0)
    model = Ends(ends)
    everything = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    found = diagnose(model, everything, torch.randn(5, 6))
    assert found.connected
    for layer in found.layers:
        kinds = layer.effective, layer.dead, layer.unknown
        assert [kind and layer.name for kind in kinds].count(layer.name) == 1
        assert bool(layer.dead) == (layer.name in dead) and bool(layer.unknown) == (layer.name in unknown)


def test_a_network_that_ends_in_an_argmax_is_not_known():
    found = diagnose(
        Ends(lambda self, x: self.two(x).argmax(-1) + 0.5),
        {"one.weight": torch.ones(8, 6, dtype=torch.bool)},
        torch.randn(5, 6),
    )
    assert found.layers[0].unknown == 48 and not found.layers[0].dead
